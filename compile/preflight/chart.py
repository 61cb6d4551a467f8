"""The preflight chart: the position of each graph under the roofline, and the minimum time of a call."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuron_sum.platform.matrix import CORE_BANDWIDTH, CORE_FLOPS, GIB

if TYPE_CHECKING:
    from compile.preflight.floors import GraphReport
    from compile.preflight.report import Report

COLORS = {"encode": "#4e79a7", "step": "#f28e2b"}
ROOF = "#333333"
STYLE: Any = {
    "font.size": 10,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "svg.hashsalt": "neuron-sum",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(report: "Report", path: Path) -> None:
    """Writes the chart; a graph has the same number in both halves.

    Args:
        report: The report to draw.
        path: The .png or .svg file to write.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, max(4.4, 1.9 + 0.5 * len(report.graphs))), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        _roofline(report, left)
        _times(report.graphs, right)
        title = f"{report.recipe.name} on one NeuronCore-v2, {report.dtype}: floors from published rates, not measured"
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _roofline(report: "Report", axes: Axes) -> None:
    """Operations per second against operations per byte (Williams et al. 2009, doi:10.1145/1498765.1498785)."""
    intensities = [graph.account.total_flops / graph.account.moved for graph in report.graphs]
    low, high = min(0.3, min(intensities) / 3), max(4000.0, max(intensities) * 4)
    for dtype, peak in CORE_FLOPS.items():
        style = "-" if dtype == report.dtype else ":"
        roof = [low * CORE_BANDWIDTH / 1e12, peak / 1e12, peak / 1e12]
        axes.plot([low, peak / CORE_BANDWIDTH, high], roof, style, color=ROOF, linewidth=1.4, zorder=1)
        axes.annotate(f"{dtype}, {peak / 1e12:g} TFLOPS", (high, peak / 1e12 * 1.3), ha="right", fontsize=9)
    axes.annotate(
        f"memory, {CORE_BANDWIDTH / GIB:g} GiB/s",
        (14, 14 * CORE_BANDWIDTH / 1e12),
        xytext=(10, -8),
        textcoords="offset points",
        fontsize=9,
        va="top",
    )
    for number, (graph, intensity) in enumerate(zip(report.graphs, intensities, strict=True), 1):
        rate = graph.account.total_flops / graph.floor_s / 1e12
        axes.plot(intensity, rate, "o", color=COLORS[graph.lowered.graph.kind], markersize=13, zorder=2)
        axes.annotate(str(number), (intensity, rate), ha="center", va="center", fontsize=8, color="white", zorder=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(low * CORE_BANDWIDTH / 1e12, CORE_FLOPS["bf16"] / 1e12 * 2.5)
    axes.set_xlabel("operations per byte moved")
    axes.set_ylabel("TFLOPS, at the floor")
    axes.set_title("roofline", loc="left", fontsize=10)


def _times(graphs: "tuple[GraphReport, ...]", axes: Axes) -> None:
    """Times of memory access and computation of each call on one axis; the longer of the two is the floor."""
    for place, graph in enumerate(graphs):
        color, times = COLORS[graph.lowered.graph.kind], (graph.memory_s * 1e3, graph.compute_s * 1e3)
        axes.plot(times, (place, place), color=color, linewidth=2.5, alpha=0.35, zorder=1)
        axes.plot(times[0], place, "s", color=color, markersize=8, zorder=2)
        axes.plot(times[1], place, "^", color=color, markersize=8, zorder=2)
        moved, flops = graph.account.moved / 1e6, graph.account.total_flops / 1e9
        label = (
            f"{moved:,.{0 if moved > 10 else 2}f} MB, {flops:,.{0 if flops > 10 else 2}f} GFLOP: {max(times):.3g} ms"
        )
        axes.annotate(label, (max(times), place), xytext=(9, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.plot([], [], "s", color=ROOF, label="bytes over bandwidth")
    axes.plot([], [], "^", color=ROOF, label="operations over rate")
    axes.legend(loc="lower right", frameon=False, fontsize=9, bbox_to_anchor=(1, 1), ncols=2)
    axes.set_yticks(range(len(graphs)), [f"{number}  {graph.name}" for number, graph in enumerate(graphs, 1)])
    axes.invert_yaxis()
    axes.set_ylim(len(graphs) - 0.5, -0.5)
    axes.set_xscale("log")
    marks = [value * 1e3 for graph in graphs for value in (graph.memory_s, graph.compute_s)]
    axes.set_xlim(min(marks) / 2, max(marks) * (max(marks) / min(marks)) ** 0.8)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    axes.set_xlabel("minimum ms of a call: the right-hand mark")
