"""The duration of a step, measured with the prepared model on this machine."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from neuron_sum.data.rows import Batch, Collator, RowSet
from neuron_sum.models.base import is_decoder_only
from neuron_sum.recipes.schema import TrainConfig
from neuron_sum.training.loss import TokenLoss, split_labels
from neuron_sum.training.slices import slices

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

WARM_S = 2.0
"""Seconds below which a first step mostly measures the warm-up, so that it is measured again."""


def seconds_per_step(model: "PreTrainedModel | PeftModel", rows: RowSet, train: TrainConfig) -> float:
    """Measure forward and backward on a batch of median size; weights and random state do not change.

    Args:
        model: The model with its adapter; moved to the GPU if one exists.
        rows: The training split.
        train: The train section, for accumulation and precision.

    Returns:
        Seconds per optimizer step, without the update by the optimizer.
    """
    by_size = sorted(rows.plan.batches(0), key=lambda batch: len(batch) * sum(rows.plan.shape_of(batch)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    collated = Collator(rows.plan, model.config)([rows[row] for row in by_size[len(by_size) // 2]])
    batches = [
        {name: tensor.to(device) for name, tensor in part.items()}
        for part in slices(collated, train, decoder_only=is_decoder_only(model.config))
    ]
    model.to(device).train()
    loss = TokenLoss(shifted=False, label_smoothing=train.label_smoothing_factor)
    if train.gradient_checkpointing:  # as in Trainer
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with torch.random.fork_rng(), torch.autocast(device.type, torch.bfloat16, enabled=train.bf16):
        seconds = _forward_and_backward(model, batches, loss)
        for _ in range(2):
            if seconds < WARM_S:
                seconds = _forward_and_backward(model, batches, loss)
    model.eval()
    return seconds * train.gradient_accumulation_steps


def _forward_and_backward(
    model: "PreTrainedModel | PeftModel", batches: Sequence[Batch], token_loss: TokenLoss
) -> float:
    start = time.perf_counter()
    for batch in batches:
        inputs, labels = split_labels(batch, decoder_only=is_decoder_only(model.config))
        loss = token_loss(model(**inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()  # waits for a GPU
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - start
