"""EventBridge schedules that delete an endpoint or stop a job, and repeat the call until the schedule is deleted."""

import json
from datetime import datetime, timedelta, timezone
from functools import partial

from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import EXPIRY_QUEUE
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.stack.stack import Request, Stack

EVERY_S = 600
"""Seconds between a schedule's calls. It repeats, because it is not documented that Scheduler retries refused calls,
such as deleting an endpoint that is still being created. Once the resource is gone, calls fail at no cost; `aws down`
and the next `aws deploy` of the run delete the schedule."""

LATE_S = 60
"""Maximum delay in seconds of a call by EventBridge Scheduler."""

RETRIES = {"MaximumEventAgeInSeconds": EVERY_S, "MaximumRetryAttempts": 185}
"""Undelivered calls are retried until the next call; 185 is the largest number of retries."""


def ending(name: str, stack: Stack, target: str, arguments: Request, *, hours: float) -> Call:
    """Return the call that creates a schedule, which repeats a call, without an end, to delete or stop a resource.

    A schedule cannot have tags (its group can), so its name contains the run. UpdateSchedule takes the same request,
    and resets omitted parameters to their defaults. The uploads before it may take hours, so the time of the first call
    is set again when it is sent.

    Args:
        name: The schedule's name.
        stack: The stack with the role of the calls, and with the queue for rejected ones.
        target: The call's name as a universal target of Scheduler, such as sagemaker:deleteEndpoint.
        arguments: The call's arguments.
        hours: The hours until the first call.
    """
    request = {
        "Name": name,
        "ScheduleExpression": f"rate({EVERY_S // 60} minutes)",
        **starting_in(hours),
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "Target": {
            "Arn": f"arn:{stack.site.partition}:scheduler:::aws-sdk:{target}",
            "RoleArn": stack.site.role_arn("expiry"),
            "Input": json.dumps(arguments),
            "RetryPolicy": RETRIES,
            "DeadLetterConfig": {"Arn": stack.expiry_queue},
        },
    }
    return Call("scheduler", "create_schedule", request, "schedule", name, partial(starting_in, hours))


def starting_in(hours: float) -> Request:
    """Return the parameter of a schedule whose first call is the given number of hours from now."""
    first = datetime.now(timezone.utc) + timedelta(hours=hours)
    return {"StartDate": first.replace(microsecond=0).isoformat()}


def time_of(schedule: Request) -> datetime:
    """Return the time of a schedule's first call (UTC).

    Args:
        schedule: A request from `ending`, or the answer of GetSchedule.
    """
    first = schedule["StartDate"]
    return (datetime.fromisoformat(first) if isinstance(first, str) else first).astimezone(timezone.utc)


def rejected_calls(account: Account) -> tuple[int, dict[str, str]]:
    """Return the calls of schedules that AWS rejected in the last 14 days; they stay in the queue.

    Returns:
        The approximate number of all of them, and the error message by the schedule's name, of at most ten calls.

    Raises:
        AwsError: If SQS cannot be reached, or refuses.
    """
    found = account.find("sqs", "get_queue_url", QueueName=EXPIRY_QUEUE)
    if found is None:
        return 0, {}
    queue = {"QueueUrl": found["QueueUrl"]}
    counted = "ApproximateNumberOfMessages"
    count = account.call("sqs", "get_queue_attributes", AttributeNames=[counted], **queue)["Attributes"][counted]
    # The attributes of a message are those of Scheduler's user guide (configuring-schedule-dlq).
    given = {"MaxNumberOfMessages": 10, "VisibilityTimeout": 0, "MessageAttributeNames": ["All"]}
    reasons = {}
    for message in account.call("sqs", "receive_message", **queue, **given).get("Messages", []):
        values = {key: each.get("StringValue", "") for key, each in message.get("MessageAttributes", {}).items()}
        reasons[values.get("SCHEDULE_ARN", "").rpartition("/")[2]] = values.get("ERROR_MESSAGE", "no reason is known")
    return int(count), reasons
