"""What makes a row bad, and what a person does about it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from neuron_sum.data.examples import Example
from neuron_sum.recipes.schema import Split


@dataclass(frozen=True)
class Problem:
    """A bad row.

    Attributes:
        kind: A few words, the same for all rows with this fault; skipped rows are counted by it.
        where: File and line.
        detail: What was found there.
        remedy: What to change.
    """

    kind: str
    where: str
    detail: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.detail}; {self.remedy}"


def merged_references(examples: Iterable[Example], problems: list[Problem], *, by_dialogue: bool) -> list[Example]:
    """Joins rows that hold one reference each into examples with several.

    Args:
        examples: Rows in file order.
        problems: Gets the rows that stand twice, word for word.
        by_dialogue: Join on the dialogue alone (validation and test, where hubs store DialogSum's three references as
            three rows with three ids); else on id and dialogue.
    """
    merged: dict[tuple[str, ...], Example] = {}
    for example in examples:
        key = (example.dialogue,) if by_dialogue else (example.id, example.dialogue)
        first = merged.setdefault(key, example)
        if first is example:
            continue
        if first.id == example.id and set(example.references) <= set(first.references):
            detail = f"{example.id!r} with the same text stands at {first.where} already"
            problems.append(Problem("duplicate row", example.where, detail, "remove it"))
        else:
            merged[key] = replace(first, references=first.references + example.references)
    return list(merged.values())


def without_duplicate_ids(examples: Iterable[Example], problems: list[Problem]) -> list[Example]:
    """The first example of every id; the others become problems."""
    first: dict[str, Example] = {}
    for example in examples:
        kept = first.setdefault(example.id, example)
        if kept is not example:
            detail = f"{example.id!r} stands at {kept.where} already"
            problems.append(Problem("duplicate id", example.where, detail, "give every example an id of its own"))
    return list(first.values())


def without_overlap(splits: dict[Split, list[Example]], problems: list[Problem]) -> dict[Split, list[Example]]:
    """Takes out of train (and of validation) the dialogues that stand in a later split, each of them a problem."""
    seen: dict[str, str] = {}
    kept: dict[Split, list[Example]] = {}
    for split in reversed(list(splits)):
        kept[split] = []
        for example in splits[split]:
            if (there := seen.get(example.dialogue)) is None:
                kept[split].append(example)
            else:
                problems.append(
                    Problem(
                        "overlap between splits",
                        example.where,
                        f"the same dialogue stands at {there}",
                        "remove it here",
                    )
                )
        seen.update((example.dialogue, example.where) for example in splits[split])
    return {split: kept[split] for split in splits}


def near_overlap(train: Sequence[Example], held_out: Iterable[Example]) -> int:
    """How many training dialogues equal a held-out one but for case and white space; worth knowing, not refused."""
    folded = {_folded(example.dialogue) for example in held_out}
    return sum(_folded(example.dialogue) in folded for example in train)


def _folded(text: str) -> str:
    return re.sub(r"\s+", "", text).lower()
