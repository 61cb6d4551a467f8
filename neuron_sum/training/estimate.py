"""How much memory and disk a run will take, said before it starts.

A rough model, on purpose: it is there to refuse what cannot work. Time comes from timing.py.
"""

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformers import PretrainedConfig

from neuron_sum import cpu
from neuron_sum.console import size
from neuron_sum.data.layouts import Shape
from neuron_sum.data.shapes import ShapePlan
from neuron_sum.errors import ResourceError
from neuron_sum.models import ParameterCount, is_decoder_only
from neuron_sum.recipe import TrainConfig
from neuron_sum.stack import Instance

FP32_BYTES = 4
ADAM_STATES = 2
PROCESS_BYTES = 1.1e9
"""Python, torch, transformers and the data; with it the model below meets the peaks of docs/training.md."""
MEMORY_MARGIN = 1.15


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

    def remedy(self, available: float, train: TrainConfig) -> str | None:
        """The largest batch size that fits, with accumulation that keeps a step's examples; None if none does."""
        fixed = (self.weights + self.gradients + self.optimizer) * MEMORY_MARGIN
        per_example = self.activations * MEMORY_MARGIN / train.per_device_train_batch_size
        fitting = int((available - fixed) // per_example) if per_example else 0
        if fitting < 1:
            return None
        steps = -(-train.per_device_train_batch_size * train.gradient_accumulation_steps // fitting)
        return f"train.per_device_train_batch_size={fitting} train.gradient_accumulation_steps={steps}"


@dataclass(frozen=True)
class Estimate(ModelMemory):
    """What a run will need, per device.

    Attributes:
        available: Bytes that are free on the device now.
        device: What people call it.
        steps: Optimizer steps.
        disk: Bytes of checkpoints and results.
    """

    available: float
    device: str
    steps: int
    disk: float

    @property
    def memory(self) -> float:
        """Bytes in all, the process itself included."""
        return super().memory + PROCESS_BYTES

    @property
    def fits(self) -> bool:
        """Whether there is that much."""
        return self.memory <= self.available

    def __str__(self) -> str:
        parts = f"weights {size(self.weights)}, gradients {size(self.gradients)}, optimizer {size(self.optimizer)}, "
        return (
            f"memory about {size(self.memory)} of {size(self.available)} free on {self.device} ({parts}"
            f"activations {size(self.activations)}); disk about {size(self.disk)}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For --json, in bytes."""
        return {**dataclasses.asdict(self), "memory": self.memory}

    def check(self, train: TrainConfig) -> None:
        """Refuses a run that cannot fit.

        Raises:
            ResourceError: With what would make it fit.
        """
        if self.fits:
            return
        remedy = self.remedy(self.available - PROCESS_BYTES, train)
        if remedy is None and self.gradients * 10 > self.weights:
            remedy = "method=lora (no gradients and moments for the base), a smaller model, or a larger machine"
        elif remedy is None:
            remedy = "a smaller model, or a larger machine"
        raise ResourceError(
            f"this needs about {size(self.memory)} of memory, {self.device} has {size(self.available)} free",
            f"{remedy}; --force tries all the same",
        )


def estimate(config: PretrainedConfig, parameters: ParameterCount, plan: ShapePlan, train: TrainConfig) -> Estimate:
    """The estimate for one device.

    Args:
        config: The base model's configuration, for widths and layers.
        parameters: Of the model with its adapter.
        plan: Rows of an epoch, and the shapes of a batch.
        train: Batch size and length of the run.
    """
    devices = world_size()
    batches = math.ceil(plan.rows_per_epoch / (plan.batch_size * plan.devices))
    steps = train.max_steps or math.ceil(
        math.ceil(batches / train.gradient_accumulation_steps) * train.num_train_epochs
    )
    shards = devices if train.fsdp or train.deepspeed else 1
    longest = Shape(plan.source_len, plan.target_len)
    model = model_memory(config, parameters, longest, train, shards=shards, optimizer_shards=shards)
    checkpoint = (parameters.trainable if parameters.trainable < parameters.all else parameters.all) * FP32_BYTES
    available, device = available_memory()
    return Estimate(
        **dataclasses.asdict(model),
        available=available,
        device=device,
        steps=steps,
        disk=checkpoint * ((1 + ADAM_STATES) * (train.save_total_limit + 1) + 1),
    )


def model_memory(
    config: PretrainedConfig, parameters: ParameterCount, shape: Shape, train: TrainConfig,
    *, shards: int = 1, optimizer_shards: int = 1,
) -> ModelMemory:  # fmt: skip
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


@dataclass(frozen=True)
class NeuronEstimate:
    """What a run will need on a Neuron instance.

    Attributes:
        core: On each NeuronCore.
        core_available: Bytes of a core's device memory.
        host: Bytes of all processes on the host; the compiler's own, of which no figure is published, come on top.
        host_available: Bytes of the host's memory.
        processes: One a NeuronCore.
    """

    core: ModelMemory
    core_available: float
    host: float
    host_available: float
    processes: int


def estimate_neuron(
    config: PretrainedConfig, parameters: ParameterCount, shape: Shape, train: TrainConfig, instance: Instance,
    *, tensor_parallel_size: int = 1, zero_1: bool = False,
) -> NeuronEstimate:  # fmt: skip
    """The estimate for an instance: data parallel over its cores, but for what is sharded.

    Args:
        config: The base model's configuration.
        parameters: Of the model with its adapter.
        shape: The longest row.
        train: Batch size of one core, and precision.
        instance: Where it shall run.
        tensor_parallel_size: Cores that share one copy of the model. Activations are counted whole, which is more
            than they take.
        zero_1: Whether the copies share the optimizer's moments.
    """
    copies = max(instance.neuron_cores // tensor_parallel_size, 1)
    loaded = parameters.all * FP32_BYTES  # every process holds the whole model once, before its core has its part
    return NeuronEstimate(
        core=model_memory(
            config, parameters, shape, train,
            shards=tensor_parallel_size, optimizer_shards=tensor_parallel_size * (copies if zero_1 else 1),
        ),
        core_available=instance.core_memory,
        host=instance.neuron_cores * (PROCESS_BYTES + loaded),
        host_available=instance.host_memory,
        processes=instance.neuron_cores,
    )  # fmt: skip


def world_size() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device_count(train: TrainConfig) -> int:
    """How many devices take a batch each: a process's own, or every GPU of a single process (DataParallel).

    Args:
        train: Says how many share one copy of the model, and so one batch.
    """
    count = world_size() if world_size() > 1 else max(1, torch.cuda.device_count())
    return max(count // train.neuron.tensor_parallel_size, 1)


def available_memory() -> tuple[float, str]:
    """Free bytes on the device that will train, and its name; a container's limit counts."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0]), torch.cuda.get_device_name()
    own = float(psutil.Process().memory_info().rss)  # the model is loaded already, and is counted as needed
    return cpu.available_memory() + own, "this machine's CPU"


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
