"""Continuous batching: prompts join a running batch in the rows of finished summaries, each row with its own step.

Joining prompts are encoded in the smallest graph that fits them, and the encoder's outputs are copied into their rows
of the running batch. A step runs in the smallest bucket that has the rows in use: all buckets share the memory of the
largest, because the rows of a smaller one are its beginning. This needs constants and state in the host's memory
(`HostState`), so it works on the CPU target only.
"""

import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuron_sum.artifact import Bucket
from neuron_sum.errors import ArtifactError
from neuron_sum.runtimes.base import Candidates, StepRuntime
from neuron_sum.runtimes.graphs import GraphRuntime, HostState
from neuron_sum.runtimes.search import Search

Lease = Callable[[Sequence[str | None]], AbstractContextManager[list[int]]]


class RollingBatch:
    """See `neuron_sum.runtimes.base.RunningBatch`.

    Args:
        session: The rows and their graphs.
        search: A search with as many rows.
        lease: A function that reserves the slots of adapters until its context ends.
        used: Receives the buckets of the steps.
    """

    def __init__(self, session: "RollingSession", search: Search, lease: Lease, used: set[Bucket]) -> None:
        self._session, self._search, self._lease, self._used = session, search, lease, used
        self._tickets: dict[int, int] = {}
        self._leases: dict[int, ExitStack] = {}
        self._joined = 0

    @property
    def running(self) -> int:
        """See `RunningBatch`."""
        return len(self._tickets)

    def room(self, waiting: int) -> int:
        """See `RunningBatch`."""
        free = self._session.rows - self.running
        return self._session.group(min(waiting, free)) if min(waiting, free) > 0 else 0

    def join(self, prompts: Sequence[Sequence[int]], adapters: Sequence[str | None]) -> list[int]:
        """See `RunningBatch`."""
        rows = [row for row in range(self._session.rows) if row not in self._tickets][: len(prompts)]
        with ExitStack() as all_leases:
            leases = [all_leases.enter_context(ExitStack()) for _ in prompts]
            slots = [lease.enter_context(self._lease([name]))[0] for lease, name in zip(leases, adapters, strict=True)]
            with torch.inference_mode():
                started = self._session.join(rows, prompts, slots)
            for row, prompt, tokens, lease in zip(rows, prompts, started, leases, strict=True):
                self._search.start(row, prompt if self._session.has_prompts else tokens[:1], tokens)
                self._tickets[row], self._joined = self._joined, self._joined + 1
                self._leases[row] = lease.pop_all()
        return [self._tickets[row] for row in rows]

    def step(self) -> list[tuple[int, list[int]]]:
        """See `RunningBatch`."""
        with torch.inference_mode():
            self._compact()
            count = max(self._tickets) + 1
            candidates = self._session.step(self._search.tokens[:count], self._search.beams[:count])
        self._used.add(self._session.bucket(count))
        self._search.advance(candidates)
        finished = [row for row in sorted(self._tickets) if not self._search.is_running[row]]
        return [(self._tickets[row], self._release(row)) for row in finished]

    def close(self) -> None:
        """See `RunningBatch`."""
        for lease in self._leases.values():
            lease.close()
        self._leases.clear()
        self._tickets.clear()

    def _release(self, row: int) -> list[int]:
        del self._tickets[row]
        self._leases.pop(row).close()
        self._session.release(row)
        return self._search.result(row)

    def _compact(self) -> None:
        """Move the last rows to free ones if the summaries fit into a smaller bucket."""
        batch = self._session.batch(self.running)
        while (last := max(self._tickets)) >= batch:
            target = next(row for row in range(batch) if row not in self._tickets)
            self._session.move(last, target)
            self._search.move(last, target)
            self._tickets[target], self._leases[target] = self._tickets.pop(last), self._leases.pop(last)


