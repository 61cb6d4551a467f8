"""All micro-batches of a run as one indexable sequence of equal shapes, so that a run can resume at any step."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

import torch

Batch = dict[str, torch.Tensor]
Row = TypeVar("Row")


class Tokens(NamedTuple):
    """The token counts of one optimizer step, over all processes.

    Attributes:
        labels: Label tokens that count in the loss.
        inputs: Input tokens without padding.
    """

    labels: int
    inputs: int


class MicroBatches(torch.utils.data.Dataset[Batch], Generic[Row]):
    """This process's share of every micro-batch from the first epoch to the last.

    If an epoch does not fill its last optimizer step, the step is completed with rows of padding, which do not affect
    the loss. So every step has the same number of micro-batches, and every micro-batch the same number of rows.

    Args:
        rows: A function from an epoch to its rows, in order; their number is the same in every epoch.
        empty: A function from a row to a row of the same shape with only padding.
        tokens: A function from a row to the number of its label tokens and input tokens.
        collate: A function from batch_size rows to tensors.
        batch_size: The number of rows per process and micro-batch.
        accumulation: The number of micro-batches per optimizer step.
        devices: The number of processes that share the rows.
        rank: The index of this process.
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
        self._rows = lru_cache(maxsize=2)(rows)  # a loader may read the next epoch while this one is counted
        self._empty, self._tokens, self._collate = empty, tokens, collate
        self._batch_size, self._accumulation, self._rank = batch_size, accumulation, rank
        self._step_rows = batch_size * devices * accumulation
        epoch_rows = len(self._rows(0))
        self.steps_per_epoch = math.ceil(epoch_rows / self._step_rows)
        self._epoch_batches = math.ceil(epoch_rows / (batch_size * devices))

    def between(self, first_step: int, last_step: int) -> "torch.utils.data.Subset[Batch]":
        """The micro-batches from first_step (inclusive) to last_step (exclusive)."""
        return torch.utils.data.Subset(self, range(first_step * self._accumulation, last_step * self._accumulation))

    def __getitem__(self, index: int) -> Batch:
        step, micro_batch = divmod(index, self._accumulation)
        micro_batch_rows = self._step_rows // self._accumulation
        first = micro_batch * micro_batch_rows + self._rank * self._batch_size
        return self._collate(self._rows_of_step(step)[first : first + self._batch_size])

    def epochs(self, steps: int) -> float:
        """The number of epochs in this many steps, without micro-batches that only complete a step."""
        epoch, within = divmod(steps, self.steps_per_epoch)
        return epoch + min(within * self._accumulation / self._epoch_batches, 1.0)

    def tokens(self, step: int) -> Tokens:
        """The token counts of a step; every process computes them without communication."""
        counts = [self._tokens(row) for row in self._rows_of_step(step)]
        return Tokens(sum(count.labels for count in counts), sum(count.inputs for count in counts))

    def _rows_of_step(self, step: int) -> Sequence[Row]:
        """The rows of all processes and micro-batches of a step."""
        epoch, within = divmod(step, self.steps_per_epoch)
        rows = self._rows(epoch)[within * self._step_rows : (within + 1) * self._step_rows]
        return [*rows, *[self._empty(rows[-1])] * (self._step_rows - len(rows))]
