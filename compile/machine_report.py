"""A report of one artifact on one machine, to attach to an issue, since some results need a device."""

import datetime
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from compile.verify import verify
from neuron_sum import __version__
from neuron_sum.artifact import Artifact
from neuron_sum.doctor import machine_check
from neuron_sum.platform.machine import describe_machine, environment
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.base import CompiledGenerator, StepRuntime
from neuron_sum.runtimes.generation import StepGenerator
from neuron_sum.runtimes.load import load_generator

RUNS = 10
"""Timed batches for every bucket and beam width, after an untimed one."""
STEPS = 16


def make_report(artifact: Artifact, source: Path | None, examples: int | None, max_drop: float) -> dict[str, Any]:
    """The report. A part that fails is included with its traceback, and the other parts continue.

    Args:
        artifact: The artifact to test; `verified` in its manifest is replaced.
        source: The run that the artifact was compiled from, if it has moved.
        examples: The number of dialogues for `verify`; None for its default.
        max_drop: The accepted loss in ROUGE-1 points for `verify`.
    """
    return {
        "neuron_sum": __version__,
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **machine_check.describe(describe_machine(machine_check.distributions())),
        "environment": environment(),
        "manifest": artifact.manifest.model_dump(mode="json"),
        "latency": _attempt(lambda: _latency(artifact)),
        "verify": _attempt(lambda: verify(artifact, source, examples, max_drop).record.model_dump(mode="json")),
    }


def _attempt(work: Callable[[], Any]) -> dict[str, Any]:
    """The result of a part, or its error: the report is complete whatever fails on a device."""
    try:
        return {"result": work(), "error": None}
    except Exception as error:  # noqa: BLE001  an unexpected package version raises AttributeError or ImportError
        return {"result": None, "error": str(error) or type(error).__name__, "trace": traceback.format_exc()}


def _latency(artifact: Artifact) -> list[dict[str, Any]]:
    """Median times in milliseconds, after the graphs were loaded and run once."""
    started = time.perf_counter()
    generator, _ = load_generator(artifact)
    generator.warm_up()
    loaded = {"load_and_warm_up_s": round(time.perf_counter() - started, 3)}
    return [loaded, *latency(generator, artifact, RUNS)]


def latency(generator: CompiledGenerator, artifact: Artifact, rounds: int) -> Iterator[dict[str, Any]]:
    """Median times in milliseconds for every bucket and beam width.

    Args:
        generator: The loaded artifact, after a warm-up.
        artifact: The artifact.
        rounds: The number of batches.
    """
    if isinstance(generator, StepGenerator):
        return _steps(generator.runtime, rounds)
    return _batches(generator, artifact, rounds)


def _batches(generator: CompiledGenerator, artifact: Artifact, rounds: int) -> Iterator[dict[str, Any]]:
    """The time of generate() for a full batch, for runtimes whose graphs cannot be called step by step."""
    for bucket in generator.buckets:
        rows = [[artifact.manifest.tokens.ends[0]] * bucket.source_len] * bucket.batch
        for num_beams in generator.num_beams:
            settings = GenerateConfig(max_new_tokens=bucket.target_len, num_beams=num_beams)
            durations, new_tokens = list[float](), 0
            for _ in range(rounds):
                begun = time.perf_counter()
                new_tokens = max(map(len, generator.generate(rows, settings)))
                durations.append(time.perf_counter() - begun)
            yield {
                "bucket": str(bucket),
                "num_beams": num_beams,
                "generate_ms": round(1000 * statistics.median(durations), 3),
                "new_tokens": new_tokens,
            }


def _steps(runtime: StepRuntime, rounds: int) -> Iterator[dict[str, Any]]:
    """The times of one encode and of one step, which ends when its candidates are in main memory.

    A device computes encode while the host continues: its time is that until the first step ends, minus that of a step.
    """
    for bucket in runtime.buckets:
        rows = [[runtime.tokens.ends[0]] * bucket.source_len] * bucket.batch
        for num_beams in runtime.num_beams:
            first, step, several, greedy = list[float](), list[float](), list[float](), None
            for _ in range(rounds):
                with runtime.turn():
                    begun = time.perf_counter()
                    session = runtime.begin(bucket, num_beams, rows, [0] * bucket.batch)
                    for number in range(min(STEPS + 1, bucket.target_len)):
                        session.step(session.start, np.zeros_like(session.start))
                        ended = time.perf_counter()
                        (step if number else first).append(ended - begun)
                        begun = ended
                    if (greedy := session.greedy) is not None:
                        greedy.call(session.start)
                        several.append(time.perf_counter() - begun)
            of_step = statistics.median(step or first)
            yield {
                "bucket": str(bucket),
                "num_beams": num_beams,
                "encode_ms": round(1000 * max(statistics.median(first) - of_step, 0.0), 3),
                "step_ms": round(1000 * of_step, 3),
                **(
                    {"greedy_steps": greedy.steps, "greedy_ms": round(1000 * statistics.median(several), 3)}
                    if greedy
                    else {}
                ),
            }
