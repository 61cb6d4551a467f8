"""Conversion of rows of examples to tensors, in the shapes of a plan."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import PretrainedConfig

from neuron_sum.data.encoding import IGNORED, Encoded, Features
from neuron_sum.data.layouts import Row, Shape, rounded_up
from neuron_sum.data.packing import Integers
from neuron_sum.data.shapes import ShapePlan
from neuron_sum.models.packed_t5 import NO_SLOT

Batch = dict[str, torch.Tensor]


class FilledRow(NamedTuple):
    """A row with the contents of its examples.

    Attributes:
        examples: input_ids and labels of each example; empty for a row that only fills a batch.
        shape: The shape to which the row is padded; None for the smallest that fits its batch.
    """

    examples: list[Features]
    shape: Shape | None


class RowSet(torch.utils.data.Dataset[FilledRow]):
    """The rows of a split. Its indices are the Rows of EpochOrder; its length is the number of rows per epoch.

    Attributes:
        data: The tokenized split.
        plan: The plan that arranges the examples in rows.
    """

    def __init__(self, data: Encoded, plan: ShapePlan) -> None:
        self.data, self.plan = data, plan

    def __len__(self) -> int:
        return self.plan.rows_per_epoch

    def __getitem__(self, row: Row) -> FilledRow:
        return FilledRow([self.data[example] for example in row.examples], row.shape)


class Collator:
    """Builds a batch with padding on the right, in int64.

    An encoder-decoder model receives input_ids and attention_mask (batch, source_len), decoder_input_ids and labels
    (batch, target_len); a decoder-only model receives input_ids, attention_mask and labels (batch, source_len).

    Packed rows mark the example of each position. For an encoder-decoder model, attention_mask and
    decoder_attention_mask (batch, target_len) contain segment ids: 1, 2, … and 0 for padding (models/packed_t5.py reads
    them); with a soft prompt, prompt_slots (batch, source_len) contains the positions of its vectors. A decoder-only
    model receives an additive attention_mask (batch, 1, source_len, source_len), position_ids (batch, source_len) that
    restart with each example, and no label for an example's first token, which the previous example cannot predict.
    Rows with branches (`share_prefix` in encoding.py) have the same additional tensors in every plan.

    A row without examples has no labels. Unless rows are packed, it attends to one padding token, because a row that
    attends to nothing is NaN under autocast.

    Args:
        plan: The plan of the training split, which is also valid for the validation split.
        config: The configuration of the model, with its padding token and decoder start token.
    """

    def __init__(self, plan: ShapePlan, config: PretrainedConfig) -> None:
        self._plan, self._decoder_only = plan, not config.is_encoder_decoder
        self._padding: int = config.pad_token_id
        self._start: int = self._padding if self._decoder_only else config.decoder_start_token_id

    def __call__(self, batch: Sequence[FilledRow]) -> Batch:
        """Builds the tensors of a batch.

        Args:
            batch: Rows of one shape.
        """
        shape = batch[0].shape or self._widest([features for row in batch for features in row.examples])
        sources, segments, slots, branches, positions = (
            np.full((len(batch), shape.source_len), fill) for fill in (self._padding, 0, NO_SLOT, 0, 0)
        )
        targets, target_segments = (
            np.full((len(batch), shape.target_len or shape.source_len), fill) for fill in (IGNORED, 0)
        )
        virtual = self._plan.virtual_tokens
        for row, (examples, _) in enumerate(batch):
            source_at = target_at = 0
            for segment, features in enumerate(examples, 1):
                slots[row, source_at : source_at + virtual] = range(virtual)
                source = slice(source_at + virtual, source_at + virtual + len(features["input_ids"]))
                target = slice(target_at, target_at + len(features["labels"]))
                sources[row, source], targets[row, target] = features["input_ids"], features["labels"]
                segments[row, source_at : source.stop], target_segments[row, target] = segment, segment
                branches[row, source] = features.get("branches", 0)
                positions[row, source] = features.get("position_ids", range(len(features["input_ids"])))
                source_at, target_at = source.stop, target.stop
        if not self._decoder_only:
            arrays = self._seq2seq_batch(sources, segments, targets, target_segments)
        elif self._plan.packed or branches.any():
            arrays = _masked_batch(sources, segments, targets, branches, positions)
        else:
            arrays = {"input_ids": sources, "labels": targets, "attention_mask": _plain_mask(segments)}
        if virtual:
            arrays["prompt_slots"] = slots
        return {name: torch.from_numpy(value) for name, value in arrays.items()}

    def _widest(self, examples: Sequence[Features]) -> Shape:
        source_len = max((len(features["input_ids"]) for features in examples), default=1)
        target_len = max((len(features["labels"]) for features in examples), default=1)
        return rounded_up(source_len, 0 if self._decoder_only else target_len)

    def _seq2seq_batch(
        self, sources: Integers, segments: Integers, targets: Integers, target_segments: Integers
    ) -> dict[str, npt.NDArray[Any]]:
        # T5's built-in shift of a row would start every segment except the first with the end of the previous one.
        decoder_inputs = np.roll(targets, 1, axis=1)
        decoder_inputs[_first_of_segment(target_segments)] = self._start
        decoder_inputs[decoder_inputs == IGNORED] = self._padding
        arrays = {"input_ids": sources, "labels": targets, "decoder_input_ids": decoder_inputs}
        if self._plan.packed:
            return {**arrays, "attention_mask": segments, "decoder_attention_mask": target_segments}
        return {**arrays, "attention_mask": _plain_mask(segments)}


def count_tokens(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The input tokens of a batch without padding; transformers would add up segment ids and masks.

    Args:
        batch: A batch of Collator.
    """
    if (
        "position_ids" in batch
    ):  # from 0, each value up to 1 once, for every example of at least two tokens; 0 for padding
        position_ids = batch["position_ids"]
        return (position_ids > 0).sum() + (position_ids == 1).sum()
    return (batch["attention_mask"] > 0).sum()


def _first_of_segment(segments: Integers) -> npt.NDArray[np.bool_]:
    """A mask of the first position of each segment and of the padding."""
    first = np.ones_like(segments, dtype=bool)
    first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return first


def _masked_batch(
    sources: Integers, segments: Integers, targets: Integers, branches: Integers, positions: Integers
) -> dict[str, npt.NDArray[Any]]:
    """Rows of a decoder-only model with several examples or branches."""
    keep = np.tril(segments[:, :, None] == segments[:, None, :])  # padding attends to padding, never to nothing
    if branches.any():
        keep &= (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    return {
        "input_ids": sources,
        "labels": np.where(_first_of_segment(segments), IGNORED, targets),
        "attention_mask": np.where(keep, 0, np.finfo(np.float32).min).astype(np.float32)[:, None],
        "position_ids": positions,
    }


def _plain_mask(segments: Integers) -> Integers:
    mask = (segments > 0).astype(np.int64)
    mask[:, 0] = 1
    return mask
