"""`neuron-sum aws plan`: the maximum and the expected cost of running a recipe on AWS."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from neuron_sum.recipes.command import Overrides, RecipeArgument, SetOption
from sagemaker_jobs.launch.options import (
    CapOption,
    ExpectedOption,
    HoursOption,
    InstanceOption,
    InstancesOption,
    OfflineOption,
    ProjectionOption,
    RegionOption,
)

if TYPE_CHECKING:
    from neuron_sum.recipes.schema import Recipe

BUDGET = "budget {name}: ${spent_usd:.2f} of ${limit_usd:.2f} spent this month"


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    sets: SetOption = None,
    instance: InstanceOption = "ml.trn1.2xlarge",
    instances: InstancesOption = 1,
    max_hours: HoursOption = 4.0,
    endpoint_instance: Annotated[
        str, typer.Option(help="SageMaker instance type of the endpoint: ml.inf2.xlarge or a CPU type.")
    ] = "ml.inf2.xlarge",
    endpoint_hours: Annotated[
        float, typer.Option(min=0, help="Hours until the endpoint's expiry; 0: no endpoint.")
    ] = 2.0,
    compile_instance: Annotated[
        str, typer.Option(help="SageMaker instance type of the compile job: a CPU or Trainium type.")
    ] = "ml.c7i.4xlarge",
    compile_hours: Annotated[
        float, typer.Option(min=0, help="Maximum run time of the compile job in hours; 0: no compile job.")
    ] = 2.0,
    expected_hours: ExpectedOption = None,
    projection: ProjectionOption = None,
    max_usd: CapOption = None,
    region: RegionOption = None,
    offline: OfflineOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Also print the requests that are priced.")] = False,
) -> None:
    """Print the maximum and the expected cost of running a recipe on AWS, before anything is started."""
    from neuron_sum.platform.drivers import sagemaker_driver
    from neuron_sum.platform.matrix import PLATFORMS
    from neuron_sum.recipes.loading import load_recipe
    from sagemaker_jobs.aws.names import new_run
    from sagemaker_jobs.commands import session, tables
    from sagemaker_jobs.cost import budget, lifetime, references
    from sagemaker_jobs.stack.stack import planned_stack

    changes = [*(overrides or []), *(sets or [])]
    resolved = load_recipe(recipe, changes)
    expected_hours, expected_from = _expected(
        expected_hours,
        projection,
        resolved,
        instance,
        instances,
        console.command("preflight", recipe, *changes, json=True),
    )
    account = None if offline else session.account_or_none(region)
    site = session.offline_context(region) if account is None else account.site
    stack = planned_stack(site)
    calls = lifetime.planned_calls(
        new_run(resolved.name),
        stack,
        train=(instance, instances, max_hours),
        compiling=(compile_instance, compile_hours),
        endpoint=(endpoint_instance, endpoint_hours),
    )
    requests = [call.as_dict() for call in calls]
    cost_plan = lifetime.priced(calls, account, expected_hours, endpoint_hours, site.region)
    alternatives, published = references.elsewhere(cost_plan, resolved), references.published()
    monthly = None if account is None else budget.monthly_budget(account)
    result = {
        "recipe": resolved.name,
        "region": site.region,
        **cost_plan.as_dict(),
        "expected_from": expected_from,
        "budget": monthly,
        "elsewhere": [vars(row) for row in alternatives],
        "published": [vars(row) for row in published],
        **({"requests": requests} if dry_run else {}),
    }
    cost_tables = tables.plan_tables(cost_plan, f"{resolved.name} in {site.region}")
    if max_usd is not None and cost_plan.worst_usd > max_usd:
        console.note_table(cost_tables[0])
    cost_plan.check(max_usd)
    extra = [session.as_json(requests)] if dry_run else []
    for used in (instance, *([endpoint_instance] if endpoint_hours else [])):
        if driver := sagemaker_driver(used, PLATFORMS[0].drivers):
            console.warn(driver)
    next_command = console.command(
        "aws",
        "train",
        recipe,
        *changes,
        instance=instance,
        instances=instances if instances > 1 else None,
        max_hours=max_hours,
        max_usd=max_usd,
        region=site.region,
    )
    basis = [f"expected: {expected_from}"] if expected_from else []
    console.emit(
        result,
        *cost_tables,
        *basis,
        *([BUDGET.format(**monthly)] if monthly else []),
        tables.comparison_table(alternatives, "the same on other instances"),
        tables.comparison_table(published, "published costs"),
        *extra,
        f"next: {next_command}",
    )


def _expected(
    hours: float | None, projection: Path | None, recipe: "Recipe", instance: str, instances: int, preflight: str
) -> tuple[float | None, str | None]:
    """The expected hours of a training from the options, and the source of that number."""
    from sagemaker_jobs.cost.expected import training_hours

    if projection is None:
        return hours, None if hours is None else "--expected-hours"
    if hours is not None:
        raise AwsError("--expected-hours and --projection cannot be combined", "Use one of them.")
    return training_hours(projection, recipe, instance, instances, preflight)
