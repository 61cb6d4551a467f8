"""Speedup of group_by_length and bf16 on this machine, relative to transformers' defaults (random batches, fp32).

    python benchmarks/training.py --data DIALOGSUM --tokenizer SPIECE.MODEL [--steps 20] [--rounds 3]

Forward and backward of the t5-scratch recipe's model over the same examples. The variants run in turn within each
round; figures are medians over the rounds, and ratios are computed within a round. Prints a table and the versions.
"""

import argparse
import statistics
import time
from importlib.metadata import version

import torch

from neuron_sum import console
from neuron_sum.data.encoding import encode
from neuron_sum.data.rows import Collator, RowSet
from neuron_sum.data.shapes import choose_plan
from neuron_sum.data.sources import load_dataset
from neuron_sum.models import base as models
from neuron_sum.recipes.loading import load_recipe

VARIANTS = {
    "random batches, fp32 (transformers' defaults)": (False, False),
    "group_by_length, fp32": (True, False),
    "group_by_length, bf16": (True, True),
}


def main() -> None:
    """Measure the variants and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of DialogSum")
    parser.add_argument("--tokenizer", required=True, help="SentencePiece file of T5")
    parser.add_argument("--steps", type=int, default=20, help="number of steps per epoch, with 16 examples each")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds")
    options = parser.parse_args()

    examples = options.steps * 16
    recipe = load_recipe(
        "t5-scratch",
        [f"data.path={options.data}", f"model.tokenizer={options.tokenizer}", f"data.max_examples={examples}"],
    )
    tokenizer = models.load_tokenizer(recipe.model)
    model = models.load_base(recipe.model, tokenizer).train()
    data = encode(
        load_dataset(recipe.data, recipe.output)["train"],
        tokenizer,
        recipe.prompt.resolve(),
        recipe.data,
        decoder_only=False,
    )
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    padding: dict[str, float] = {}
    for _ in range(options.rounds):
        for name, (grouped, bf16) in VARIANTS.items():
            train = recipe.train.model_copy(update={"group_by_length": grouped})
            plan = choose_plan(recipe.model_copy(update={"train": train}), data, None, decoder_only=False)
            duration, padded = epoch(model, RowSet(data, plan), bf16=bf16)
            seconds[name].append(duration)
            padding[name] = 1 - data.source_tokens / padded

    table = console.table("variant", "s per epoch", "speedup over defaults", "encoder padding")
    reference = seconds[next(iter(VARIANTS))]
    for name, durations in seconds.items():
        ratio = statistics.median(one / other for one, other in zip(reference, durations, strict=True))
        table.add_row(name, f"{statistics.median(durations):.1f}", f"{ratio:.2f}", f"{100 * padding[name]:.0f} %")
    names = ("torch", "transformers", "tokenizers")
    console.emit(
        {}, table, ", ".join(f"{name} {version(name)}" for name in names) + f", {torch.get_num_threads()} threads"
    )


def epoch(model: torch.nn.Module, rows: RowSet, *, bf16: bool) -> tuple[float, int]:
    """Seconds of forward and backward over all examples, and the number of encoder positions including padding."""
    collator = Collator(rows.plan, model.config)
    batches = [collator([rows[row] for row in batch]) for batch in rows.plan.batches(0)]
    started = time.perf_counter()
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**batch).loss
        loss.backward()
        model.zero_grad(set_to_none=True)
    return time.perf_counter() - started, sum(batch["input_ids"].numel() for batch in batches)


if __name__ == "__main__":
    main()
