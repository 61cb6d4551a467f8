"""The billed instances of a launch: their maximum time, and the account's quotas for them."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import BUILD_ELSEWHERE
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.schedules import LATE_S

STOP_GRACE_S = 120
"""Seconds between SIGTERM, which SageMaker sends after the maximum run time, and SIGKILL; they are also billed."""
UPLOAD_S = 600
"""Allowance in seconds for the upload of model.tar.gz, which is billed after the run time (botocore,
BillableTimeInSeconds) without a documented limit: about 10 GB at a minute for each GB, which is packed with gzip."""
LISTINGS = ("list_service_quotas", "list_aws_default_service_quotas")
"""Operations that list quotas: those of the account, and the defaults of quotas that it leaves out."""


@dataclass(frozen=True)
class Use:
    """Billed instances that a call starts.

    Attributes:
        kind: The kind of the resource that is billed.
        name: The name of the resource in AWS.
        instance: The instance type.
        instances: The maximum number of instances.
        quota: The name of the quota.
        component: The name of this use in the AWS Price List; empty for builds.
        service: The code of the quota's service.
        limit_s: The maximum billed seconds by the request itself; None if a schedule ends the resource.
        limit: The reason of `limit_s`.
        stop_s: The maximum seconds from the time of the schedule until the resource has ended.
    """

    kind: str
    name: str
    instance: str
    instances: int
    quota: str
    component: str
    service: str = "sagemaker"
    limit_s: float | None = None
    limit: str = ""
    stop_s: int = LATE_S


def uses(calls: Iterable[Call]) -> Iterator[Use]:
    """Yield what each call of a launch starts; an endpoint counts with its shadow, and autoscaling with its maximum."""
    sent = list(calls)
    endpoint = next((call.name for call in sent if call.kind == "endpoint"), "")
    most = max((call.request["MaxCapacity"] for call in sent if call.kind == "scaling-target"), default=0)
    for call in sent:
        request = call.request
        if call.kind == "training-job":
            instance, count = request["ResourceConfig"]["InstanceType"], request["ResourceConfig"]["InstanceCount"]
            spot = "spot " if request.get("EnableManagedSpotTraining") else ""
            quota = f"{instance} for {spot}training job usage"
            limit_s = request["StoppingCondition"]["MaxRuntimeInSeconds"] + STOP_GRACE_S + UPLOAD_S
            limit = f"MaxRuntimeInSeconds, {STOP_GRACE_S} s to stop and {UPLOAD_S} s to upload"
            yield Use(call.kind, call.name, instance, count, quota, "Training", limit_s=limit_s, limit=limit)
        elif call.kind == "transform-job":
            resources = request["TransformResources"]
            instance, count = resources["InstanceType"], resources["InstanceCount"]
            quota = f"{instance} for transform job usage"
            yield Use(call.kind, call.name, instance, count, quota, "Batch Transform", stop_s=LATE_S + STOP_GRACE_S)
        elif call.kind == "endpoint-config":
            [variant] = request["ProductionVariants"]
            shadows = request.get("ShadowProductionVariants", [])  # of the same type
            instance, count = variant["InstanceType"], max(variant["InitialInstanceCount"], most)
            count += sum(each["InitialInstanceCount"] for each in shadows)
            yield Use("endpoint", endpoint, instance, count, f"{instance} for endpoint usage", "Hosting")
        elif call.kind == "build":
            machine = request["computeTypeOverride"]
            size = machine.rpartition("_")[2].capitalize()  # new accounts often may run no build
            quota = f"Concurrently running builds for Linux/{size} environment"
            limit_s, limit = (
                (request["timeoutInMinutesOverride"] + 1) * 60,
                "timeoutInMinutesOverride, plus the started minute",
            )
            yield Use(call.kind, call.name, machine, 1, quota, "", "codebuild", limit_s, limit)


def needed(calls: Iterable[Call]) -> dict[str, dict[str, int]]:
    """Return the number of instances that a launch requests, by the quota's service and name."""
    counts: dict[str, dict[str, int]] = {}
    for use in uses(calls):
        of_service = counts.setdefault(use.service, {})
        of_service[use.quota] = of_service.get(use.quota, 0) + use.instances
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
    for service, wanted in needed(calls).items():
        try:
            quotas = listed(account, service, wanted)
        except AwsError as error:
            console.note(f"quotas not checked: {error.message}")
            return
        for name, count in sorted(wanted.items()):
            if (quota := quotas.get(name)) is None:
                console.note(f"quota {name!r} not checked: AWS does not list it in {account.region}")
            elif quota["Value"] < count:
                raise AwsError(
                    f"the quota {name!r} is {quota['Value']:g} in {account.region}, but the launch needs {count}",
                    f"run aws service-quotas request-service-quota-increase --service-code {service} --quota-code "
                    f"{quota['QuotaCode']} --desired-value {count} --region {account.region} (takes hours to days), or "
                    + (BUILD_ELSEWHERE if service == "codebuild" else "use another --instance or --region"),
                )


def listed(account: Account, service: str, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the quotas of a service by name, without those that AWS does not list.

    They cannot be searched, so pages are read until all are found.

    Args:
        account: The account and region.
        service: The code of the service.
        names: The names of the quotas.

    Raises:
        AwsError: If AWS refuses, or cannot be reached.
    """
    found: dict[str, dict[str, Any]] = {}
    for operation in LISTINGS:
        for quota in account.pages("service-quotas", operation, "Quotas", ServiceCode=service):
            if quota["QuotaName"] in names:
                found.setdefault(quota["QuotaName"], quota)
            if len(found) == len(names):
                return found
    return found
