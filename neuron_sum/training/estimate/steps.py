"""How long a run is, and how much memory and disk it will take, said before it starts.

Memory is modelled in memory.py and training/neuron/memory.py; time comes from timing.py.
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
    """What a run will need.

    Attributes:
        memory: Of the backend's devices.
        steps: Optimizer steps.
        disk: Bytes of checkpoints and results.
    """

    memory: Memory
    steps: int
    disk: float

    def __str__(self) -> str:
        return f"{self.memory}; disk about {size(self.disk)}"

    def as_dict(self) -> dict[str, Any]:
        """For --json, in bytes."""
        return {**self.memory.as_dict(), "steps": self.steps, "disk": self.disk}


def estimate(parameters: ParameterCount, plan: ShapePlan, train: TrainConfig, memory: Memory) -> Estimate:
    """The estimate for a run.

    Args:
        parameters: Of the model with its adapter.
        plan: Rows of an epoch, and the shapes of a batch.
        train: Batch size and length of the run.
        memory: As the backend tells it.
    """
    batches = math.ceil(plan.rows_per_epoch / (plan.batch_size * plan.devices))
    steps = train.max_steps or math.ceil(
        math.ceil(batches / train.gradient_accumulation_steps) * train.num_train_epochs
    )
    checkpoint = (parameters.trainable if parameters.trainable < parameters.all else parameters.all) * FP32_BYTES
    return Estimate(memory, steps, disk=checkpoint * ((1 + ADAM_STATES) * (train.save_total_limit + 1) + 1))
