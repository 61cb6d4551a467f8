"""The micro-batches of a whole run in one line, so that it can be entered anywhere, and always with the same shapes."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

import torch

Batch = dict[str, torch.Tensor]
Row = TypeVar("Row")


class Tokens(NamedTuple):
    """What one optimizer step learns from, over all processes.

    Attributes:
        labels: Label tokens that count in the loss.
        inputs: Input tokens, padding not counted.
    """

    labels: int
    inputs: int


class MicroBatches(torch.utils.data.Dataset[Batch], Generic[Row]):
    """Every micro-batch from the first epoch to the last, this process's share of each.

    An epoch that does not fill its last optimizer step is filled up with rows of padding alone, which count for nothing
    in the loss: so every step has as many micro-batches, and every micro-batch as many rows.

    Args:
        rows: The rows of an epoch, in order; as many in every epoch.
        empty: A row of padding alone, like the one given.
        tokens: Label tokens and input tokens of a row.
        collate: Makes tensors of batch_size rows.
        batch_size: Rows of one process and micro-batch.
        accumulation: Micro-batches of one optimizer step.
        devices: Processes that share the rows.
        rank: Which of them this is.
    """

    def __init__(
        self,
        *,
        rows: Callable[[int], Sequence[Row]],
        empty: Callable[[Row], Row],
        tokens: Callable[[Row], Tokens],
        collate: Callable[[Sequence[Row]], Batch],
        batch_size: int,
        accumulation: int,
        devices: int = 1,
        rank: int = 0,
    ) -> None:
        self._rows = lru_cache(maxsize=2)(rows)  # a loader may be in the next epoch while the last one is counted
        self._empty, self._tokens, self._collate = empty, tokens, collate
        self._batch_size, self._accumulation, self._rank = batch_size, accumulation, rank
        self._step_rows = batch_size * devices * accumulation
        of_epoch = len(self._rows(0))
        self.steps_per_epoch = math.ceil(of_epoch / self._step_rows)
        self._epoch_batches = math.ceil(of_epoch / (batch_size * devices))

    def between(self, first_step: int, last_step: int) -> "torch.utils.data.Subset[Batch]":
        """The micro-batches from one optimizer step to before another."""
        return torch.utils.data.Subset(self, range(first_step * self._accumulation, last_step * self._accumulation))

    def __getitem__(self, index: int) -> Batch:
        step, micro_batch = divmod(index, self._accumulation)
        of_all = self._step_rows // self._accumulation
        first = micro_batch * of_all + self._rank * self._batch_size
        return self._collate(self._of_step(step)[first : first + self._batch_size])

    def epochs(self, steps: int) -> float:
        """How many epochs so many steps are; micro-batches that only fill a step are none of it."""
        epoch, within = divmod(steps, self.steps_per_epoch)
        return epoch + min(within * self._accumulation / self._epoch_batches, 1.0)

    def tokens(self, step: int) -> Tokens:
        """What a step learns from; every process knows it without asking the others."""
        counts = [self._tokens(row) for row in self._of_step(step)]
        return Tokens(sum(count.labels for count in counts), sum(count.inputs for count in counts))

    def _of_step(self, step: int) -> Sequence[Row]:
        """The rows of all processes and micro-batches of a step."""
        epoch, within = divmod(step, self.steps_per_epoch)
        rows = self._rows(epoch)[within * self._step_rows : (within + 1) * self._step_rows]
        return [*rows, *[self._empty(rows[-1])] * (self._step_rows - len(rows))]
