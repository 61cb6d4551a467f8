"""One dialogue with its human summaries, and the three splits of a data set."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from neuron_sum.recipes.schema import Split

SPEAKER_TAG = re.compile(r"#[^\s#]+#")
"""DialogSum's tags: #Person1#, #Pork1#."""


@dataclass(frozen=True, slots=True)
class Example:
    """A dialogue and what people wrote about it.

    Attributes:
        id: Unique in its split.
        dialogue: One turn a line.
        references: One or more human summaries.
        topic: A few words, where the source has them.
        where: File and line it came from, for messages.
    """

    id: str
    dialogue: str
    references: tuple[str, ...]
    topic: str | None = None
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Dataset:
    """The examples of every split that the source has, and where they come from.

    Attributes:
        splits: Examples by split name; a split that the source lacks is absent.
        origin: What people call the data, such as "DialogSum".
        license: Its licence; None if nobody said.
        skipped: Bad rows left out, by kind (only under skip_bad).
        near_overlap: Training dialogues that stand in validation or test but for case and white space.
    """

    splits: dict[Split, tuple[Example, ...]]
    origin: str
    license: str | None
    skipped: dict[str, int] = field(default_factory=dict)
    near_overlap: int = 0

    def __getitem__(self, split: Split) -> tuple[Example, ...]:
        """The examples of a split; empty if the source has none."""
        return self.splits.get(split, ())

    def training_texts(self) -> Iterator[str]:
        """Every dialogue and summary of the training split, for a tokenizer to be trained on."""
        for example in self["train"]:
            yield from (example.dialogue, *example.references)

    def notes(self) -> list[str]:
        """What a person should know about the data, a line each."""
        counts = ", ".join(f"{len(examples):,} {split}" for split, examples in self.splits.items())
        lines = [
            f"data: {self.origin}, {counts}",
            f"licence of the data: {self.license or 'not stated; set data.license'}",
        ]
        lines += [f"left out: {count} rows: {kind}" for kind, count in self.skipped.items()]
        if self.near_overlap:
            lines.append(
                f"{self.near_overlap} training dialogues stand in validation or test too, but for case and spaces"
            )
        return lines


def evenly_spaced(examples: Sequence[Example], at_most: int | None) -> tuple[Example, ...]:
    """At most so many examples, spread over the whole, in order: a fixed choice without a seed."""
    count = len(examples)
    if at_most is None or at_most >= count:
        return tuple(examples)
    return tuple(examples[index * count // at_most] for index in range(at_most))
