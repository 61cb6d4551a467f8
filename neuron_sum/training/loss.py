"""The loss: cross entropy per label token, over the tokens of the whole step."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from neuron_sum.data.encoding import IGNORED
from neuron_sum.data.rows import Batch


def split_labels(batch: Batch, *, decoder_only: bool, all_logits: bool = False) -> tuple[Batch, torch.Tensor]:
    """The model's inputs and the labels of its logits, for a decoder-only model only where a row has labels.

    The logits of a prompt are needed by no loss, and with a large vocabulary they are the largest tensor of a step.

    Args:
        batch: A batch of Collator; it stays unchanged.
        decoder_only: Whether a label belongs to the previous position.
        all_logits: Whether the model computes every logit, which is necessary if DataParallel splits the inputs.

    Returns:
        The inputs and the labels (batch, positions). The positions count from the end of a row, because a soft prompt's
        positions come first.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"]
    if not decoder_only:
        return inputs, labels
    labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    if all_logits:
        return inputs, labels
    positions = (labels != IGNORED).any(0).nonzero()[:, 0]
    if not len(positions):  # rows that only fill a batch
        positions = positions.new_zeros(1)
    return {**inputs, "logits_to_keep": positions - labels.shape[1]}, labels[:, positions]


class TokenLoss:
    """Cross entropy that does not depend on how a step is divided into processes and micro-batches.

    T5's forward has no parameter `num_items_in_batch`, so transformers 4.57 averages the means of unequal
    micro-batches: the loss with two processes differs from that with one by up to 0.09 on short summaries. Trainer
    passes the number of label tokens of the whole step to this function instead.

    Args:
        shifted: Whether a label belongs to the previous position, as in a decoder-only model's batch.
        label_smoothing: The factor of Szegedy et al. 2016.
    """

    def __init__(self, shifted: bool, label_smoothing: float) -> None:
        self._shifted, self._label_smoothing = shifted, label_smoothing

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The loss of one micro-batch.

        Args:
            outputs: The model's outputs with logits (batch, length, vocab); a soft prompt's positions come first and
                have no labels.
            labels: Token ids (batch, target_len).
            num_items_in_batch: The number of label tokens of the step; None during evaluation, for the mean over this
                batch.
        """
        logits = outputs["logits"][:, -labels.shape[1] :]
        if self._shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        loss = cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(),
            labels.reshape(-1),
            ignore_index=IGNORED,
            reduction="mean" if num_items_in_batch is None else "sum",
            label_smoothing=self._label_smoothing,
        )
        return loss if num_items_in_batch is None else loss / num_items_in_batch
