"""ROUGE with intervals against the number of training examples, from the results of `neuron-sum compare`.

    python benchmarks/learning_curve.py COMPARISON... [--output docs/images/learning-curve.svg]

COMPARISON is a folder of `neuron-sum compare`, or its comparison.json. Trained systems are points, joined by method;
others, such as untuned and lead-3, are horizontal lines. All comparisons must have the same dialogues and the same
protocol. Prints a Markdown table, and draws an .svg or .png.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuron_sum import console, files
from neuron_sum.errors import NeuronSumError, RunError
from neuron_sum.evaluation.charts import COLORS, STYLE

KINDS = ("ROUGE-1", "ROUGE-2", "ROUGE-L")
SAME = ("examples", "evaluation protocol")
"""The parts of a fingerprint that must be the same for scores to be comparable."""
STYLES = ("--", ":", "-.")
"""The styles of the lines of systems that were not trained here."""


@dataclass(frozen=True)
class System:
    """A system of a comparison.

    Attributes:
        name: The name in the comparison.
        method: The training method; None for a system that was not trained here.
        train_examples: The number of training examples; None without a training.
        scores: Value, low and high by kind.
        dialogues: The number of dialogues.
    """

    name: str
    method: str | None
    train_examples: int | None
    scores: dict[str, dict[str, float]]
    dialogues: int


def read_systems(paths: Iterable[Path]) -> list[System]:
    """The systems of all comparisons, by method and number of training examples.

    A system that occurs again with the same scores is left out.

    Raises:
        RunError: If the comparisons are on different dialogues, or if one lacks the number of training examples.
    """
    systems: list[System] = []
    first: dict[str, Any] = {}
    for path in paths:
        file = path / "comparison.json" if path.is_dir() else path
        for metrics in files.read_json(file, hint="name a folder of `neuron-sum compare`")["systems"]:
            parts = {part: metrics["fingerprint"].get(part) for part in SAME}
            first = first or parts
            if parts != first:
                raise RunError(
                    f"{file}: other dialogues or another protocol than the first", "compare them on the same"
                )
            run = metrics.get("run") or metrics.get("artifact") or {}
            method = run.get("method")
            trained = method not in (None, "untuned")
            if trained and run.get("train_examples") is None:
                raise RunError(f"{file}: {metrics['system']} lacks train_examples", "repeat `neuron-sum compare`")
            system = System(
                metrics["system"],
                method if trained else None,
                run["train_examples"] if trained else None,
                {kind: metrics["scores"][kind] for kind in KINDS},
                metrics["examples"],
            )
            if system not in systems:
                systems.append(system)
    return sorted(systems, key=lambda system: (system.method or "", system.train_examples or 0))


def table(systems: Sequence[System]) -> str:
    """A Markdown table of the scores."""
    lines = [f"| system | training examples | {' | '.join(KINDS)} |", f"|---|---|{'---|' * len(KINDS)}"]
    for system in systems:
        scores = (system.scores[kind] for kind in KINDS)
        cells = (f"{score['value']:.2f} [{score['low']:.1f}, {score['high']:.1f}]" for score in scores)
        count = "" if system.train_examples is None else f"{system.train_examples:,}"
        lines.append(f"| {system.name} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(systems: Sequence[System], path: Path) -> None:
    """Draw a panel for each kind of ROUGE."""
    methods = list(dict.fromkeys(system.method for system in systems if system.method is not None))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.6), layout="constrained")
        panels = figure.subplots(1, len(KINDS))
        for axes, kind in zip(panels, KINDS, strict=True):
            for color, method in zip(cycle(COLORS), methods, strict=False):
                _curve(axes, kind, method, [system for system in systems if system.method == method], color)
            others = [system for system in systems if system.method is None]
            for color, style, system in zip(cycle(reversed(COLORS)), cycle(STYLES), others, strict=False):
                value = system.scores[kind]["value"]
                axes.axhline(value, linestyle=style, color=color, linewidth=1.2, label=system.name.replace("$", r"\$"))
            axes.set_xscale("log")
            axes.set_ylim(bottom=0)
            counts = sorted({system.train_examples for system in systems if system.train_examples})
            axes.set_xticks(counts, [f"{count:,}" for count in counts])
            axes.minorticks_off()
            axes.set_title(kind)
            axes.set_xlabel("training examples")
        panels[0].set_ylabel("F1, points")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)


def _curve(axes: Axes, kind: str, method: str, systems: Sequence[System], color: str) -> None:
    scores = [system.scores[kind] for system in systems]
    axes.errorbar(
        [system.train_examples or 0 for system in systems],
        [score["value"] for score in scores],
        yerr=[
            [score["value"] - score["low"] for score in scores],
            [score["high"] - score["value"] for score in scores],
        ],
        marker="o",
        markersize=4,
        capsize=3,
        linewidth=1.4,
        color=color,
        label=method.replace("_", " "),
    )


def main(words: Sequence[str] | None = None) -> int:
    """Print the table and draw the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", type=Path, metavar="COMPARISON")
    parser.add_argument("--output", type=Path, default=Path("docs/images/learning-curve.svg"), help=".svg or .png")
    options = parser.parse_args(words)
    if options.output.suffix not in (".svg", ".png"):
        parser.error(f"--output {options.output}: use a file that ends in .svg or .png")
    try:
        systems = read_systems(options.comparisons)
    except NeuronSumError as error:
        console.fail(error.message, error.hint, error.exit_code)
        return error.exit_code
    if not any(system.train_examples for system in systems):
        parser.error("no comparison has a trained system")
    draw(systems, options.output)
    console.emit({}, f"{systems[0].dialogues} dialogues, intervals as in the comparisons\n\n{table(systems)}")
    console.note(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
