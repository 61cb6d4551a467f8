"""Requests of many clients into the artifact's batches, without waiting for company.

One thread runs the graphs. Whenever it is free it takes the next item in turn and as many others with the same settings
as the largest batch has room for: alone, an item starts at once; under load, batches fill by themselves.

Requests take turns (weighted start-time fair queueing, Goyal et al. 1996): the items of a request are some batches
apart, so that a request of many items does not hold up small ones that come after it. Rows that nobody else wants are
filled without waiting for a turn.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from neuron_sum.errors import ModelError
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.base import CompiledGenerator
from serving.schema import DEFECT, RETRY, ServiceError

LOG = logging.getLogger("neuron_sum")

NO_MEMORY = ("allocate memory", "start new thread")
"""How torch's allocator and Python's threads say it."""

STRIDE = 8
"""The largest number of batches between two items of a request while other requests want the rows."""

SMOOTHING = 0.2
"""Weight of the newest batch in the running mean of seconds per item."""


@dataclass(eq=False)
class Work:
    """One item on its way through the queue.

    Attributes:
        prompt: Token ids.
        settings: How to generate; only equal settings share a batch.
        adapter: Its name, None for the base model.
        deadline: On the monotonic clock; past it, nobody waits for the result.
        truncated: Whether the dialogue was cut to fit.
        result: New tokens.
        arrived: On the monotonic clock.
        turn: Place in the order in which items start; smaller ones first.
        started: When its batch began; 0 before.
        batch: How many were in its batch.
    """

    prompt: Sequence[int]
    settings: GenerateConfig
    adapter: str | None
    deadline: float
    truncated: bool = False
    result: "Future[list[int]]" = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    turn: int = 0
    started: float = 0.0
    batch: int = 0


class Batcher:
    """The queue and its thread.

    Args:
        generator: What is run; only this thread runs it.
        queue_size: Items that may wait.
        finished: Told of every batch: its items and its seconds.
    """

    def __init__(
        self, generator: CompiledGenerator, queue_size: int, finished: Callable[[Sequence[Work], float], None]
    ) -> None:
        self._generator, self._queue_size, self._finished = generator, queue_size, finished
        self._queue: deque[Work] = deque()
        self._changed = threading.Condition()
        self._seconds_per_item = 0.0
        self._turn = 0
        self.running_since: float | None = None
        threading.Thread(target=self._run, name="batcher", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return len(self._queue)

    def submit(self, works: Sequence[Work]) -> None:
        """Queues the items of a request: all, or none.

        Raises:
            ServiceError: 503 if they find no room, or could not be done before their deadline.
        """
        with self._changed:
            # A long batch must not let what nobody waits for any more fill the queue.
            self._queue = deque(work for work in self._queue if _wanted(work))
            expected_s = (len(self._queue) + len(works)) * self._seconds_per_item
            retry_after_s = max(1, math.ceil(len(self._queue) * self._seconds_per_item))
            # A request longer than the queue is let in when it is alone: else it never could be.
            if self._queue and len(self._queue) + len(works) > self._queue_size:
                raise ServiceError(
                    503, f"{len(self._queue)} items wait, {self._queue_size} may; {RETRY}", None, retry_after_s
                )
            if self._queue and time.monotonic() + expected_s > works[0].deadline:
                raise ServiceError(
                    503,
                    f"an answer would take about {expected_s:.0f} s, past the deadline; {RETRY}",
                    None,
                    retry_after_s,
                )
            stride = min(len(works), STRIDE)
            for number, work in enumerate(works):
                work.turn = self._turn + number * stride
            self._queue = deque(sorted([*self._queue, *works], key=lambda work: work.turn))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            batch = self._next()
            self.running_since = started = time.monotonic()
            for work in batch:
                work.started, work.batch = started, len(batch)
            self._generate(batch)
            seconds = time.monotonic() - started
            self.running_since = None
            per_item = seconds / len(batch)
            known = self._seconds_per_item
            self._seconds_per_item = per_item if not known else known + SMOOTHING * (per_item - known)
            try:
                self._finished(batch, seconds)
            except Exception:  # the thread must go on: without it nothing would be answered any more
                LOG.exception("a batch was not counted")

    def _next(self) -> list[Work]:
        """The item whose turn it is, and those that fit to it, in their turn; only items somebody still waits for."""
        with self._changed:
            while True:
                batch: list[Work] = []
                kept: deque[Work] = deque()
                for work in filter(_wanted, self._queue):
                    fits = not batch or work.settings == batch[0].settings
                    (batch if fits and len(batch) < self._generator.batch_size else kept).append(work)
                self._queue = kept
                self._turn = max([self._turn + 1, *(work.turn for work in batch)])
                # Once running, a future cannot be cancelled any more, and its result can be set.
                if batch := [work for work in batch if work.result.set_running_or_notify_cancel()]:
                    return batch
                if not kept:
                    self._changed.wait()

    def _generate(self, batch: Sequence[Work]) -> None:
        """Sets every result; if a batch fails, its items are tried one by one, so that one harms no other."""
        try:
            made = self._generator.generate(
                [work.prompt for work in batch], batch[0].settings, [work.adapter for work in batch]
            )
        except Exception as error:  # noqa: BLE001  whatever it is, it is answered and the thread goes on
            if len(batch) > 1:
                for work in batch:
                    self._generate([work])
                return
            batch[0].result.set_exception(as_service_error(error))
        else:
            for work, tokens in zip(batch, made, strict=True):
                work.result.set_result(tokens)


def _wanted(work: Work) -> bool:
    """Whether somebody still waits for it."""
    return work.deadline > time.monotonic() and not work.result.cancelled()


def as_service_error(error: Exception) -> ServiceError:
    """What the client is told: an adapter that is gone and too little memory are no defects."""
    if isinstance(error, ModelError):
        return ServiceError(404, f"{error.message}; {error.hint}", "parameters.adapter")
    if isinstance(error, MemoryError) or any(text in str(error) for text in NO_MEMORY):
        return ServiceError(503, f"too little memory for this item; {RETRY}", None, 1)
    LOG.error("a defect of neuron-sum", exc_info=error)
    return ServiceError(500, DEFECT)
