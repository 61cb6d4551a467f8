"""`neuron-sum preflight`: a recipe's graphs on Inferentia2, as far as they can be known without its compiler."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import PlatformError, RecipeError, ResourceError
from neuron_sum.recipes.command import Overrides, RecipeArgument, SetOption

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from compile.preflight.report import Report

PICTURES = (".png", ".svg")
LLAMA_NOTE = (
    "A Llama's artifact for inf2 is made by optimum-neuron's own exporter, which cannot be lowered here. These are \n"
    "our own static graphs of the same dimensions."
)


def preflight(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    sets: SetOption = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the floors: a .png or .svg file to write.")
    ] = None,
    hlo: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Keep the HLO texts there.")] = None,
    examples_per_row: Annotated[
        float | None,
        typer.Option(min=1.0, help="Of packed rows in training, where the data are not on this machine."),
    ] = None,
) -> None:
    """Lower a recipe's graphs without a Neuron package: operators, bytes, memory, floors of time and cost."""
    if picture is not None:
        _check_picture(picture)

    from compile.preflight import report as preflighting
    from neuron_sum.recipes.loading import load_recipe

    resolved = load_recipe(recipe, [*(overrides or []), *(sets or [])])
    report = preflighting.preflight(resolved, examples_per_row=examples_per_row, keep=hlo)
    console.emit(report.as_dict(), *_shown(report))
    if picture is not None:  # last: whatever becomes of the file, the report was printed
        from compile.preflight.chart import draw

        draw(report, picture)
        console.note(f"picture: {picture}")
    if report.faults:
        raise PlatformError(
            f"{resolved.name} would not run on {preflighting.INSTANCE}: {'; '.join(report.faults)}",
            "smaller compile.batch_sizes or compile.dtype=bf16, where it is memory",
        )


def _check_picture(path: Path) -> None:
    """Before anything is lowered, which takes minutes."""
    if path.suffix not in PICTURES:
        raise RecipeError(f"--picture {path}: no picture of that kind", f"a file that ends in {' or '.join(PICTURES)}")
    if not path.parent.is_dir():
        raise ResourceError(f"--picture {path}: there is no folder {path.parent}", f"mkdir -p {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ResourceError(f"--picture {path} cannot be written", "a file in a folder that can be")


def _shown(report: "Report") -> "list[Table | str]":
    from compile.preflight.report import INSTANCE
    from neuron_sum.platform.matrix import CORE_BANDWIDTH, CORE_FLOPS, GIB, INSTANCES, INSTANCES_SOURCE
    from neuron_sum.platform.prices import find_price

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
        _memory(report),
        _training(report),
    ]
    fits = "fits only as long as not every graph is loaded" if report.warnings else "fits with every graph loaded"
    verdict = report.faults or ["no dynamic dimension", "no 64-bit float", f"memory {fits}"]
    return [*lines, f"found: {'; '.join(verdict)}", *(f"warning: {each}" for each in report.warnings)]


def _graphs(report: "Report") -> "Table":
    table = console.table(
        "graph, one call",
        "GFLOP",
        "MB read",
        "MB written",
        "MB, cache rewritten",
        "ms floor",
        "bound by",
        title="\nwhat a call computes and moves",
    )
    for graph in report.graphs:
        account = graph.account
        table.add_row(
            graph.name,
            _short(account.total_flops / 1e9),
            _short(account.read / 1e6),
            _short(account.written / 1e6),
            _short(graph.where.account.moved / 1e6) if graph.where else "",
            _short(graph.floor_s * 1e3),
            graph.bound,
        )
    return table


