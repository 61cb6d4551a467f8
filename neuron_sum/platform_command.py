"""`neuron-sum doctor` and `neuron-sum explain`."""

from dataclasses import asdict
from typing import Annotated

import typer

from neuron_sum import console
from neuron_sum.recipe_command import Overrides


def doctor(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="A shipped recipe's name, or a YAML file.")
    ] = None,
    overrides: Overrides = None,
    instance: Annotated[
        str | None, typer.Option(help="An instance type to check the recipe for, such as ml.trn1.2xlarge.")
    ] = None,
    region: Annotated[str | None, typer.Option(help="The AWS region, for the image's full name.")] = None,
) -> None:
    """Say what this machine is, what differs from the platform, and whether a recipe works on an instance."""
    from neuron_sum import doctor as doctoring
    from neuron_sum.machine import look
    from neuron_sum.stack import find_instance

    machine = look(doctoring.distributions())
    platform = doctoring.nearest_platform(machine)
    if recipe is None and (instance or region or overrides):
        raise typer.BadParameter("--instance and --region check a recipe; give one")
    result = {"machine": asdict(machine), "platform": platform.name, "recipe": None, "instance": None}
    if recipe is None:
        checks = doctoring.check_machine(machine, platform)
        title = f"this machine, beside {platform.name}"
    else:
        from neuron_sum.recipe_loading import load_recipe

        resolved = load_recipe(recipe, overrides or [])
        wanted = instance or doctoring.own_instance(machine)
        known = find_instance(wanted)
        checks = doctoring.check_recipe(resolved, known, platform, region)
        title = f"{resolved.name} on {known.name}, with {platform.name}"
        result.update(recipe=resolved.name, instance=known.name)
    table = console.table("", "check", "found", title=title)
    for column in table.columns[1:]:
        column.justify, column.overflow = "left", "fold"
    for check in checks:
        table.add_row(check.verdict, check.name, check.found + (f"\n→ {check.remedy}" if check.remedy else ""))
    console.emit({**result, "checks": [asdict(check) for check in checks]}, table)
    doctoring.raise_if_blocked(checks)


def explain() -> None:
    """x."""
