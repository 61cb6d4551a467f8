"""Summaries of several systems side by side as Markdown, for dialogues that a rule selects, not a person.

    python benchmarks/side_by_side.py COMPARISON --system lora [--percentiles 10 50 90]

COMPARISON is a folder of `neuron-sum compare`. The dialogues are sorted by the ROUGE-1 of --system, and those at the
given percentiles are printed: by default one of its worst, its median, and one of its best.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuron_sum import console, files
from neuron_sum.errors import NeuronSumError, RunError

SCORE = "ROUGE-1"


def read_texts(folder: Path, system: str) -> list[dict[str, Any]]:
    """The lines of summaries.jsonl.

    Raises:
        RunError: If there are none, or if the system is not among the compared ones.
    """
    file = folder / "summaries.jsonl"
    entries = (
        files.read_jsonl(file, hint="name a folder of `neuron-sum compare`, or repeat it") if file.is_file() else []
    )
    if not entries:
        raise RunError(f"{file} does not exist or is empty", "name a folder of `neuron-sum compare`, or repeat it")
    if system not in (names := entries[0]["summaries"]):
        raise RunError(f"{folder} has no system {system!r}; valid: {', '.join(names)}", "change --system")
    return entries


def choose(entries: Sequence[dict[str, Any]], system: str, percentiles: Sequence[float]) -> list[dict[str, Any]]:
    """The entries at percentiles of the system's ROUGE-1; of equal scores, the first in the order of the data."""
    ranked = sorted(entries, key=lambda entry: entry["summaries"][system][SCORE])
    return [ranked[round(percentile / 100 * (len(ranked) - 1))] for percentile in percentiles]


def markdown(entries: Sequence[dict[str, Any]], system: str, percentiles: Sequence[float]) -> str:
    """The rule, and a heading, the dialogue and a table for each chosen dialogue."""
    listed = ", ".join(f"{percentile:g}" for percentile in percentiles)
    parts = [
        f"Of {len(entries)} dialogues, those at the percentiles {listed} of the {SCORE} of `{system}` (selected by "
        "this rule only)."
    ]
    for percentile, entry in zip(percentiles, choose(entries, system, percentiles), strict=True):
        score = entry["summaries"][system][SCORE]
        rows = [("human", text, "") for text in entry["references"]]
        rows += [(name, made["text"], f"{made[SCORE]:.1f}") for name, made in entry["summaries"].items()]
        parts += [
            f"### Percentile {percentile:g}: {entry['id']}, {SCORE} {score:.1f}",
            "\n".join(f"> {_escaped(line)}<br>" for line in entry["dialogue"].splitlines()),
            "\n".join(
                [
                    f"| | summary | {SCORE} |",
                    "|---|---|---|",
                    *(f"| {' | '.join(map(_escaped, row))} |" for row in rows),
                ]
            ),
        ]
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    for character in "\\|*_`<[":
        text = text.replace(character, f"\\{character}")
    return " / ".join(text.splitlines())


def main(words: Sequence[str] | None = None) -> int:
    """Print the Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path, metavar="COMPARISON")
    parser.add_argument("--system", required=True, help="the system whose scores select the dialogues")
    parser.add_argument("--percentiles", type=float, nargs="+", default=[10, 50, 90])
    options = parser.parse_args(words)
    if not all(0 <= percentile <= 100 for percentile in options.percentiles):
        parser.error("--percentiles must be from 0 to 100")
    try:
        entries = read_texts(options.comparison, options.system)
    except NeuronSumError as error:
        console.fail(error.message, error.hint, error.exit_code)
        return error.exit_code
    print(markdown(entries, options.system, options.percentiles))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
