"""The product of one row and an int8 weight, with the row quantised in blocks; row_kernel.py compiles it."""

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 64
"""Values of the row per scale: the int8 values in a register of AVX-512."""
INT8_MAX = 127


def multiply(row: Tensor, weight: Tensor) -> Tensor:
    """The product of a row, which is quantised at run time, and an int8 weight.

    Args:
        row: (in,), float32.
        weight: (out, in), int8.

    Returns:
        (out,), float32.
    """
    blocks = functional.pad(row, (0, -len(row) % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8)
    quantised = torch.round(blocks * (INT8_MAX / largest)).to(torch.int8)
    product: Tensor = int8_row(quantised.flatten(), largest.flatten() / INT8_MAX, weight)
    return product


@torch.library.custom_op("neuron_sum::int8_row", mutates_args=())
def int8_row(row: Tensor, scales: Tensor, weight: Tensor) -> Tensor:
    """The definition of the kernel in plain torch.

    Args:
        row: (blocks * BLOCK,), int8, with zeros after the width of the weight.
        scales: (blocks,), float32.
        weight: (out, in), int8.

    Returns:
        (out,), float32.
    """
    values = row.float().view(-1, BLOCK) * scales[:, None]
    return weight.float() @ values.flatten()[: weight.shape[1]]


@int8_row.register_fake
def _shape(row: Tensor, scales: Tensor, weight: Tensor) -> Tensor:
    return scales.new_empty(weight.shape[0])
