"""Constants and state of batches in the host's memory: those of one batch, and the rows of a running batch.

All buckets of a running batch share the memory of the largest, because the rows of a smaller one are its beginning.
"""

import math
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor

from neuron_sum.artifact import Bucket, StateSpec

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Step = Callable[[Tensor, Tensor, Tensor, Tensor, int], Sequence[Tensor]]
"""(tokens, position, ancestors, slot, steps) -> the results of `StepGraph` in compile/graphs/static.py, bound to the
constants and the state of one batch."""


class Rows(Protocol):
    """The constants and the state of the rows of a running batch."""

    @property
    def can_move(self) -> bool:
        """Whether `move` works."""

    def write(self, rows: Sequence[int], constants: Sequence[Tensor], encoded_len: int, source_len: int) -> None:
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

    def move(self, source: int, target: int, source_len: int) -> None:
        """Copy a row to another one."""


class BatchState(Protocol):
    """The place of the constants and the state of batches."""

    def __call__(self, bucket: Bucket, num_beams: int, constants: Sequence[Tensor]) -> Step:
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
    """

    graph: Callable[[Bucket, int, int], Callable[..., Any]]
    spec: StateSpec

    def __call__(self, bucket: Bucket, num_beams: int, constants: Sequence[Tensor]) -> Step:
        """See `BatchState`."""
        state = [torch.zeros(shape, dtype=dtype) for shape, dtype in self.tensors(bucket, num_beams)]
        graph, inputs = cache(partial(self.graph, bucket, num_beams)), list(constants)
        return lambda tokens, position, ancestors, slot, steps: graph(steps)(
            tokens, position, ancestors, slot, inputs, state
        )

    def rows(self, largest: Bucket, num_beams: int, source_lens: Sequence[int]) -> "HostRows":
        """See `BatchState`."""
        return HostRows(self, largest, num_beams, source_lens)

    def tensors(self, bucket: Bucket, num_beams: int) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Shapes and dtypes of the state."""
        spec = self.spec
        shape = (bucket.batch, spec.heads, bucket.target_len * num_beams, spec.head_dim)
        return [(shape, TORCH_DTYPES[spec.dtype])] * spec.tensors


class HostRows:
    """See `Rows`.

    Args:
        host: The graphs and the shape of their state.
        largest: The largest bucket.
        num_beams: The beam width.
        source_lens: The source lengths of all buckets.
    """

    can_move = True

    def __init__(self, host: HostState, largest: Bucket, num_beams: int, source_lens: Sequence[int]) -> None:
        self._host, self._largest, self._beams, self._source_lens = host, largest, num_beams, source_lens
        self._state = [_RowTensor(shape[1:], largest.batch, dtype) for shape, dtype in host.tensors(largest, num_beams)]
        self._constants: list[_RowTensor] = []
        self._views: dict[Bucket, tuple[list[Tensor], list[Tensor]]] = {}

    def write(self, rows: Sequence[int], constants: Sequence[Tensor], encoded_len: int, source_len: int) -> None:
        """See `Rows`."""
        if not self._constants:
            # The source bias comes first; keys and values have the source in their third dimension.
            axes = [3 if index == 0 else 2 if tensor.ndim == 4 else None for index, tensor in enumerate(constants)]
            self._constants = [
                _RowTensor(tensor.shape[1:], self._largest.batch, tensor.dtype, axis, encoded_len, self._source_lens)
                for tensor, axis in zip(constants, axes, strict=True)
            ]
        for index, (kept, tensor) in enumerate(zip(self._constants, constants, strict=True)):
            kept.write(rows, tensor[: len(rows)], source_len, _padding(tensor) if index == 0 else None)

    def resize(self, count: int, old: int, new: int) -> None:
        """See `Rows`."""
        # All copies come first: without memory for one, nothing has changed.
        copies = [kept.first(count, old).clone() for kept in self._constants]
        for index, (kept, values) in enumerate(zip(self._constants, copies, strict=True)):
            kept.write(range(count), values, new, _padding(values) if index == 0 else None)

    def step(self, bucket: Bucket) -> Step:
        """See `Rows`."""
        if bucket not in self._views:
            self._views[bucket] = (
                [kept.first(bucket.batch, bucket.source_len) for kept in self._constants],
                [kept.first(bucket.batch) for kept in self._state],
            )
        constants, state = self._views[bucket]

        def call(tokens: Tensor, position: Tensor, ancestors: Tensor, slot: Tensor, steps: int) -> Sequence[Tensor]:
            written, graph = list(state), self._host.graph(bucket, self._beams, steps)
            results: Sequence[Tensor] = graph(tokens, position, ancestors, slot, constants, written)
            for old, new in zip(state, written, strict=True):
                if new is not old:  # a write that returns a new tensor
                    old.copy_(new)
            return results

        return call

    def move(self, source: int, target: int, source_len: int) -> None:
        """See `Rows`."""
        for kept in (*self._constants, *self._state):
            rows = kept.first(self._largest.batch, source_len)
            rows[target] = rows[source]


class _RowTensor:
    """A tensor with the rows of the largest bucket, of which a bucket of fewer or shorter rows uses the beginning.

    Args:
        shape: The shape of a row.
        rows: The number of rows.
        dtype: The data type.
        axis: The dimension of the source in a batch; None for tensors without one.
        source_len: The number of source tokens in `shape`, where a soft prompt may add others.
        source_lens: All numbers of source tokens.
    """

    def __init__(
        self,
        shape: Sequence[int],
        rows: int,
        dtype: torch.dtype,
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
        # Mapped memory is zero, and takes no memory until a row is used.
        self._flat = torch.frombuffer(mmap.mmap(-1, max(count, 1) * dtype.itemsize), dtype=dtype, count=count)

    def first(self, rows: int, source_len: int = 0) -> Tensor:
        """The first rows, for a number of source tokens."""
        shape = (rows, *self._shapes.get(source_len, next(iter(self._shapes.values()))))
        return self._flat[: math.prod(shape)].view(shape)

    def write(self, rows: Sequence[int], values: Tensor, source_len: int, padding: float | None) -> None:
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
            axis = self._axis - 1
            length = min(target[row].shape[axis], value.shape[axis])
            target[row].narrow(axis, 0, length).copy_(value.narrow(axis, 0, length))
            if padding is not None:
                target[row].narrow(axis, length, target[row].shape[axis] - length).fill_(padding)


def _padding(bias: Tensor) -> float:
    """The bias of a source token that is not there: finite, and so low that its weight is exactly 0."""
    return float(torch.finfo(bias.dtype).min)
