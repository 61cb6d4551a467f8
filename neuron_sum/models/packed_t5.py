"""A T5 that accepts several examples per row, each of which attends only to itself.

The weights, their names and the name of the class are those of transformers, so that a checkpoint is independent of
packing and the plain class can load it. Written for transformers 4.57, whose T5 expects different masks in each layer.
"""

from typing import Any

import torch
import transformers
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

NO_SLOT = -1
"""Value in prompt_slots for a word, which is not a vector of the soft prompt."""


class T5ForConditionalGeneration(transformers.T5ForConditionalGeneration):  # type: ignore[misc]
    """A T5 that interprets two-dimensional masks as segment ids: 1, 2, … for the examples of a row, 0 for padding.

    A mask of zeros and ones means one example. The class has the name of the plain class, which config.json stores.

    Relative positions need no change: they count from key to query, and the mask leaves only pairs of one segment,
    whose distance in a row is the same as without packing.
    """

    accepts_loss_kwargs = False
    """False, because otherwise Trainer infers from **options that forward divides by num_items_in_batch."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        prompt_slots: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        **options: Any,
    ) -> Seq2SeqLMOutput:
        """Runs upstream's forward, after preparing the masks of packed rows.

        Packed rows have a decoder_attention_mask and no encoder_outputs. generate() passes encoder_outputs, and
        evaluation passes no decoder_attention_mask; both calls are forwarded unchanged.

        Args:
            input_ids: (batch, source_len)
            attention_mask: Segment ids (batch, source_len); with a soft prompt, preceded by ones from PEFT.
            decoder_input_ids: (batch, target_len); every segment starts with decoder_start_token_id.
            decoder_attention_mask: Segment ids (batch, target_len)
            labels: (batch, target_len)
            inputs_embeds: With a soft prompt, PEFT's (batch, virtual_tokens + source_len, width), virtual tokens first.
            prompt_slots: (batch, source_len) index of the virtual token of each position, NO_SLOT for a word.
            encoder_outputs: As upstream.
            **options: As upstream.

        Raises:
            ValueError: If a packed row has no decoder_input_ids or no attention_mask.
        """
        if decoder_attention_mask is not None and encoder_outputs is None:
            if decoder_input_ids is None or attention_mask is None:
                raise ValueError(
                    "packed rows require attention_mask and decoder_input_ids, because shifted labels mix segments"
                )
            embeddings = self.encoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            source, target = attention_mask, decoder_attention_mask
            if prompt_slots is not None:
                embeddings = _spread_prompt(embeddings, prompt_slots)
                source = source[:, -prompt_slots.shape[1] :]
            encoder_outputs = BaseModelOutput(self._encode(embeddings, same_segment(source, embeddings.dtype)))
            input_ids = inputs_embeds = None
            # A padding target attends to everything, because a row of only -inf is NaN under autocast.
            crossing = (target[:, :, None] == source[:, None, :]) | (target == 0)[:, :, None]
            attention_mask = crossing.to(embeddings.dtype)  # upstream makes 3-D zeros and ones additive
            decoder_attention_mask = same_segment(target, embeddings.dtype, causal=True)  # and keeps 4-D
            options["use_cache"] = False
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            labels=labels,
            inputs_embeds=inputs_embeds,
            encoder_outputs=encoder_outputs,
            **options,
        )

    def _encode(self, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Does the work of T5Stack.forward for an encoder, because T5Stack accepts only two-dimensional masks.

        Args:
            embeddings: (batch, source_len, width)
            mask: (batch, 1, source_len, source_len), additive.

        Returns:
            (batch, source_len, width)
        """
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)
        hidden, bias = self.encoder.dropout(embeddings), None
        for block in self.encoder.block:
            # The first block adds the mask to the bias of relative positions and returns the sum.
            hidden, bias = block(hidden, mask, bias, cache_position=positions)[:2]
        encoded: torch.Tensor = self.encoder.dropout(self.encoder.final_layer_norm(hidden))
        return encoded


def same_segment(segments: torch.Tensor, dtype: torch.dtype, *, causal: bool = False) -> torch.Tensor:
    """An additive mask for pairs of one segment; padding attends to padding, so that every position attends to some.

    Args:
        segments: (batch, length)
        dtype: The data type of the mask.
        causal: Whether to mask later positions.

    Returns:
        (batch, 1, length, length)
    """
    keep = segments[:, :, None] == segments[:, None, :]
    keep = keep.tril() if causal else keep
    mask = torch.zeros(keep.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill(~keep, torch.finfo(dtype).min)[:, None]


def _spread_prompt(embeddings: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Copies the soft prompt, which PEFT put once before the row, before every segment.

    Args:
        embeddings: (batch, virtual_tokens + source_len, width)
        slots: (batch, source_len)

    Returns:
        (batch, source_len, width)
    """
    length = slots.shape[1]
    prompt, words = embeddings[:, :-length], embeddings[:, -length:]
    vectors = prompt.gather(1, slots.clamp(min=0)[..., None].expand_as(words))
    return torch.where((slots == NO_SLOT)[..., None], words, vectors)
