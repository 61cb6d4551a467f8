"""The duration of a step, measured with the prepared model on this machine."""

import math
import statistics
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


def seconds_per_step(model: "PreTrainedModel | PeftModel", rows: RowSet, train: TrainConfig, steps: int) -> float:
    """Measure forward and backward on a batch of median size, and scale the result to the mean size of the batches.

    Weights and random state do not change.

    Args:
        model: The model with its adapter; moved to the GPU if one exists.
        rows: The training split.
        train: The train section, for accumulation and precision.
        steps: The number of optimizer steps; few steps may have batches of another size than the rest of the epoch.

    Returns:
        Seconds per optimizer step, without the update by the optimizer.
    """
    epoch = rows.plan.batches(0)
    batches = epoch[: steps * train.gradient_accumulation_steps]
    per_step = len(batches) / min(steps, math.ceil(len(epoch) / train.gradient_accumulation_steps))
    sizes = [len(batch) * sum(rows.plan.shape_of(batch)) for batch in batches]
    median = sorted(range(len(batches)), key=sizes.__getitem__)[len(batches) // 2]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    collated = Collator(rows.plan, model.config)([rows[row] for row in batches[median]])
    parts = [
        {name: tensor.to(device) for name, tensor in part.items()} for part in slices(collated, train, model.config)
    ]
    model.to(device).train()
    loss = TokenLoss(shifted=False, label_smoothing=train.label_smoothing_factor)
    if train.gradient_checkpointing:  # as in Trainer
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with torch.random.fork_rng():
        seconds = _forward_and_backward(model, parts, loss, train)
        for _ in range(2):
            if seconds < WARM_S:
                seconds = _forward_and_backward(model, parts, loss, train)
    model.eval()
    return seconds * statistics.mean(sizes) / sizes[median] * per_step


def _forward_and_backward(
    model: "PreTrainedModel | PeftModel", parts: Sequence[Batch], token_loss: TokenLoss, train: TrainConfig
) -> float:
    start = time.perf_counter()
    for part in parts:
        inputs, labels = split_labels(part, decoder_only=is_decoder_only(model.config))
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=train.bf16):  # keeps no converted weights
            loss = token_loss(model(**inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()  # waits for a GPU
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - start
