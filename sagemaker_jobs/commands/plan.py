"""`neuron-sum aws plan`: the maximum and the expected cost of a recipe's life in AWS."""

from typing import Annotated

import typer

from neuron_sum import console
from neuron_sum.recipes.command import Overrides, RecipeArgument, SetOption
from sagemaker_jobs.commands.options import (
    CapOption,
    ExpectedOption,
    HoursOption,
    InstanceOption,
    InstancesOption,
    OfflineOption,
    ProjectionOption,
    RegionOption,
    expected_of,
)


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    sets: SetOption = None,
    instance: InstanceOption = "ml.trn1.2xlarge",
    instances: InstancesOption = 1,
    max_hours: HoursOption = 4.0,
    endpoint_instance: Annotated[str, typer.Option(help="ml.inf2.xlarge, or a CPU.")] = "ml.inf2.xlarge",
    endpoint_hours: Annotated[
        float, typer.Option(min=0, help="An endpoint's life, which AWS's own scheduler ends; 0: no endpoint.")
    ] = 2.0,
    compile_instance: Annotated[str, typer.Option(help="A CPU or a Trainium instance.")] = "ml.c7i.4xlarge",
    compile_hours: Annotated[float, typer.Option(min=0, help="0: no compile.")] = 2.0,
    expected_hours: ExpectedOption = None,
    projection: ProjectionOption = None,
    max_usd: CapOption = None,
    region: RegionOption = None,
    offline: OfflineOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the requests that are priced, too.")] = False,
) -> None:
    """Price a recipe's life in AWS, at worst and as expected, before anything is started."""
    from neuron_sum.recipes.loading import load_recipe
    from sagemaker_jobs.aws.names import new_run
    from sagemaker_jobs.commands import session, tables
    from sagemaker_jobs.cost import lifetime
    from sagemaker_jobs.cost import plan as planning

    resolved = load_recipe(recipe, [*(overrides or []), *(sets or [])])
    expected_hours, expected_from = expected_of(expected_hours, projection, resolved, instance, instances)
    account = None if offline else session.account_or_none(region)
    site = session.unasked_site(region) if account is None else account.site
    requests = lifetime.planned_requests(
        new_run(resolved.name),
        site,
        train=(instance, instances, max_hours),
        compiling=(compile_instance, compile_hours),
        endpoint=(endpoint_instance, endpoint_hours),
    )
    made = lifetime.priced(requests, account, expected_hours, endpoint_hours, site.region)
    beside = planning.elsewhere(made, resolved)
    result = {
        "recipe": resolved.name,
        "region": site.region,
        **made.as_dict(),
        "expected_from": expected_from,
        "elsewhere": [vars(row) for row in beside],
        "published": [vars(row) for row in planning.published()],
        **({"requests": requests} if dry_run else {}),
    }
    shown = tables.plan_tables(made, f"{resolved.name} in {site.region}")
    if max_usd is not None and made.worst_usd > max_usd:
        console.note_table(shown[0])
    made.check(max_usd)
    extra = [session.as_json(requests)] if dry_run else []
    following = f"next: neuron-sum aws train {recipe} --instance {instance} --max-hours {max_hours:g}"
    told = [f"expected: {expected_from}"] if expected_from else []
    console.emit(result, *shown, *told, *tables.beside_tables(beside, planning.published()), *extra, following)
