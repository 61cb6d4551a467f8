"""`neuron-sum doctor` and `neuron-sum explain`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.recipes.command import Overrides, SetOption

if TYPE_CHECKING:
    from neuron_sum.doctor.explain import Finding

UPSTREAM = "https://github.com/aws-neuron/aws-neuron-sdk/issues, https://github.com/huggingface/optimum-neuron/issues"


def doctor(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A shipped recipe's name, or a YAML file.")
    ] = None,
    overrides: Overrides = None,
    sets: SetOption = None,
    instance: Annotated[
        str | None, typer.Option(help="An instance type to check the recipe for, such as ml.trn1.2xlarge.")
    ] = None,
    region: Annotated[str | None, typer.Option(help="The AWS region, for the image's full name.")] = None,
) -> None:
    """Say what this machine is, what differs from the platform, and whether a recipe works on an instance."""
    from neuron_sum.doctor import machine_check as doctoring
    from neuron_sum.platform.machine import look
    from neuron_sum.platform.matrix import find_instance

    machine = look(doctoring.distributions())
    platform = doctoring.nearest_platform(machine)
    if recipe is None and (instance or region or overrides or sets):
        raise typer.BadParameter("--instance and --region check a recipe; give one")
    result = {"machine": asdict(machine), "platform": platform.name, "recipe": None, "instance": None}
    if recipe is None:
        checks = doctoring.check_machine(machine, platform)
        title = f"this machine, beside {platform.name}"
    else:
        from neuron_sum.doctor.recipe_check import check_recipe
        from neuron_sum.recipes.loading import load_recipe

        resolved = load_recipe(recipe, [*(overrides or []), *(sets or [])])
        wanted = instance or doctoring.own_instance(machine)
        known = find_instance(wanted)
        checks = check_recipe(resolved, known, platform, region)
        title = f"{resolved.name} on {known.name}, with {platform.name}"
        result.update(recipe=resolved.name, instance=known.name)
    table = console.table("", "check", "found", title=title)
    for column in table.columns[1:]:
        column.justify, column.overflow = "left", "fold"
    for check in checks:
        table.add_row(check.verdict, check.name, check.found + (f"\n→ {check.remedy}" if check.remedy else ""))
    console.emit({**result, "checks": [asdict(check) for check in checks]}, table)
    doctoring.raise_if_blocked(checks)


def explain(
    log: Annotated[str, typer.Argument(metavar="FILE|-", help="A log. Default: standard input.")] = "-",
) -> None:
    """Tell the known causes in a log of the compiler, the runtime or SageMaker; what is not known is not guessed."""
    from neuron_sum.doctor import explain as explaining
    from neuron_sum.doctor.known_failures import CAUSES
    from neuron_sum.errors import DataError

    if log == "-":
        if sys.stdin.isatty():
            raise DataError("no log: standard input is a terminal", "neuron-sum explain FILE, or pipe a log into it")
        told = explaining.explain(sys.stdin.buffer)
    else:
        try:
            with Path(log).open("rb") as file:
                told = explaining.explain(file)
        except OSError as error:
            raise DataError(f"{log} cannot be read: {error.strerror}") from error
    result = {
        "known": bool(told.findings),
        "lines": told.lines,
        "causes": [
            {
                "name": finding.cause.name,
                "line": finding.line,
                "text": finding.text,
                "times": finding.times,
                "cause": finding.cause.cause,
                "remedy": finding.cause.remedy,
                "source": finding.cause.source,
            }
            for finding in told.findings
        ],
    }
    lines = f"{told.lines:,} line{'' if told.lines == 1 else 's'}"
    if not told.findings:
        shown = (
            f"unknown: none of {len(CAUSES)} known causes is in these {lines}\n"
            f"upstream's threads: {UPSTREAM}\n"
            "a line that should be known: CONTRIBUTING.md, A cause"
        )
    else:
        shown = "\n\n".join(_told(finding) for finding in told.findings)
    console.emit(result, shown)


def _told(finding: "Finding") -> str:
    more = f" (and {finding.times - 1:,} more)" if finding.times > 1 else ""
    return (
        f"{finding.cause.name}: line {finding.line:,}{more}\n"
        f"  {finding.text}\n"
        f"cause:  {finding.cause.cause}\n"
        f"remedy: {finding.cause.remedy}\n"
        f"source: {finding.cause.source}"
    )
