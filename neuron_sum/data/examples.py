"""A dialogue with its human summaries, and a data set of three splits."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from neuron_sum.recipes.schema import Split

SPEAKER_TAG = re.compile(r"#[^\s#]+#")
"""Pattern of DialogSum's speaker tags: #Person1#, #Pork1#."""
UNUSED_SHOWN = 10
LONGEST_WORD = 500
LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD}}}(?=\S)")


@dataclass(frozen=True, slots=True)
class Example:
    """A dialogue and its human summaries.

    Attributes:
        id: An id that is unique in its split.
        dialogue: The text, one turn per line.
        references: One or more human summaries.
        topic: A short topic, if the source has one.
        location: File and line of the example, for messages.
        claim: For the training of a checker: the claim about the dialogue; `references` is then its answer.
    """

    id: str
    dialogue: str
    references: tuple[str, ...]
    topic: str | None = None
    location: str = field(default="", compare=False)
    claim: str | None = None


@dataclass(frozen=True)
class Dataset:
    """The examples of every split of a source.

    Attributes:
        splits: Examples by split name, only for splits of the source.
        origin: The usual name of the data, such as "DialogSum".
        license: The licence of the data; None if unknown.
        skipped: Number of skipped bad rows by kind (only with skip_bad).
        near_overlap: Training dialogues that equal one of validation or test except for case and white space; like all
            splits, after the limits on examples.
        unused: Files of the folder, or splits of the hub, that are not used.
        available: Number of examples of each split before the limits.
    """

    splits: dict[Split, tuple[Example, ...]]
    origin: str
    license: str | None
    skipped: dict[str, int] = field(default_factory=dict)
    near_overlap: int = 0
    unused: tuple[str, ...] = ()
    available: dict[Split, int] = field(default_factory=dict)

    def __getitem__(self, split: Split) -> tuple[Example, ...]:
        """The examples of a split; empty if the source has none."""
        return self.splits.get(split, ())

    def training_texts(self) -> Iterator[str]:
        """Every dialogue and summary of the training split, as input for training a tokenizer.

        Words of more than `LONGEST_WORD` characters are split, because the time of the training is quadratic in them.
        """
        for example in self["train"]:
            for text in (example.dialogue, *example.references):
                is_long = max(map(len, text.split()), default=0) > LONGEST_WORD
                yield LONG_WORD.sub(r"\g<0> ", text) if is_long else text

    def count(self, split: Split) -> str:
        """The number of examples of a split, and how many it has in all if a limit leaves some out."""
        return count_of(len(self[split]), self.available.get(split))

    def notes(self) -> list[str]:
        """Notes about the data for the user, one line each."""
        counts = ", ".join(f"{self.count(split)} {split}" for split in self.splits)
        lines = [
            f"data: {self.origin}, {counts}",
            f"licence of the data: {self.license or 'not stated; set data.license'}",
        ]
        lines += [f"skipped: {count} rows: {kind}" for kind, count in self.skipped.items()]
        lines += [f"warning: {split} has no example left" for split, examples in self.splits.items() if not examples]
        if self.unused:
            more = f" … ({len(self.unused)} in all)" if len(self.unused) > UNUSED_SHOWN else ""
            lines.append(f"not used: {', '.join(self.unused[:UNUSED_SHOWN])}{more}")
        if self.near_overlap:
            lines.append(
                f"{self.near_overlap} used training dialogues equal one of validation or test except for case and space"
            )
        return lines


def invented_tags(summary: str, dialogue: str) -> list[str]:
    """The tags of a summary that do not occur in its dialogue, in order."""
    known = set(SPEAKER_TAG.findall(dialogue))
    return [tag for tag in SPEAKER_TAG.findall(summary) if tag not in known]


def count_of(used: int, available: int | None) -> str:
    """A number of examples, and the number that they were selected from if it is larger: "100 of 500"."""
    return f"{used:,}" if available is None or available == used else f"{used:,} of {available:,}"


def evenly_spaced(examples: Sequence[Example], at_most: int | None) -> tuple[Example, ...]:
    """At most `at_most` examples, evenly spaced and in order: a deterministic choice without a seed."""
    count = len(examples)
    if at_most is None or at_most >= count:
        return tuple(examples)
    return tuple(examples[index * count // at_most] for index in range(at_most))
