"""Attention of decoder-only models for bf16 training on a CPU.

torch 2.8's fused attention takes 1.4 to 2.8 times as long in bf16 as matrix products that the backward pass computes
again (docs/training.md). Their scores are rounded to bf16, as in transformers' eager attention.
"""

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import eager_mask

NAME = "recomputed_products"


def recompute_attention(model: PreTrainedModel) -> None:
    """Makes a model compute attention as matrix products, of which only the inputs are kept for the backward pass.

    Args:
        model: A decoder-only model.
    """
    model.set_attn_implementation(NAME)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls.

    Args:
        module: The attention layer.
        query: (batch, heads, length, head_dim).
        key: (batch, key_value_heads, length, head_dim).
        value: As key.
        attention_mask: 0, or the lowest value where a position is hidden, (batch, 1, length, length).
        scaling: The factor of the scores.
        dropout: The share of probabilities that are set to 0.

    Returns:
        (batch, length, heads, head_dim), and no probabilities.
    """
    mask = attention_mask.clamp(min=torch.finfo(torch.bfloat16).min)  # in bf16, the lowest fp32 value is -inf
    query, key = (query * scaling).to(value.dtype), key.to(value.dtype)  # as autocast would

    def products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        key, value = (repeat_kv(each, module.num_key_value_groups) for each in (key, value))
        probabilities = (query @ key.transpose(2, 3)).add_(mask).softmax(-1)
        return torch.nn.functional.dropout(probabilities, dropout) @ value

    result = checkpoint(products, query, key, value, use_reentrant=False, preserve_rng_state=dropout > 0)
    return result.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, eager_mask)
