"""The order of rows in an epoch: that of the shape plan, which depends only on seed and epoch."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from neuron_sum.data.layouts import Row
from neuron_sum.data.shapes import ShapePlan


class EpochOrder(torch.utils.data.Sampler[Row]):
    """The rows of an epoch, the same in every process and after every resume.

    The samplers of transformers draw from the global random state, so under group_by_length each process has a
    different order, and accelerate 1.8.1 replays the order of epoch 0 when a run is resumed within a later epoch
    (skip_first_batches builds a loader that calls set_epoch(0)). This class therefore has no set_epoch; SetEpoch sets
    `epoch`.

    Args:
        plan: The shape plan of the split.
    """

    def __init__(self, plan: ShapePlan) -> None:
        self._plan = plan
        self.epoch = 0

    def __len__(self) -> int:
        return self._plan.rows_per_epoch

    def __iter__(self) -> Iterator[Row]:
        return iter(self._plan.rows(self.epoch))


class SetEpoch(TrainerCallback):  # type: ignore[misc]
    """Sets the epoch of the order, before a resumed run skips the batches that it has already trained on."""

    def __init__(self) -> None:
        self.order: EpochOrder | None = None

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count whole epochs; state.epoch is a float that may be a rounding error below one."""
        if self.order is not None:
            self.order.epoch = int((state.epoch or 0) + 1e-6)
