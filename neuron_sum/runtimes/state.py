"""Constants and state of batches in the host's memory: those of one batch, and the rows of a running batch.

All buckets of a running batch share the memory of the largest, because the rows of a smaller one are its beginning.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from neuron_sum.artifact import Bucket, StateSpec
from neuron_sum.runtimes.native import zeros

DTYPES: "dict[str, np.dtype[Any]]" = {"fp32": np.dtype(np.float32), "bf16": np.dtype(np.uint16)}
"""The dtypes of arrays: NumPy has no bf16, so an array of uint16 has its bits."""

Array = NDArray[Any]
Result = Any
"""An array, or an object that np.asarray() converts, with a shape."""
Step = Callable[[Array, Array, Array, Array, int], Sequence[Result]]
"""(tokens, position, ancestors, slot, steps) -> the results of `StepGraph` in compile/graphs/static.py, bound to the
constants and the state of one batch."""


class Rows(Protocol):
    """The constants and the state of the rows of a running batch."""

    @property
    def move(self) -> Callable[[int, int, int], None] | None:
        """A function that copies a row to another one, (source, target, source_len); None if rows cannot be copied."""

    def write(self, rows: Sequence[int], constants: Sequence[Result], encoded_len: int, source_len: int) -> None:
        """Set the constants of rows.

        Args:
            rows: The rows.
            constants: The result of encode, whose first rows they are; empty if encode has written them itself.
            encoded_len: The number of source tokens of the encode graph.
            source_len: That of the next step.
        """

    def resize(self, count: int, old: int, new: int) -> None:
        """Prepare the first rows for steps with another number of source tokens."""

    def step(self, bucket: Bucket) -> Step:
        """The step of the first rows."""


class BatchState(Protocol):
    """The place of the constants and the state of batches."""

    def __call__(self, bucket: Bucket, num_beams: int, constants: Sequence[Result]) -> Step:
        """The step of a new batch."""

    def rows(self, largest: Bucket, num_beams: int, source_lens: Sequence[int]) -> Rows:
        """The rows of a running batch.

        Args:
            largest: The largest bucket.
            num_beams: The beam width.
            source_lens: The source lengths of all buckets.
        """


@dataclass(frozen=True)
class HostState:
    """A `BatchState` for graphs that take constants and state at every call and write a column of the state in place.

    Attributes:
        graph: A function of bucket, beam width and number of steps that returns the step graph, (tokens, position,
            ancestors, slot, constants, state) -> results.
        spec: The shape of the state.
        hold: A function that converts an array, once, into an input of many calls with the same memory.
    """

    graph: Callable[[Bucket, int, int], Callable[..., Any]]
    spec: StateSpec
    hold: Callable[[Result], Any] = np.asarray

    def __call__(self, bucket: Bucket, num_beams: int, constants: Sequence[Result]) -> Step:
        """See `BatchState`."""
        state = [self.hold(zeros(shape, dtype)) for shape, dtype in self.tensors(bucket, num_beams)]
        graph, inputs = cache(partial(self.graph, bucket, num_beams)), [self.hold(each) for each in constants]
        return lambda tokens, position, ancestors, slot, steps: graph(steps)(
            tokens, position, ancestors, slot, inputs, state
        )

    def rows(self, largest: Bucket, num_beams: int, source_lens: Sequence[int]) -> "HostRows":
        """See `BatchState`."""
        return HostRows(self, largest, num_beams, source_lens)

    def tensors(self, bucket: Bucket, num_beams: int) -> list[tuple[tuple[int, ...], "np.dtype[Any]"]]:
        """Shapes and dtypes of the state."""
        spec = self.spec
        shape = (bucket.batch, spec.heads, bucket.target_len * num_beams, spec.head_dim)
        return [(shape, DTYPES[spec.dtype])] * spec.tensors


class HostRows:
    """See `Rows`.

    Args:
        host: The graphs and the shape of their state.
        largest: The largest bucket.
        num_beams: The beam width.
        source_lens: The source lengths of all buckets.
    """

    def __init__(self, host: HostState, largest: Bucket, num_beams: int, source_lens: Sequence[int]) -> None:
        self._host, self._largest, self._beams, self._source_lens = host, largest, num_beams, source_lens
        self._state = [_RowArray(shape[1:], largest.batch, dtype) for shape, dtype in host.tensors(largest, num_beams)]
        self._constants: list[_RowArray] = []
        self._views: dict[Bucket, tuple[list[Any], list[Any]]] = {}

    def write(self, rows: Sequence[int], constants: Sequence[Result], encoded_len: int, source_len: int) -> None:
        """See `Rows`."""
        arrays = [np.asarray(each) for each in constants]
        if not self._constants:
            # The source bias comes first; keys and values have the source in their third dimension.
            axes = [3 if index == 0 else 2 if array.ndim == 4 else None for index, array in enumerate(arrays)]
            self._constants = [
                _RowArray(array.shape[1:], self._largest.batch, array.dtype, axis, encoded_len, self._source_lens)
                for array, axis in zip(arrays, axes, strict=True)
            ]
        for index, (kept, array) in enumerate(zip(self._constants, arrays, strict=True)):
            kept.write(rows, array[: len(rows)], source_len, _padding(array) if index == 0 else None)

    def resize(self, count: int, old: int, new: int) -> None:
        """See `Rows`."""
        # All copies come first: without memory for one, nothing has changed.
        copies = [kept.copy(count, old) for kept in self._constants]
        for index, (kept, values) in enumerate(zip(self._constants, copies, strict=True)):
            kept.write(range(count), values, new, _padding(values) if index == 0 else None)

    def step(self, bucket: Bucket) -> Step:
        """See `Rows`."""
        if bucket not in self._views:
            self._views[bucket] = (
                [self._host.hold(kept.first(bucket.batch, bucket.source_len)) for kept in self._constants],
                [self._host.hold(kept.first(bucket.batch)) for kept in self._state],
            )
        constants, state = self._views[bucket]
        return lambda tokens, position, ancestors, slot, steps: self._host.graph(bucket, self._beams, steps)(
            tokens, position, ancestors, slot, constants, state
        )

    def move(self, source: int, target: int, source_len: int) -> None:
        """See `Rows`."""
        for kept in (*self._constants, *self._state):
            rows = kept.first(self._largest.batch, source_len)
            rows[target] = rows[source]


class _RowArray:
    """An array with the rows of the largest bucket, of which a bucket of fewer or shorter rows uses the beginning.

    Args:
        shape: The shape of a row.
        rows: The number of rows.
        dtype: The data type.
        axis: The dimension of the source in a batch; None for arrays without one.
        source_len: The number of source tokens in `shape`, where a soft prompt may add others.
        source_lens: All numbers of source tokens.
    """

    def __init__(
        self,
        shape: Sequence[int],
        rows: int,
        dtype: "np.dtype[Any]",
        axis: int | None = None,
        source_len: int = 0,
        source_lens: Sequence[int] = (0,),
    ) -> None:
        self._axis = axis
        self._shapes: dict[int, tuple[int, ...]] = {}
        for length in source_lens:
            sizes = list(shape)
            if axis is not None:
                sizes[axis - 1] += length - source_len
            self._shapes[length] = tuple(sizes)
        count = rows * max(math.prod(sizes) for sizes in self._shapes.values())
        self._flat = zeros((count,), dtype)

    def first(self, rows: int, source_len: int = 0) -> Array:
        """The first rows, for a number of source tokens."""
        shape = (rows, *self._shapes.get(source_len, next(iter(self._shapes.values()))))
        return self._flat[: math.prod(shape)].reshape(shape)

    def copy(self, rows: int, source_len: int) -> Array:
        """A copy of the first rows."""
        return self.first(rows, source_len).copy()

    def write(self, rows: Sequence[int], values: Array, source_len: int, padding: float | None) -> None:
        """Write rows that may have fewer or more source tokens.

        Args:
            rows: The row of each value.
            values: (rows, ...).
            source_len: The number of source tokens of the rows that are written.
            padding: The value of missing source tokens; None keeps the values that are there, because they are masked.
        """
        target = self.first(max(rows) + 1, source_len)
        for row, value in zip(rows, values, strict=True):
            if self._axis is None:
                target[row] = value
                continue
            to, of = target[row].swapaxes(0, self._axis - 1), value.swapaxes(0, self._axis - 1)
            length = min(len(to), len(of))
            to[:length] = of[:length]
            if padding is not None:
                to[length:] = padding


def _padding(bias: Array) -> float:
    """The bias of a source token that is not there: finite, and so low that its weight is exactly 0."""
    return float(np.finfo(bias.dtype).min)
