"""An endpoint from its making to its end: until it answers, and its expiry."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from neuron_sum.console import duration
from neuron_sum.errors import AwsError
from neuron_sum.platform.prices import Price
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.logs import Log, known_cause, read_with_retry
from sagemaker_jobs.aws.names import ENDPOINT_LOGS, PREFIX, RECIPE_TAG, RUN_TAG, Run, run_of
from sagemaker_jobs.cleanup.kinds import hours_since
from sagemaker_jobs.endpoint.requests import SCALING, VARIANT, scaling_target
from sagemaker_jobs.launch.schedules import time_of

IN_SERVICE = "InService"
ANSWERS = (IN_SERVICE, "Updating", "SystemUpdating", "RollingBack")
FAILED = ("Failed", "OutOfService")


class EndpointFailed(AwsError):
    """An endpoint that did not come up, and never will."""


@dataclass(frozen=True)
class Endpoint:
    """What AWS says of an endpoint.

    Attributes:
        described: DescribeEndpoint's answer.
        run: Whose it is, by its tags.
    """

    described: dict[str, Any]
    run: Run

    @property
    def name(self) -> str:
        """AWS's name for it."""
        return str(self.described["EndpointName"])

    @property
    def status(self) -> str:
        """Such as InService."""
        return str(self.described["EndpointStatus"])


def describe(account: Account, name: str) -> dict[str, Any] | None:
    """DescribeEndpoint's answer; None if there is no such endpoint.

    Raises:
        AwsError: If AWS cannot be asked.
    """
    return account.find("sagemaker", "describe_endpoint", EndpointName=name)


def find(account: Account, run_or_name: str) -> Endpoint:
    """The endpoint of a run, or of that name.

    Raises:
        AwsError: If there is none.
    """
    names = [run_or_name] if run_of(run_or_name) else [Run(run_or_name, "").name("endpoint"), run_or_name]
    for name in names:
        if (found := describe(account, name)) is not None:
            tags = account.call("sagemaker", "list_tags", ResourceArn=found["EndpointArn"])["Tags"]
            values = {tag["Key"]: tag["Value"] for tag in tags}
            return Endpoint(found, Run(values.get(RUN_TAG, ""), values.get(RECIPE_TAG, "")))
    raise AwsError(
        f"no endpoint of {run_or_name!r} in {account.region}: never made, or its time was over",
        f"neuron-sum aws status lists what is there; neuron-sum aws deploy {run_or_name} makes one",
    )


def find_ours(account: Account, run_or_name: str) -> Endpoint:
    """The same, of ours alone.

    Raises:
        AwsError: If there is none, or it is somebody else's.
    """
    found = find(account, run_or_name)
    if not found.run.id or not found.name.startswith(f"{PREFIX}-"):
        raise AwsError(f"{found.name} was not made by neuron-sum", "neuron-sum aws status lists what was")
    return found


def wait(
    account: Account, name: str, say: Callable[[str], None], *, every_s: float, price: Price, instances: int
) -> None:
    """Until an endpoint answers; tells each change of its status and each line of its containers' log.

    Args:
        account: Where.
        name: The endpoint's.
        say: Is told.
        every_s: How often to look.
        price: Of its instance.
        instances: How many of them.

    Raises:
        EndpointFailed: With AWS's reason, and the known cause in the log.
        AwsError: If it is deleted meanwhile, or AWS cannot be asked, which says nothing about the endpoint.
    """
    log = Log(account, f"{ENDPOINT_LOGS}{name}", f"{VARIANT}/")
    before = ""
    while True:
        found = read_with_retry(lambda: describe(account, name), name, say, every_s)
        if found is None or found["EndpointStatus"] == "Deleting":
            raise AwsError(f"{name} was deleted before it was in service", "its expiry, or somebody's aws down")
        hours, status = hours_since(found["CreationTime"]), found["EndpointStatus"]
        if status != before:
            before = status
            say(f"{name}: {status} after {duration(hours * 3600)}, at most ${price.cost(hours, instances):.2f} by now")
        log.print_new(say)
        if status in FAILED:
            raise _failure(name, found, log)
        if status in ANSWERS:
            return
        time.sleep(every_s)


def _failure(name: str, found: dict[str, Any], log: Log) -> EndpointFailed:
    reason = " ".join(str(found.get("FailureReason", "")).split()) or "AWS gives no reason"
    cause = known_cause(reason, log.lines)
    known = f"; {cause.name}: {cause.cause}" if cause else ""
    return EndpointFailed(f"{name} failed: {reason}{known}", cause.remedy if cause else f"aws logs tail {log.group}")


def expiry_at(account: Account, run: Run) -> tuple[datetime, str] | None:
    """When the scheduler ends a run's endpoint (UTC), and with which role; None if nothing does.

    Raises:
        AwsError: If AWS cannot be asked.
    """
    if (schedule := account.find("scheduler", "get_schedule", Name=run.name("expiry"))) is None:
        return None
    return time_of(schedule), str(schedule["Target"]["RoleArn"])


def most_instances(account: Account, endpoint: Endpoint) -> tuple[str, int]:
    """The instance type of an endpoint, and how many of them there can be.

    Raises:
        AwsError: If AWS cannot be asked.
    """
    name = str(endpoint.described["EndpointConfigName"])
    config = account.call("sagemaker", "describe_endpoint_config", EndpointConfigName=name)
    [variant] = config["ProductionVariants"]
    found = account.call(
        "application-autoscaling", "describe_scalable_targets", ResourceIds=[scaling_target(endpoint.run)], **SCALING
    )["ScalableTargets"]
    running = [each.get("DesiredInstanceCount") or 0 for each in endpoint.described.get("ProductionVariants") or []]
    scaled = [target["MaxCapacity"] for target in found]
    return str(variant["InstanceType"]), max([variant["InitialInstanceCount"], *running, *scaled])


def told(at: datetime | None) -> str:
    """An end for people: in UTC and in this machine's own time."""
    if at is None:
        return "never: until you end it"
    utc, here = at.astimezone(timezone.utc), at.astimezone()
    return f"{utc:%Y-%m-%d %H:%M:%S} UTC ({here:%H:%M:%S %Z})"