def rolling_session(runtime: StepRuntime, num_beams: int, target_len: int, rows: int) -> "RollingSession | None":
    """Rows for continuous batching; None if the runtime cannot do it.

    Args:
        runtime: The runtime.
        num_beams: A compiled beam width.
        target_len: The number of new tokens.
        rows: The largest number of summaries at once.
    """
    if not isinstance(runtime, GraphRuntime) or not isinstance(runtime.open, HostState):
        return None
    length = min((bucket.target_len for bucket in runtime.buckets if bucket.target_len >= target_len), default=0)
    shapes = {(bucket.batch, bucket.source_len): bucket for bucket in runtime.buckets if bucket.target_len == length}
    batches, source_lens = ({shape[axis] for shape in shapes} for axis in (0, 1))
    if not shapes or len(shapes) < len(batches) * len(source_lens):
        return None  # a batch grows and shrinks, which requires every batch size with every source length
    return RollingSession(runtime, runtime.open, num_beams, shapes, rows)


class RollingSession:
    """The rows of a running batch: constants, state and position of each, and the step graph for the rows in use.

    Args:
        runtime: The runtime.
        host: Its state.
        num_beams: A compiled beam width.
        shapes: The buckets by batch size and source length, with every combination.
        rows: The largest number of rows; reduced to the largest batch size.

    Attributes:
        rows: The number of rows.
        has_prompts: Whether the prompt is before the new tokens, as in decoder-only models.
    """

    def __init__(
        self,
        runtime: GraphRuntime,
        host: HostState,
        num_beams: int,
        shapes: Mapping[tuple[int, int], Bucket],
        rows: int,
    ) -> None:
        self._runtime, self._host, self._beams, self._shapes = runtime, host, num_beams, shapes
        self._batches, self._source_lens = (sorted({shape[axis] for shape in shapes}) for axis in (0, 1))
        self.rows = min(rows, self._batches[-1])
        self.has_prompts = runtime.tokens.decoder_start is None
        self._source_len = self._source_lens[0]
        self._lengths = dict[int, int]()
        largest = shapes[self.batch(self.rows), self._source_lens[-1]]
        self._largest = largest
        self._tokens = torch.full((largest.batch, num_beams), runtime.tokens.pad)
        self._position, self._slot = (torch.zeros(largest.batch, dtype=torch.int64) for _ in range(2))
        self._ancestors = torch.zeros(largest.batch, num_beams, largest.target_len, dtype=torch.int64)
        self._state = [_Rows(shape[1:], largest.batch, dtype) for shape, dtype in host.tensors(largest, num_beams)]
        self._constants: list[_Rows] = []
        self._views: dict[Bucket, tuple[list[Tensor], list[Tensor]]] = {}

    def batch(self, rows: int) -> int:
        """The smallest batch size with this many rows."""
        return next(batch for batch in self._batches if batch >= rows)

    def bucket(self, rows: int) -> Bucket:
        """The bucket of a step of the first rows."""
        return self._shapes[self.batch(rows), self._source_len]

    def group(self, prompts: int) -> int:
        """The number of prompts that are encoded together, of `prompts` ones: as many as an encode graph has rows."""
        full = [batch for batch in self._batches if batch <= prompts]
        return full[-1] if full else prompts

    def join(self, rows: Sequence[int], prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> NDArray[np.int64]:
        """Encode prompts into free rows.

        Args:
            rows: The row of each prompt.
            prompts: Token ids.
            slots: The adapter slot of each prompt.

        Returns:
            (prompts, K), the input tokens of the first step.
        """
        lengths = dict(zip(rows, map(len, prompts), strict=True))
        bucket = self._shapes[self.batch(len(prompts)), self._fitting(max(lengths.values()))]
        constants, first, slot = self._runtime.encoded(bucket, prompts, slots)
        if not self._constants:
            # The source bias comes first; keys and values have the source in their third dimension.
            axes = [3 if index == 0 else 2 if tensor.ndim == 4 else None for index, tensor in enumerate(constants)]
            self._constants = [
                _Rows(tensor.shape[1:], self._largest.batch, tensor.dtype, axis, bucket.source_len, self._source_lens)
                for tensor, axis in zip(constants, axes, strict=True)
            ]
        self._set_source_len(self._fitting(max([*self._lengths.values(), *lengths.values()])))
        for index, (kept, tensor) in enumerate(zip(self._constants, constants, strict=True)):
            kept.write(rows, tensor[: len(rows)], self._source_len, _padding(tensor) if index == 0 else None)
        at = torch.tensor(rows)
        self._position[at], self._slot[at] = 0, slot[: len(rows)]
        self._lengths.update(lengths)  # last: after an error, none has joined
        tokens: NDArray[np.int64] = first[: len(rows), None].expand(-1, self._beams).numpy()
        return tokens

    def step(self, tokens: NDArray[np.int64], beams: NDArray[np.int64]) -> Candidates:
        """See `Session.step`, for the first rows; the others are not in use."""
        count = len(tokens)
        bucket = self.bucket(count)
        self._tokens[:count] = torch.from_numpy(tokens)
        if self._beams > 1:
            past = self._ancestors[:count]
            past.copy_(past.gather(1, torch.from_numpy(beams).unsqueeze(-1).expand_as(past)))
            past[torch.arange(count), :, self._position[:count]] = torch.arange(self._beams)
        if bucket not in self._views:
            self._views[bucket] = (
                [kept.first(bucket.batch, bucket.source_len) for kept in self._constants],
                [kept.first(bucket.batch) for kept in self._state],
            )
        constants, state = self._views[bucket]
        given = [tensor[: bucket.batch] for tensor in (self._tokens, self._position, self._ancestors, self._slot)]
        written = list(state)
        values, ids, log_sum, logits = self._host.graph(bucket, self._beams, 1)(*given, constants, written)
        for old, new in zip(state, written, strict=True):
            if new is not old:  # a write that returns a new tensor
                old.copy_(new)
        # A finished row that no prompt has taken repeats its last step.
        self._position[:count] = (self._position[:count] + 1).clamp(max=self._largest.target_len - 1)
        selected = [part.numpy()[:count] for part in (values, ids, log_sum)]
        return Candidates(selected[0], selected[1], selected[2], logits.shape[-1], lambda: logits.numpy()[:count])

    def move(self, source: int, target: int) -> None:
        """Move a row to a free one."""
        for kept in self._constants:
            rows = kept.first(self._largest.batch, self._source_len)
            rows[target] = rows[source]
        for kept in self._state:
            rows = kept.first(self._largest.batch)
            rows[target] = rows[source]
        for tensor in (self._tokens, self._position, self._ancestors, self._slot):
            tensor[target] = tensor[source]
        self._lengths[target] = self._lengths.pop(source)

    def release(self, row: int) -> None:
        """Make a row free."""
        del self._lengths[row]

    def _fitting(self, length: int) -> int:
        if fitting := [source_len for source_len in self._source_lens if source_len >= length]:
            return fitting[0]
        longest = self._source_lens[-1]
        raise ArtifactError(
            f"a prompt has {length} tokens, the longest bucket takes {longest}",
            f"set data.max_source_length={longest} to truncate and count long dialogues, or compile a longer bucket",
        )

    def _set_source_len(self, source_len: int) -> None:
        """Give the rows in use room for another number of source tokens."""
        if source_len != self._source_len and self._lengths:
            rows = range(max(self._lengths) + 1)
            # All copies come first: without memory for one, nothing has changed.
            copies = [kept.first(len(rows), self._source_len).clone() for kept in self._constants]
            for index, (kept, old) in enumerate(zip(self._constants, copies, strict=True)):
                kept.write(rows, old, source_len, _padding(old) if index == 0 else None)
        self._source_len = source_len


class _Rows:
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
