"""Comparisons to rate: a folder as `compare` writes it, with names that occur nowhere else."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuron_sum.evaluation.ratings import RatingSession, choose_pairs, pairs_of, read_texts

SYSTEMS = ("zebra-one", "quokka-two")
RESULTS = "id,dialogue,human,old,new\n" + "".join(
    f"{number},A: The cat number {number} sat.,Cat {number} sat.,A dog ran {number}.,A cat {number} sat.\n"
    for number in range(12)
)
"""A file of predictions of two systems, `old` and `new`, with references in the column `human`."""


def write_comparison(folder: Path, rows: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]]) -> Path:
    """The folder with a summaries.jsonl of dialogues and the entries of their summaries by system."""
    lines = [
        json.dumps({"id": f"test_{number}", "dialogue": dialogue, "references": ["x"], "summaries": summaries}) + "\n"
        for number, (dialogue, summaries) in enumerate(rows)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "summaries.jsonl").write_text("".join(lines))
    return folder


def comparison(folder: Path, count: int = 12, systems: Sequence[str] = SYSTEMS) -> Path:
    """A folder in which summaries of later systems are longer and have more ROUGE-1."""
    return write_comparison(
        folder,
        [
            (
                f"#Person1#: Question {number}?\n#Person2#: Yes, at {number}.",
                {
                    name: {"text": f"Text {number} " + "word " * at, "ROUGE-1": 10.0 * at + number % 3, "facts": 100.0}
                    for at, name in enumerate(systems, 1)
                },
            )
            for number in range(count)
        ],
    )


def session_of(folder: Path, seed: int = 42, dialogues: int = 50) -> RatingSession:
    return RatingSession(folder, choose_pairs(pairs_of(read_texts(folder)), (), dialogues, seed), seed)


def rate_all(session: RatingSession, rater: str, prefer: str, count: int | None = None) -> None:
    """Choose the longer or the shorter summary of each pair, or the same choice for all."""
    view = session.next(rater)
    while (pair := view["pair"]) and count != 0:
        longer, shorter = ("left", "right") if len(pair["left"]) > len(pair["right"]) else ("right", "left")
        choice = {"longer": longer, "shorter": shorter}.get(prefer, prefer)
        view = session.choose(rater, pair["number"], choice, "")
        count = None if count is None else count - 1
