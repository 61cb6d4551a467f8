"""The charts of the report, drawn by matplotlib as inline SVG without network resources."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuron_sum.evaluation.compare import Comparison
from neuron_sum.evaluation.rouge import ROUGE_TYPES

matplotlib.use("svg")
COLORS = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#e15759", "#76b7b2", "#9c755f", "#bab0ac")
STYLE: Any = {
    "font.size": 11,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "svg.fonttype": "none",
    "svg.hashsalt": "neuron-sum",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
"""With fonttype none, text remains text and uses the reader's fonts."""


def rouge_chart(comparison: Comparison) -> str:
    """ROUGE-1, -2 and -L of every system, with intervals."""
    kinds = [name for name in ROUGE_TYPES.values() if name != "ROUGE-Lsum"]
    systems = list(reversed(comparison.evaluations))
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(height=0.8 + 0.55 * len(systems) + 0.5)
        for offset, kind in enumerate(kinds):
            scores = [evaluation.metrics["scores"][kind] for evaluation in systems]
            positions = [index + 0.26 * (1 - offset) for index in range(len(systems))]
            values = [score["value"] for score in scores]
            errors = [
                [score["value"] - score["low"] for score in scores],
                [score["high"] - score["value"] for score in scores],
            ]
            axes.barh(
                positions,
                values,
                height=0.24,
                color=COLORS[offset],
                label=kind,
                xerr=errors,
                error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"},
            )
        axes.set_yticks(range(len(systems)), [_plain(evaluation.system.name) for evaluation in systems])
        axes.set_xlabel("F1, points")
        axes.set_xlim(left=0)
        figure.legend(loc="outside upper left", ncols=3, frameon=False)
        return _svg(figure)


def loss_chart(logs: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Training loss (line) and validation loss (dashed, dots) by step, one color per run."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(height=3.4)
        for color, (name, log) in zip(COLORS * len(logs), logs.items(), strict=False):
            for key, style, label in (
                ("loss", "-", _plain(name)),
                ("eval_loss", "o--", f"{_plain(name)}, validation"),
            ):
                points = [(entry["step"], entry[key]) for entry in log if key in entry]
                if points:
                    axes.plot(*zip(*points, strict=True), style, color=color, label=label, markersize=4, linewidth=1.4)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss per token")
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
        return _svg(figure)


def length_chart(comparison: Comparison) -> str:
    """Words per summary, for the human references and every system."""
    references = [len(text.split()) for example in comparison.examples for text in example.references]
    rows = {"human": references}
    for evaluation in comparison.evaluations:
        if evaluation.system.builtin != "human":
            rows[evaluation.system.name] = [len(prediction.summary.split()) for prediction in evaluation.predictions]
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(height=0.9 + 0.4 * len(rows))
        names = [_plain(name) for name in reversed(rows)]
        axes.boxplot(
            list(reversed(rows.values())),
            tick_labels=names,
            orientation="horizontal",
            showfliers=False,
            whis=(5, 95),
            medianprops={"color": COLORS[1]},
        )
        axes.set_xlabel("words (box: half of the summaries; whiskers: 90 %)")
        axes.set_xlim(left=0)
        return _svg(figure)


def _plain(name: str) -> str:
    """Escape matplotlib's formula syntax in a name."""
    return name.replace("$", r"\$")


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    """The <svg> element only; it scales with the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
