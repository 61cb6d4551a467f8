"""The maximum cost of each step, and the cost of an attempt by the times that AWS reports."""

import math
from collections.abc import Mapping
from datetime import datetime

from neuron_sum.platform.prices import find_price
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.ledger import Entry
from sagemaker_jobs.aws.names import new_run
from sagemaker_jobs.cleanup.kinds import builds_of
from sagemaker_jobs.cost import lifetime
from sagemaker_jobs.cost.plan import Item, Plan
from sagemaker_jobs.endpoint import launch as endpoints
from sagemaker_jobs.endpoint.sources import Source
from sagemaker_jobs.image import build as images
from sagemaker_jobs.image import registry
from sagemaker_jobs.jobs import training
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.options import EndpointOptions, JobOptions
from sagemaker_jobs.launch.quotas import STOP_GRACE_S, UPLOAD_S
from sagemaker_jobs.receipt import steps
from sagemaker_jobs.stack.stack import Stack

CPU, TRAINIUM, INFERENTIA = "ml.c7i.4xlarge", "ml.trn1.2xlarge", "ml.inf2.xlarge"
RECIPE = "tiny"
BUILD_MINUTES = 40
JOB_HOURS = 0.25
ENDPOINT_HOURS, MOST_INSTANCES, INVOCATIONS = 0.5, 2, 60.0
INF2_HOURS = 0.25
"""Limits of the steps, so low that all of them cost at most $5 (docs/aws.md, A receipt)."""

AFTER_RUN_S = STOP_GRACE_S + UPLOAD_S
"""Seconds after the run time of a job that are also billed at most."""

JOBS = {
    steps.TRAIN: ("train", CPU),
    steps.COMPILE_CPU: ("compile", CPU),
    steps.COMPILE_INF2: ("compile", CPU),
    steps.DEVICE: ("receipt", TRAINIUM),
}
"""The stage and the instance type of each step that is a job."""
TARGETS = {steps.IMAGE_CPU: "cpu", steps.IMAGE_INF2: "inf2"}
"""The target of each step that builds an image."""


HOSTINGS = {
    steps.ENDPOINT: EndpointOptions(
        CPU, hours=ENDPOINT_HOURS, max_instances=MOST_INSTANCES, invocations_per_instance=INVOCATIONS
    ),
    steps.INF2: EndpointOptions(INFERENTIA, hours=INF2_HOURS),
}
"""The endpoint of each step that deploys one."""


def worst_case(step: str, stack: Stack, account: Account | None, device_hours: float) -> Plan:
    """The plan of a step with the maximum cost of the requests that it sends.

    Args:
        step: The name of the step.
        stack: The stack, as far as it is known.
        account: The account to request prices with; None for the bundled price table.
        device_hours: The maximum run time of the job with a Neuron device, in hours.

    Raises:
        AwsError: If AWS has no unique price.
        PlatformError: If no source has a price.
    """
    hours = HOSTINGS[step].lifetime_h or 0.0 if step in HOSTINGS else 0.0
    sent = calls(step, stack, device_hours)
    items = lifetime.priced(sent, account, hours=hours, region=stack.site.region).items
    return Plan(tuple(item for item in items if item.price is not None))


def calls(step: str, stack: Stack, device_hours: float) -> list[Call]:
    """The calls of a step, with the values that determine its cost and its quotas.

    Args:
        step: The name of the step.
        stack: The stack, as far as it is known.
        device_hours: The maximum run time of the job with a Neuron device, in hours.
    """
    run = new_run(step)
    if step in TARGETS:
        source = f"{stack.bucket}/context.zip"
        return [images.start_build(run, stack, "tag", source=source, max_minutes=BUILD_MINUTES)]
    if step in JOBS:
        stage, instance = JOBS[step]
        options = JobOptions(instance=instance, max_hours=device_hours if step == steps.DEVICE else JOB_HOURS)
        return [*training.job_launch(run, stage, (), options, [], stack).calls]
    if step in HOSTINGS:
        model = Source("model", None, stack.model(run, "compile"))
        image = registry.image_uri(stack.site, "tag")
        launch = endpoints.launch(run, [model], HOSTINGS[step], image, stack)
        return [*launch.calls, *launch.later]
    return []


def billed_usd(account: Account, begun: str, created: list[Entry], plan: Plan) -> float | None:
    """The cost of an attempt; None while one of its resources may be running.

    Args:
        account: The account and region.
        begun: The start of the attempt, in UTC.
        created: The resources of the attempt, as the ledger names them.
        plan: The plan of the step, with its prices.

    Raises:
        AwsError: If AWS cannot be reached.
    """
    costs = [_billed_usd(account, begun, entry, plan.items[0]) for entry in created if entry.kind in BILLED]
    return None if None in costs else sum(cost for cost in costs if cost is not None)


BILLED = ("training-job", "build", "endpoint")
"""The kinds of the steps' resources that are billed by time."""


def _billed_usd(account: Account, begun: str, entry: Entry, item: Item) -> float | None:
    assert item.price is not None  # worst_case leaves out free items
    if entry.kind == "training-job":
        job = account.find("sagemaker", "describe_training_job", TrainingJobName=entry.name)
        if job is None:
            return 0.0
        seconds = billed_seconds(job)
        return None if seconds is None else item.price.cost(seconds / 3600, item.instances)
    if entry.kind == "build":
        costs = [_build_usd(build) for _, build in builds_of(account, entry.run)]
        return None if None in costs else sum(cost for cost in costs if cost is not None)
    if entry.open:
        return None
    hours = (datetime.fromisoformat(entry.time) - datetime.fromisoformat(begun)).total_seconds() / 3600
    return item.price.cost(hours, item.instances)


def billed_seconds(job: Mapping[str, object]) -> float | None:
    """The billed time of a job; without one in the answer, the time since its creation; None while it runs."""
    if job["TrainingJobStatus"] in ("InProgress", "Stopping"):
        return None
    billed, end, begun = job.get("BillableTimeInSeconds"), job.get("TrainingEndTime"), job.get("CreationTime")
    if isinstance(billed, int | float):
        return float(billed)
    if isinstance(end, datetime) and isinstance(begun, datetime):
        return max((end - begun).total_seconds(), 0.0)
    return None


def _build_usd(build: Mapping[str, object]) -> float | None:
    end, begun, environment = build.get("endTime"), build["startTime"], build["environment"]
    if not isinstance(end, datetime):
        return None
    assert isinstance(begun, datetime) and isinstance(environment, dict)
    minutes = math.ceil(max((end - begun).total_seconds(), 0.0) / 60)  # each started minute is billed
    return find_price(environment["computeType"]).cost(minutes / 60)
