"""Lifecycle of an endpoint: find it, wait until it is in service, read its expiry and size."""

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from neuron_sum.errors import AwsError
from neuron_sum.platform.prices import Price
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import is_shortage
from sagemaker_jobs.aws.logs import State, explained, watch
from sagemaker_jobs.aws.names import ENDPOINT_LOGS, PREFIX, RECIPE_TAG, RUN_TAG, Run, is_run_id
from sagemaker_jobs.cleanup.kinds import SCALING, hours_since, variants_of
from sagemaker_jobs.endpoint.launch import SHADOW, VARIANT, scaling_target
from sagemaker_jobs.launch.schedules import time_of

IN_SERVICE = "InService"
ANSWERS = (IN_SERVICE, "Updating", "SystemUpdating", "RollingBack")
FAILED = ("Failed", "OutOfService")


class EndpointFailed(AwsError):
    """An endpoint failed to start and will not recover.

    Attributes:
        shortage: Whether AWS had no free instances for it.
    """

    shortage = False


@dataclass(frozen=True)
class Endpoint:
    """An endpoint as AWS describes it.

    Attributes:
        described: The response of DescribeEndpoint.
        run: The run that owns the endpoint, from its tags.
    """

    described: dict[str, Any]
    run: Run

    @property
    def name(self) -> str:
        """The name of the endpoint."""
        return str(self.described["EndpointName"])

    @property
    def status(self) -> str:
        """The status, such as InService."""
        return str(self.described["EndpointStatus"])


def describe(account: Account, name: str) -> dict[str, Any] | None:
    """The response of DescribeEndpoint; None if the endpoint does not exist.

    Raises:
        AwsError: If the request fails.
    """
    return account.find("sagemaker", "describe_endpoint", EndpointName=name)


def find(account: Account, run_or_name: str) -> Endpoint:
    """The endpoint with a run id or a name.

    Raises:
        AwsError: If the endpoint does not exist.
    """
    name = Run(run_or_name, "").name("endpoint") if is_run_id(run_or_name) else run_or_name
    if (found := describe(account, name)) is not None:
        tags = account.call("sagemaker", "list_tags", ResourceArn=found["EndpointArn"])["Tags"]
        values = {tag["Key"]: tag["Value"] for tag in tags}
        return Endpoint(found, Run(values.get(RUN_TAG, ""), values.get(RECIPE_TAG, "")))
    raise AwsError(
        f"no endpoint of {run_or_name!r} in {account.region}: it was never created, or it has expired",
        f"Run `{account.command('status')}` to list the resources, or "
        f"`{account.command('deploy', run_or_name)}` to deploy.",
    )


def find_ours(account: Account, run_or_name: str) -> Endpoint:
    """The endpoint with a run id or a name, if neuron-sum created it.

    Raises:
        AwsError: If the endpoint does not exist, or was not created by neuron-sum.
    """
    found = find(account, run_or_name)
    if not found.run.id or not found.name.startswith(f"{PREFIX}-"):
        raise AwsError(
            f"{found.name} was not created by neuron-sum",
            f"Run `{account.command('status')}` to list its resources.",
        )
    return found


def wait(account: Account, name: str, *, price: Price | None, instances: int) -> None:
    """Wait until an endpoint is in service; log each change of its status and each line of its containers' log.

    Args:
        account: The account that has the endpoint.
        name: The name of the endpoint.
        price: The price of the endpoint's instance.
        instances: The number of instances of all variants.

    Raises:
        EndpointFailed: If the endpoint fails, with the reason and the known cause from its log.
        AwsError: If the endpoint is deleted meanwhile, or AWS cannot be reached; it may still start in that case.
    """
    gone = AwsError(
        f"{name} was deleted before it was in service",
        "Check whether it expired or somebody deleted it.",
    )

    def read() -> tuple[dict[str, Any], State]:
        if (found := describe(account, name)) is None:
            raise gone
        status, seconds = found["EndpointStatus"], hours_since(found["CreationTime"]) * 3600
        ended = status in (*ANSWERS, *FAILED, "Deleting")
        return found, State(status, ended, seconds, (f"{ENDPOINT_LOGS}{name}", ""), instances)

    endpoint, state, log = watch(account, name, read, price=price)
    if state.text == "Deleting":
        raise gone
    if state.text in FAILED:
        reason = " ".join(str(endpoint.get("FailureReason", "")).split()) or "AWS reports no reason"
        tail = f"Run `{account.tail_command(f'{ENDPOINT_LOGS}{name}')}`."
        failed = EndpointFailed(*explained(f"{name} failed: {reason}", reason, log, tail))
        failed.shortage = is_shortage(reason)
        raise failed


def expiry_at(account: Account, run: Run) -> datetime | None:
    """The expiry of a run's endpoint in UTC; None if it has no expiry.

    Raises:
        AwsError: If the request fails.
    """
    schedule = account.find("scheduler", "get_schedule", Name=run.name("expiry"))
    if schedule is None or "StartDate" not in schedule:
        return None
    return time_of(schedule)


def most_instances(account: Account, endpoint: Endpoint) -> tuple[str, int]:
    """The instance type of an endpoint, and its maximum number of instances, with those of a shadow variant.

    Raises:
        AwsError: If a request fails, or somebody changed the variants.
    """
    name = str(endpoint.described["EndpointConfigName"])
    config = account.call("sagemaker", "describe_endpoint_config", EndpointConfigName=name)
    variants = {each["VariantName"]: each for each in variants_of(config)}
    types = {str(each.get("InstanceType", "serverless")) for each in variants.values()}
    if list(variants) not in ([VARIANT], [VARIANT, SHADOW]) or len(types) > 1:
        raise AwsError(
            f"{endpoint.name} has the variants {', '.join(variants)} on {', '.join(sorted(types))}, but neuron-sum "
            f"creates {VARIANT} and at most {SHADOW}, on one type",
            f"Change the configuration back, or delete the endpoint with `{account.command('down', endpoint.run.id)}`.",
        )
    found = account.call(
        "application-autoscaling", "describe_scalable_targets", ResourceIds=[scaling_target(endpoint.run)], **SCALING
    )["ScalableTargets"]
    most = {variant: int(each.get("InitialInstanceCount", 1)) for variant, each in variants.items()}
    for each in variants_of(endpoint.described):
        most[each["VariantName"]] = max(most.get(each["VariantName"], 0), each.get("DesiredInstanceCount") or 0)
    most[VARIANT] = max([most[VARIANT], *(target["MaxCapacity"] for target in found)])
    return types.pop(), sum(most.values())


def format_expiry(at: datetime | None) -> str:
    """Format an expiry for display, in UTC and in local time."""
    if at is None:
        return "never: until you delete it"
    utc, local = at.astimezone(timezone.utc), at.astimezone()
    return f"{utc:%Y-%m-%d %H:%M:%S} UTC ({local:%H:%M:%S %Z})"
