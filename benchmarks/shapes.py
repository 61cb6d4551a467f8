"""Cost of each shape plan on DialogSum: padding, cuts, shapes, forward FLOPs, and the time of an epoch on this CPU.

    python benchmarks/shapes.py --data DIALOGSUM --tokenizer SPIECE.MODEL --config FLAN_T5_BASE.json [--examples 32]

Positions are counted in the rows of the first epoch, after the cut. torch's FlopCounterMode counts the FLOPs of a
forward pass of one row of the configuration on the meta device, multiplied by the rows per example: eager attention
computes every pair of a row. Times are forward, backward and AdamW over the same evenly spaced examples with the
t5-scratch recipe's model in batches of four rows. The plans run in turn within each round; figures are medians over the
rounds, and ratios are computed within a round. `--examples 0` skips the times. Prints tables and the versions.
"""

import argparse
import json
import statistics
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from neuron_sum import console
from neuron_sum.data.encoding import Encoded, encode
from neuron_sum.data.rows import Collator, RowSet
from neuron_sum.data.shapes import Shape, ShapePlan, ShapeReport, choose_plan
from neuron_sum.data.sources import load_dataset
from neuron_sum.models import base as models
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import Recipe

COURSE = "fixed, the course's 512 + 512"
PACKED = "packed"
BUCKETS = "four buckets"
PLANS: dict[str, tuple[str, ...]] = {
    COURSE: ("train.shapes.plan=fixed", "data.max_target_length=512"),
    "fixed": ("train.shapes.plan=fixed", "data.max_target_length=128"),
    "dynamic, by length": ("train.shapes.plan=dynamic", "data.max_target_length=128"),
    BUCKETS: ("train.shapes.plan=buckets", "data.max_target_length=128"),
    "packed, 512 + 112 fixed": (
        "train.shapes.plan=packed", "data.max_target_length=112", "train.shapes.sizes=[[512,112]]",
    ),
    "packed, cut at 112": ("train.shapes.plan=packed", "data.max_target_length=112"),
    PACKED: ("train.shapes.plan=packed", "data.max_target_length=128"),
}  # fmt: skip
TIMED = (COURSE, "fixed", BUCKETS, PACKED)


@dataclass(frozen=True)
class Measured:
    """A plan measured over the whole training split.

    Attributes:
        report: The plan's report.
        gflops: GFLOPs of a forward pass per example.
    """

    report: ShapeReport
    gflops: float


def main() -> None:
    """Measure the plans and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of DialogSum")
    parser.add_argument("--tokenizer", required=True, help="SentencePiece file of T5")
    parser.add_argument("--config", required=True, type=Path, help="config.json whose FLOPs are counted")
    parser.add_argument("--examples", type=int, default=32, help="number of examples for the times; 0 skips them")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds")
    options = parser.parse_args()

    measured = measure(options.data, options.tokenizer, options.config)
    table = console.table(
        "plan",
        "shapes",
        "examples per row",
        "positions / tokens",
        "cut: sources, targets",
        "GFLOP per example",
        "of the course's",
    )
    for name, plan in measured.items():
        report = plan.report
        shapes = ", ".join(map(str, report.shapes)) if report.plan != "dynamic" else f"{len(report.shapes)} in an epoch"
        table.add_row(
            name,
            shapes,
            f"{report.examples_per_row:.2f}",
            f"{report.ratio:.3f}",
            f"{report.sources_cut}, {report.targets_cut}",
            f"{plan.gflops:.1f}",
            f"{plan.gflops / measured[COURSE].gflops:.3f}",
        )
    tables = [table]
    if options.examples:
        seconds = epochs(options.data, options.tokenizer, options.examples, options.rounds)
        times = console.table("plan", f"s for {options.examples} examples", "of the course's")
        for name, durations in seconds.items():
            ratio = statistics.median(one / course for one, course in zip(durations, seconds[COURSE], strict=True))
            times.add_row(name, f"{statistics.median(durations):.1f}", f"{ratio:.3f}")
        tables.append(times)
    names = ("torch", "transformers", "tokenizers", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    console.emit({}, *tables, f"{versions}, {torch.get_num_threads()} threads")


def measure(data: str, tokenizer: str, config: Path, names: Collection[str] = PLANS) -> dict[str, Measured]:
    """Measure plans over DialogSum's training split.

    Args:
        data: The folder with train.jsonl.
        tokenizer: T5's SentencePiece file.
        config: The config.json whose FLOPs are counted.
        names: The names of the plans in PLANS.
    """
    measured = {}
    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**json.loads(config.read_text())))
    flops: dict[Shape, int] = {}
    for name, (_, split, plan) in plans(data, tokenizer, names):
        report = plan.report(split)
        total = 0
        for batch in plan.batches(0):
            shape = plan.shape_of(batch)
            if shape not in flops:
                flops[shape] = forward_flops(model, shape)
            total += len(batch) * flops[shape]
        measured[name] = Measured(report, total / len(split) / 1e9)
    return measured


def plans(
    data: str, tokenizer: str, names: Collection[str], *overrides: str
) -> Iterator[tuple[str, tuple[Recipe, Encoded, ShapePlan]]]:
    """The plans with the course's prompt, each with its cut."""
    encoded: dict[int, Encoded] = {}
    for name in names:
        recipe = load_recipe(
            "t5-scratch",
            [
                f"data.path={data}",
                f"model.tokenizer={tokenizer}",
                "prompt.preset=course",
                "data.max_source_length=512",
                "train.per_device_train_batch_size=8",
                *PLANS[name],
                *overrides,
            ],
        )
        longest = recipe.data.max_target_length
        if longest not in encoded:
            examples = load_dataset(recipe.data, recipe.output)["train"]
            tokens = models.load_tokenizer(recipe.model)
            encoded[longest] = encode(examples, tokens, recipe.prompt.resolve(), recipe.data, decoder_only=False)
        yield name, (recipe, encoded[longest], choose_plan(recipe, encoded[longest], None, decoder_only=False))


def forward_flops(model: torch.nn.Module, shape: Shape) -> int:
    """FLOPs of one row's forward pass, counted by torch on a model without weights."""
    with torch.device("meta"):
        row = {
            "input_ids": torch.ones(1, shape.source_len, dtype=torch.long),
            "decoder_input_ids": torch.ones(1, shape.target_len, dtype=torch.long),
        }
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**row, use_cache=False)
    return int(counter.get_total_flops())


def epochs(data: str, tokenizer: str, examples: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of an epoch over the same examples, by plan, in each round."""
    overrides = (f"data.max_examples={examples}", "train.per_device_train_batch_size=4")
    seconds: dict[str, list[float]] = {name: [] for name in TIMED}
    timed = dict(plans(data, tokenizer, TIMED, *overrides))
    for _ in range(rounds):
        for name, (recipe, split, plan) in timed.items():
            model = models.load_base(recipe.model, models.load_tokenizer(recipe.model), packed=plan.packed).train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
            rows = RowSet(split, plan)
            collator = Collator(plan, model.config)
            batches = [collator([rows[row] for row in batch]) for batch in plan.batches(0)]
            model(**batches[0]).loss.backward()  # warm-up
            started = time.perf_counter()
            for batch in batches:
                optimizer.zero_grad()
                model(**batch).loss.backward()
                optimizer.step()
            seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
