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
from neuron_sum.errors import ResourceError
from neuron_sum.models import ParameterCount, is_decoder_only
from neuron_sum.recipe import TrainConfig
from neuron_sum.training.base import ShapePlan, TrainingData

FP32_BYTES = 4
ADAM_STATES = 2
PROCESS_BYTES = 1.1e9
"""Python, torch, transformers and the data; with it the model below meets the peaks of docs/training.md."""
MEMORY_MARGIN = 1.15


@dataclass(frozen=True)
class Estimate:
    """What a run will need, per device.

    Attributes:
        weights: Bytes of parameters.
        gradients: Bytes of gradients of the trainable ones.
        optimizer: Bytes of AdamW's two moments.
        activations: Bytes that the backward pass keeps of one batch.
        available: Bytes that are free on the device now.
        device: What people call it.
        steps: Optimizer steps.
        disk: Bytes of checkpoints and results.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    available: float
    device: str
    steps: int
    disk: float

    @property
    def memory(self) -> float:
        """Bytes in all."""
        return (self.weights + self.gradients + self.optimizer + self.activations) * MEMORY_MARGIN + PROCESS_BYTES

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
        fixed = (self.weights + self.gradients + self.optimizer) * MEMORY_MARGIN + PROCESS_BYTES
        per_example = self.activations * MEMORY_MARGIN / train.per_device_train_batch_size
        fitting = int((self.available - fixed) // per_example) if per_example else 0
        if fitting >= 1:
            steps = -(-train.per_device_train_batch_size * train.gradient_accumulation_steps // fitting)
            remedy = f"train.per_device_train_batch_size={fitting} train.gradient_accumulation_steps={steps}"
        elif self.gradients * 10 > self.weights:
            remedy = "method=lora (no gradients and moments for the base), a smaller model, or a larger machine"
        else:
            remedy = "a smaller model, or a larger machine"
        raise ResourceError(
            f"this needs about {size(self.memory)} of memory, {self.device} has {size(self.available)} free",
            f"{remedy}; --force tries all the same",
        )


def estimate(
    config: PretrainedConfig, parameters: ParameterCount, data: TrainingData, plan: ShapePlan, train: TrainConfig
) -> Estimate:
    """The estimate for one device.

    Args:
        config: The base model's configuration, for widths and layers.
        parameters: Of the model with its adapter.
        data: Encoded; gives real lengths.
        plan: The shapes of a batch.
        train: Batch size and length of the run.
    """
    devices = max(world_size() // train.neuron.tensor_parallel_size, 1)
    batches = math.ceil(len(data.train) / (train.per_device_train_batch_size * devices))
    steps = train.max_steps or math.ceil(
        math.ceil(batches / train.gradient_accumulation_steps) * train.num_train_epochs
    )
    shards = devices if train.fsdp or train.deepspeed else 1
    weights = parameters.all * FP32_BYTES / shards
    trainable = parameters.trainable * FP32_BYTES / shards
    checkpoint = (parameters.trainable if parameters.trainable < parameters.all else parameters.all) * FP32_BYTES
    available, device = available_memory()
    return Estimate(
        weights=weights,
        gradients=trainable,
        optimizer=trainable * ADAM_STATES,
        activations=_activations(config, plan, train),
        available=available,
        device=device,
        steps=steps,
        disk=checkpoint * ((1 + ADAM_STATES) * (train.save_total_limit + 1) + 1),
    )


def world_size() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def available_memory() -> tuple[float, str]:
    """Free bytes on the device that will train, and its name; a container's limit counts."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0]), torch.cuda.get_device_name()
    own = float(psutil.Process().memory_info().rss)  # the model is loaded already, and is counted as needed
    return cpu.available_memory() + own, "this machine's CPU"


def _activations(config: PretrainedConfig, plan: ShapePlan, train: TrainConfig) -> float:
    """Bytes of one batch at its longest, after Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1), in fp32."""
    rows, width = train.per_device_train_batch_size, int(config.hidden_size)
    logits: int = 3 * rows * (plan.source_len if is_decoder_only(config) else plan.target_len) * config.vocab_size

    def stack(layers: int, length: int, keys: int, heads: int) -> float:
        if train.gradient_checkpointing:
            return rows * length * width * layers
        return layers * rows * length * (17 * width + 2.5 * heads * keys)

    if is_decoder_only(config):
        elements = stack(config.num_hidden_layers, plan.source_len, plan.source_len, config.num_attention_heads)
    else:
        elements = stack(config.num_layers, plan.source_len, plan.source_len, config.num_heads)
        elements += stack(
            config.num_decoder_layers, plan.target_len, plan.target_len + plan.source_len, config.num_heads
        )
    return (elements + logits) * FP32_BYTES * (0.6 if train.bf16 else 1.0)
