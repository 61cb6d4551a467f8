"""`neuron-sum preflight`: a recipe's graphs on Inferentia2, as far as they can be known without its compiler."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import PlatformError, RecipeError
from neuron_sum.recipe_command import Overrides, RecipeArgument

if TYPE_CHECKING:
    from rich.table import Table

    from compile.preflight import Report

PICTURES = (".png", ".svg")
LLAMA_NOTE = (
    "A Llama's artifact for inf2 is made by optimum-neuron's own exporter, which cannot be lowered here. These are \n"
    "our own static graphs of the same dimensions."
)


def preflight(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change the recipe: compile.dtype=bf16."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the floors: a .png or .svg file to write.")
    ] = None,
    hlo: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Keep the HLO texts there.")] = None,
    examples_per_row: Annotated[
        float, typer.Option(min=1.0, help="Of packed rows in training, where the data are not on this machine.")
    ] = 1.0,
) -> None:
    """Lower a recipe's graphs without a Neuron package: operators, bytes, memory, floors of time and cost."""
    if picture is not None and picture.suffix not in PICTURES:
        raise RecipeError(
            f"--picture {picture}: no picture of that kind", f"a file that ends in {' or '.join(PICTURES)}"
        )

    from compile import preflight as preflighting
    from neuron_sum.recipe_loading import load_recipe

    resolved = load_recipe(recipe, [*(overrides or []), *(sets or [])])
    bars: list[console.ProgressBar] = []

    def say(done: int, total: int, what: str) -> None:
        if not bars:
            bars.append(console.ProgressBar("lowering graphs", total))
        bars[0].update(done, what)

    try:
        report = preflighting.preflight(resolved, examples_per_row=examples_per_row, keep=hlo, say=say)
    finally:
        for bar in bars:
            bar.close()
    if picture is not None:
        from compile.preflight_chart import draw

        draw(report, picture)
    console.emit(report.as_dict(), *_shown(report), *([f"picture: {picture}"] if picture else []))
    if report.faults:
        raise PlatformError(
            f"{resolved.name} would not run on {preflighting.INSTANCE}: {'; '.join(report.faults)}",
            "smaller compile.batch_sizes or compile.dtype=bf16, where it is memory",
        )


def _shown(report: "Report") -> "list[Table | str]":
    from compile.preflight import INSTANCE
    from neuron_sum.prices import find_price
    from neuron_sum.stack import CORE_BANDWIDTH, CORE_FLOPS, GIB, INSTANCES, INSTANCES_SOURCE

    instance = INSTANCES[INSTANCE]
    lines: list[Table | str] = [
        f"{report.recipe.name}: {report.model_type}, weights and products {report.dtype}, keys and values "
        f"{report.kv_dtype}, on {INSTANCE} ({instance.neuron_cores} NeuronCores)\n"
        "Nothing here was measured on a device. A floor is what the published rates allow at best; a projection is\n"
        "that, made worse by as much as AWS's published figures are worse than their floors (calibration below).",
        *([LLAMA_NOTE] if report.model_type == "llama" else []),
        _graphs(report),
        _buckets(report),
        _calibration(report),
        f"rates of a NeuronCore: {CORE_FLOPS['bf16'] / 1e12:g} TFLOPS bf16, {CORE_FLOPS['fp32'] / 1e12:g} fp32 (bf16's "
        f"with the compiler's auto-cast), {CORE_BANDWIDTH / GIB:g} GiB/s: half a chip's each\n"
        f"  {INSTANCES_SOURCE}\nprice: {find_price(INSTANCE)}",
        _operators(report),
        _training(report),
    ]
    verdict = "no dynamic dimension, no 64-bit float, memory fits" if not report.faults else "; ".join(report.faults)
    return [*lines, f"found: {verdict}"]


def _graphs(report: "Report") -> "Table":
    table = console.table(
        "graph, one call", "GFLOP", "MB read", "MB written", "MB, cache rewritten", "floor ms", "bound by",
        title="\nwhat a call computes and moves",
    )  # fmt: skip
    for graph in report.graphs:
        account = graph.account
        table.add_row(
            graph.name, f"{account.total_flops / 1e9:.2f}", f"{account.read / 1e6:.1f}", f"{account.written / 1e6:.2f}",
            f"{graph.where.account.moved / 1e6:.1f}" if graph.where else "", f"{graph.floor_s * 1e3:.3f}", graph.bound,
        )  # fmt: skip
    return table


def _buckets(report: "Report") -> "Table":
    table = console.table(
        "bucket", "GB on a core", "s floor", "s projected", "tokens/s floor", "projected", "$ per 1,000 floor",
        "projected", title="\na batch of summaries, every one of target_len tokens; tokens/s of one core",
    )  # fmt: skip
    for bucket in report.buckets:
        told = bucket.as_dict()
        table.add_row(
            bucket.name, f"{bucket.memory / 1e9:.2f}", f"{told['floor_s']:.3f}", f"{told['projected_s']:.2f}",
            f"{told['floor_tokens_per_s_per_core']:,.0f}", f"{told['projected_tokens_per_s_per_core']:,.0f}",
            f"{told['floor_usd_per_1000']:.4f}", f"{told['projected_usd_per_1000']:.3f}",
        )  # fmt: skip
    return table


def _calibration(report: "Report") -> "Table":
    from compile.calibration import SOURCE

    table = console.table(
        "model", "instance, cores", "tokens/s floor", "published", "published / floor", title=f"\ncalibration: {SOURCE}"
    )
    for each in report.calibrations:
        table.add_row(
            each.published.model, f"{each.published.instance}, {each.published.cores}",
            f"{each.floor_tokens_per_s:,.0f}", f"{each.published.tokens_per_s:g}", f"{each.ratio:.3f}",
        )  # fmt: skip
    return table


def _operators(report: "Report") -> str:
    from compile.preflight import OPERATORS_SOURCE
    from neuron_sum.stack import CORE_MEMORY

    names = sorted({name for graph in report.graphs for name in graph.account.operators})
    outside = "; ".join(f"{name} ({', '.join(where)})" for name, where in report.unlisted.items()) or "none"
    own = "neuronx-cc is not on PATH" if report.compiler_operators is None else "checked against neuronx-cc's own list"
    return (
        f"operators: {', '.join(names)}\noutside the published list: {outside} ({OPERATORS_SOURCE}); {own}\n"
        f"memory of a core: {CORE_MEMORY / 1e9:.1f} GB. The buckets' figures have every weight once; were each graph "
        f"to hold a copy of its own, all of them would hold {report.weight_copies / 1e9:.2f} GB of weights"
    )


def _training(report: "Report") -> str:
    from neuron_sum.training.projection import ASSUMED_SHARE

    epoch = report.epoch
    lines = (
        f"training, rows of {epoch.shape} ({epoch.dtype}): {epoch.flops_per_row / 1e12:.2f} TFLOP a row, forward and "
        f"backward; at least ${epoch.floor_usd_per_1000_rows:.4f} for 1,000 rows on {epoch.instance}"
    )
    if epoch.floor_s is None or epoch.floor_usd is None or epoch.projected_s is None or epoch.projected_usd is None:
        return f"{lines}; {epoch.rows_are}"
    return (
        f"{lines}\nan epoch of {epoch.rows:,} rows ({epoch.rows_are}): floor {console.duration(epoch.floor_s)}, "
        f"${epoch.floor_usd:.3f} (at 100 % of the peak rate); projection {console.duration(epoch.projected_s)}, "
        f"${epoch.projected_usd:.2f} (assuming {ASSUMED_SHARE:.0%} of it; compile time not counted)"
    )
