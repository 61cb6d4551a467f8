"""Priced plan of a launch or of a recipe's lifecycle: its calls, and the price of each instance."""

from collections.abc import Iterable
from functools import partial

from neuron_sum.platform.prices import REGION, find_price
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import Run, new_run
from sagemaker_jobs.cost import price_list
from sagemaker_jobs.cost.plan import Item, Plan
from sagemaker_jobs.endpoint import launch as endpoints
from sagemaker_jobs.endpoint.sources import Source
from sagemaker_jobs.image import build as image
from sagemaker_jobs.image import registry
from sagemaker_jobs.jobs import requests, training
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.options import EndpointOptions, JobOptions
from sagemaker_jobs.launch.quotas import uses
from sagemaker_jobs.stack.stack import Stack
from sagemaker_jobs.stack.template import WITHOUT_BUILDS


def planned_calls(
    run: Run,
    stack: Stack,
    *,
    train: tuple[str, int, float],
    compiling: tuple[str, float],
    endpoint: tuple[str, float],
) -> list[Call]:
    """Return the calls of a recipe's lifecycle, without the omitted stages.

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
    calls: list[Call] = []
    for stage, arguments, machine, count, max_hours in jobs:
        options = JobOptions(instance=machine, max_hours=max_hours)
        calls += training.job_launch(run, stage, arguments, options, [], stack, instances=count).calls
    if endpoint[1] > 0:
        target = "inf2" if endpoint[0].startswith("ml.inf") else "cpu"
        tag = f"{target}-newest"
        if stack.site.region not in WITHOUT_BUILDS:
            calls.append(image.start_build(new_run(f"image-{target}"), stack, tag, source=f"{stack.bucket}/x.zip"))
        model = Source("model", None, stack.model(run, "compile"))
        hosting = EndpointOptions(endpoint[0], 1, endpoint[1])
        calls += endpoints.launch(run, [model], hosting, registry.image_uri(stack.site, tag), stack).calls
    return calls


def priced(
    calls: Iterable[Call],
    account: Account | None,
    expected_hours: float | None = None,
    hours: float = 0.0,
    region: str = REGION,
) -> Plan:
    """Return the plan of a launch, with the prices and the longest durations of its resources.

    Args:
        calls: The calls in the order of creation.
        account: The account to request prices with; None for the bundled price table.
        expected_hours: The expected hours of the first job; None if unknown.
        hours: The hours until a schedule ends the endpoint or the transform job.
        region: The region if there is no account.

    Raises:
        AwsError: If AWS has no unique price.
        PlatformError: If no source has a price.
    """
    sent = [call for call in calls if call.kind is not None]
    region = account.region if account is not None else region
    scheduled = any(call.kind == "schedule" for call in sent)
    billed: dict[str, Item] = {}
    for use in uses(sent):
        listed = partial(price_list.price_of, component=use.component, account=account)
        price = (listed if use.component else find_price)(use.instance, region=region)
        expected = {"build": None, "endpoint": hours}.get(use.kind, expected_hours)
        item = partial(Item, use.kind, use.name, price, use.instances)
        if use.limit_s is not None:
            billed[use.name] = item(use.limit_s / 3600, expected, use.limit)
        elif scheduled:
            limit = f"the schedule, {hours:g} h after its creation, plus up to {use.stop_s} s to stop"
            billed[use.name] = item(hours + use.stop_s / 3600, expected, limit)
        else:
            billed[use.name] = item(bounded_by="only aws down", unbounded=True)
        if use.kind == "training-job":
            expected_hours = None
    return Plan(tuple(billed.get(call.name, Item(call.kind or "", call.name)) for call in sent))
