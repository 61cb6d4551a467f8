"""Continuous batching: puts the requests of many clients into batches without a batching delay.

One thread runs the graphs. When it is free, it takes the next item in turn and as many others with the same settings
as fit into the largest batch: a single item starts at once; under load, batches fill up. If the generator supports it
(`CompiledGenerator.roll`), items also join a running batch as others finish; otherwise the next batch starts when all
items of the last one have finished.

Requests take turns (weighted start-time fair queueing, Goyal et al. 1996): the items of a request are some batches
apart, so that a request with many items does not delay small requests that arrive later. Rows that no other request
needs are filled without waiting for a turn.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from neuron_sum.errors import OUT_OF_MEMORY, ArtifactError, ModelError
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.base import CompiledGenerator, RunningBatch
from serving.schema import DEFECT, RETRY, ServiceError

LOG = logging.getLogger("neuron_sum")
T = TypeVar("T")

NO_MEMORY = (*OUT_OF_MEMORY, "allocate memory", "start new thread")
"""Parts of the messages of torch's allocator and Python's threads when memory runs out."""

STRIDE = 2
"""The number of batches between two items of a request while other requests need the rows."""

LARGE_SHARE = 0.75
"""The share of the queue that requests of several dialogues may fill; the rest is for single dialogues."""

SMOOTHING = 0.2
"""Weight of the newest batch, or of as many items as run together, in the running mean of seconds per item."""


@dataclass(eq=False)
class Work:
    """One item in the queue.

    Attributes:
        prompt: Token ids.
        settings: Generation settings; only items with equal settings share a batch.
        adapter: The adapter's name; None for the base model.
        deadline: Time on the monotonic clock after which no client waits for the result.
        is_first: Whether it is the first piece of its dialogue, or all of it; the others do not count in the limit of
            the queue.
        result: The new tokens.
        arrived: Time of arrival on the monotonic clock.
        turn: Position in the order in which items start; the smallest is first.
        started: Time on the monotonic clock at which its batch started or it joined one; 0 before.
        batch: Number of items in its batch, the largest while it ran.
    """

    prompt: Sequence[int]
    settings: GenerateConfig
    adapter: str | None
    deadline: float
    is_first: bool = True
    result: "Future[list[int]]" = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    turn: float = 0.0
    started: float = 0.0
    batch: int = 0


class Batcher:
    """The queue and its thread.

    Args:
        generator: The generator; only this thread runs it.
        queue_size: Maximum number of waiting dialogues.
        on_batch: Called with the items and the seconds of every finished batch; of a running batch that others join,
            with every finished item and its seconds in the batch.
    """

    def __init__(
        self, generator: CompiledGenerator, queue_size: int, on_batch: Callable[[Sequence[Work], float], None]
    ) -> None:
        self._generator, self._queue_size, self._on_batch = generator, queue_size, on_batch
        self._queue: deque[Work] = deque()
        self._changed = threading.Condition()
        self._seconds_per_item = 0.0
        self._turn = 0.0
        self._rolling: tuple[GenerateConfig, RunningBatch | None] | None = None
        self.running_since: float | None = None
        """Start of the batch that runs now, or of the step of a running batch that others join."""
        threading.Thread(target=self._run, name="batcher", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Number of items in the queue."""
        return len(self._queue)

    def submit(self, works: Sequence[Work], *, accepted: bool = False) -> None:
        """Queue all items of a request, or none.

        Args:
            works: The items.
            accepted: Whether they continue a request that was accepted, and are queued in any case.

        Raises:
            ServiceError: 503 if the queue is full, or if the items cannot be finished before their deadline.
        """
        with self._changed:
            # During a long batch, items that no client waits for must not fill the queue.
            self._queue = deque(work for work in self._queue if _is_wanted(work))
            stride = min(len(works), STRIDE)
            for number, work in enumerate(works):
                work.turn = self._turn + number * stride
            ahead = sum(work.turn <= works[-1].turn for work in self._queue)
            expected_s = (ahead + len(works)) * self._seconds_per_item
            waiting, added = (sum(work.is_first for work in each) for each in (self._queue, works))
            room = self._queue_size if added == 1 else int(self._queue_size * LARGE_SHARE)
            retry_after_s = max(1, math.ceil(len(self._queue) * self._seconds_per_item))
            # A request longer than the queue is accepted when no dialogue waits; otherwise it would never be.
            if waiting and waiting + added > room and not accepted:
                raise ServiceError(
                    503,
                    f"{waiting} dialogues are waiting, at most {room} may wait; {RETRY}",
                    None,
                    retry_after_s,
                )
            if self._queue and time.monotonic() + expected_s > works[0].deadline and not accepted:
                raise ServiceError(
                    503,
                    f"an answer would take about {expected_s:.0f} s, which is past the deadline; {RETRY}",
                    None,
                    retry_after_s,
                )
            self._queue = deque(sorted([*self._queue, *works], key=lambda work: work.turn))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            batch = self._next()
            if not self._roll(batch):
                self._run_batch(batch)

    def _run_batch(self, batch: Sequence[Work]) -> None:
        """Run a batch that no other item joins."""
        self.running_since = started = time.monotonic()
        for work in batch:
            work.started, work.batch = started, len(batch)
        self._generate(batch)
        seconds = time.monotonic() - started
        self.running_since = None
        self._measure(seconds / len(batch), SMOOTHING)
        self._report(batch, seconds)

    def _next(self) -> list[Work]:
        """Wait for the item whose turn it is, and take it with others that can share its batch."""
        with self._changed:
            while True:
                if batch := self._take(self._generator.batch_size, None):
                    self._turn = max([self._turn + 1, *(work.turn for work in batch)])
                    return batch
                if not self._queue:
                    self._changed.wait()

    def _take(self, most: int, settings: GenerateConfig | None) -> list[Work]:
        """Take items with the same settings from the queue, in turn; expired items are dropped.

        Args:
            most: The largest number of items.
            settings: The settings of a running batch. It gets no item while the item whose turn it is has others, so
                that it ends, and the others run. None for those of the item whose turn it is.
        """
        wanted = deque(filter(_is_wanted, self._queue))
        first = wanted[0].settings if wanted else None
        batch: list[Work] = []
        remaining: deque[Work] = deque()
        for work in wanted:
            fits = work.settings == first and settings in (None, first)
            (batch if fits and len(batch) < most else remaining).append(work)
        self._queue = remaining
        # A running future can no longer be cancelled, so its result can be set.
        return [work for work in batch if work.result.set_running_or_notify_cancel()]

    def _running_batch(self, settings: GenerateConfig) -> RunningBatch | None:
        """An empty running batch with these settings, whose memory is used again for the next one; None without one."""
        if self._rolling is None or self._rolling[0] != settings:
            self._rolling = None  # the memory of the previous one is free before the next one is allocated
            made = attempt(lambda: self._generator.roll(settings))
            if isinstance(made, Exception) and not isinstance(made, ArtifactError):
                LOG.warning("items cannot join the next batch", exc_info=made)  # such as too little memory
                return None
            # An ArtifactError is reported for each item.
            self._rolling = settings, None if isinstance(made, Exception) else made
        return self._rolling[1]

    def _roll(self, waiting: list[Work]) -> bool:
        """Run a batch that other items join, until it is empty.

        If it fails, every item is run alone, so that one item does not affect the others.

        Returns:
            Whether there is such a batch for these items.
        """
        settings = waiting[0].settings
        if (running := self._running_batch(settings)) is None:
            return False
        items: dict[int, Work] = {}
        failure = attempt(lambda: self._run_rolling(running, waiting, items))
        if failure is not None:
            LOG.warning("a running batch failed; its items are run one by one", exc_info=failure)
            self._rolling = None  # its rows may be inconsistent
            if (unclosed := attempt(running.close)) is not None:
                LOG.error("a running batch that failed cannot be closed", exc_info=unclosed)
            for work in (*items.values(), *waiting):
                if not work.result.done():
                    self._run_batch([work])
        self.running_since = None
        return True

    def _run_rolling(self, running: RunningBatch, waiting: list[Work], items: dict[int, Work]) -> None:
        """Run a batch until it is empty.

        Args:
            running: The batch.
            waiting: The items that have no row yet; changed in place.
            items: The items that have one, by the batch's number; changed in place.
        """
        settings, since = waiting[0].settings, time.monotonic()
        while waiting or items:
            self._join(running, waiting, items)
            active = len(items)
            if done := self._step(running, items):
                now = time.monotonic()
                # The time of the first measurement belongs to the whole batch, not only to its first items.
                finished = len(done) if self._seconds_per_item else active
                self._measure((now - since) / finished, SMOOTHING * len(done) / active)
                since = now
                for work in done:
                    self._report([work], now - work.started)
            if not waiting:
                waiting += self._joining(settings, self._generator.batch_size - len(items))

    def _joining(self, settings: GenerateConfig, most: int) -> list[Work]:
        with self._changed:
            if batch := self._take(most, settings):
                # Every full batch of items is one turn, as without continuous batching.
                turn = self._turn + len(batch) / self._generator.batch_size
                self._turn = max([turn, *(work.turn for work in batch)])
            return batch

    def _join(self, running: RunningBatch, waiting: list[Work], items: dict[int, Work]) -> None:
        """Move items from `waiting` into a running batch, as many as it has rows for."""
        while size := running.room(len(waiting)) if waiting else 0:
            group = waiting[:size]
            del waiting[:size]
            self._start(running, group, items)
        for work in items.values():
            work.batch = max(work.batch, len(items))

    def _start(self, running: RunningBatch, group: list[Work], items: dict[int, Work]) -> None:
        """Let a group of items join; if it fails, one by one, so that one item does not affect the others."""
        self.running_since = now = time.monotonic()
        numbers = attempt(lambda: running.join([work.prompt for work in group], [work.adapter for work in group]))
        if not isinstance(numbers, Exception):
            items.update(zip(numbers, group, strict=True))
            for work in group:
                work.started = now
        elif len(group) == 1:
            group[0].result.set_exception(as_service_error(numbers))
        else:
            for work in group:
                self._start(running, [work], items)

    def _step(self, running: RunningBatch, items: dict[int, Work]) -> list[Work]:
        """Generate a token of every item, and set the results of the finished ones, which are returned."""
        if not items:
            return []
        self.running_since = time.monotonic()
        finished = running.step()
        for number, tokens in finished:
            items[number].result.set_result(tokens)
        return [items.pop(number) for number, _ in finished]

    def _measure(self, per_item_s: float, weight: float) -> None:
        mean = self._seconds_per_item
        self._seconds_per_item = per_item_s if not mean else mean + weight * (per_item_s - mean)

    def _report(self, batch: Sequence[Work], seconds: float) -> None:
        if (failure := attempt(lambda: self._on_batch(batch, seconds))) is not None:
            LOG.error("cannot record the metrics of a batch", exc_info=failure)

    def _generate(self, batch: Sequence[Work]) -> None:
        """Set every result; if a batch fails, run its items one by one, so that one item does not affect the others."""
        prompts, adapters = [work.prompt for work in batch], [work.adapter for work in batch]
        outputs = attempt(lambda: self._generator.generate(prompts, batch[0].settings, adapters))
        if not isinstance(outputs, Exception):
            for work, tokens in zip(batch, outputs, strict=True):
                work.result.set_result(tokens)
        elif len(batch) == 1:
            batch[0].result.set_exception(as_service_error(outputs))
        else:
            for work in batch:
                self._generate([work])


def attempt(call: Callable[[], T]) -> T | Exception:
    """The result of a call, or its exception: whatever fails, the thread must answer the other items."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001  every caller reports it
        return error


def _is_wanted(work: Work) -> bool:
    """Whether a client still waits for the item."""
    return work.deadline > time.monotonic() and not work.result.cancelled()


def as_service_error(error: Exception) -> ServiceError:
    """The error for the client: 404 for a removed adapter, 503 for too little memory, otherwise 500."""
    if isinstance(error, ModelError):
        return ServiceError(404, f"{error.message}; {error.hint}", "parameters.adapter")
    if isinstance(error, MemoryError) or any(text in str(error) for text in NO_MEMORY):
        return ServiceError(503, f"too little memory for this item; {RETRY}", None, 1)
    LOG.error("neuron-sum failed to generate a summary", exc_info=error)
    return ServiceError(500, DEFECT)
