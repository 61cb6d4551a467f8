"""Continuous batching: prompts join a running batch in the rows of finished summaries, each row with its own step.

Joining prompts are encoded in the smallest graph that fits them. On the CPU the encoder's outputs are copied into their
rows of the running batch; on a device, encode writes them there. A step runs in the smallest bucket that has the rows
in use (`neuron_sum.runtimes.state`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial

import numpy as np
from numpy.typing import NDArray

from neuron_sum.artifact import Bucket
from neuron_sum.errors import ArtifactError
from neuron_sum.runtimes.base import Candidates, Greedy, StepRuntime
from neuron_sum.runtimes.graphs import GraphRuntime
from neuron_sum.runtimes.search import Search
from neuron_sum.runtimes.state import Result

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
        self._turn = ExitStack()
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
            if not self._tickets:
                self._turn.enter_context(self._session.turn())
                all_leases.callback(self._end_turn)
            leases = [all_leases.enter_context(ExitStack()) for _ in prompts]
            slots = [lease.enter_context(self._lease([name]))[0] for lease, name in zip(leases, adapters, strict=True)]
            started = self._session.join(rows, prompts, slots)
            for row, prompt, tokens, lease in zip(rows, prompts, started, leases, strict=True):
                self._search.start(row, prompt if self._session.has_prompts else tokens[:1], tokens)
                self._tickets[row], self._joined = self._joined, self._joined + 1
                self._leases[row] = lease.pop_all()
        return [self._tickets[row] for row in rows]

    def step(self) -> list[tuple[int, list[int]]]:
        """See `RunningBatch`."""
        self._compact()
        count = max(self._tickets) + 1
        self._search.step(self._session, count)
        self._used.add(self._session.bucket(count))
        finished = [row for row in sorted(self._tickets) if not self._search.is_running[row]]
        results = [(self._tickets[row], self._release(row)) for row in finished]
        self._end_turn()
        return results

    def close(self) -> None:
        """See `RunningBatch`."""
        for lease in self._leases.values():
            lease.close()
        self._leases.clear()
        self._tickets.clear()
        self._end_turn()

    def _end_turn(self) -> None:
        """Let other batches run if no summary is unfinished."""
        if not self._tickets:
            self._turn.close()

    def _release(self, row: int) -> list[int]:
        del self._tickets[row]
        self._leases.pop(row).close()
        self._session.release(row)
        return self._search.result(row)

    def _compact(self) -> None:
        """Move the last rows to free ones if the summaries fit into a smaller bucket."""
        if not self._session.can_move:
            return  # a bucket is smaller when the summaries of its last rows have ended
        batch = self._session.batch(self.running)
        while (last := max(self._tickets)) >= batch:
            target = next(row for row in range(batch) if row not in self._tickets)
            self._session.move(last, target)
            self._search.move(last, target)
            self._tickets[target], self._leases[target] = self._tickets.pop(last), self._leases.pop(last)


def rolling_session(
    runtime: StepRuntime, num_beams: int, target_len: int, rows: int, *, independent: bool = False
) -> "RollingSession | None":
    """Rows for continuous batching; None if the runtime cannot do it.

    Args:
        runtime: The runtime.
        num_beams: A compiled beam width.
        target_len: The number of new tokens.
        rows: The largest number of summaries at once.
        independent: See `RollingSession`.
    """
    if not isinstance(runtime, GraphRuntime):
        return None
    length = min((bucket.target_len for bucket in runtime.buckets if bucket.target_len >= target_len), default=0)
    shapes = {(bucket.batch, bucket.source_len): bucket for bucket in runtime.buckets if bucket.target_len == length}
    batches, source_lens = ({shape[axis] for shape in shapes} for axis in (0, 1))
    if not shapes or len(shapes) < len(batches) * len(source_lens):
        return None  # a batch grows and shrinks, which requires every batch size with every source length
    return RollingSession(runtime, num_beams, shapes, rows, independent=independent)


class RollingSession:
    """The rows of a running batch: constants, state and position of each, and the step graph for the rows in use.

    Args:
        runtime: The runtime.
        num_beams: A compiled beam width.
        shapes: The buckets by batch size and source length, with every combination.
        rows: The largest number of rows; reduced to the largest batch size.
        independent: Whether the rounding of a row depends on no other row: prompts are encoded one at a time, and all
            steps have the shape of the largest bucket.

    Attributes:
        rows: The number of rows.
        has_prompts: Whether the prompt is before the new tokens, as in decoder-only models.
        can_move: Whether `move` works.
        turn: See `StepRuntime.turn`; held while a row is in use.
        greedy: See `Steps`.
    """

    def __init__(
        self,
        runtime: GraphRuntime,
        num_beams: int,
        shapes: Mapping[tuple[int, int], Bucket],
        rows: int,
        *,
        independent: bool = False,
    ) -> None:
        self._runtime, self._beams, self._shapes, self.turn = runtime, num_beams, shapes, runtime.turn
        self._batches, self._source_lens = (sorted({shape[axis] for shape in shapes}) for axis in (0, 1))
        self.rows = min(rows, self._batches[-1])
        self.has_prompts = runtime.tokens.decoder_start is None
        self._independent = independent
        self._source_len = self._source_lens[0]
        self._lengths = dict[int, int]()
        largest = shapes[self.batch(self.rows), self._source_lens[-1]]
        self._largest = largest
        self._tokens = np.full((largest.batch, num_beams), runtime.tokens.pad)
        self._position, self._slot = (np.zeros(largest.batch, dtype=np.int64) for _ in range(2))
        self._ancestors = np.zeros((largest.batch, num_beams, largest.target_len), dtype=np.int64)
        self._kept = runtime.open.rows(largest, num_beams, self._source_lens)
        self.can_move = self._kept.move is not None and not independent
        several = runtime.greedy_steps if num_beams == 1 else 1
        self.greedy = Greedy(several, partial(self._several, several)) if several > 1 else None

    def batch(self, rows: int) -> int:
        """The smallest batch size with this many rows."""
        return next(batch for batch in self._batches if batch >= rows)

    def bucket(self, rows: int) -> Bucket:
        """The bucket of a step of the first rows."""
        return self._shapes[self.batch(self.rows if self._independent else rows), self._source_len]

    def group(self, prompts: int) -> int:
        """The number of prompts that are encoded together, of `prompts` ones: as many as an encode graph has rows."""
        full = [batch for batch in self._batches if batch <= prompts]
        return self._batches[0] if self._independent else full[-1] if full else prompts

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
        constants, first, slot = self._runtime.encoded(bucket, prompts, slots, rows)
        longest = max([*self._lengths.values(), *lengths.values()])
        source_len = self._source_lens[-1] if self._independent else self._fitting(longest)
        if source_len != self._source_len and self._lengths:
            self._kept.resize(max(self._lengths) + 1, self._source_len, source_len)
        self._source_len = source_len
        self._kept.write(rows, constants, bucket.source_len, source_len)
        self._position[list(rows)], self._slot[list(rows)] = 0, slot[: len(rows)]
        self._lengths.update(lengths)  # last: after an error, none has joined
        return first[: len(rows), None].repeat(self._beams, axis=1)

    def step(self, tokens: NDArray[np.int64], rows: NDArray[np.int64]) -> Candidates:
        """See `Steps`, for the first rows; the others are not in use."""
        count = len(tokens)
        if self._beams > 1:
            past = self._ancestors[:count]
            past[...] = np.take_along_axis(past, rows[..., None], axis=1)
            past[np.arange(count), :, self._position[:count]] = np.arange(self._beams)
        values, ids, log_sum, logits = self._call(tokens, 1)
        selected = [np.asarray(part)[:count] for part in (values, ids, log_sum)]
        return Candidates(selected[0], selected[1], selected[2], logits.shape[-1], lambda: np.asarray(logits)[:count])

    def _several(self, steps: int, tokens: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `Greedy.call`, for the first rows."""
        chosen, logits = (np.asarray(part)[: len(tokens)] for part in self._call(tokens, steps))
        return chosen, logits

    def _call(self, tokens: NDArray[np.int64], steps: int) -> Sequence[Result]:
        count = len(tokens)
        bucket = self.bucket(count)
        self._tokens[:count] = tokens
        given = [array[: bucket.batch] for array in (self._tokens, self._position, self._ancestors, self._slot)]
        results = self._kept.step(bucket)(given[0], given[1], given[2], given[3], steps)
        # A finished row that no prompt has taken repeats its last step. A new array, because on a device the call may
        # still read the old one.
        used = np.minimum(self._position[:count] + steps, self._largest.target_len - 1)
        self._position = np.concatenate([used, self._position[count:]])
        return results

    def move(self, source: int, target: int) -> None:
        """Move a row to a free one, if `can_move`."""
        assert self._kept.move is not None
        self._kept.move(source, target, self._source_len)
        for array in (self._tokens, self._position, self._ancestors, self._slot):
            array[target] = array[source]
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
