"""Memory of a run compared with that of a CPU or GPU; NeuronCores are in training/neuron/memory.py.

The model is rough on purpose: its task is to reject runs that cannot work.
"""

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import psutil
import torch
from transformers import PretrainedConfig

from neuron_sum.console import size
from neuron_sum.data.layouts import Shape
from neuron_sum.errors import ResourceError
from neuron_sum.models.base import ParameterCount, is_decoder_only
from neuron_sum.platform import cpu
from neuron_sum.recipes.schema import Recipe, TrainConfig
from neuron_sum.training.estimate.activations import activation_bytes
from neuron_sum.training.slices import in_slices, largest_slice
from neuron_sum.training.torch.bf16 import prepares

FP32_BYTES, BF16_BYTES = 4, 2
ADAM_STATES = 2
PROCESS_BYTES = 1.1e9
"""Python, torch, transformers and the data; with it the model below agrees with the peaks of docs/training.md."""
MEMORY_MARGIN = 1.15
SMALL = 100e6
"""Bytes of activations below which the formula is sufficient: counting them takes about a second."""
ADAPTER_HINT = "method=lora (no gradients and moments for the base model)"


class Memory(Protocol):
    """The required and available bytes of every memory that a run uses; `str` gives a text for the terminal."""

    @property
    def fits(self) -> bool:
        """Whether each memory is large enough."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """The values for --json, in bytes."""
        ...

    def check(self, train: TrainConfig) -> None:
        """Reject a run that cannot fit.

        Raises:
            ResourceError: If it does not fit; the hint names changes that would make it fit.
        """


@dataclass(frozen=True)
class ModelMemory:
    """The memory that training needs for a model on one device.

    Attributes:
        weights: Bytes of parameters.
        gradients: Bytes of gradients of the trainable parameters.
        optimizer: Bytes of AdamW's two moments.
        activations: Bytes of the rows computed at once that are stored for the backward pass.
        rows: Rows of the longest length computed at once; more, shorter rows of a slice are a fraction of them.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    rows: float

    @property
    def memory(self) -> float:
        """Total bytes, with a margin."""
        return (self.weights + self.gradients + self.optimizer + self.activations) * MEMORY_MARGIN

    @property
    def parts(self) -> str:
        """The components as a text for the terminal."""
        return (
            f"weights {size(self.weights)}, gradients {size(self.gradients)}, optimizer {size(self.optimizer)}, "
            f"activations {size(self.activations)}"
        )

    @property
    def trains_the_base(self) -> bool:
        """Whether gradients and moments belong to a whole model."""
        return self.gradients * 10 > self.weights

    def smaller_batch(self, available: float, train: TrainConfig) -> str | None:
        """The largest batch size that fits, with accumulation for the same examples per step; None if none fits."""
        fixed = (self.weights + self.gradients + self.optimizer) * MEMORY_MARGIN
        per_example = self.activations * MEMORY_MARGIN / self.rows
        fitting = int((available - fixed) // per_example) if per_example else 0
        if fitting < 1:
            return None
        steps = -(-train.per_device_train_batch_size * train.gradient_accumulation_steps // fitting)
        return f"train.per_device_train_batch_size={fitting} train.gradient_accumulation_steps={steps}"


@dataclass(frozen=True)
class DeviceMemory(ModelMemory):
    """One CPU or GPU: see Memory.

    Attributes:
        available: Bytes free on the device now.
        device: The name of the device for messages.
    """

    available: float
    device: str

    @property
    def memory(self) -> float:
        """Total bytes, including the process itself."""
        return super().memory + PROCESS_BYTES

    @property
    def fits(self) -> bool:
        """See Memory."""
        return self.memory <= self.available

    def __str__(self) -> str:
        return f"memory about {size(self.memory)} of {size(self.available)} free on {self.device} ({self.parts})"

    def as_dict(self) -> dict[str, Any]:
        """See Memory."""
        return {**dataclasses.asdict(self), "memory": self.memory}

    def check(self, train: TrainConfig) -> None:
        """See Memory."""
        if self.fits:
            return
        remedies = [*([ADAPTER_HINT] if self.trains_the_base else []), "a smaller model", "a larger machine"]
        remedy = self.smaller_batch(self.available - PROCESS_BYTES, train) or one_of(remedies)
        raise refusal([f"{size(self.memory)} of memory, {self.device} has {size(self.available)} free"], [remedy])


def device_memory(
    config: PretrainedConfig, parameters: ParameterCount, shape: Shape, recipe: Recipe, *, processes: int
) -> DeviceMemory:
    """The memory that a process needs on this machine's CPU or GPU.

    Args:
        config: The base model's configuration, for widths and layers.
        parameters: The parameter count of the model with its adapter.
        shape: The longest row; for a decoder-only model, target_len is the number of positions with logits.
        recipe: The recipe, for method, batch size, precision and sharding.
        processes: The number of processes over which FSDP or DeepSpeed shards the model.
    """
    rows, larger = recipe.train.per_device_train_batch_size, 1.0
    if in_slices(recipe.train):
        rows, larger = largest_slice(rows, shape, config)
    train = recipe.train.model_copy(update={"per_device_train_batch_size": rows})
    shards = processes if train.fsdp or train.deepspeed else 1
    model = model_memory(config, parameters, shape, train, shards=shards, optimizer_shards=shards)
    if model.activations > SMALL:
        counted = activation_bytes(config, shape, recipe.model_copy(update={"train": train}))
        model = dataclasses.replace(model, activations=counted)
    model = dataclasses.replace(model, activations=model.activations * larger, rows=rows * larger)
    available, device = available_memory()
    return DeviceMemory(**dataclasses.asdict(model), available=available, device=device)


def model_memory(
    config: PretrainedConfig,
    parameters: ParameterCount,
    shape: Shape,
    train: TrainConfig,
    *,
    shards: int = 1,
    optimizer_shards: int = 1,
) -> ModelMemory:
    """The memory that one device needs for the model.

    Args:
        config: The base model's configuration, for widths and layers.
        parameters: The parameter count of the model with its adapter.
        shape: The longest row.
        train: The train section, for batch size and precision. bf16 means autocast: gradients and moments are fp32, and
            so are weights, except those that `prepare_for_bf16` converts.
        shards: The number of devices over which weights and gradients are sharded.
        optimizer_shards: The number of devices over which the moments are sharded.
    """
    trainable = parameters.trainable * FP32_BYTES
    frozen = max(parameters.all - parameters.trainable - config.vocab_size * config.hidden_size, 0)
    saved = frozen * (FP32_BYTES - BF16_BYTES) if prepares(train) else 0
    return ModelMemory(
        weights=(parameters.all * FP32_BYTES - saved) / shards,
        gradients=trainable / shards,
        optimizer=trainable * ADAM_STATES / optimizer_shards,
        activations=_activations(config, shape, train),
        rows=train.per_device_train_batch_size,
    )


def available_memory() -> tuple[float, str]:
    """Free bytes on the device that will train, and its name; the limit of a container is respected."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0]), torch.cuda.get_device_name()
    return cpu.available_memory() + resident_memory([psutil.Process()]), "this machine's CPU"


def resident_memory(processes: list[psutil.Process]) -> float:
    """Bytes that processes already use: the model is loaded, and the estimate counts it as required."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def refusal(faults: list[str], remedies: list[str]) -> ResourceError:
    """The error for a run that does not fit.

    Args:
        faults: The required and available size of each memory that is too small.
        remedies: The change that would make each of them fit.
    """
    requirements = "; and ".join(f"about {fault}" for fault in faults)
    return ResourceError(f"this run needs {requirements}", f"use {'; '.join(remedies)}; or --force to start anyway")


def one_of(alternatives: list[str]) -> str:
    """These alternatives as one text: "A, B, or C"."""
    *others, last = alternatives
    return f"{', '.join(others)}, or {last}" if others else last


def _activations(config: PretrainedConfig, shape: Shape, train: TrainConfig) -> float:
    """Bytes of the longest batch in fp32, by Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1)."""
    rows, width = train.per_device_train_batch_size, int(config.hidden_size)
    logits: int = 3 * rows * (shape.source_len if is_decoder_only(config) else shape.target_len) * config.vocab_size

    def stack(layers: int, length: int, keys: int, heads: int) -> float:
        if train.gradient_checkpointing:
            return rows * length * width * layers
        return layers * rows * length * (17 * width + 2.5 * heads * keys)

    if is_decoder_only(config):
        elements = stack(config.num_hidden_layers, shape.source_len, shape.source_len, config.num_attention_heads)
    else:
        elements = stack(config.num_layers, shape.source_len, shape.source_len, config.num_heads)
        elements += stack(
            config.num_decoder_layers, shape.target_len, shape.target_len + shape.source_len, config.num_heads
        )
    return (elements + logits) * FP32_BYTES * (0.6 if train.bf16 else 1.0)
