"""How much memory a run takes, beside what there is on a CPU or GPU; NeuronCores are in training/neuron/memory.py.

A rough model, on purpose: it is there to refuse what cannot work.
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
from neuron_sum.recipes.schema import TrainConfig

FP32_BYTES = 4
ADAM_STATES = 2
PROCESS_BYTES = 1.1e9
"""Python, torch, transformers and the data; with it the model below meets the peaks of docs/training.md."""
MEMORY_MARGIN = 1.15
ADAPTER_HINT = "method=lora (no gradients and moments for the base)"


class Memory(Protocol):
    """What a run takes of every memory that it uses, and what there is; the text is for people."""

    @property
    def fits(self) -> bool:
        """Whether there is enough of each."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """For --json, in bytes."""
        ...

    def check(self, train: TrainConfig) -> None:
        """Refuses a run that cannot fit.

        Raises:
            ResourceError: With what would make it fit.
        """


@dataclass(frozen=True)
class ModelMemory:
    """What training keeps of a model on one device.

    Attributes:
        weights: Bytes of parameters.
        gradients: Bytes of gradients of the trainable ones.
        optimizer: Bytes of AdamW's two moments.
        activations: Bytes that the backward pass keeps of one batch.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def memory(self) -> float:
        """Bytes in all, with a margin."""
        return (self.weights + self.gradients + self.optimizer + self.activations) * MEMORY_MARGIN

    @property
    def parts(self) -> str:
        """What it is made of, for people."""
        return (
            f"weights {size(self.weights)}, gradients {size(self.gradients)}, optimizer {size(self.optimizer)}, "
            f"activations {size(self.activations)}"
        )

    @property
    def trains_the_base(self) -> bool:
        """Whether gradients and moments are those of a whole model."""
        return self.gradients * 10 > self.weights

    def smaller_batch(self, available: float, train: TrainConfig) -> str | None:
        """The largest batch size that fits, with accumulation that keeps a step's examples; None if none does."""
        fixed = (self.weights + self.gradients + self.optimizer) * MEMORY_MARGIN
        per_example = self.activations * MEMORY_MARGIN / train.per_device_train_batch_size
        fitting = int((available - fixed) // per_example) if per_example else 0
        if fitting < 1:
            return None
        steps = -(-train.per_device_train_batch_size * train.gradient_accumulation_steps // fitting)
        return f"train.per_device_train_batch_size={fitting} train.gradient_accumulation_steps={steps}"


@dataclass(frozen=True)
class DeviceMemory(ModelMemory):
    """One CPU or GPU: see Memory.

    Attributes:
        available: Bytes that are free on the device now.
        device: What people call it.
    """

    available: float
    device: str

    @property
    def memory(self) -> float:
        """Bytes in all, the process itself included."""
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
        ways = [*([ADAPTER_HINT] if self.trains_the_base else []), "a smaller model", "a larger machine"]
        remedy = self.smaller_batch(self.available - PROCESS_BYTES, train) or one_of(ways)
        raise refusal([f"{size(self.memory)} of memory, {self.device} has {size(self.available)} free"], [remedy])


def device_memory(
    config: PretrainedConfig, parameters: ParameterCount, shape: Shape, train: TrainConfig, *, processes: int
) -> DeviceMemory:
    """What a process needs of the CPU or GPU that it finds here.

    Args:
        config: The base model's configuration, for widths and layers.
        parameters: Of the model with its adapter.
        shape: The longest row.
        train: Batch size, precision and sharding.
        processes: That share what is sharded.
    """
    shards = processes if train.fsdp or train.deepspeed else 1
    model = model_memory(config, parameters, shape, train, shards=shards, optimizer_shards=shards)
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
    """What one device keeps of the model.

    Args:
        config: The base model's configuration, for widths and layers.
        parameters: Of the model with its adapter.
        shape: The longest row.
        train: Batch size and precision; weights, gradients and moments are fp32, for bf16 is autocast.
        shards: Over how many devices weights and gradients are spread.
        optimizer_shards: Over how many the moments are.
    """
    trainable = parameters.trainable * FP32_BYTES
    return ModelMemory(
        weights=parameters.all * FP32_BYTES / shards,
        gradients=trainable / shards,
        optimizer=trainable * ADAM_STATES / optimizer_shards,
        activations=_activations(config, shape, train),
    )


def available_memory() -> tuple[float, str]:
    """Free bytes on the device that will train, and its name; a container's limit counts."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0]), torch.cuda.get_device_name()
    return cpu.available_memory() + held([psutil.Process()]), "this machine's CPU"


def held(processes: list[psutil.Process]) -> float:
    """Bytes that processes hold already: the model is loaded, and is counted as needed."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def refusal(faults: list[str], remedies: list[str]) -> ResourceError:
    """The error for a run that does not fit.

    Args:
        faults: What it needs more of than there is.
        remedies: What would make it fit, one for each.
    """
    needs = "; and ".join(f"about {fault}" for fault in faults)
    return ResourceError(f"this needs {needs}", f"{'; '.join(remedies)}; --force tries all the same")


def one_of(ways: list[str]) -> str:
    """These ways as a choice, for people."""
    *others, last = ways
    return f"{', '.join(others)}, or {last}" if others else last


def _activations(config: PretrainedConfig, shape: Shape, train: TrainConfig) -> float:
    """Bytes of one batch at its longest, after Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1), in fp32."""
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
