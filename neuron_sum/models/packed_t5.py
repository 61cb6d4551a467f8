"""A T5 that takes several examples in one row, each of which sees itself alone.

The weights, their names and the class's name are transformers' own, so that a checkpoint knows nothing of packing and
is loaded by the plain class. Written against transformers 4.57: what its T5 takes as masks differs by place.
"""

from typing import Any

import torch
import transformers
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

NO_SLOT = -1
"""In prompt_slots: a word, not a vector of the soft prompt."""


class T5ForConditionalGeneration(transformers.T5ForConditionalGeneration):  # type: ignore[misc]
    """Reads its two-dimensional masks as segment ids: 1, 2, … for the examples of a row, 0 for padding.

    A mask of zeros and ones is the case of one example. The name is the plain class's, for it is saved in config.json.

    Relative positions need no change: they count from key to query, and the mask leaves only pairs of one segment, as
    far apart in a row as they would be alone.
    """

    accepts_loss_kwargs = False
    """Else Trainer takes **options for a sign that forward divides by num_items_in_batch, and does not itself."""

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
        """As upstream's, but for packed rows, which are known by a decoder_attention_mask and no encoder_outputs.

        generate() gives encoder_outputs and evaluation no decoder_attention_mask: both go upstream untouched.

        Args:
            input_ids: (batch, source_len)
            attention_mask: Segment ids (batch, source_len); with a soft prompt, PEFT has put its ones before them.
            decoder_input_ids: (batch, target_len); every segment begins with decoder_start_token_id.
            decoder_attention_mask: Segment ids (batch, target_len)
            labels: (batch, target_len)
            inputs_embeds: With a soft prompt, from PEFT: (batch, virtual_tokens + source_len, width), its own first.
            prompt_slots: (batch, source_len) which of those vectors belongs there, NO_SLOT for a word.
            encoder_outputs: As upstream.
            **options: As upstream.

        Raises:
            ValueError: If a packed row comes without decoder_input_ids.
        """
        if decoder_attention_mask is not None and encoder_outputs is None:
            if decoder_input_ids is None or attention_mask is None:
                raise ValueError("packed rows need attention_mask and decoder_input_ids: shifted labels mix segments")
            embeddings = self.encoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            source, target = attention_mask, decoder_attention_mask
            if prompt_slots is not None:
                embeddings = _spread_prompt(embeddings, prompt_slots)
                source = source[:, -prompt_slots.shape[1] :]
            encoder_outputs = BaseModelOutput(self._encode(embeddings, same_segment(source, embeddings.dtype)))
            input_ids = inputs_embeds = None
            # A padding target sees everything, as it would see nothing else: all -inf is NaN under autocast.
            crossing = (target[:, :, None] == source[:, None, :]) | (target == 0)[:, :, None]
            attention_mask = crossing.to(embeddings.dtype)  # upstream turns 3-D zeros and ones into an additive mask
            decoder_attention_mask = same_segment(target, embeddings.dtype, causal=True)  # and takes 4-D as it is
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
        """What T5Stack.forward does for an encoder, which itself takes no mask but a two-dimensional one.

        Args:
            embeddings: (batch, source_len, width)
            mask: (batch, 1, source_len, source_len), additive.

        Returns:
            (batch, source_len, width)
        """
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)
        hidden, bias = self.encoder.dropout(embeddings), None
        for block in self.encoder.block:
            # The first block adds the mask to the relative positions' bias and hands both on.
            hidden, bias = block(hidden, mask, bias, cache_position=positions)[:2]
        encoded: torch.Tensor = self.encoder.dropout(self.encoder.final_layer_norm(hidden))
        return encoded


def same_segment(segments: torch.Tensor, dtype: torch.dtype, *, causal: bool = False) -> torch.Tensor:
    """An additive mask that leaves the pairs of one segment; padding attends to padding, so none attends to nothing.

    Args:
        segments: (batch, length)
        dtype: Of the mask.
        causal: Leave no later position.

    Returns:
        (batch, 1, length, length)
    """
    keep = segments[:, :, None] == segments[:, None, :]
    keep = keep.tril() if causal else keep
    mask = torch.zeros(keep.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill(~keep, torch.finfo(dtype).min)[:, None]


def _spread_prompt(embeddings: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Puts the soft prompt before every segment, where PEFT has put it once before the row.

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
