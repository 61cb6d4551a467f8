"""The queue of the service and its batches, with generators that wait until they are released."""

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest

from neuron_sum.errors import ModelError
from neuron_sum.recipes.schema import GenerateConfig
from serving.batching import Batcher, Work
from serving.schema import ServiceError


class Slow:
    """A generator that waits until it is released, and records its inputs."""

    batch_size, default_adapter = 4, None

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.began = threading.Semaphore(0)
        self.batches: list[list[Any]] = []

    def roll(self, settings: GenerateConfig) -> "Steps | None":
        return None

    def generate(self, prompts: Sequence[Any], settings: GenerateConfig, adapters: Sequence[Any]) -> list[list[int]]:
        self.batches.append(list(prompts))
        self.began.release()
        assert self.go.acquire(timeout=30)
        if any("bad" in prompt for prompt in prompts):
            raise RuntimeError("one of them")
        if any("big" in prompt for prompt in prompts):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        if any("gone" in prompt for prompt in prompts):
            raise ModelError("no adapter 'gone'", "loaded: none")
        return [[len(prompt)] for prompt in prompts]


class Steps:
    """A running batch of two rows: a summary takes as many steps as its name has letters; every step waits."""

    def __init__(self, slow: Slow) -> None:
        self.slow, self.remaining, self.lengths, self.fails = slow, dict[int, int](), list[int](), False

    @property
    def running(self) -> int:
        return len(self.remaining)

    def room(self, waiting: int) -> int:
        return min(waiting, 2 - self.running)

    def join(self, prompts: Sequence[Any], adapters: Sequence[Any]) -> list[int]:
        if any("gone" in prompt for prompt in prompts):
            raise ModelError("no adapter 'gone'", "loaded: none")
        self.slow.batches += [list(prompt) for prompt in prompts]
        for [name] in prompts:
            self.remaining[len(self.lengths)] = len(name)
            self.lengths.append(len(name))
        return list(range(len(self.lengths)))[-len(prompts) :]

    def step(self) -> list[tuple[int, list[int]]]:
        self.slow.began.release()
        assert self.slow.go.acquire(timeout=30)
        if self.fails:
            raise RuntimeError("a step")
        self.remaining = {number: steps - 1 for number, steps in self.remaining.items()}
        done = [number for number, steps in self.remaining.items() if steps == 0]
        for number in done:
            del self.remaining[number]
        return [(number, [self.lengths[number]]) for number in done]

    def close(self) -> None:
        self.remaining.clear()


class Rolling(Slow):
    """The same, with a running batch of two rows."""

    batch_size = 2

    def roll(self, settings: GenerateConfig) -> Steps:
        self.steps = Steps(self)
        return self.steps


def works(*names: str, **settings: Any) -> list[Work]:
    return [Work([name], GenerateConfig(**settings), None, float("inf")) for name in names]  # type: ignore[list-item]


@pytest.fixture
def slow() -> Slow:
    return Slow()


def test_the_queue_batches_waiting_requests_and_never_delays_a_single_one(slow: Slow) -> None:
    batcher = Batcher(slow, 100, lambda batch, seconds: None)  # type: ignore[arg-type]
    first, *rest = works("1", "22", "333", "4444", "55555", "666666")
    batcher.submit([first])
    assert slow.began.acquire(timeout=10)  # it began as a batch of one
    batcher.submit(rest)
    batcher.submit(works("other", num_beams=2))
    for _ in range(4):
        slow.go.release()
    assert [work.result.result(10) for work in (first, *rest)] == [[1]] * 6
    assert [len(batch) for batch in slow.batches[:2]] == [1, 4]
    assert ["other"] in [prompt for batch in slow.batches for prompt in batch]
    assert all(len({*map(tuple, batch)} & {("other",)}) == 0 or len(batch) == 1 for batch in slow.batches)


def test_a_small_request_does_not_wait_for_a_large_one_that_came_before(slow: Slow) -> None:
    batcher = Batcher(slow, 1000, lambda batch, seconds: None)  # type: ignore[arg-type]
    running, small = works("running"), works("small")
    batcher.submit(running)
    assert slow.began.acquire(timeout=10)
    for name in "abc":
        batcher.submit(works(*[f"{name}{number}" for number in range(40)]))
    batcher.submit(small)
    for _ in range(2):
        slow.go.release()
    assert small[0].result.result(10) == [1]
    for _ in range(60):
        slow.go.release()
    assert not wait_until(lambda: batcher.waiting > 0)


