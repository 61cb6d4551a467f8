"""Assignment of examples to rows, and the order of the rows, as a function of seed and epoch only.

Both are the same in every process and after every resume; the global random state is not used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from neuron_sum.data.packing import Integers, pack, spread

POOL = 4096
"""Examples that are packed together: they fill rows nearly as well as all would, and change with each epoch."""
ATTEMPTS = 8
"""Maximum number of shuffles until an epoch needs no more rows than the first one."""
STEP = 8
"""Divisor of all chosen lengths."""


class Shape(NamedTuple):
    """The size of a row of tensors, in tokens.

    Attributes:
        source_len: Length of input_ids; for a decoder-only model, of prompt and summary together.
        target_len: Length of the labels; 0 for a decoder-only model.
    """

    source_len: int
    target_len: int

    def __str__(self) -> str:
        return f"{self.source_len} + {self.target_len}" if self.target_len else f"{self.source_len}"


def rounded_up(source_len: int, target_len: int) -> Shape:
    """The smallest shape with multiples of STEP that has room for these lengths."""
    return Shape(-(-source_len // STEP) * STEP, -(-target_len // STEP) * STEP)


class Row(NamedTuple):
    """One row of a batch.

    Attributes:
        examples: Positions of its examples in the data; () is a row of only padding, which fills a batch.
        shape: The shape to which the row is padded; None for the smallest that fits its batch.
    """

    examples: tuple[int, ...]
    shape: Shape | None


@dataclass(frozen=True)
class Lengths:
    """Tokens of each example after cutting.

    Attributes:
        source: Lengths of input_ids.
        target: Lengths of the labels; zeros for a decoder-only model, whose labels are as long as its input_ids.
    """

    source: Integers
    target: Integers

    def __len__(self) -> int:
        return len(self.source)

    @property
    def tokens(self) -> int:
        """Total number of tokens."""
        return int(self.source.sum() + self.target.sum())


def permutation(count: int, seed: int) -> list[int]:
    """The numbers below `count` in the order of `torch.randperm` with a generator of this seed, without torch.

    Args:
        count: The number of examples, less than 2**32 / 20.
        seed: The seed, of which torch uses 32 bits.
    """
    draws = np.random.RandomState(seed % 2**32).randint(0, 2**32, max(count - 1, 0), dtype=np.uint32)
    order = list(range(count))
    for at, step in enumerate((draws % np.arange(count, 1, -1)).tolist()):
        order[at], order[at + step] = order[at + step], order[at]
    return order


def group_by_length(order: Sequence[int], lengths: Sequence[int], size: int) -> list[int]:
    """The order in which `get_length_grouped_indices` of transformers puts a permutation.

    Args:
        order: The permutation.
        lengths: The length of each example.
        size: Number of examples that get similar lengths.
    """
    step = size * max(min(len(order) // (size * 4), 50), 1)
    groups = [sorted(order[at : at + step], key=lengths.__getitem__, reverse=True) for at in range(0, len(order), step)]
    longest = max(groups, key=lambda group: lengths[group[0]])  # first, so that too little memory shows at once
    groups[0][0], longest[0] = longest[0], groups[0][0]
    return [example for group in groups for example in group]


class Layout(Protocol):
    """A method of arranging the examples of an epoch in rows."""

    def rows(self, epoch: int) -> list[Row]:
        """The rows of an epoch with every example once; their number is the same in every epoch."""
        ...


@dataclass(frozen=True)
class DynamicLayout:
    """One row per example, without fixed shapes.

    Attributes:
        lengths: The lengths of the examples.
        seed: The seed; seed and epoch determine the order.
        group: Number of rows of a batch that gets examples of similar length; None for a plain permutation.
        chunk: The number of rows is filled up to a multiple of it.
    """

    lengths: Lengths
    seed: int
    group: int | None
    chunk: int

    def rows(self, epoch: int) -> list[Row]:
        """See Layout."""
        order = permutation(len(self.lengths), self.seed + epoch)
        if self.group is not None:
            order = group_by_length(order, self.lengths.source.tolist(), self.group)
        rows = [Row((example,), None) for example in order]
        return rows + [Row((), None)] * (-len(rows) % self.chunk)


@dataclass(frozen=True)
class BucketLayout:
    """One row per example, in the first of one or several shapes that is long enough.

    Attributes:
        lengths: The lengths of the examples.
        seed: The seed; seed and epoch determine the order.
        shapes: The shapes, ascending.
        chunk: Number of rows that all processes take at once; they have the same shape.
    """

    lengths: Lengths
    seed: int
    shapes: tuple[Shape, ...]
    chunk: int

    def rows(self, epoch: int) -> list[Row]:
        """See Layout. An incomplete chunk goes into the next larger shape; padding fills the last chunk."""
        generator = np.random.default_rng((self.seed, epoch))
        chunks: list[list[Row]] = []
        rest: list[int] = []
        for shape, members in zip(self.shapes, self._members, strict=True):
            order = generator.permutation([*rest, *members]).astype(int).tolist()
            whole = len(order) - len(order) % self.chunk
            chunks += [_rows(order[at : at + self.chunk], shape) for at in range(0, whole, self.chunk)]
            rest = order[whole:]
        if rest:
            filling = [Row((), self.shapes[-1])] * (self.chunk - len(rest))
            chunks.append(_rows(rest, self.shapes[-1]) + filling)
        return [row for index in generator.permutation(len(chunks)) for row in chunks[index]]

    @cached_property
    def _members(self) -> list[list[int]]:
        """The examples of each shape."""
        fits = [
            (self.lengths.source <= shape.source_len) & (self.lengths.target <= shape.target_len)
            for shape in self.shapes
        ]
        first = np.argmax(fits, axis=0)
        return [np.flatnonzero(first == index).tolist() for index in range(len(self.shapes))]


@dataclass(frozen=True)
class PackedLayout:
    """Several examples per row, in different combinations in each epoch.

    Every epoch has as many rows as the first one, rounded up to whole chunks, so that the number of steps is known in
    advance. In an epoch that needs fewer, some rows are halved; an epoch that needs more is shuffled again.

    Attributes:
        lengths: The lengths of the examples.
        seed: The seed; seed and epoch determine the order.
        shape: The shape of every row.
        chunk: Number of rows that all processes take at once.
    """

    lengths: Lengths
    seed: int
    shape: Shape
    chunk: int

    def rows(self, epoch: int) -> list[Row]:
        """See Layout."""
        shuffles = [(self.seed, epoch, attempt) for attempt in range(ATTEMPTS)]
        packed = next((rows for rows in map(self._pack, shuffles) if len(rows) <= self._count), self._first)
        filled = spread(packed, self._count)
        order = np.random.default_rng((self.seed, epoch)).permutation(sum(len(row) > 0 for row in filled))
        return [Row(filled[index], self.shape) for index in order] + [
            Row((), self.shape) for _ in range(len(filled) - len(order))
        ]

    @cached_property
    def _first(self) -> list[list[int]]:
        return self._pack((self.seed, 0, 0))

    @cached_property
    def _count(self) -> int:
        return -(-len(self._first) // self.chunk) * self.chunk

    def _pack(self, shuffle: tuple[int, ...]) -> list[list[int]]:
        order = np.random.default_rng(shuffle).permutation(len(self.lengths))
        rows: list[list[int]] = []
        for at in range(0, len(order), POOL):
            pool = order[at : at + POOL]
            packed = pack(self.lengths.source[pool], self.lengths.target[pool], *self.shape)
            rows += [pool[row].tolist() for row in packed]
        return rows


def _rows(examples: Sequence[int], shape: Shape) -> list[Row]:
    return [Row((example,), shape) for example in examples]
