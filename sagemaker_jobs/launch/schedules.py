"""The exact request of what ends something: a call to AWS, made by AWS's own clock until it has worked."""

import json
from datetime import datetime, timedelta, timezone

from sagemaker_jobs.aws.place import Request

EVERY_S = 600
"""Nobody has written down that Scheduler tries again what AWS refuses, such as the end of an endpoint that is still
being made: so the schedule itself comes back. Once the thing is gone, its calls fail, and cost nothing."""

KEEPS_TRYING = timedelta(days=7)

LATE_S = 60
"""EventBridge Scheduler calls within a minute of its time."""

RETRIES = {"MaximumEventAgeInSeconds": EVERY_S, "MaximumRetryAttempts": 185}
"""What could not be delivered is tried again until the next call comes; 185 are the most."""


def create_ending(name: str, *, at: datetime, role_arn: str, target: str, given: Request) -> Request:
    """CreateSchedule for a call to AWS that ends something, from then on again and again, and at last for the schedule.

    A schedule carries no tags (its group can); the name tells whose it is. UpdateSchedule takes the same, and sets to
    its default what is left out.

    Args:
        name: The schedule's.
        at: When first, with its time zone.
        role_arn: What may make that call, for the scheduler.
        target: The call, as Scheduler's universal targets name it: sagemaker:deleteEndpoint.
        given: The call's arguments.
    """
    partition = role_arn.split(":")[1]  # a role is of the partition that its account is in
    return {
        "Name": name,
        "ScheduleExpression": f"rate({EVERY_S // 60} minutes)",
        **times(at),
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Target": {
            "Arn": f"arn:{partition}:scheduler:::aws-sdk:{target}",
            "RoleArn": role_arn,
            "Input": json.dumps(given),
            "RetryPolicy": RETRIES,
        },
    }


def times(at: datetime) -> Request:
    """When a schedule makes its first call, and from when on none: what of its request depends on the time.

    Args:
        at: The first, with its time zone.
    """
    first = at.astimezone(timezone.utc).replace(microsecond=0)
    return {"StartDate": first.isoformat(), "EndDate": (first + KEEPS_TRYING).isoformat()}


def times_after(hours: float) -> Request:
    """The same, so many hours from now on."""
    return times(datetime.now(timezone.utc) + timedelta(hours=hours))


def time_of(schedule: Request) -> datetime:
    """When a schedule makes its first call (UTC).

    Args:
        schedule: A request of `create_ending`, or what GetSchedule answers.
    """
    first = schedule["StartDate"]
    return (datetime.fromisoformat(first) if isinstance(first, str) else first).astimezone(timezone.utc)
