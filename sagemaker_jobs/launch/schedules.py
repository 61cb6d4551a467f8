"""EventBridge schedules that delete an endpoint or stop a job, and repeat the call until the schedule is deleted."""

import json
from datetime import datetime, timedelta, timezone

from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.stack.stack import Request

EVERY_S = 600
"""Seconds between a schedule's calls. It repeats, because it is not documented that Scheduler retries refused calls,
such as deleting an endpoint that is still being created. Once the resource is gone, calls fail at no cost; `aws down`
and the next `aws deploy` of the run delete the schedule."""

LATE_S = 60
"""Maximum delay in seconds of a call by EventBridge Scheduler."""

RETRIES = {"MaximumEventAgeInSeconds": EVERY_S, "MaximumRetryAttempts": 185}
"""Undelivered calls are retried until the next call; 185 is the largest number of retries."""


def create_ending(name: str, *, at: datetime, role_arn: str, target: str, arguments: Request) -> Request:
    """Return a CreateSchedule request that calls AWS repeatedly, without an end, to delete or stop a resource.

    A schedule cannot have tags (its group can), so its name contains the run. UpdateSchedule takes the same request,
    and resets omitted parameters to their defaults.

    Args:
        name: The schedule's name.
        at: The time of the first call, with its time zone.
        role_arn: The role with which the scheduler makes the call.
        target: The call's name as a universal target of Scheduler, such as sagemaker:deleteEndpoint.
        arguments: The call's arguments.
    """
    partition = role_arn.split(":")[1]  # the partition of a role is that of its account
    return {
        "Name": name,
        "ScheduleExpression": f"rate({EVERY_S // 60} minutes)",
        **times(at),
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "Target": {
            "Arn": f"arn:{partition}:scheduler:::aws-sdk:{target}",
            "RoleArn": role_arn,
            "Input": json.dumps(arguments),
            "RetryPolicy": RETRIES,
        },
    }


def times(at: datetime) -> Request:
    """Return the time-dependent parameter of a schedule: its start.

    Args:
        at: The time of the first call, with its time zone.
    """
    return {"StartDate": at.astimezone(timezone.utc).replace(microsecond=0).isoformat()}


def times_after(hours: float) -> Request:
    """Return the same for a first call the given number of hours from now."""
    return times(datetime.now(timezone.utc) + timedelta(hours=hours))


def time_of(schedule: Request) -> datetime:
    """Return the time of a schedule's first call (UTC).

    Args:
        schedule: A request from `create_ending`, or the answer of GetSchedule.
    """
    first = schedule["StartDate"]
    return (datetime.fromisoformat(first) if isinstance(first, str) else first).astimezone(timezone.utc)


def failed_calls(account: Account, since: datetime) -> int:
    """Return how many calls of the account's schedules their targets have rejected.

    Args:
        account: The account and region.
        since: The start of the counted period, with its time zone.

    Raises:
        AwsError: If CloudWatch cannot be reached, or refuses.
    """
    now = datetime.now(timezone.utc)
    # CloudWatch returns at most 1,440 periods, keeps minutes for 15 days and five minutes for 63 (GetMetricStatistics),
    # and counts per group of schedules only.
    age = now - since
    unit_s = 60 if age < timedelta(days=15) else 300 if age < timedelta(days=63) else 3600
    period_s = unit_s * (1 + int(age / timedelta(seconds=1440 * unit_s)))
    answer = account.call(
        "cloudwatch",
        "get_metric_statistics",
        Namespace="AWS/Scheduler",
        MetricName="TargetErrorCount",
        Dimensions=[{"Name": "ScheduleGroup", "Value": "default"}],
        StartTime=since,
        EndTime=now,
        Period=period_s,
        Statistics=["Sum"],
    )
    return sum(int(point["Sum"]) for point in answer["Datapoints"])
