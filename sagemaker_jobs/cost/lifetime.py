"""From options to a priced plan: the requests of a recipe's whole life, and each with its instance's price."""

from datetime import datetime, timedelta, timezone

from neuron_sum.platform.prices import REGION, Price
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import AwsContext, Run, new_run
from sagemaker_jobs.aws.place import STOP_GRACE_S, NetworkSecurity, Request
from sagemaker_jobs.batch.transform import Options
from sagemaker_jobs.cost import plan as planning
from sagemaker_jobs.cost import price_list
from sagemaker_jobs.cost.plan import Item, Plan
from sagemaker_jobs.endpoint import requests as endpoint_requests
from sagemaker_jobs.image import build as image
from sagemaker_jobs.image import registry
from sagemaker_jobs.jobs import requests
from sagemaker_jobs.launch.schedules import LATE_S
from sagemaker_jobs.launch.start import Launch, place_of


def planned_requests(
    run: Run,
    site: AwsContext,
    *,
    train: tuple[str, int, float],
    compiling: tuple[str, float],
    endpoint: tuple[str, float],
) -> dict[str, Request]:
    """The requests of a whole life, by kind; what is not wanted is left out.

    Args:
        run: Whose.
        site: Where.
        train: Instance, how many, hours at most.
        compiling: Instance, hours at most; 0: no compile.
        endpoint: Instance, hours; 0: no endpoint.

    Raises:
        AwsError: If SageMaker would refuse one of them.
        PlatformError: If AWS has no image in the region.
    """
    place = place_of(run, site)
    isolation = NetworkSecurity()
    instance, instances, hours = train
    jobs = [("train", requests.train_arguments(instance, instances), instance, instances, hours)]
    if compiling[1] > 0:
        jobs.append(("compile", requests.compile_arguments("inf2"), compiling[0], 1, compiling[1]))
    made: dict[str, Request] = {}
    for stage, arguments, which, count, longest in jobs:
        job = requests.Job(
            run, stage, arguments, {}, which, count, round(longest * 3600), requests.training_image(site.region)
        )
        made["training-job" if stage == "train" else "compile-job"] = requests.create_training_job(job, place)
    if endpoint[1] > 0:
        ends = datetime.now(timezone.utc) + timedelta(hours=endpoint[1])
        target = "inf2" if endpoint[0].startswith("ml.inf") else "cpu"
        tag = f"{target}-newest"
        made["build-project"] = image.create_project(
            new_run(f"image-{target}"),
            image.Options(target),
            tag,
            source=f"{place.bucket}/context.zip",
            spec={},
            role_arn=place.role_arn,
        )
        model_data = f"{place.output(run, 'compile')}/{run.name('compile')}/output/model.tar.gz"
        made["schedule"] = endpoint_requests.create_expiry(run, at=ends, role_arn=place.role_arn)
        made["model"] = endpoint_requests.create_model(
            run,
            place,
            image=registry.image_uri(site, tag),
            model_data=model_data,
            environment={},
            isolation=isolation,
        )
        made["endpoint-config"] = endpoint_requests.create_endpoint_config(
            run, instance=endpoint[0], instances=1, isolation=isolation, hours=endpoint[1]
        )
        made["endpoint"] = endpoint_requests.create_endpoint(run)
    return made


def priced(
    made: dict[str, Request],
    account: Account | None,
    expected_hours: float | None,
    endpoint_hours: float,
    region: str = REGION,
) -> Plan:
    """The plan of requests, by kind.

    Args:
        made: What will be sent.
        account: To ask for prices; None: the shipped table.
        expected_hours: Of the training.
        endpoint_hours: Until the endpoint's expiry.
        region: Where, without an account.

    Raises:
        AwsError: If AWS has no one price.
        PlatformError: If nobody has a price.
    """
    items: list[Item] = [planning.Item("bucket", "one for all runs"), planning.Item("role", "one for the run")]
    if "build-project" in made:
        built = planning.build_plan(made["build-project"], account.region if account is not None else region)
        items += built.items[2:]
    for kind in ("training-job", "compile-job"):
        if kind in made:
            name = made[kind]["ResourceConfig"]["InstanceType"]
            price = price_list.price_of(name, price_list.TRAINING, account, region)
            items.append(planning.job_item(made[kind], price, expected_hours if kind == "training-job" else None))
    if "endpoint" in made:
        [variant] = made["endpoint-config"]["ProductionVariants"]
        price = price_list.price_of(variant["InstanceType"], price_list.HOSTING, account, region)
        items += planning.endpoint_items(made, price, endpoint_hours)
    return planning.Plan(tuple(items))


def transform_plan(made: Launch, options: Options, price: Price, expected_hours: float | None) -> Plan:
    """What a batch transform costs at most.

    Args:
        made: What will be sent.
        options: With the hours until it is stopped.
        price: Of its instance.
        expected_hours: What somebody expects.
    """
    stop, model, job = made.calls
    late_s = LATE_S + STOP_GRACE_S
    return Plan(
        (
            Item("bucket", "one for all runs"),
            Item("role", "one for the run, one for the schedule"),
            Item("schedule", stop.name),
            Item("model", model.name),
            Item(
                "transform-job",
                job.name,
                price,
                job.request["TransformResources"]["InstanceCount"],
                options.max_hours + late_s / 3600,
                expected_hours,
                f"the schedule, {options.max_hours:g} h after it is made, and {late_s} s to be called and to stop",
            ),
        )
    )
