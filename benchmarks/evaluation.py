"""Summaries of a test split by a run's compiled fp32, bf16 and int8 graphs, compared with transformers in fp32.

    python benchmarks/evaluation.py RUN ARTIFACT... [--dialogues 500] [--rounds 1] [--batches 8] [--parts]

All systems generate as in `neuron-sum evaluate`: the dialogues of the test split of RUN's recipe (spread over the split
if they are fewer), with its tokens and settings, the longest first. Within a round the systems take turns in one
process with one number of threads (OMP_NUM_THREADS); ratios are medians of those within a round. A target is held if
the ratio of the CPU times, which other processes change least, reaches it. Merged adapters, no adapter slots.

--parts also measures each artifact as it was before: with every prompt padded to its bucket, and in batches that wait
for their last summary; and prints how much of the CPU time the prompts and the steps take.
"""

import argparse
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel

from neuron_sum import console
from neuron_sum.artifact import Artifact, open_artifact
from neuron_sum.data.examples import evenly_spaced
from neuron_sum.data.sources import load_dataset
from neuron_sum.evaluation.generate import summarize_all
from neuron_sum.runs.folder import open_run
from neuron_sum.runs.trained import load_trained
from neuron_sum.runtimes.base import CompiledGenerator, Generator
from neuron_sum.runtimes.generation import StepGenerator
from neuron_sum.runtimes.graphs import GraphRuntime
from neuron_sum.runtimes.hugging_face import TransformersGenerator
from neuron_sum.runtimes.load import load_generator

REFERENCE = "transformers fp32"
TARGETS = {"fp32": 3.0, "bf16": 5.0, "int8": 5.0}
"""How many times as fast as transformers the graphs of a dtype shall be at batch size 8."""


class Run(NamedTuple):
    """All summaries by one system: the texts, CPU and wall seconds, and CPU seconds and calls of its graphs."""

    summaries: list[str]
    cpu_s: float
    wall_s: float
    parts: dict[str, float]


def main() -> None:
    """Time all systems in turn, and print the table and the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run that the artifacts were compiled from")
    parser.add_argument("artifacts", nargs="+", type=Path, help="artifacts for this machine's CPU")
    parser.add_argument("--dialogues", type=int, default=500, help="number of dialogues")
    parser.add_argument("--batches", default="8", help="batch sizes")
    parser.add_argument("--rounds", type=int, default=1, help="number of rounds")
    parser.add_argument("--parts", action="store_true", help="measure the parts of the artifacts' time")
    options = parser.parse_args()
    run = open_run(options.run)
    model, tokenizer = load_trained(run)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    model.eval()
    examples = evenly_spaced(load_dataset(run.recipe.data, run.recipe.output)["test"], options.dialogues)
    ids, dialogues = [example.id for example in examples], [example.dialogue for example in examples]
    artifacts = {path.name: open_artifact(path) for path in options.artifacts}
    if options.parts:
        artifacts |= {f"{name}, padded": _padded(artifact) for name, artifact in artifacts.items()}
    parts: defaultdict[str, float] = defaultdict(float)
    compiled = {name: load_generator(artifact)[0] for name, artifact in artifacts.items()}
    for generator in compiled.values():
        generator.warm_up()
        _count(generator, parts)

    def measure(name: str, system: Generator) -> Run:
        parts.clear()
        cpu, wall = time.process_time(), time.perf_counter()
        joins = not name.endswith("padded")
        made = summarize_all(system, tokenizer, run.recipe, ids, dialogues, quiet=True, joins=joins)
        seconds = time.process_time() - cpu, time.perf_counter() - wall
        return Run([each.summary for each in made], *seconds, dict(parts))

    columns = (
        "system",
        "batch",
        "CPU s",
        "prompts CPU s",
        "steps CPU s",
        "steps",
        "× CPU",
        "× wall",
        "equal summaries",
    )
    table = console.table(*columns)
    lines: list[str] = []
    for batch in map(int, options.batches.split(",")):
        systems: dict[str, Generator] = {REFERENCE: TransformersGenerator(model, tokenizer, batch)}
        systems |= {name: generator.with_batch_size(batch) for name, generator in compiled.items()}
        runs: dict[str, list[Run]] = {name: [] for name in systems}
        for _ in range(options.rounds):
            for name, system in systems.items():
                runs[name].append(measure(name, system))
        reference = runs[REFERENCE]
        for name, own in runs.items():
            cpu = ratio([run.cpu_s for run in reference], [run.cpu_s for run in own])
            wall = ratio([run.wall_s for run in reference], [run.wall_s for run in own])
            median = {key: statistics.median(run.parts[key] for run in own) for key in own[0].parts}
            equal = sum(one == other for one, other in zip(own[0].summaries, reference[0].summaries, strict=True))
            table.add_row(
                name,
                str(batch),
                f"{statistics.median(run.cpu_s for run in own):.1f}",
                *(f"{median[key]:.1f}" if key in median else "–" for key in ("encode s", "step s")),
                f"{median['steps']:.0f}" if median else "–",
                f"{cpu:.2f}",
                f"{wall:.2f}",
                f"{equal} of {len(ids)}",
            )
            if batch == 8 and name in artifacts and not name.endswith("padded"):
                lines.append(verdict(name, artifacts[name].manifest.dtype, cpu, wall))
    versions = ", ".join(f"{name} {version(name)}" for name in ("neuron-sum", "torch", "transformers"))
    machine = f"{torch.get_num_threads()} threads, load of the machine {os.getloadavg()[0]:.1f}"
    console.emit({}, table, *lines, f"{len(ids)} dialogues, {options.rounds} rounds, {machine}; {versions}")


def ratio(reference: Sequence[float], own: Sequence[float]) -> float:
    """The median of the ratios within a round."""
    return statistics.median(base / seconds for base, seconds in zip(reference, own, strict=True))


def verdict(name: str, dtype: str, cpu: float, wall: float) -> str:
    """The line with the target of an artifact, its ratio and whether it is held."""
    target = TARGETS[dtype]
    result = "held" if cpu >= target else "missed"
    return f"{name} against {REFERENCE}, batch 8: target {target}, ratio {cpu:.2f} (wall {wall:.2f}): {result}"


def _padded(artifact: Artifact) -> Artifact:
    """The artifact, whose prompts are padded to their bucket when it is loaded."""
    return replace(artifact, manifest=artifact.manifest.model_copy(update={"source_step": None}))


def _count(generator: CompiledGenerator, parts: dict[str, float]) -> None:
    """Let a generator add the CPU time and the number of the calls of its graphs to `parts`."""
    assert isinstance(generator, StepGenerator) and isinstance(generator.runtime, GraphRuntime)
    runtime: Any = generator.runtime
    encode, opened = runtime.encode, runtime.open

    def timed(kind: str, graph: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            started = time.process_time()
            result = graph(*inputs)
            parts[f"{kind} s"] += time.process_time() - started
            parts[f"{kind}s"] += 1
            return result

        return call

    runtime.encode = lambda bucket: timed("encode", encode(bucket))
    runtime.open = replace(opened, graph=lambda *shape: timed("step", opened.graph(*shape)))


if __name__ == "__main__":
    main()
