"""The models of a receipt: random weights, compiled for this machine, and compared with transformers."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from compile import api
from compile.receipt.cells import Size
from compile.receipt.latency import BYTES, inputs
from compile.receipt.records import Finding
from compile.verify import several_steps
from neuron_sum.artifact import WEIGHTS, Artifact
from neuron_sum.data.examples import evenly_spaced
from neuron_sum.data.sources import load_dataset
from neuron_sum.models.base import load_base, load_tokenizer
from neuron_sum.platform.machine import instance_type
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import GenerateConfig, ModelConfig
from neuron_sum.runtimes.base import CompiledGenerator
from neuron_sum.runtimes.hugging_face import TransformersGenerator
from neuron_sum.runtimes.weights import MODEL

RECIPE = "tiny"
"""The recipe of all models: its data is part of the package."""
MEMORY = "sys/devices/virtual/neuron_device"
"""The folder in which the driver reports the memory of each core (Neuron Sysfs User Guide)."""


def changes(config: dict[str, Any], layers: int | None, size: Size, overrides: Sequence[str]) -> list[str]:
    """Overrides of the recipe for a model.

    Args:
        config: The configuration of the model.
        layers: The number of layers of a T5; None for another family.
        size: The size of the receipt.
        overrides: Further overrides.
    """
    if layers is not None:
        config = {**config, "num_layers": layers, "num_decoder_layers": layers}
    return [f"model.config={json.dumps(config)}", f"model.tokenizer.vocab_size={size.vocabulary}", *overrides]


def compile_t5(name: str, size: Size, layers: int, overrides: Sequence[str]) -> Artifact:
    """Compiles a T5 with random weights.

    Args:
        name: The name of its folders.
        size: The size of the receipt.
        layers: The number of layers per side.
        overrides: Overrides for its shapes.
    """
    return _compile(name, changes(size.t5, layers, size, overrides))


def compile_llama(name: str, size: Size) -> Artifact:
    """Compiles a Llama with random weights through optimum-neuron.

    Args:
        name: The name of its folders.
        size: The size of the receipt.
    """
    return _compile(name, changes(size.llama, None, size, ("prompt.preset=tinyllama-chat", *size.llama_shape)))


def _compile(name: str, overrides: Sequence[str]) -> Artifact:
    folder, recipe = Path("models", name), load_recipe(RECIPE, overrides)
    tokenizer = load_tokenizer(recipe.model, load_dataset(recipe.data).training_texts())
    load_base(recipe.model, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    target = "trn1" if (instance_type() or "").startswith("trn1") else "inf2"
    settings = [*overrides, f"compile.target={target}"]
    output = Path("artifacts", name)
    return api.plan(folder, output, RECIPE, settings, None, overwrite=True, jobs=None).build()


def compare_tokens(
    cell: Finding,
    generator: CompiledGenerator,
    artifact: Artifact,
    source: Path,
    examples: int,
) -> None:
    """Compares the tokens of all batches and beam widths, and of prompts that join, with those of transformers.

    Equal tokens decide nothing if they are the same for all dialogues. If there is a graph of several greedy steps,
    greedy search uses the settings with which it is called.

    Args:
        cell: The cell.
        generator: The loaded artifact.
        artifact: The artifact.
        source: The checkpoint that it was compiled from.
        examples: The number of dialogues.
    """
    recipe, manifest, checkpoint = artifact.recipe, artifact.manifest, ModelConfig(name_or_path=str(source))
    tokenizer = load_tokenizer(checkpoint)
    dialogues = [example.dialogue for example in evenly_spaced(load_dataset(recipe.data)["test"], examples)]
    length = max(bucket.source_len for bucket in manifest.buckets)
    prompts = [entry.input_ids for entry in recipe.prompt.resolve().encode(tokenizer, dialogues, length)]
    model = load_base(checkpoint, tokenizer)
    compared, equal, distinct = 0, 0, len(prompts)
    for num_beams in manifest.num_beams:
        several = manifest.greedy_steps > 1 and num_beams == 1
        asked = recipe.generate.model_copy(update=several_steps(manifest) if several else {"num_beams": num_beams})
        expected = TransformersGenerator(model, tokenizer, 8).generate(prompts, asked)
        distinct = min(distinct, len(set(map(tuple, expected))))
        batches = sorted({bucket.batch for bucket in manifest.buckets})
        generated = [generator.with_batch_size(batch).generate(prompts, asked) for batch in batches]
        for actual in (*generated, _joined(generator, prompts, asked)):
            compared += len(prompts)
            equal += sum(one == other for one, other in zip(actual, expected, strict=True))
    unused = ", ".join(str(bucket) for bucket in manifest.buckets if bucket not in generator.used)
    cell.expect(
        equal == compared and distinct > 1,
        f"{equal} of {compared} equal, distinct summaries: {distinct}" + (f"; not used: {unused}" if unused else ""),
    )


def _joined(
    generator: CompiledGenerator, prompts: Sequence[Sequence[int]], settings: GenerateConfig
) -> list[list[int]]:
    """The tokens of prompts that join a running batch, one before each step, while there is room."""
    running = generator.roll(settings)
    assert running is not None, "artifacts of this package can do it"
    numbers, tokens = list[int](), dict[int, list[int]]()
    with closing(running):
        while len(numbers) < len(prompts) or running.running:
            if len(numbers) < len(prompts) and running.room(1):
                numbers += running.join([prompts[len(numbers)]], [generator.default_adapter])
            tokens.update(running.step())
    return [tokens[number] for number in numbers]


def missing_weights(artifact: Artifact, tensors: Mapping[str, Tensor]) -> tuple[int, list[str]]:
    """The number of weights of an artifact, and those that are missing or zero on the device though not in the file."""
    names, missing = 0, list[str]()
    with safe_open(artifact.path / WEIGHTS, framework="pt") as stored:
        for name in stored.keys():  # noqa: SIM118  (not a mapping)
            names += 1
            found = tensors.get(MODEL + name)
            if found is None or (bool(stored.get_tensor(name).any()) and not bool(found.cpu().any())):
                missing.append(name)
    return names, missing


def expected_bytes(artifact: Artifact) -> int:
    """The bytes of the weights and buffers of all graphs, each name once."""
    described = [tensor for graph in artifact.manifest.graphs for tensor in inputs(artifact, graph)["inputs"]]
    stored = {tensor["name"]: tensor["shape"] for tensor in described if tensor["type"] in ("weight", "state")}
    return sum(BYTES * math.prod(shape) for shape in stored.values())


def device_bytes(root: Path = Path("/")) -> int | None:
    """The bytes that are in use on all cores; None if the driver does not report them.

    Args:
        root: The folder with sys.
    """
    found = list((root / MEMORY).glob("neuron*/neuron_core*/stats/memory_usage/device_mem/**/total"))
    if not found:
        return None
    total = 0
    for path in found:
        parents = {other.parent for other in found}
        if not any(parent in path.parent.parents for parent in parents):  # not a part of another counter
            total += int(path.read_text().split()[0])
    return total


def largest_difference(one: Path, other: Path) -> float:
    """The largest difference between the weights of two files."""
    with safe_open(one, framework="pt") as first, safe_open(other, framework="pt") as second:
        differences = [
            float(torch.max(torch.abs(first.get_tensor(name).double() - second.get_tensor(name).double())))
            for name in first.keys()  # noqa: SIM118  (not a mapping)
        ]
    return max(differences)
