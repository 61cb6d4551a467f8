"""The exact request of a one-off schedule: one call to AWS at one time, made by AWS's own clock."""

import json
from datetime import datetime, timezone

from sagemaker_jobs.requests import Request

RETRIES = {"MaximumEventAgeInSeconds": 86400, "MaximumRetryAttempts": 185}
"""EventBridge Scheduler's most: it tries for a day."""


def create_one_off(name: str, *, at: datetime, role_arn: str, target: str, given: Request) -> Request:
    """CreateSchedule for one call to AWS; the schedule vanishes once that is made.

    A schedule carries no tags (its group can); the name tells whose it is. UpdateSchedule takes the same, and sets to
    its default what is left out.

    Args:
        name: The schedule's.
        at: When, with its time zone.
        role_arn: What may make that call, for the scheduler.
        target: The call, as Scheduler's universal targets name it.
        given: The call's arguments.
    """
    return {
        "Name": name,
        "ScheduleExpression": f"at({at.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%S})",
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Target": {"Arn": target, "RoleArn": role_arn, "Input": json.dumps(given), "RetryPolicy": RETRIES},
    }


def time_of(schedule: Request) -> datetime:
    """When a schedule of `create_one_off` makes its call (UTC)."""
    return datetime.strptime(schedule["ScheduleExpression"], "at(%Y-%m-%dT%H:%M:%S)").replace(tzinfo=timezone.utc)
