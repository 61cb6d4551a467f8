"""Generation with a run's compiled fp32, bf16 and int8 graphs, compared with transformers' generate() in fp32.

    python benchmarks/weight_types.py RUN ARTIFACT... [--dialogues 24] [--batches 1,8] [--rounds 3]

The prompts are dialogues of the test split of RUN's recipe, spread over the split and sorted by length; tokens and
settings are those of the recipe. The systems take turns in one process with one number of threads (OMP_NUM_THREADS).
Ratios are medians of those within a round, in wall time; merged adapters, no adapter slots.
"""

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel

from neuron_sum import console
from neuron_sum.artifact import open_artifact
from neuron_sum.data.examples import evenly_spaced
from neuron_sum.data.sources import load_dataset
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runs.folder import open_run
from neuron_sum.runs.trained import load_trained
from neuron_sum.runtimes.base import Generator
from neuron_sum.runtimes.hugging_face import TransformersGenerator
from neuron_sum.runtimes.load import load_generator


def main() -> None:
    """Time all systems in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run that the artifacts were compiled from")
    parser.add_argument("artifacts", nargs="+", type=Path, help="artifacts for this machine's CPU")
    parser.add_argument("--dialogues", type=int, default=24, help="number of dialogues")
    parser.add_argument("--batches", default="1,8", help="batch sizes")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds")
    options = parser.parse_args()
    run = open_run(options.run)
    model, tokenizer = load_trained(run)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    model.eval()
    dialogues = [
        example.dialogue
        for example in evenly_spaced(load_dataset(run.recipe.data, run.recipe.output)["test"], options.dialogues)
    ]
    encoded = run.recipe.prompt.resolve().encode(tokenizer, dialogues, run.recipe.data.max_source_length)
    prompts = sorted((entry.input_ids for entry in encoded), key=len, reverse=True)
    settings = run.recipe.generate
    compiled = {path.name: load_generator(open_artifact(path))[0] for path in options.artifacts}
    for generator in compiled.values():
        generator.warm_up()

    table = console.table("system", "batch", "s", "new tokens/s", "faster than transformers", "equal summaries")
    for batch in map(int, options.batches.split(",")):
        systems: dict[str, Generator] = {"transformers fp32": TransformersGenerator(model, tokenizer, batch)}
        systems |= {name: generator.with_batch_size(batch) for name, generator in compiled.items()}
        seconds: dict[str, list[float]] = {name: [] for name in systems}
        results: dict[str, list[list[int]]] = {}
        for _ in range(options.rounds):
            for name, system in systems.items():
                started = time.perf_counter()
                results[name] = generate(system, prompts, settings)
                seconds[name].append(time.perf_counter() - started)
        first = next(iter(systems))
        for name, times in seconds.items():
            tokens = sum(map(len, results[name])) / statistics.median(times)
            rate = statistics.median(base / own for base, own in zip(seconds[first], times, strict=True))
            equal = sum(one == other for one, other in zip(results[name], results[first], strict=True))
            table.add_row(
                name,
                str(batch),
                f"{statistics.median(times):.1f}",
                f"{tokens:.0f}",
                f"{rate:.2f}",
                f"{equal} of {len(prompts)}",
            )
    versions = {name: version(name) for name in ("torch", "transformers")}
    load = f"{torch.get_num_threads()} threads, load of the machine before: {os.getloadavg()[0]:.1f}"
    console.emit({"versions": versions}, table, f"{load}; versions: {versions}")


def generate(system: Generator, prompts: Sequence[list[int]], settings: GenerateConfig) -> list[list[int]]:
    """The new tokens of all prompts, in batches of the system's size."""
    starts = range(0, len(prompts), system.batch_size)
    return [row for start in starts for row in system.generate(prompts[start : start + system.batch_size], settings)]


if __name__ == "__main__":
    main()
