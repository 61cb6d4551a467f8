"""Checks for bad rows, with a remedy for each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from neuron_sum.data.examples import Example
from neuron_sum.recipes.schema import Split


@dataclass(frozen=True)
class Problem:
    """A bad row.

    Attributes:
        kind: A short name of the fault, by which skipped rows are counted.
        location: File and line.
        detail: A description of the value.
        remedy: The change that fixes the row.
        file: The file, if it has to be converted to another encoding.
    """

    kind: str
    location: str
    detail: str
    remedy: str
    file: Path | None = None

    def __str__(self) -> str:
        text = f"{self.location}: {self.kind}: {self.detail}; {self.remedy}"
        return text.encode("utf-8", "backslashreplace").decode()


def merge_references(examples: Iterable[Example], problems: list[Problem], *, by_dialogue: bool) -> list[Example]:
    """Joins rows with one reference each into examples with several.

    Args:
        examples: Rows in file order.
        problems: A list to which exact duplicates are added.
        by_dialogue: Join on the dialogue only (for validation and test, where hubs store DialogSum's three references
            as three rows with three ids); otherwise on id and dialogue.
    """
    merged: dict[tuple[str, ...], Example] = {}
    for example in examples:
        key = (example.dialogue,) if by_dialogue else (example.id, example.dialogue)
        first = merged.setdefault(key, example)
        if first is example:
            continue
        if first.id == example.id and set(example.references) <= set(first.references):
            detail = f"same id {example.id!r} and text as {first.location}"
            problems.append(Problem("duplicate row", example.location, detail, "remove it"))
        else:
            merged[key] = replace(first, references=first.references + example.references)
    return list(merged.values())


def remove_duplicate_ids(examples: Iterable[Example], problems: list[Problem]) -> list[Example]:
    """The first example of every id; the others become problems."""
    unique: dict[str, Example] = {}
    for example in examples:
        first = unique.setdefault(example.id, example)
        if first is not example:
            detail = f"same id {example.id!r} as {first.location}"
            problems.append(Problem("duplicate id", example.location, detail, "give every example a unique id"))
    return list(unique.values())


def remove_overlap(splits: dict[Split, list[Example]], problems: list[Problem]) -> dict[Split, list[Example]]:
    """Removes dialogues of a later split from train (and from validation); each of them becomes a problem."""
    locations: dict[str, str] = {}
    distinct: dict[Split, list[Example]] = {}
    for split in reversed(list(splits)):
        distinct[split] = []
        for example in splits[split]:
            if (location := locations.get(example.dialogue)) is None:
                distinct[split].append(example)
            else:
                detail = f"same dialogue as {location}"
                problems.append(Problem("overlap between splits", example.location, detail, "remove it here"))
        locations.update((example.dialogue, example.location) for example in splits[split])
    return {split: distinct[split] for split in splits}


def near_overlap(train: Sequence[Example], held_out: Iterable[Example]) -> int:
    """Number of training dialogues that equal a held-out one except for case and white space; only reported."""
    folded = {_folded(example.dialogue) for example in held_out}
    return sum(_folded(example.dialogue) in folded for example in train) if folded else 0


def _folded(text: str) -> str:
    return "".join(text.split()).lower()
