"""The loss: cross entropy per label token, over the tokens of the whole step."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from neuron_sum.data.encoding import IGNORED


class TokenLoss:
    """Cross entropy that does not depend on how a step is cut into processes and micro-batches.

    T5's forward takes no `num_items_in_batch`, so that transformers 4.57 averages the means of unequal micro-batches:
    two processes differ from one by up to 0.09 in loss on short summaries. Trainer gives this function the number of
    label tokens of the whole step instead.

    Args:
        decoder_only: Whether a label belongs to the position before it.
        label_smoothing: As in Szegedy et al. 2016.
    """

    def __init__(self, decoder_only: bool, label_smoothing: float) -> None:
        self._decoder_only, self._label_smoothing = decoder_only, label_smoothing

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The loss of one micro-batch.

        Args:
            outputs: With logits (batch, length, vocab); a soft prompt's positions come first and have no labels.
            labels: (batch, target_len)
            num_items_in_batch: Label tokens of the step; None while evaluating: the mean over this batch.
        """
        logits = outputs["logits"][:, -labels.shape[1] :]
        if self._decoder_only:
            logits, labels = logits[:, :-1], labels[:, 1:]
        loss = cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(),
            labels.reshape(-1),
            ignore_index=IGNORED,
            reduction="mean" if num_items_in_batch is None else "sum",
            label_smoothing=self._label_smoothing,
        )
        return loss if num_items_in_batch is None else loss / num_items_in_batch
