"""Continuous batching compared with one batch at a time: throughput and latency of the batcher under random arrivals.

    OMP_NUM_THREADS=1 python benchmarks/continuous_batching.py [--batches 1,8] [--requests 600] [--work FOLDER]

FLAN-T5-small's dimensions with random weights in fp32, greedy, 256 input tokens. A summary ends after a number of
tokens drawn from the lengths of DialogSum's references (LENGTHS). Requests arrive at random (Poisson), in both modes
at the same times, at 70 % of the throughput of one batch at a time with a full queue.

First, the time of every graph is measured: CPU time with one thread, the graphs in turn. Then the serving code
(Batcher, search, the copies into the running batch) runs on a clock that shows the process's CPU time. Each call of a
graph adds the measured time of that graph to it, and waiting for the next arrival adds the gap. So other processes do
not count, and all latencies are those of one core. The HTTP server is not included.
"""

import argparse
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generation import END_OF_SEQUENCE, VOCABULARY, small_artifact

import serving.batching
from compile.graphs.selection import candidates
from neuron_sum import console
from neuron_sum.artifact import Bucket
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes import aoti
from neuron_sum.runtimes.generation import StepGenerator
from neuron_sum.runtimes.graphs import GraphRuntime
from neuron_sum.runtimes.state import Array, HostState
from serving.batching import Batcher, Work

ROOT = Path(__file__).parents[1]
SOURCE_TOKENS, TARGET_LEN, LOAD, WORD = 256, 128, 0.7, 7
SHARES = (*(number / 20 for number in range(20)), 0.99, 1.0)
LENGTHS = (8, 17, 19, 21, 22, 24, 25, 26, 27, 29, 30, 32, 34, 36, 38, 40, 42, 46, 50, 57, 77, 117)
"""Tokens of DialogSum's 1,500 test references with T5's tokenizer and the end token: the quantiles of SHARES."""
SETTINGS = GenerateConfig(max_new_tokens=TARGET_LEN)
TARGET_THROUGHPUT, TARGET_P99 = 1.3, 0.6
STEPS, RATES = 8, 5


class Clock:
    """CPU time of this process, with what was added."""

    def __init__(self) -> None:
        self._added = -time.process_time()

    def monotonic(self) -> float:
        """Seconds since the start."""
        return time.process_time() + self._added

    def add(self, seconds: float) -> None:
        """Let time pass."""
        self._added += seconds


class NoMoreArrivals(Exception):
    """The simulation has ended."""


class Simulation(Batcher):
    """A Batcher without a thread, whose requests arrive on the clock.

    Args:
        generator: The generator.
        clock: The clock.
        arrivals: The time and the item of each request, in order.
    """

    def __init__(self, generator: StepGenerator, clock: Clock, arrivals: Sequence[tuple[float, Work]]) -> None:
        self._clock, self._arrivals = clock, deque(arrivals)
        super().__init__(generator, 10**9, lambda batch, seconds: None)
        self._changed = self  # type: ignore[assignment]

    def __enter__(self) -> None:
        """The queue is not locked."""

    def __exit__(self, *_: object) -> None:
        """See `__enter__`."""

    def notify(self) -> None:
        """Nobody waits."""

    def wait(self) -> None:
        """Let time pass until the next arrival."""
        if not self._arrivals:
            raise NoMoreArrivals
        self._clock.add(max(0.0, self._arrivals[0][0] - self._clock.monotonic()))

    def run(self) -> None:
        """Answer all requests."""
        try:
            super()._run()
        except NoMoreArrivals:
            return

    def _run(self) -> None:
        """The thread of `Batcher` ends at once."""

    def _take(self, most: int, settings: GenerateConfig | None) -> list[Work]:
        while self._arrivals and self._arrivals[0][0] <= self._clock.monotonic():
            self.submit([self._arrivals.popleft()[1]])
        return super()._take(most, settings)


class OneBatchAtATime(StepGenerator):
    """A generator that no prompt can join."""

    def roll(self, settings: GenerateConfig) -> None:
        """See `CompiledGenerator`."""


@dataclass(frozen=True)
class Result:
    """Answers per second, and latencies in seconds."""

    throughput: float
    p50_s: float
    p99_s: float


