"""Priced plan of a recipe's lifecycle: the requests for the given options, and the price of each instance."""

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone

from neuron_sum.platform.prices import REGION, find_price
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import Run, new_run
from sagemaker_jobs.cost import price_list
from sagemaker_jobs.cost.plan import Item, Plan
from sagemaker_jobs.endpoint import requests as endpoint_requests
from sagemaker_jobs.image import build as image
from sagemaker_jobs.image import registry
from sagemaker_jobs.jobs import requests
from sagemaker_jobs.jobs.requests import STOP_GRACE_S
from sagemaker_jobs.launch.schedules import LATE_S
from sagemaker_jobs.stack.stack import Request, Stack
from sagemaker_jobs.stack.template import WITHOUT_BUILDS

UPLOAD_S = 600
"""Allowance in seconds for the upload of model.tar.gz, which is billed after the run time (botocore,
BillableTimeInSeconds) without a documented limit: about 10 GB at a minute for each GB, which is packed with gzip."""

NAMES = {
    "training-job": "TrainingJobName",
    "compile-job": "TrainingJobName",
    "transform-job": "TransformJobName",
    "schedule": "Name",
    "model": "ModelName",
    "endpoint-config": "EndpointConfigName",
    "endpoint": "EndpointName",
    "scaling-target": "ResourceId",
}
"""The member of each kind's request that names the resource."""


def planned_requests(
    run: Run,
    stack: Stack,
    *,
    train: tuple[str, int, float],
    compiling: tuple[str, float],
    endpoint: tuple[str, float],
) -> dict[str, Request]:
    """Return the requests of a recipe's lifecycle by kind, without the omitted stages.

    Args:
        run: The run that owns the resources.
        stack: The stack with the bucket and the roles.
        train: The instance type, the number of instances and the maximum hours of training.
        compiling: The instance type and the maximum hours of compiling; 0 hours for no compile job.
        endpoint: The instance type and the hours of the endpoint; 0 hours for no endpoint.

    Raises:
        AwsError: If SageMaker would refuse a request.
        PlatformError: If AWS has no image in the region.
    """
    instance, instances, hours = train
    jobs = [("train", requests.train_arguments(instance, instances), instance, instances, hours)]
    if compiling[1] > 0:
        jobs.append(("compile", requests.compile_arguments("inf2"), compiling[0], 1, compiling[1]))
    planned: dict[str, Request] = {}
    for stage, arguments, machine, count, max_hours in jobs:
        job = requests.Job(
            run,
            stage,
            arguments,
            {},
            machine,
            count,
            round(max_hours * 3600),
            requests.training_image(stack.site.region),
        )
        planned["training-job" if stage == "train" else "compile-job"] = requests.create_training_job(job, stack)
    if endpoint[1] > 0:
        ends = datetime.now(timezone.utc) + timedelta(hours=endpoint[1])
        target = "inf2" if endpoint[0].startswith("ml.inf") else "cpu"
        tag = f"{target}-newest"
        if stack.site.region not in WITHOUT_BUILDS:
            planned["build"] = image.start_build(new_run(f"image-{target}"), stack, tag, source=f"{stack.bucket}/x.zip")
        model_data = f"{stack.output(run, 'compile')}/{run.name('compile')}/output/model.tar.gz"
        planned["schedule"] = endpoint_requests.create_expiry(run, stack, at=ends)
        planned["model"] = endpoint_requests.create_model(
            run,
            stack,
            image=registry.image_uri(stack.site, tag),
            model_data=model_data,
            environment={},
            role=stack.endpoint_role,
        )
        planned["endpoint-config"] = endpoint_requests.create_endpoint_config(
            run, stack, instance=endpoint[0], instances=1, hours=endpoint[1]
        )
        planned["endpoint"] = endpoint_requests.create_endpoint(run)
    return planned


def priced(
    planned: Mapping[str, Request],
    account: Account | None,
    expected_hours: float | None = None,
    hours: float = 0.0,
    region: str = REGION,
) -> Plan:
    """Return the plan of requests, with their prices and their longest durations.

    Args:
        planned: The planned requests by kind, in the order of creation.
        account: The account to request prices with; None for the bundled price table.
        expected_hours: The expected hours of training or of the batch transform; None if unknown.
        hours: The hours until a schedule ends the endpoint or the transform job.
        region: The region if there is no account.

    Raises:
        AwsError: If AWS has no unique price.
        PlatformError: If no source has a price.
    """
    region = account.region if account is not None else region
    scheduled = "schedule" in planned
    after = f"the schedule, {hours:g} h after its creation, plus up to"

    def item(kind: str, request: Request) -> Item:
        if kind == "build":
            price = find_price(request["computeTypeOverride"], region)
            name = request["logsConfigOverride"]["cloudWatchLogs"]["streamName"]
            longest_h = (request["timeoutInMinutesOverride"] + 1) / 60
            return Item(kind, name, price, 1, longest_h, None, "timeoutInMinutesOverride, plus the started minute")
        name = request[NAMES[kind]]
        if kind in ("training-job", "compile-job"):
            resources = request["ResourceConfig"]
            price = price_list.price_of(resources["InstanceType"], price_list.TRAINING, account, region)
            longest_s = request["StoppingCondition"]["MaxRuntimeInSeconds"] + STOP_GRACE_S + UPLOAD_S
            limit = f"MaxRuntimeInSeconds, {STOP_GRACE_S} s to stop and {UPLOAD_S} s to upload"
            expected = expected_hours if kind == "training-job" else None
            return Item("training-job", name, price, resources["InstanceCount"], longest_s / 3600, expected, limit)
        if kind == "transform-job":
            resources = request["TransformResources"]
            price = price_list.price_of(resources["InstanceType"], price_list.TRANSFORM, account, region)
            late_s = LATE_S + STOP_GRACE_S
            limit = f"{after} {late_s} s to stop"
            count = resources["InstanceCount"]
            return Item(kind, name, price, count, hours + late_s / 3600, expected_hours, limit)
        if kind == "endpoint":
            [variant] = planned["endpoint-config"]["ProductionVariants"]
            price = price_list.price_of(variant["InstanceType"], price_list.HOSTING, account, region)
            most = planned["scaling-target"]["MaxCapacity"] if "scaling-target" in planned else 0
            count = max(variant["InitialInstanceCount"], most)
            if not scheduled:
                return Item(kind, name, price, count, bounded_by="only aws down", unbounded=True)
            return Item(kind, name, price, count, hours + LATE_S / 3600, hours, f"{after} {LATE_S} s")
        return Item(kind, name)

    return Plan(tuple(item(kind, request) for kind, request in planned.items()))
