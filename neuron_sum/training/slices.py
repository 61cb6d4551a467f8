"""Slices of a batch: on a CPU, groups of rows are computed one after another, and their gradients are added.

The loss and the gradients are those of the whole batch, because the loss is a sum over all label tokens of the step.
The memory for activations is that of one slice, and rows of similar length need less padding. docs/training.md compares
speed and memory for sizes of slices.
"""

from collections.abc import Iterator

import torch
from transformers import PretrainedConfig

from neuron_sum.data.encoding import IGNORED
from neuron_sum.data.layouts import Shape, rounded_up
from neuron_sum.data.rows import Batch
from neuron_sum.models.base import is_decoder_only
from neuron_sum.recipes.schema import TrainConfig

VALUES = 800 * 576
"""The largest number of positions in a slice of more than one row, times the model's width: 800 of SmolLM2-135M."""
LEAST = 400
"""That number of positions for every wider model, because each pass has a fixed cost."""

TARGETS = ("labels", "decoder_input_ids", "decoder_attention_mask")
"""The tensors of an encoder-decoder model with the length of the target."""


def in_slices(train: TrainConfig) -> bool:
    """Whether batches are divided.

    A GPU computes whole batches. So do sharded models: their processes exchange weights in every pass, so each needs as
    many passes.
    """
    return not (torch.cuda.is_available() or train.fsdp or train.deepspeed is not None)


def largest_slice(rows: int, shape: Shape, config: PretrainedConfig) -> tuple[int, float]:
    """The rows of the longest slice, and the positions of the largest one as a multiple of the positions of these rows.

    Args:
        rows: The number of rows of a batch.
        shape: The longest row; for a decoder-only model, target_len is not added to source_len.
        config: The configuration of the model.
    """
    positions = max(VALUES // int(config.hidden_size), LEAST)
    length = shape.source_len if is_decoder_only(config) else sum(shape)
    longest = min(rows, max(1, positions // length))
    return longest, max(1.0, min(positions, rows * length) / (longest * length))


def slices(batch: Batch, train: TrainConfig, config: PretrainedConfig) -> Iterator[Batch]:
    """Divides a batch into slices of almost equal numbers of rows of similar length, without needless padding.

    Args:
        batch: A batch of Collator.
        train: The train section.
        config: The configuration of the model.
    """
    rows, source_len = batch["input_ids"].shape
    count, _ = largest_slice(rows, Shape(source_len, batch["labels"].shape[1]), config)
    if count == rows or not in_slices(train):
        yield batch
        return
    flat = batch["attention_mask"].dim() == 2
    # The longest first: later ones fit into the memory that it leaves
    order = (batch["attention_mask"] > 0).sum(1).argsort(descending=True, stable=True) if flat else torch.arange(rows)
    for members in order.tensor_split(-(-rows // count)):
        part = {name: tensor[members] for name, tensor in batch.items()}
        yield _without_padding(part, decoder_only=is_decoder_only(config)) if flat else part


def _without_padding(part: Batch, *, decoder_only: bool) -> Batch:
    """Removes the columns at the end that are padding in every row."""
    targets = () if decoder_only else TARGETS
    used = rounded_up(_columns(part["attention_mask"] > 0), _columns(part["labels"] != IGNORED))
    widths = {name: used.target_len if name in targets else used.source_len for name in part}
    return {name: tensor[:, : widths[name]].contiguous() for name, tensor in part.items()}


def _columns(used: torch.Tensor) -> int:
    """The number of columns up to the last used one; at least 1."""
    return max(used.any(0).nonzero()[:, 0].tolist(), default=0) + 1
