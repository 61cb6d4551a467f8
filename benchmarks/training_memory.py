"""Seconds and peak memory of a training step of a Llama, with all logits and only those at labels, and the estimate.

    python benchmarks/training_memory.py --model FOLDER_OR_CONFIG_JSON [--rows 4] [--source 384] [--target 80]

Weights are random, tokens as well; every row has the full length. Every case runs in a new process, whose memory before
the model is subtracted. Prints a table, the versions and the load of the machine.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from neuron_sum import console
from neuron_sum.data.layouts import Shape
from neuron_sum.models import adapters
from neuron_sum.models import base as models
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import Recipe
from neuron_sum.training.estimate.activations import activation_bytes
from neuron_sum.training.estimate.memory import MEMORY_MARGIN, model_memory
from neuron_sum.training.loss import TokenLoss, split_labels
from neuron_sum.training.torch.bf16 import prepare_for_bf16


def main() -> None:
    """Start a process for each case and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a Llama, or its config.json")
    parser.add_argument("--layers", type=int, help="number of layers, if not that of the model")
    parser.add_argument("--rows", type=int, default=4, help="rows per step")
    parser.add_argument("--source", type=int, default=384, help="tokens of a prompt")
    parser.add_argument("--target", type=int, default=80, help="tokens of a summary")
    parser.add_argument("--steps", type=int, default=3, help="number of steps; the first one is not timed")
    parser.add_argument("--methods", nargs="+", default=["lora", "full"], help="methods to measure")
    parser.add_argument("--logits", nargs="+", default=["all", "labels"], help="all, labels")
    parser.add_argument("--checkpointing", action="store_true", help="use gradient checkpointing")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options, *options.case.split(","))))
        return
    table = console.table("method", "logits", "s per step", "peak MB", "estimated MB", "estimated / peak")
    document = []
    for method in options.methods:
        for logits in options.logits:
            command = [sys.executable, *sys.argv, "--case", f"{method},{logits}"]
            figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            document.append({"method": method, "logits": logits, **figures})
            peak, estimated = figures["peak"] / 1e6, figures["estimated"] / 1e6
            ratio = f"{estimated / peak:.2f}"
            table.add_row(method, logits, f"{figures['seconds']:.1f}", f"{peak:,.0f}", f"{estimated:,.0f}", ratio)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    machine = f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    console.emit({"cases": document}, table, f"{versions}, {machine}")


def measure(options: argparse.Namespace, method: str, logits: str) -> dict[str, Any]:
    """The figures of one case: seconds per step, peak bytes of this process, and the estimate."""
    config = AutoConfig.from_pretrained(options.model)
    if options.layers:
        config.num_hidden_layers = options.layers
    changes = [f"train.per_device_train_batch_size={options.rows}", "train.bf16=true"]
    changes += [f"train.gradient_checkpointing={str(options.checkpointing).lower()}"]
    changes += ["method=full"] if method == "full" else []
    recipe = load_recipe("tinyllama-lora", changes)
    before = peak_bytes()
    model: Any = adapters.attach(models.model_class_of(config)(config), recipe.method, seed=0).train()
    prepare_for_bf16(model, recipe.train)
    if options.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    parameters = models.count_parameters(model)
    seconds = steps(model, config, options, all_logits=logits == "all")
    peak = peak_bytes() - before
    positions = options.source + options.target if logits == "all" else options.target
    return {
        "seconds": seconds,
        "process": before,
        "peak": peak,
        "estimated": estimated(config, parameters, recipe, options, positions),
    }


def peak_bytes() -> int:
    """The peak of this process; getrusage would include that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def estimated(
    config: PretrainedConfig, parameters: models.ParameterCount, recipe: Recipe, options: Any, positions: int
) -> float:
    """The estimate of training, without the process itself."""
    shape = Shape(options.source + options.target, positions)
    fixed = model_memory(config, parameters, shape, recipe.train)
    rest = fixed.weights + fixed.gradients + fixed.optimizer
    return (rest + activation_bytes(config, shape, recipe)) * MEMORY_MARGIN


def steps(model: Any, config: PretrainedConfig, options: argparse.Namespace, *, all_logits: bool) -> float:
    """Train for some steps, and return the shortest time of a step but the first."""
    tokens = torch.randint(config.vocab_size, (options.rows, options.source + options.target))
    labels = tokens.clone()
    labels[:, : options.source] = -100
    mask = torch.ones_like(tokens)
    mask[0, -1] = 0
    batch = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    loss = TokenLoss(shifted=False, label_smoothing=0)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], 1e-4)
    durations = []
    for _ in range(options.steps):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            inputs, targets = split_labels(batch, decoder_only=True, all_logits=all_logits)
            outputs = model(**inputs, use_cache=False)
            outputs["logits"] = outputs["logits"].float()  # as accelerate does
            value = loss(outputs, targets, options.rows * options.target)
        value.backward()  # type: ignore[no-untyped-call]
        del outputs
        optimizer.step()
        optimizer.zero_grad()
        durations.append(time.perf_counter() - start)
    return min(durations[1:] or durations)


if __name__ == "__main__":
    main()
