"""The K/V cache of the static graphs: how a step writes its keys and values, and which of them a beam reads.

Letters in shapes as in layers.py: B examples, K beams, T target positions, H heads, D width of a head.
"""

import torch
from torch import Tensor

MASKED = -1e9
"""Added to a masked score, whose weight is then exactly 0 after the float32 softmax."""


def write_column(cache: Tensor, column: Tensor, position: Tensor) -> Tensor:
    """Writes the newest key or value of the K beams of every example in place.

    Args:
        cache: (B or more, H, T * K, D); position t * K + k contains the column that beam row k wrote at step t.
            Rows behind those of the batch keep their values.
        column: (B, H, K, D).
        position: (B,) int64, the step of every example.

    Returns:
        The cache.
    """
    batch, heads, beams, _ = column.shape
    example = torch.arange(batch, device=cache.device)[:, None, None]
    head = torch.arange(heads, device=cache.device)[None, :, None]
    rows = _written(position, beams)[:, None]
    return cache.index_put_((example, head, rows), column.to(cache.dtype))


def write_where(cache: Tensor, column: Tensor, position: Tensor) -> Tensor:
    """`write_column` as a choice between old and new for each position; returns a new cache, for some compilers."""
    batch, heads, beams, width = column.shape
    rows, slots = first_rows(cache, batch), cache.shape[2]
    written = torch.arange(slots // beams, device=cache.device) == position[:, None]
    by_step = rows.view(batch, heads, -1, beams, width)
    updated = torch.where(written[:, None, :, None, None], column.unsqueeze(2).to(cache.dtype), by_step)
    updated = updated.view(batch, heads, slots, width)
    return updated if len(cache) == batch else torch.cat([updated, cache[batch:]])


def write_scatter(cache: Tensor, column: Tensor, position: Tensor) -> Tensor:
    """`write_column` as torch.scatter, which optimum-neuron 0.4.5 writes a token with; returns a new cache."""
    rows = _written(position, column.shape[2])[:, None, :, None]
    return cache.scatter(2, rows.expand_as(column), column.to(cache.dtype))


def first_rows(tensor: Tensor, count: int) -> Tensor:
    """The first rows, without an operator if they are all rows."""
    return tensor if len(tensor) == count else tensor[:count]


def _written(position: Tensor, beams: int) -> Tensor:
    """(B, K), the cache positions that the beams of every example write at its step."""
    return position[:, None] * beams + torch.arange(beams, device=position.device)


def ancestry_bias(bias: Tensor, ancestors: Tensor) -> Tensor:
    """Masks the positions of the self-attention cache that do not belong to a beam's past.

    Reordering beams does not move keys and values: the table has the row that wrote the past of each beam and step.

    Args:
        bias: (B or 1, H or 1, 1, T), float32, with future steps masked.
        ancestors: (B, K, T) int64.

    Returns:
        (B, H or 1, K, T * K), or the bias itself for one beam.
    """
    batch, beams, target_len = ancestors.shape
    if beams == 1:
        return bias
    is_past = ancestors.unsqueeze(-1) == torch.arange(beams, device=bias.device)
    expanded = bias.unsqueeze(-1).expand(batch, bias.shape[1], beams, target_len, beams)
    return torch.where(is_past.unsqueeze(1), expanded, MASKED).reshape(batch, bias.shape[1], beams, target_len * beams)
