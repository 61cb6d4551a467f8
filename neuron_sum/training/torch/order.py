"""The order in which rows are seen: the shape plan's for an epoch, which is a function of seed and epoch alone."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from neuron_sum.data.layouts import Row
from neuron_sum.data.shapes import ShapePlan


class EpochOrder(torch.utils.data.Sampler[Row]):
    """The rows of an epoch, the same in every process and after every resume.

    transformers' own samplers draw from the global random state, so that under group_by_length each process has its own
    order, and accelerate 1.8.1 replays epoch 0's order when a run is resumed within a later epoch (skip_first_batches
    builds a loader that calls set_epoch(0)); hence no set_epoch here, and `epoch` is set by SetEpoch.

    Args:
        plan: Of the split.
    """

    def __init__(self, plan: ShapePlan) -> None:
        self._plan = plan
        self.epoch = 0

    def __len__(self) -> int:
        return self._plan.rows_per_epoch

    def __iter__(self) -> Iterator[Row]:
        return iter(self._plan.rows(self.epoch))


class SetEpoch(TrainerCallback):  # type: ignore[misc]
    """Tells the order which epoch it is, before a resumed run skips the batches it has seen."""

    def __init__(self) -> None:
        self.order: EpochOrder | None = None

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Counts whole epochs; state.epoch is a float that may lie a rounding error below one."""
        if self.order is not None:
            self.order.epoch = int((state.epoch or 0) + 1e-6)