def test_a_large_request_is_not_starved_by_small_ones(slow: Slow) -> None:
    batcher = Batcher(slow, 1000, lambda batch, seconds: None)  # type: ignore[arg-type]
    large = works(*[f"large{number}" for number in range(6)])
    batcher.submit(works("running"))
    assert slow.began.acquire(timeout=10)
    batcher.submit(large)
    for round_ in range(80):  # four new small requests for every batch of four
        for number in range(4):
            batcher.submit(works(f"small{round_}.{number}"))
        slow.go.release()
        assert slow.began.acquire(timeout=10)
    assert all(work.result.done() for work in large)
    for _ in range(80):
        slow.go.release()


def wait_until(true: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether the condition stays true for a while."""
    end = time.monotonic() + seconds
    while true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def test_a_failing_item_does_not_affect_others(slow: Slow) -> None:
    batcher = Batcher(slow, 100, lambda batch, seconds: None)  # type: ignore[arg-type]
    asked = works("good", "bad", "big", "gone")
    for _ in range(8):
        slow.go.release()
    batcher.submit(asked)
    assert asked[0].result.result(10) == [1]
    assert [asked[i].result.exception(10).code for i in (1, 2, 3)] == [500, 503, 404]  # type: ignore[union-attr]


def test_a_full_queue_rejects_requests_with_retry_after(slow: Slow) -> None:
    batcher = Batcher(slow, 3, lambda batch, seconds: None)  # type: ignore[arg-type]
    batcher.submit(works("running"))
    assert slow.began.acquire(timeout=10)
    batcher.submit(works("a", "b"))
    with pytest.raises(ServiceError) as refused:
        batcher.submit(works("c", "d"))
    assert refused.value.code == 503 and refused.value.retry_after_s is not None
    batcher.submit(works("c"))
    for _ in range(4):
        slow.go.release()


def test_the_pieces_of_a_long_dialogue_do_not_fill_the_queue(slow: Slow) -> None:
    batcher = Batcher(slow, 4, lambda batch, seconds: None)  # type: ignore[arg-type]
    batcher.submit(works("running"))
    assert slow.began.acquire(timeout=10)
    pieces = works(*(f"piece{number}" for number in range(40)))
    for piece in pieces[1:]:
        piece.is_first = False
    batcher.submit(pieces)
    small = works("small")
    batcher.submit(small)
    batcher.submit(works("a"))
    with pytest.raises(ServiceError, match="3 dialogues are waiting, at most 3 may wait"):
        batcher.submit(works("b", "c"))
    for _ in range(2):
        slow.go.release()
    assert small[0].result.result(10) == [1]
    for _ in range(10):
        slow.go.release()
    assert all(piece.result.result(10) == [1] for piece in pieces)


def test_later_pieces_in_the_queue_refuse_no_request(slow: Slow) -> None:
    batcher = Batcher(slow, 4, lambda batch, seconds: None)  # type: ignore[arg-type]
    pieces = works(*(f"piece{number}" for number in range(8)))
    for piece in pieces[1:]:
        piece.is_first = False
    batcher.submit(pieces)
    assert slow.began.acquire(timeout=10)
    assert batcher.waiting == 4
    longer = works(*"abcdef")
    batcher.submit(longer)
    for _ in range(8):
        slow.go.release()
    assert all(work.result.result(10) for work in (*pieces, *longer))


def test_abandoned_requests_are_not_generated(slow: Slow) -> None:
    batcher = Batcher(slow, 100, lambda batch, seconds: None)  # type: ignore[arg-type]
    batcher.submit(works("running"))
    assert slow.began.acquire(timeout=10)
    gone, late, kept = works("gone"), works("late"), works("kept")
    for batch in (gone, late, kept):
        batcher.submit(batch)
    gone[0].result.cancel()
    late[0].deadline = 0.0
    slow.go.release()
    slow.go.release()
    assert kept[0].result.result(10) == [1]
    assert slow.batches == [[["running"]], [["kept"]]]


def test_abandoned_requests_do_not_fill_the_queue(slow: Slow) -> None:
    batcher = Batcher(slow, 2, lambda batch, seconds: None)  # type: ignore[arg-type]
    batcher.submit(works("running"))
    assert slow.began.acquire(timeout=10)
    stale = works("a", "b")
    batcher.submit(stale)
    for work in stale:
        work.deadline = 0.0
    batcher.submit(works("c", "d"))
    assert batcher.waiting == 2
    for _ in range(2):
        slow.go.release()


def test_failing_metrics_do_not_stop_the_service(slow: Slow) -> None:
    def broken(batch: Sequence[Work], seconds: float) -> None:
        raise OSError("standard output is gone")

    batcher = Batcher(slow, 100, broken)  # type: ignore[arg-type]
    for name in ("1", "2"):
        [work] = works(name)
        batcher.submit([work])
        slow.go.release()
        assert work.result.result(10) == [1]


def test_items_join_a_running_batch_in_turn_and_other_settings_let_it_end() -> None:
    slow, reported = Rolling(), list[tuple[list[Any], int]]()
    batcher = Batcher(slow, 100, lambda batch, seconds: reported.append((batch[0].prompt, batch[0].batch)))  # type: ignore[arg-type, func-returns-value, return-value]
    long, short, joining, late = works("aaaaaa", "bb", "cc", "dd")
    [other] = works("e", num_beams=2)
    batcher.submit([long])
    assert slow.began.acquire(timeout=10)
    since = batcher.running_since
    for work in (short, joining, other, late):
        batcher.submit([work])
    for work, steps in ((short, 3), (joining, 2)):  # of the first long one, one step has begun
        for _ in range(steps):
            slow.go.release()
        assert work.result.result(10) == [2] and not long.result.done()
    slow.go.release()
    assert long.result.result(10) == [6]
    assert batcher.running_since != since, "a batch that others join does not count as hanging"
    assert not late.result.done(), "the batch ends, because the next item has other settings"
    for _ in range(3):
        slow.go.release()
    assert other.result.result(10) == [1] and late.result.result(10) == [2]
    assert slow.batches == [["aaaaaa"], ["bb"], ["cc"], ["e"], ["dd"]]
    assert not wait_until(lambda: len(reported) < 5)
    assert reported[:3] == [(["bb"], 2), (["cc"], 2), (["aaaaaa"], 2)]


def test_failures_in_a_running_batch_reach_only_their_items() -> None:
    slow = Rolling()
    batcher = Batcher(slow, 100, lambda batch, seconds: None)  # type: ignore[arg-type]
    gone, good, bad = works("gone", "good", "bad")
    batcher.submit([gone, good])
    assert gone.result.exception(10).code == 404  # type: ignore[union-attr]
    for _ in range(4):
        slow.go.release()
    assert good.result.result(10) == [4]
    slow.steps.fails = True
    [other] = works("xyz")
    batcher.submit([bad, other])
    for _ in range(3):
        slow.go.release()
    assert bad.result.exception(10).code == 500 and other.result.result(10) == [1]  # type: ignore[union-attr]
    slow.steps.fails = False
    [after] = works("y")
    batcher.submit([after])
    slow.go.release()
    assert after.result.result(10) == [1]


def test_the_first_item_that_ends_does_not_count_as_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Rolling()
    batcher = Batcher(slow, 100, lambda batch, seconds: None)  # type: ignore[arg-type]
    now = [100.0]
    monkeypatch.setattr("serving.batching.time.monotonic", lambda: now[0])
    first, other = works("a", "aaaaaa")
    batcher.submit([first, other])
    assert slow.began.acquire(timeout=10)
    now[0] = 110.0
    slow.go.release()
    assert first.result.result(10) == [1]
    assert slow.began.acquire(timeout=10)
    assert batcher._seconds_per_item == 5.0
    for _ in range(6):
        slow.go.release()
    assert other.result.result(10) == [6]


def test_a_running_batch_that_cannot_be_allocated_or_closed_does_not_stop_the_service() -> None:
    alive: list[Any] = []

    class Short(Rolling):
        faults: ClassVar[list[Exception]] = [
            OSError(12, "Cannot allocate memory"),
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        ]

        def roll(self, settings: GenerateConfig) -> Steps:
            if hasattr(self, "steps"):
                previous = weakref.ref(self.steps)
                del self.steps
                alive.append(previous())
            if settings.num_beams == 2 and self.faults:
                raise self.faults.pop()
            return super().roll(settings)

    slow = Short()
    batcher = Batcher(slow, 100, lambda batch, seconds: None)  # type: ignore[arg-type]
    for name, beams in (("a", 1), ("b", 2), ("big", 2), ("c", 2)):
        [work] = works(name, num_beams=beams)
        batcher.submit([work])
        slow.go.release()
        if name == "big":
            assert work.result.exception(10).code == 503  # type: ignore[union-attr]
        else:
            assert work.result.result(10) == [1]
    assert alive == [None], "the previous batch keeps its memory while the next one is allocated"

    def broken() -> None:
        raise KeyError(1)

    slow.steps.fails, slow.steps.close = True, broken  # type: ignore[method-assign]
    both = works("ab", "cd", num_beams=2)
    batcher.submit(both)
    for _ in range(3):
        slow.go.release()
    assert [work.result.result(10) for work in both] == [[1], [1]]
    assert not wait_until(lambda: batcher.running_since is not None)
    [after] = works("x", num_beams=2)
    batcher.submit([after])
    slow.go.release()
    assert after.result.result(10) == [1]