def main() -> None:
    """Measure the graphs, compare both modes, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=_numbers, default=[1, 8], metavar="N,…", help="batch sizes of the artifact")
    parser.add_argument("--requests", type=int, default=600, help="number of requests of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds in which the graphs are measured")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "continuous", help="folder for the artifact")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runtime = aoti.load(small_artifact(options.work.resolve(), options.batches, SOURCE_TOKENS, TARGET_LEN))
    seconds = _graph_seconds(runtime, options.rounds)
    for (kind, batch), value in seconds.items():
        console.note(f"{kind}, batch {batch}: {1000 * value:.1f} ms")

    clock = Clock()
    serving.batching.time = clock  # type: ignore[assignment]
    replayed = _replayed(runtime, seconds, clock)
    modes = {"one batch at a time": OneBatchAtATime(replayed), "continuous": StepGenerator(replayed)}
    run = partial(_run, clock=clock, requests=options.requests)
    full = {name: run(generator, rate=float("inf")).throughput for name, generator in modes.items()}
    today = full["one batch at a time"]
    rate = LOAD * today
    table = console.table("mode", "load", "arrivals /s", "answers /s", "p50 s", "p99 s", "full queue: answers /s")
    results = {name: run(generator, rate=rate) for name, generator in modes.items()}
    for name, found in results.items():
        table.add_row(name, *_cells(rate, today, found, full[name]))
    limit, best, result = results["one batch at a time"].p99_s, rate, results["continuous"]
    low, high = rate, full["continuous"]
    for _ in range(RATES):  # the highest rate with the same p99, to 1/32 of the interval
        middle = (low + high) / 2
        found = run(modes["continuous"], rate=middle)
        low, high = (middle, high) if found.p99_s <= limit else (low, middle)
        if low == middle:
            best, result = middle, found
    table.add_row("continuous, equal p99", *_cells(best, today, result, full["continuous"]))
    p99, throughput = results["continuous"].p99_s / limit, best / rate
    versions = {name: version(name) for name in ("neuron-sum", "numpy", "torch")}
    console.emit(
        {"p99": p99, "throughput": throughput, "versions": versions},
        table,
        f"p99 at equal load: {p99:.2f} of one batch at a time (target at most {TARGET_P99}), throughput at equal p99: "
        f"{throughput:.2f} times (target at least {TARGET_THROUGHPUT}): "
        f"{'held' if p99 <= TARGET_P99 or throughput >= TARGET_THROUGHPUT else 'missed'}",
        f"versions: {versions}",
    )


def _cells(rate: float, full: float, found: Result, own_full: float) -> list[str]:
    return [
        f"{rate / full:.2f}",
        f"{rate:.2f}",
        f"{found.throughput:.2f}",
        f"{found.p50_s:.2f}",
        f"{found.p99_s:.2f}",
        f"{own_full:.2f}",
    ]


def _run(generator: StepGenerator, *, clock: Clock, requests: int, rate: float) -> Result:
    """The figures of requests that arrive at a rate per second; all at once if it is infinite."""
    numbers, started = random.Random(3), clock.monotonic()
    arrivals, done, at = list[tuple[float, Work]](), list[float](), started
    for _ in range(requests):
        at += numbers.expovariate(rate) if rate != float("inf") else 0.0
        length = round(float(np.interp(numbers.random(), SHARES, LENGTHS)))
        work = Work([length, *[WORD] * (SOURCE_TOKENS - 1)], SETTINGS, None, float("inf"), arrived=at)
        work.result.add_done_callback(lambda _, at=at: done.append(clock.monotonic() - at))  # type: ignore[misc]
        arrivals.append((at, work))
    Simulation(generator, clock, arrivals).run()
    for _, work in arrivals:
        assert len(work.result.result()) == work.prompt[0]
    return Result(
        requests / (clock.monotonic() - started), float(np.percentile(done, 50)), float(np.percentile(done, 99))
    )


def _graph_seconds(runtime: GraphRuntime, rounds: int) -> dict[tuple[str, int], float]:
    """The CPU time of a call of every graph by kind and batch size: medians, the graphs in turn within a round."""
    calls = dict[tuple[str, int], Callable[[], object]]()
    for bucket in runtime.buckets:
        prompts = [[WORD] * SOURCE_TOKENS] * bucket.batch
        session = runtime.begin(bucket, 1, prompts, [0] * bucket.batch)
        beams = np.zeros_like(session.start)
        calls["encode", bucket.batch] = partial(runtime.encoded, bucket, prompts, [0] * bucket.batch)
        calls["step", bucket.batch] = partial(session.step, session.start, beams)
    times: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
    for _ in range(rounds + 1):
        for key, call in calls.items():
            repeats, started = STEPS if key[0] == "step" else 1, time.process_time()
            for _ in range(repeats):
                call()
            times[key].append((time.process_time() - started) / repeats)
    return {key: statistics.median(each[1:]) for key, each in times.items()}  # the first round is not counted


def _replayed(runtime: GraphRuntime, seconds: dict[tuple[str, int], float], clock: Clock) -> GraphRuntime:
    """The runtime with graphs that add their time to the clock and return the same numbers at every call.

    The first token of a prompt is the length of its summary; another constant of the batch has it for the steps.
    """
    outputs = dict[Any, list[Any]]()
    for bucket in runtime.buckets:
        prompts = [[WORD] * SOURCE_TOKENS] * bucket.batch
        outputs["encode", bucket] = runtime.encoded(bucket, prompts, [0] * bucket.batch)[0]
        rows, count = (bucket.batch, 1), candidates(1)
        values = np.broadcast_to(-np.arange(count, dtype=np.float32), (*rows, count))
        tokens = np.broadcast_to(np.arange(WORD, WORD + count), (*rows, count))
        unread = np.broadcast_to(np.float32(0), (*rows, VOCABULARY))
        outputs["step", bucket] = [values, tokens, np.zeros(rows, np.float32), unread]

    def encode(bucket: Bucket) -> Any:
        def call(ids: Array, mask: Array, slot: Array, rows: Array) -> list[Any]:
            clock.add(seconds["encode", bucket.batch])
            return [*outputs["encode", bucket], ids[:, 0].copy()]

        return call

    def graph(bucket: Bucket, num_beams: int, steps: int) -> Any:
        def call(
            tokens: Array, position: Array, ancestors: Array, slot: Array, constants: list[Array], state: Any
        ) -> list[Array]:
            clock.add(seconds["step", bucket.batch])
            values, ids, log_sum, unread = outputs["step", bucket]
            chosen = ids.copy()
            chosen[position + 1 >= constants[-1], 0, 0] = END_OF_SEQUENCE
            return [values, chosen, log_sum, unread]

        return call

    assert isinstance(runtime.open, HostState)
    state = HostState(graph, runtime.open.spec)
    return GraphRuntime(runtime.buckets, runtime.num_beams, runtime.tokens, encode, state)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
