"""Attention as one operator, with its definition in torch; attention_kernel.py compiles it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from compile.graphs.kv_cache import MASKED
from compile.graphs.layers import Memory

UNREAD = MASKED / 2
"""Positions with a bias up to this value are not read, and have the weight 0."""


def is_compiled() -> bool:
    """Whether this CPU has the instructions of the kernel."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def attend(query: Tensor, memories: Sequence[Memory]) -> Tensor:
    """See `compile.graphs.layers.GraphOptions.attend`."""
    keys, values, biases = zip(*memories, strict=True)
    mixed: Tensor = attention(query.contiguous(), list(keys), list(values), list(biases))
    return mixed


@torch.library.custom_op("neuron_sum::attention", mutates_args=())
def attention(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """The definition of the kernel in plain torch.

    Args:
        query: (B, H, Q, D), float32.
        keys: For each memory (B, H, length, D), float32 or bfloat16.
        values: Like `keys`.
        biases: For each memory (B or 1, H or 1, rows, length), float32; Q is a multiple of the rows, which repeat.
            See `UNREAD`.

    Returns:
        (B, H, Q, D), float32; zeros for a query whose positions are all masked.
    """
    batch, heads, queries, _ = query.shape
    bias = torch.cat(
        [each.expand(batch, heads, -1, -1).repeat(1, 1, queries // each.shape[2], 1) for each in biases], dim=-1
    )
    scores = query @ torch.cat(list(keys), dim=2).float().transpose(-1, -2) + bias
    weights = torch.softmax(scores, dim=-1).masked_fill(bias <= UNREAD, 0.0)
    return weights @ torch.cat(list(values), dim=2).float()


@attention.register_fake
def _shape(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    return torch.empty_like(query)
