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

READABLE = (
    "name a text file, or one compressed with gzip, bzip2 or xz; "
    "`gzip -dc FILE | neuron-sum explain` reads the undamaged part of a damaged one"
)
UPSTREAM = "https://github.com/aws-neuron/aws-neuron-sdk/issues, https://github.com/huggingface/optimum-neuron/issues"


def doctor(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Name of a bundled recipe, or a YAML file.")
    ] = None,
    overrides: Overrides = None,
    sets: SetOption = None,
    instance: Annotated[
        str | None,
        typer.Option(help="Instance type to check the recipe for, such as ml.trn1.2xlarge. Default: this machine."),
    ] = None,
    region: Annotated[str | None, typer.Option(help="AWS region for the full image name.")] = None,
) -> None:
    """Describe this machine and its differences from the platform, or check a recipe on an instance type."""
    from neuron_sum.doctor import machine_check
    from neuron_sum.platform.machine import describe_machine
    from neuron_sum.platform.matrix import find_instance

    machine = describe_machine(machine_check.distributions())
    platform = machine_check.nearest_platform(machine)
    if recipe is None and (instance or region or overrides or sets):
        raise typer.BadParameter("--instance and --region require a RECIPE")
    result = {"machine": asdict(machine), "platform": platform.name, "recipe": None, "instance": None}
    if recipe is None:
        checks = machine_check.check_machine(machine, platform)
        title = f"this machine, compared with {platform.name}"
    else:
        from neuron_sum.doctor.recipe_check import check_recipe
        from neuron_sum.recipes.loading import load_recipe

        resolved = load_recipe(recipe, [*(overrides or []), *(sets or [])])
        result["recipe"] = resolved.name
        if (name := instance or machine_check.instance_of(machine)) is None:
            from neuron_sum.doctor.local_check import check_here

            if region is not None:
                raise typer.BadParameter("--region requires --instance, because this machine has no Neuron chips")
            checks = check_here(resolved, machine, platform)
            title = f"{resolved.name} on this machine, with {platform.name}"
        else:
            target = find_instance(name)
            checks = check_recipe(resolved, target, platform, region)
            title = f"{resolved.name} on {target.name}, with {platform.name}"
            result["instance"] = target.name
    table = console.table("", "check", "found", title=title)
    for column in table.columns[1:]:
        column.justify, column.overflow = "left", "fold"
    for check in checks:
        table.add_row(check.verdict, check.name, check.found + (f"\n→ {check.remedy}" if check.remedy else ""))
    console.emit({**result, "checks": [asdict(check) for check in checks]}, table)
    machine_check.raise_if_blocked(checks)


def explain(
    log: Annotated[str, typer.Argument(metavar="FILE|-", help="Log file. Default: standard input.")] = "-",
) -> None:
    """Print the known causes of failure in a log of the compiler, runtime, server or SageMaker; nothing is guessed."""
    from neuron_sum.doctor.explain import explain as read_log
    from neuron_sum.doctor.known_failures import known_failures
    from neuron_sum.errors import DataError, reading

    if log == "-":
        if sys.stdin is None or sys.stdin.closed:
            raise DataError("no log: standard input is closed", "run `neuron-sum explain FILE`")
        if sys.stdin.isatty():
            raise DataError(
                "no log: standard input is a terminal", "run `neuron-sum explain FILE`, or pipe a log into it"
            )
        with reading("standard input", DataError, READABLE):
            explanation = read_log(sys.stdin.buffer)
    else:
        with reading(log, DataError):
            if Path(log).is_dir():
                raise DataError(
                    f"{log} is a folder, not a log", f"name a file in it: `{console.command('explain', f'{log}/FILE')}`"
                )
            with Path(log).open("rb") as file, reading(log, DataError, READABLE):
                explanation = read_log(file)
    result = {
        "known": bool(explanation.findings),
        "lines": explanation.lines,
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
            for finding in explanation.findings
        ],
    }
    lines = f"{explanation.lines:,} line{'' if explanation.lines == 1 else 's'}"
    if not explanation.findings:
        text = (
            f"unknown: none of {len(known_failures())} known causes is in these {lines}\n"
            f"upstream issues: {UPSTREAM}\n"
            "to add a known cause, see CONTRIBUTING.md, A cause"
        )
    else:
        text = "\n\n".join(_describe(finding) for finding in explanation.findings)
    console.emit(result, text)


def _describe(finding: "Finding") -> str:
    more = f" (and {finding.times - 1:,} more)" if finding.times > 1 else ""
    return (
        f"{finding.cause.name}: line {finding.line:,}{more}\n"
        f"  {finding.text}\n"
        f"cause:  {finding.cause.cause}\n"
        f"remedy: {finding.cause.remedy}\n"
        f"source: {finding.cause.source}"
    )
