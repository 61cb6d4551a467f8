"""Speed and memory of LoRA on a CPU compared with transformers' Trainer and PEFT: same model, examples and batches.

    python benchmarks/training.py --data DIALOGSUM [--examples 64] [--rounds 2] [--systems ours defaults best]

`ours` is the shipped recipe smollm2-lora. `defaults` is Trainer as it is (fp32, rows in random order), `best` the same
with bf16 and group_by_length. Every system tunes SmolLM2-135M with pretrained weights, with the recipe's adapter,
optimizer and batch size, in a new process; the systems take turns within each round. Tokens are those of prompts and
summaries, without padding. The first steps are not timed. Memory is the peak of the process. Prints medians,
ratios within a round, the targets, the versions and the load of the machine.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from neuron_sum import console
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import Recipe

SYSTEMS = {
    "ours": "neuron-sum train smollm2-lora",
    "defaults": "Trainer and PEFT, defaults",
    "best": "Trainer and PEFT, bf16 and group_by_length",
}

FASTER = {"defaults": 2.0, "best": 1.3}
"""Target: ours has at least this multiple of the tokens per second."""

MEMORY = 0.5
"""Target: ours needs at most this share of the memory."""

UNTIMED = 2
"""The number of steps that are not timed."""


def main() -> None:
    """Start a process for each system and round, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of DialogSum")
    parser.add_argument("--examples", type=int, default=64, help="number of training examples")
    parser.add_argument("--batch", type=int, help="rows per step; default: the recipe's")
    parser.add_argument("--rounds", type=int, default=2, help="number of rounds")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS), help="what to compare")
    parser.add_argument("--case", choices=list(SYSTEMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    batch = [f"train.per_device_train_batch_size={options.batch}"] if options.batch else []
    data = ["data.source=dialogsum", f"data.path={options.data}", f"data.max_examples={options.examples}"]
    recipe = load_recipe("smollm2-lora", [*data, *batch, "data.max_validation_examples=4", "train.logging_steps=1"])
    if options.case:
        print(json.dumps(measure(options.case, recipe)))
        return

    measured: dict[str, list[dict[str, float]]] = {name: [] for name in options.systems}
    for number in range(options.rounds):
        for name, rounds in measured.items():
            console.note(f"round {number + 1}: {SYSTEMS[name]}")
            command = [sys.executable, *sys.argv, "--case", name]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rounds.append(json.loads(printed.splitlines()[-1]))
    print_results(measured)


def print_results(measured: dict[str, list[dict[str, float]]]) -> None:
    """Print the table and whether each target is held."""
    table = console.table("system", "tokens/s", "ours is faster by", "peak MB", "ours needs", "mean loss")
    lines = []
    for name, rounds in measured.items():
        pairs = list(zip(measured.get("ours", rounds), rounds, strict=True))
        faster = statistics.median(ours["speed"] / other["speed"] for ours, other in pairs)
        memory = statistics.median(ours["peak"] / other["peak"] for ours, other in pairs)
        speed, peak, loss = (statistics.median(each[key] for each in rounds) for key in ("speed", "peak", "loss"))
        table.add_row(
            SYSTEMS[name], f"{speed:.0f}", f"{faster:.2f}", f"{peak / 1e6:,.0f}", f"{memory:.2f}", f"{loss:.3f}"
        )
        if "ours" in measured and name in FASTER:
            held = "held" if faster >= FASTER[name] else "missed"
            lines.append(f"speed relative to {SYSTEMS[name]}: {faster:.2f}, target {FASTER[name]}: {held}")
            held = "held" if memory <= MEMORY else "missed"
            lines.append(f"memory relative to {SYSTEMS[name]}: {memory:.2f}, target {MEMORY}: {held}")
    versions = ", ".join(f"{name} {version(name)}" for name in ("neuron-sum", "peft", "torch", "transformers"))
    load = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    console.emit({"rounds": measured}, table, *lines, f"{versions}; {load}")


def measure(system: str, recipe: Recipe) -> dict[str, float]:
    """Train, and return tokens per second, the peak of the memory in bytes, and the mean loss.

    Args:
        system: A key of SYSTEMS.
        recipe: The recipe.
    """
    with tempfile.TemporaryDirectory() as folder:
        if system == "ours":
            seconds, tokens, loss = train(recipe, Path(folder))
        else:
            seconds, tokens, loss = train_with_peft(recipe, Path(folder), best=system == "best")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"speed": tokens / seconds, "peak": float(peak), "loss": loss}


def train(recipe: Recipe, folder: Path) -> tuple[float, int, float]:
    """Seconds, tokens and mean loss of the timed steps of `neuron-sum train`."""
    from neuron_sum.training.api import train as train_run

    log = [entry for entry in train_run(recipe, folder / "run").read_log() if "loss" in entry]
    seen = [entry["num_input_tokens_seen"] for entry in log]
    rates = [entry["tokens_per_s"] for entry in log]
    seconds = sum((seen[step] - seen[step - 1]) / rates[step] for step in range(UNTIMED, len(log)))
    return seconds, seen[-1] - seen[UNTIMED - 1], statistics.mean(entry["loss"] for entry in log)


def train_with_peft(recipe: Recipe, folder: Path, *, best: bool) -> tuple[float, int, float]:
    """Seconds, tokens and mean loss of the timed steps of transformers' Trainer with PEFT."""
    import peft
    import transformers

    from neuron_sum.data.encoding import encode
    from neuron_sum.data.sources import load_dataset
    from neuron_sum.models.base import load_tokenizer
    from neuron_sum.models.chat import render_chat
    from neuron_sum.models.gguf import folder_of

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        """The time and the number of tokens after each step."""

        def __init__(self) -> None:
            self.steps: list[tuple[float, int]] = []

        def on_step_end(self, args: Any, state: transformers.TrainerState, control: Any, **_: Any) -> None:
            self.steps.append((time.monotonic(), int(state.num_input_tokens_seen)))

    method, train_config = recipe.method, recipe.train
    assert method.name == "lora"
    tokenizer = load_tokenizer(recipe.model)
    data = encode(
        load_dataset(recipe.data, recipe.output)["train"],
        tokenizer,
        render_chat(recipe, tokenizer).prompt.resolve(),
        recipe.data,
        decoder_only=True,
    )
    transformers.set_seed(train_config.seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder_of(str(recipe.model.name_or_path)))
    adapter = peft.LoraConfig(
        r=method.r,
        lora_alpha=method.lora_alpha,
        lora_dropout=method.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=train_config.num_train_epochs,
        learning_rate=train_config.learning_rate,
        warmup_ratio=train_config.warmup_ratio,
        lr_scheduler_type=train_config.lr_scheduler_type,
        per_device_train_batch_size=train_config.per_device_train_batch_size,
        bf16=best,
        group_by_length=best,
        include_num_input_tokens_seen="non_padding",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=train_config.seed,
    )
    clock = Clock()
    trainer = transformers.Trainer(
        model=peft.get_peft_model(model, adapter),
        args=arguments,
        train_dataset=[{name: list(ids) for name, ids in feature.items()} for feature in data.features],
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
        callbacks=[clock],
    )
    trainer.train()
    (begun, before), (ended, after) = clock.steps[UNTIMED - 1], clock.steps[-1]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return ended - begun, after - before, statistics.mean(losses)


if __name__ == "__main__":
    main()
