"""Whether the account may have the instances that a launch asks for, before anything of it is made."""

from collections.abc import Iterable, Iterator

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.launch.call import Call

SERVICE = "sagemaker"


def needed(calls: Iterable[Call]) -> dict[str, int]:
    """The instances that requests ask for, by the name of SageMaker's quota for them.

    Args:
        calls: Of a launch; what runs on no instance is passed over.
    """
    sent = list(calls)
    most = max(
        (call.request["MaxCapacity"] for call in sent if call.operation == "register_scalable_target"), default=0
    )
    counts: dict[str, int] = {}
    for call in sent:
        for name, count in _instances(call, most):
            counts[name] = counts.get(name, 0) + count
    return counts


def check(account: Account, calls: Iterable[Call]) -> None:
    """Refuses a launch for which the account's quotas are too small.

    Only the limits are compared: what runs already counts against them, too, and AWS tells of that itself. Whoever may
    not ask for quotas goes on without.

    Args:
        account: Where.
        calls: Of the launch.

    Raises:
        AwsError: Naming the quota, and how to ask for a higher one.
    """
    wanted = needed(calls)
    if not wanted:
        return
    unseen = set(wanted)
    try:
        # There is no search by name, and SageMaker has thousands: pages come until all are found.
        for quota in account.pages("service-quotas", "list_service_quotas", "Quotas", ServiceCode=SERVICE):
            name = quota["QuotaName"]
            if name not in unseen:
                continue
            unseen.remove(name)
            if quota["Value"] < wanted[name]:
                raise TooSmall(name, quota, wanted[name], account.region)
            if not unseen:
                break
    except TooSmall:
        raise
    except AwsError as error:
        console.note(f"quotas are not checked: {error.message}")
        return
    for name in sorted(unseen):
        console.note(f"AWS lists no quota {name!r} in {account.region}: not checked")


class TooSmall(AwsError):
    """A quota does not allow what a launch asks for.

    Args:
        name: The quota's.
        quota: As AWS lists it.
        count: Instances that are asked for.
        region: Where.
    """

    def __init__(self, name: str, quota: dict[str, object], count: int, region: str) -> None:
        asked = (
            f"aws service-quotas request-service-quota-increase --service-code {SERVICE} --quota-code "
            f"{quota['QuotaCode']} --desired-value {count} --region {region}"
        )
        super().__init__(
            f"the quota {name!r} is {quota['Value']:g} in {region}, and this needs {count}",
            f"{asked} asks for more (hours to days); or another --instance, or --region",
        )


def _instances(call: Call, most: int) -> Iterator[tuple[str, int]]:
    """What one call asks for; an endpoint of ours has one variant, which autoscaling may make as many as `most`."""
    request = call.request
    if call.operation == "create_training_job":
        resources = request["ResourceConfig"]
        use = "spot training job usage" if request.get("EnableManagedSpotTraining") else "training job usage"
        yield f"{resources['InstanceType']} for {use}", resources["InstanceCount"]
    elif call.operation == "create_transform_job":
        resources = request["TransformResources"]
        yield f"{resources['InstanceType']} for transform job usage", resources["InstanceCount"]
    elif call.operation == "create_endpoint_config":
        for variant in request["ProductionVariants"]:
            yield f"{variant['InstanceType']} for endpoint usage", max(variant["InitialInstanceCount"], most)
