"""Steps, memory and disk of a run, estimated before it starts.

Memory is modelled in memory.py and training/neuron/memory.py; time is measured in timing.py.
"""

import math
from dataclasses import dataclass
from typing import Any

from neuron_sum.console import size
from neuron_sum.data.shapes import ShapePlan
from neuron_sum.models.base import ParameterCount
from neuron_sum.recipes.schema import TrainConfig
from neuron_sum.training.estimate.memory import ADAM_STATES, FP32_BYTES, Memory


@dataclass(frozen=True)
class Estimate:
    """The estimated requirements of a run.

    Attributes:
        memory: The memory of the backend's devices.
        steps: The number of optimizer steps.
        disk: Bytes of checkpoints and results.
    """

    memory: Memory
    steps: int
    disk: float

    def __str__(self) -> str:
        return f"{self.memory}; disk about {size(self.disk)}"

    def as_dict(self) -> dict[str, Any]:
        """The values for --json, in bytes."""
        return {**self.memory.as_dict(), "steps": self.steps, "disk": self.disk}


def estimate(parameters: ParameterCount, plan: ShapePlan, train: TrainConfig, memory: Memory) -> Estimate:
    """Estimate a run.

    Args:
        parameters: The parameter count of the model with its adapter.
        plan: The shape plan, for the rows of an epoch and the size of a batch.
        train: The train section, for accumulation and the length of the run.
        memory: The backend's estimate of memory.
    """
    batches = math.ceil(plan.rows_per_epoch / (plan.batch_size * plan.devices))
    steps = train.max_steps or math.ceil(
        math.ceil(batches / train.gradient_accumulation_steps) * train.num_train_epochs
    )
    checkpoint = (parameters.trainable if parameters.trainable < parameters.all else parameters.all) * FP32_BYTES
    return Estimate(memory, steps, disk=checkpoint * ((1 + ADAM_STATES) * (train.save_total_limit + 1) + 1))
