"""The order in which examples are seen: a function of seed and epoch alone."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices


class EpochOrder(torch.utils.data.Sampler[int]):
    """A permutation of the examples, the same in every process and after every resume.

    transformers' own samplers draw from the global random state, so that under group_by_length each process has its own
    order, and accelerate 1.8.1 replays epoch 0's order when a run is resumed within a later epoch (skip_first_batches
    builds a loader that calls set_epoch(0)); hence no set_epoch here, and `epoch` is set by SetEpoch.

    Args:
        count: Examples.
        seed: With the epoch, the whole of the randomness.
        lengths: Tokens of each example, to put similar lengths into one batch; None for a plain permutation.
        global_batch_size: Examples of one optimizer step over all processes.
    """

    def __init__(self, count: int, seed: int, lengths: Sequence[int] | None, global_batch_size: int) -> None:
        self._count, self._seed, self._lengths, self._global_batch_size = count, seed, lengths, global_batch_size
        self.epoch = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self.epoch)
        if self._lengths is None:
            return iter(torch.randperm(self._count, generator=generator).tolist())
        return iter(get_length_grouped_indices(self._lengths, self._global_batch_size, generator=generator))


class SetEpoch(TrainerCallback):  # type: ignore[misc]
    """Tells the order which epoch it is, before a resumed run skips the batches it has seen."""

    def __init__(self) -> None:
        self.order: EpochOrder | None = None

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Counts whole epochs; state.epoch is a float that may lie a rounding error below one."""
        if self.order is not None:
            self.order.epoch = int((state.epoch or 0) + 1e-6)
