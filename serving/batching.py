"""Dynamic batching: puts the requests of many clients into batches without a batching delay.

One thread runs the graphs. When it is free, it takes the next item in turn and as many others with the same settings
as fit into the largest batch: a single item starts at once; under load, batches fill up.

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

from neuron_sum.errors import ModelError
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.base import CompiledGenerator
from serving.schema import DEFECT, RETRY, ServiceError

LOG = logging.getLogger("neuron_sum")

NO_MEMORY = ("allocate memory", "start new thread")
"""Parts of the messages of torch's allocator and Python's threads when memory runs out."""

STRIDE = 2
"""The number of batches between two items of a request while other requests need the rows."""

LARGE_SHARE = 0.75
"""The share of the queue that requests of several items may fill; the rest is for single items."""

SMOOTHING = 0.2
"""Weight of the newest batch in the running mean of seconds per item."""


@dataclass(eq=False)
class Work:
    """One item in the queue.

    Attributes:
        prompt: Token ids.
        settings: Generation settings; only items with equal settings share a batch.
        adapter: The adapter's name; None for the base model.
        deadline: Time on the monotonic clock after which no client waits for the result.
        truncated: Whether the dialogue was cut to fit.
        result: The new tokens.
        arrived: Time of arrival on the monotonic clock.
        turn: Position in the order in which items start; the smallest is first.
        started: Start time of its batch on the monotonic clock; 0 before.
        batch: Number of items in its batch.
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
        generator: The generator; only this thread runs it.
        queue_size: Maximum number of waiting items.
        on_batch: Called with the items and the seconds of every finished batch.
    """

    def __init__(
        self, generator: CompiledGenerator, queue_size: int, on_batch: Callable[[Sequence[Work], float], None]
    ) -> None:
        self._generator, self._queue_size, self._on_batch = generator, queue_size, on_batch
        self._queue: deque[Work] = deque()
        self._changed = threading.Condition()
        self._seconds_per_item = 0.0
        self._turn = 0
        self.running_since: float | None = None
        threading.Thread(target=self._run, name="batcher", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Number of items in the queue."""
        return len(self._queue)

    def submit(self, works: Sequence[Work]) -> None:
        """Queue all items of a request, or none.

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
            room = self._queue_size if len(works) == 1 else int(self._queue_size * LARGE_SHARE)
            retry_after_s = max(1, math.ceil(len(self._queue) * self._seconds_per_item))
            # A request longer than the queue is accepted when the queue is empty; otherwise it would never be.
            if self._queue and len(self._queue) + len(works) > room:
                raise ServiceError(
                    503,
                    f"{len(self._queue)} items are waiting, at most {room} may wait; {RETRY}",
                    None,
                    retry_after_s,
                )
            if self._queue and time.monotonic() + expected_s > works[0].deadline:
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
            self.running_since = started = time.monotonic()
            for work in batch:
                work.started, work.batch = started, len(batch)
            self._generate(batch)
            seconds = time.monotonic() - started
            self.running_since = None
            per_item = seconds / len(batch)
            mean = self._seconds_per_item
            self._seconds_per_item = per_item if not mean else mean + SMOOTHING * (per_item - mean)
            try:
                self._on_batch(batch, seconds)
            except Exception:  # the thread must continue: without it, no request would be answered
                LOG.exception("cannot record the metrics of a batch")

    def _next(self) -> list[Work]:
        """The item whose turn it is and others that can share its batch, in turn; expired items are dropped."""
        with self._changed:
            while True:
                batch: list[Work] = []
                remaining: deque[Work] = deque()
                for work in filter(_is_wanted, self._queue):
                    fits = not batch or work.settings == batch[0].settings
                    (batch if fits and len(batch) < self._generator.batch_size else remaining).append(work)
                self._queue = remaining
                self._turn = max([self._turn + 1, *(work.turn for work in batch)])
                # A running future can no longer be cancelled, so its result can be set.
                if batch := [work for work in batch if work.result.set_running_or_notify_cancel()]:
                    return batch
                if not remaining:
                    self._changed.wait()

    def _generate(self, batch: Sequence[Work]) -> None:
        """Set every result; if a batch fails, run its items one by one, so that one item does not affect the others."""
        try:
            outputs = self._generator.generate(
                [work.prompt for work in batch], batch[0].settings, [work.adapter for work in batch]
            )
        except Exception as error:  # noqa: BLE001  any error is sent to the client, and the thread continues
            if len(batch) > 1:
                for work in batch:
                    self._generate([work])
                return
            batch[0].result.set_exception(as_service_error(error))
        else:
            for work, tokens in zip(batch, outputs, strict=True):
                work.result.set_result(tokens)


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
