"""The preflight's picture: where each graph stands under the roofline, and what a step moves."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuron_sum.stack import CORE_BANDWIDTH, CORE_FLOPS

if TYPE_CHECKING:
    from compile.preflight import Report

ENCODE, STEP, WHERE, ROOF = "#4e79a7", "#f28e2b", "#ffbe7d", "#333333"
STYLE: Any = {
    "font.size": 10,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "svg.hashsalt": "neuron-sum",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(report: "Report", path: Path) -> None:
    """Writes the picture.

    Args:
        report: What to draw.
        path: Of a .png or .svg file.
    """
    rows = len(report.graphs)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, max(4.6, 1.8 + 0.55 * rows)), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
        _roofline(report, left)
        _latency(report, right)
        figure.suptitle(
            f"{report.recipe.name} on one NeuronCore-v2, {report.dtype}: floors from published rates, nothing measured",
            x=0.01, ha="left", fontsize=11, fontweight="bold",
        )  # fmt: skip
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _roofline(report: "Report", axes: Axes) -> None:
    """Operations a second against operations per byte (Williams et al. 2009)."""
    intensities = [graph.account.total_flops / graph.account.moved for graph in report.graphs]
    low, high = min(0.3, min(intensities) / 2), max(2000.0, max(intensities) * 2)
    for dtype, peak in CORE_FLOPS.items():
        ridge = peak / CORE_BANDWIDTH
        roof = [low * CORE_BANDWIDTH / 1e12, peak / 1e12, peak / 1e12]
        own = dtype == report.dtype
        axes.plot([low, ridge, high], roof, "-" if own else "--", color=ROOF, linewidth=1.4 if own else 0.7)
        axes.annotate(f"{dtype}: {peak / 1e12:g} TFLOPS", (high, peak / 1e12), ha="right", va="bottom", fontsize=9)
    for graph, intensity in zip(report.graphs, intensities, strict=True):
        rate = graph.account.total_flops / graph.floor_s / 1e12
        encode = graph.lowered.graph.kind == "encode"
        axes.plot(intensity, rate, "s" if encode else "o", color=ENCODE if encode else STEP, markersize=7)
        axes.annotate(
            f"batch {graph.lowered.graph.batch}, {graph.lowered.graph.source_len}"
            + ("" if encode else f", k{graph.lowered.graph.num_beams}"),
            (intensity, rate), textcoords="offset points", xytext=(8, -11), fontsize=8,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_xlabel("operations per byte moved")
    axes.set_ylabel("TFLOPS at the floor")
    axes.set_title("roofline (■ encode, ● step)", loc="left", fontsize=10)
    slope = low * 3
    axes.annotate(f"{CORE_BANDWIDTH / 2**30:g} GiB/s", (slope, slope * CORE_BANDWIDTH / 1e12), ha="left", va="bottom",
                  textcoords="offset points", xytext=(-4, 8), fontsize=9, rotation=38)  # fmt: skip


def _latency(report: "Report", axes: Axes) -> None:
    """Milliseconds of a call, reading and computing side by side."""
    graphs = list(reversed(report.graphs))
    for place, graph in enumerate(graphs):
        color = ENCODE if graph.lowered.graph.kind == "encode" else STEP
        axes.barh(place + 0.2, graph.memory_s * 1e3, height=0.36, color=color)
        axes.barh(place - 0.2, graph.compute_s * 1e3, height=0.36, color=color, alpha=0.45)
        label = f"{graph.account.moved / 1e6:,.0f} MB"
        axes.annotate(
            f" {graph.memory_s * 1e3:.3g} ms, {label}", (graph.memory_s * 1e3, place + 0.2), va="center", fontsize=8
        )
        axes.annotate(
            f" {graph.compute_s * 1e3:.3g} ms, {graph.account.total_flops / 1e9:,.3g} GFLOP",
            (graph.compute_s * 1e3, place - 0.2), va="center", fontsize=8,
        )  # fmt: skip
    axes.set_yticks(range(len(graphs)), [graph.name for graph in graphs])
    axes.set_xscale("log")
    times = [value * 1e3 for graph in graphs for value in (graph.memory_s, graph.compute_s)]
    axes.set_xlim(min(times) / 3, max(times) * 12)
    axes.set_xlabel("ms of a call at least (dark: bytes over bandwidth; light: operations over rate)")
    axes.set_title("floors of every graph; the longer bar counts", loc="left", fontsize=10)
