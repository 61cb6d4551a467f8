"""`neuron-sum preflight`: estimates for a recipe's graphs on Inferentia2, without its compiler."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.console import quote
from neuron_sum.errors import PlatformError, RecipeError, ResourceError
from neuron_sum.recipes.command import Overrides, RecipeArgument, SetOption

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from compile.preflight.report import Report

PICTURES = (".png", ".svg")
DECODER_ONLY_NOTE = (
    "The inf2 artifact of a decoder-only model is exported by optimum-neuron, whose graphs cannot be lowered here.\n"
    "These are neuron-sum's static graphs of the same dimensions."
)


def preflight(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    sets: SetOption = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File (.png or .svg) for a chart of the minimum times.")
    ] = None,
    hlo: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Folder to store the HLO texts in.")] = None,
    examples_per_row: Annotated[
        float | None,
        typer.Option(min=1.0, help="Mean examples per packed training row, if the data are not on this machine."),
    ] = None,
) -> None:
    """Estimate a recipe's graphs on Inferentia2 without Neuron packages: operators, memory, minimum time and cost."""
    if picture is not None:
        _check_picture(picture)

    from compile.preflight.lowering import check_xla_python
    from neuron_sum.recipes.loading import load_recipe

    resolved = load_recipe(recipe, [*(overrides or []), *(sets or [])])
    check_xla_python()

    from compile.preflight import report as preflighting
    from compile.preflight.floors import INSTANCE

    report = preflighting.preflight(resolved, examples_per_row=examples_per_row, keep=hlo)
    console.emit(report.as_dict(), *_shown(report))
    if picture is not None:  # last, so that the report is printed even if writing the file fails
        from compile.preflight.chart import draw

        draw(report, picture)
        console.note(f"picture: {picture}")
    if report.faults:
        raise PlatformError(
            f"{resolved.name} will not run on {INSTANCE}: {'; '.join(report.faults)}",
            "if memory is the reason, reduce compile.batch_sizes or use `--set compile.dtype=bf16`",
        )


def _check_picture(path: Path) -> None:
    """Rejects a file that cannot be written, before the graphs are lowered, which takes minutes."""
    if path.suffix not in PICTURES:
        raise RecipeError(
            f"--picture {path}: unsupported format {path.suffix!r}", f"use a file that ends in {' or '.join(PICTURES)}"
        )
    if not path.parent.is_dir():
        raise ResourceError(
            f"--picture {path}: the folder {path.parent} does not exist", f"run `mkdir -p {quote(path.parent)}`"
        )
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ResourceError(f"--picture {path} cannot be written", "use a file in a writable folder")


def _shown(report: "Report") -> "list[Table | str]":
    from compile.preflight import error_codes
    from compile.preflight.floors import INSTANCE
    from neuron_sum.models.families import FAMILIES
    from neuron_sum.platform.matrix import CORE_BANDWIDTH, CORE_FLOPS, GIB, INSTANCES, INSTANCES_SOURCE
    from neuron_sum.platform.prices import find_price

    instance = INSTANCES[INSTANCE]
    lines: list[Table | str] = [
        f"{report.recipe.name}: {report.model_type}, weights and products {report.dtype}, keys and values "
        f"{report.kv_dtype}, on {INSTANCE} ({instance.neuron_cores} NeuronCores)\n"
        "Nothing was measured on a device. A floor is the best value that the published rates allow; a projection is\n"
        "the floor, corrected by the ratio of AWS measurements to their floors (calibration below), plus the host's\n"
        "time per token (measured on another CPU).",
        *([DECODER_ONLY_NOTE] if FAMILIES[report.model_type].decoder_only else []),
        _graphs(report),
        _buckets(report),
        _calibration(report),
        f"rates of a NeuronCore: {CORE_FLOPS['bf16'] / 1e12:g} TFLOPS bf16, {CORE_FLOPS['fp32'] / 1e12:g} fp32 (with "
        f"the compiler's auto-cast as for bf16), {CORE_BANDWIDTH / GIB:g} GiB/s: half of a chip each\n"
        f"  {INSTANCES_SOURCE}\nprice: {find_price(INSTANCE)}",
        _operators(report),
        _memory(report),
        _training(report),
    ]
    fits = "fits with every graph loaded" if report.fits else "fits only while some graphs are not loaded"
    verdict = report.faults or ["no documented error code of the compiler", f"memory {fits}"]
    return [
        *lines,
        f"error codes: {error_codes.SOURCE}",
        f"found: {'; '.join(verdict)}",
        *(f"warning: {warning}" for warning in report.warnings),
    ]


def _graphs(report: "Report") -> "Table":
    table = console.table(
        "graph, one call",
        "GFLOP",
        "MB read",
        "MB written",
        "MB, cache rewritten",
        "ms floor",
        "bound by",
        title="\noperations and bytes of a call",
    )
    for graph in report.graphs:
        account = graph.account
        table.add_row(
            graph.name,
            _short(account.total_flops / 1e9),
            _short(account.read / 1e6),
            _short(account.written / 1e6),
            _short(graph.rewriting.account.moved / 1e6) if graph.rewriting else "",
            _short(graph.floor_s * 1e3),
            graph.bound,
        )
    return table


