"""Priced plan of a recipe's lifecycle: the requests for the given options, and the price of each instance."""

from datetime import datetime, timedelta, timezone

from neuron_sum.platform.prices import REGION, Price
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import Run, new_run
from sagemaker_jobs.batch.transform import Options
from sagemaker_jobs.cost import plan as planning
from sagemaker_jobs.cost import price_list
from sagemaker_jobs.cost.plan import Item, Plan
from sagemaker_jobs.endpoint import requests as endpoint_requests
from sagemaker_jobs.image import build as image
from sagemaker_jobs.image import registry
from sagemaker_jobs.jobs import requests
from sagemaker_jobs.jobs.requests import STOP_GRACE_S
from sagemaker_jobs.launch.schedules import LATE_S
from sagemaker_jobs.launch.start import Launch
from sagemaker_jobs.stack.stack import Request, Stack
from sagemaker_jobs.stack.template import WITHOUT_BUILDS


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
        planned["schedule"] = endpoint_requests.create_expiry(run, at=ends, role_arn=stack.expiry_role)
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
    planned: dict[str, Request],
    account: Account | None,
    expected_hours: float | None,
    endpoint_hours: float,
    region: str = REGION,
) -> Plan:
    """Return the plan with the prices of requests.

    Args:
        planned: The planned requests by kind.
        account: The account to request prices with; None for the bundled price table.
        expected_hours: The expected hours of training; None if unknown.
        endpoint_hours: The hours until the endpoint's expiry.
        region: The region if there is no account.

    Raises:
        AwsError: If AWS has no unique price.
        PlatformError: If no source has a price.
    """
    items: list[Item] = []
    if "build" in planned:
        where = account.region if account is not None else region
        items += planning.build_plan("the serving image", planned["build"], where).items
    for kind in ("training-job", "compile-job"):
        if kind in planned:
            name = planned[kind]["ResourceConfig"]["InstanceType"]
            price = price_list.price_of(name, price_list.TRAINING, account, region)
            items.append(planning.job_item(planned[kind], price, expected_hours if kind == "training-job" else None))
    if "endpoint" in planned:
        [variant] = planned["endpoint-config"]["ProductionVariants"]
        price = price_list.price_of(variant["InstanceType"], price_list.HOSTING, account, region)
        items += planning.endpoint_items(planned, price, endpoint_hours)
    return planning.Plan(tuple(items))


def transform_plan(launch: Launch, options: Options, price: Price, expected_hours: float | None) -> Plan:
    """Return the plan of a batch transform, with its maximum cost.

    Args:
        launch: The launch of the batch transform.
        options: The options, with the hours until the job is stopped.
        price: The price of the instance.
        expected_hours: The expected hours; None if unknown.
    """
    late_s = LATE_S + STOP_GRACE_S
    return Plan(
        (
            Item("schedule", launch["schedule"].name),
            Item("model", launch["model"].name),
            Item(
                "transform-job",
                launch["transform-job"].name,
                price,
                launch["transform-job"].request["TransformResources"]["InstanceCount"],
                options.max_hours + late_s / 3600,
                expected_hours,
                f"the schedule, {options.max_hours:g} h after its creation, plus up to {late_s} s to stop",
            ),
        )
    )
