"""The loss: cross entropy per label token, over the tokens of the whole step."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from neuron_sum.data.encoding import IGNORED


class TokenLoss:
    """Cross entropy that does not depend on how a step is divided into processes and micro-batches.

    T5's forward has no parameter `num_items_in_batch`, so transformers 4.57 averages the means of unequal
    micro-batches: the loss with two processes differs from that with one by up to 0.09 on short summaries. Trainer
    passes the number of label tokens of the whole step to this function instead.

    Args:
        decoder_only: Whether a label belongs to the previous position.
        label_smoothing: The factor of Szegedy et al. 2016.
    """

    def __init__(self, decoder_only: bool, label_smoothing: float) -> None:
        self._decoder_only, self._label_smoothing = decoder_only, label_smoothing

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
