"""Service quotas of the account, compared with the instances of a launch before it creates anything."""

from collections.abc import Iterable, Iterator

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import BUILD_ELSEWHERE
from sagemaker_jobs.launch.call import Call

LISTINGS = ("list_service_quotas", "list_aws_default_service_quotas")
"""Operations that list quotas: those of the account, and the defaults of quotas that it leaves out."""

BUILDERS = {"BUILD_GENERAL1_MEDIUM": "Medium", "BUILD_GENERAL1_LARGE": "Large"}
"""CodeBuild's machines by their names in quotas; new accounts often may run no build."""


def needed(calls: Iterable[Call]) -> dict[str, int]:
    """Return the number of instances that a launch requests, by the name of SageMaker's quota.

    Args:
        calls: The calls of the launch; those without an instance are ignored.
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
    """Reject a launch that exceeds the account's quotas.

    Only the limits are compared; instances that already run also count, and AWS checks them itself. If the caller may
    not read quotas, the check is skipped with a note.

    Args:
        account: The account and region of the launch.
        calls: The calls of the launch.

    Raises:
        AwsError: If a quota is too small, with a command that requests a higher one.
    """
    sent = list(calls)
    builds = {
        f"Concurrently running builds for Linux/{BUILDERS[call.request['computeTypeOverride']]} environment": 1
        for call in sent
        if call.kind == "build"
    }
    for service, wanted in (("sagemaker", needed(sent)), ("codebuild", builds)):
        try:
            unchecked = _check(account, service, wanted)
        except TooSmall:
            raise
        except AwsError as error:
            console.note(f"quotas not checked: {error.message}")
            return
        for name in unchecked:
            console.note(f"quota {name!r} not checked: AWS does not list it in {account.region}")


def _check(account: Account, service: str, wanted: dict[str, int]) -> list[str]:
    """Compare the quotas of a service with the needed numbers, and return those that AWS does not list."""
    unchecked = set(wanted)
    for operation in LISTINGS:
        if not unchecked:
            break
        # Quotas cannot be searched by name, and SageMaker has thousands, so pages are read until all are found.
        for quota in account.pages("service-quotas", operation, "Quotas", ServiceCode=service):
            name = quota["QuotaName"]
            if name in unchecked:
                unchecked.remove(name)
                if quota["Value"] < wanted[name]:
                    raise TooSmall(name, service, quota, wanted[name], account.region)
            if not unchecked:
                break
    return sorted(unchecked)


class TooSmall(AwsError):
    """A quota is too small for a launch.

    Args:
        name: The quota's name.
        service: The code of its service.
        quota: The quota as AWS lists it.
        count: The number of instances or builds that the launch requests.
        region: The region of the launch.
    """

    def __init__(self, name: str, service: str, quota: dict[str, object], count: int, region: str) -> None:
        command = (
            f"aws service-quotas request-service-quota-increase --service-code {service} --quota-code "
            f"{quota['QuotaCode']} --desired-value {count} --region {region}"
        )
        super().__init__(
            f"the quota {name!r} is {quota['Value']:g} in {region}, but the launch needs {count}",
            f"run {command} (takes hours to days), or "
            + (BUILD_ELSEWHERE if service == "codebuild" else "use another --instance or --region"),
        )


def _instances(call: Call, most: int) -> Iterator[tuple[str, int]]:
    """Yield the quota name and number of instances of a call; autoscaling may grow an endpoint to `most` instances."""
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