def _buckets(report: "Report") -> "Table":
    from compile.preflight.report import INSTANCE
    from neuron_sum.platform.matrix import INSTANCES

    cores = INSTANCES[INSTANCE].neuron_cores
    table = console.table(
        "bucket",
        "weights once",
        "ms floor",
        "projected",
        "tokens/s floor",
        "projected",
        "$ per 1,000 floor",
        "projected",
        title="\na batch of summaries, every one of target_len tokens; tokens/s and $ with one worker on one core, as\n"
        f"serving has it (a worker on each of the {cores} cores would divide $ by {cores})",
    )
    for bucket in report.buckets:
        told = bucket.as_dict()
        table.add_row(
            bucket.name,
            console.size(bucket.memory),
            _short(told["floor_s"] * 1e3),
            _short(told["projected_s"] * 1e3),
            _short(told["floor_tokens_per_s_per_core"]),
            _short(told["projected_tokens_per_s_per_core"]),
            _short(told["floor_usd_per_1000"]),
            _short(told["projected_usd_per_1000"]),
        )
    return table


def _calibration(report: "Report") -> "Table":
    from compile.preflight.calibration import SOURCE

    table = console.table(
        "model", "instance, cores", "tokens/s floor", "published", "published / floor", title=f"\ncalibration: {SOURCE}"
    )
    for each in report.calibrations:
        table.add_row(
            each.published.model,
            f"{each.published.instance}, {each.published.cores}",
            _short(each.floor_tokens_per_s),
            f"{each.published.tokens_per_s:g}",
            f"{each.ratio:.3f}",
        )
    return table


def _operators(report: "Report") -> str:
    from compile.preflight import operators
    from compile.preflight.report import WIDE_INTEGERS

    names = sorted({name for graph in report.graphs for name in graph.account.operators})
    own, write = report.unlisted_by_compiler, "dynamic-update-slice"
    lines = [
        f"operators: {', '.join(names)}",
        f"outside the published list: {_by_kind(report.unlisted)} ({operators.SOURCE})",
        "neuronx-cc is not on PATH" if own is None else f"not in neuronx-cc's own list: {_by_kind(own)} (no fault)",
    ]
    if write in report.limits:
        lines.append(f'the published list says of {write}: "{report.limits[write]}"; {operators.RUN_TIME_INDEX}')
    if report.has_wide_integers:
        lines.append(WIDE_INTEGERS)
    return "\n".join(lines)


def _memory(report: "Report") -> str:
    from neuron_sum.platform.matrix import CORE_MEMORY

    activations = report.loaded_memory - report.weight_copies - report.state
    return (
        f"memory of a core: {console.size(CORE_MEMORY)}. The buckets' figures have one copy of the weights; every\n"
        f"loaded graph has its own, and its own keys and values: {len(report.graphs)} graphs, "
        f"{console.size(report.weight_copies)} of weights, {console.size(report.state)} of keys and values,\n"
        f"at most {console.size(activations)} of activations: {console.size(report.loaded_memory)}, compiled programs "
        "not counted"
    )


def _by_kind(outside: "Mapping[str, list[str]]") -> str:
    return "; ".join(f"{name} ({', '.join(kinds)})" for name, kinds in outside.items()) or "none"


def _training(report: "Report") -> str:
    from neuron_sum.training.estimate.projection import ASSUMED_SHARE

    epoch = report.epoch
    lines = (
        f"training, rows of {epoch.shape} ({epoch.dtype}): {_short(epoch.flops_per_row / 1e9)} GFLOP a row, forward "
        f"and backward; at least ${_short(epoch.peak_usd_per_1000_rows)} for 1,000 such rows on {epoch.instance}"
    )
    if epoch.peak_s is None or epoch.peak_usd is None or epoch.projected_s is None or epoch.projected_usd is None:
        return f"{lines}\nan epoch: {epoch.rows_are}"
    told = "floor" if epoch.is_floor else "estimate, as if every row were that long,"
    return (
        f"{lines}\nan epoch of {epoch.rows:,} rows ({epoch.rows_are}): {told} {console.duration(epoch.peak_s)}, "
        f"${_short(epoch.peak_usd)} (at 100 % of the peak rate); projection {console.duration(epoch.projected_s)}, "
        f"${_short(epoch.projected_usd)} (assuming {ASSUMED_SHARE:.0%} of it; compile time not counted)"
    )


def _short(value: float) -> str:
    """Three digits that count: 1234.5 -> '1,230', 0.01234 -> '0.0123'."""
    if not value:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(digits, 0)}f}"