def _buckets(report: "Report") -> "Table":
    from compile.preflight.floors import INSTANCE
    from neuron_sum.platform.matrix import INSTANCES

    cores = INSTANCES[INSTANCE].neuron_cores
    table = console.table(
        "bucket",
        "weights once",
        "ms floor",
        "projected",
        "host ms",
        "tokens/s floor",
        "projected",
        "$ per 1,000 floor",
        "projected",
        title="\na batch of summaries, each of target_len tokens; tokens/s and $ with one worker on one core\n"
        f"(serving has a worker on each of the {cores} cores, which divides $ by up to {cores})",
    )
    for bucket in report.buckets:
        values = bucket.as_dict()
        table.add_row(
            bucket.name,
            console.size(bucket.memory),
            _short(values["floor_s"] * 1e3),
            _short(values["projected_s"] * 1e3),
            _short(values["host_s"] * 1e3),
            _short(values["floor_tokens_per_s_per_core"]),
            _short(values["projected_tokens_per_s_per_core"]),
            _short(values["floor_usd_per_1000"]),
            _short(values["projected_usd_per_1000"]),
        )
    return table


def _calibration(report: "Report") -> "Table":
    from compile.preflight.calibration import SOURCE

    table = console.table(
        "model",
        "instance, cores",
        "ms floor",
        "published",
        "host ms",
        "floor / device",
        title=f"\ncalibration, one inference: {SOURCE}",
    )
    for row in report.calibrations:
        table.add_row(
            row.published.model,
            f"{row.published.instance}, {row.published.cores}",
            _short(row.floor_s * 1e3),
            _short(row.published.total_s * 1e3),
            _short(row.host_s * 1e3),
            f"{row.ratio:.3f}",
        )
    return table


def _operators(report: "Report") -> str:
    from compile.preflight import operators
    from compile.preflight.report import WIDE_INTEGERS

    names = sorted({name for graph in report.graphs for name in graph.account.operators})
    unlisted, write = report.unlisted_by_compiler, "dynamic-update-slice"
    lines = [
        f"operators: {', '.join(names)}",
        f"not in the published list: {_by_kind(report.unlisted)} ({operators.SOURCE})",
        "neuronx-cc is not on PATH"
        if unlisted is None
        else f"not in the list of the installed neuronx-cc: {_by_kind(unlisted)} (not an error)",
    ]
    if write in report.limits:
        lines.append(f'limit of {write} in the published list: "{report.limits[write]}"; {operators.RUN_TIME_INDEX}')
    if report.has_wide_integers:
        lines.append(WIDE_INTEGERS)
    return "\n".join(lines)


def _memory(report: "Report") -> str:
    from neuron_sum.platform.matrix import CORE_MEMORY

    activations = report.loaded_memory - report.weights - report.state
    return (
        f"memory of a core: {console.size(CORE_MEMORY)}. All {len(report.graphs)} graphs together share\n"
        f"{console.size(report.weights)} of weights, and {console.size(report.state)} of keys and values by shape,\n"
        f"at most {console.size(activations)} of activations; total {console.size(report.loaded_memory)} without "
        "compiled programs"
    )


def _by_kind(outside: "Mapping[str, list[str]]") -> str:
    return "; ".join(f"{name} ({', '.join(kinds)})" for name, kinds in outside.items()) or "none"


def _training(report: "Report") -> str:
    from neuron_sum.training.estimate.projection import ASSUMED_SHARE

    epoch = report.epoch
    lines = (
        f"training, rows of {epoch.shape} ({epoch.dtype}): {_short(epoch.flops_per_row / 1e9)} GFLOP per row, forward "
        f"and backward; at least ${_short(epoch.peak_usd_per_1000_rows)} per 1,000 rows on {epoch.instance}"
    )
    if epoch.peak_s is None or epoch.peak_usd is None or epoch.projected_s is None or epoch.projected_usd is None:
        return f"{lines}\nan epoch: {epoch.rows_are}"
    kind = "floor" if epoch.is_floor else "estimate, as if every row had that length,"
    return (
        f"{lines}\nan epoch of {epoch.rows:,} rows ({epoch.rows_are}): {kind} {console.duration(epoch.peak_s)}, "
        f"${_short(epoch.peak_usd)} (at 100 % of the peak rate); projection {console.duration(epoch.projected_s)}, "
        f"${_short(epoch.projected_usd)} (assuming {ASSUMED_SHARE:.0%} of it; compile time not counted)"
    )


def _short(value: float) -> str:
    """A number with three significant digits: 1234.5 -> '1,230', 0.01234 -> '0.0123'."""
    if not value:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(digits, 0)}f}"
