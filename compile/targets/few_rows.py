"""The products of a few rows and a weight in bf16 or int8; few_rows_kernel.py compiles them."""

import torch
from torch import Tensor
from torch.nn import functional

from neuron_sum.platform import cpu

BLOCK = 64
"""Values of a single int8 row per scale: those in a register of AVX-512. Several rows have one scale each."""
INT8_MAX = 127
MOST = 16
"""The largest number of rows."""
KERNELS = {torch.int8: ("avx512_vnni", 16 << 10), torch.bfloat16: ("avx512_bf16", 12 << 10)}
"""The kernel's instructions, and the largest size of the rows in bytes, by the weight's dtype; beyond these limits,
oneDNN is faster."""


def are_faster(rows: int, width: int, dtype: torch.dtype) -> bool:
    """Whether the kernel is faster than oneDNN on this CPU, for rows of this width and a weight of this dtype."""
    if dtype not in KERNELS:
        return False
    flag, most_bytes = KERNELS[dtype]
    return flag in cpu.flags() and rows <= MOST and rows * width * dtype.itemsize <= most_bytes


@torch.library.custom_op("neuron_sum::few_rows", mutates_args=())
def multiply(rows: Tensor, weight: Tensor) -> Tensor:
    """The definition of the kernel in plain torch.

    Args:
        rows: (rows, in), float32; rounded to the weight's dtype, for int8 after the division by a scale.
        weight: (out, in), bf16 or int8.

    Returns:
        (rows, out), float32.
    """
    rounded = _quantised(rows) if weight.dtype == torch.int8 else rows.to(weight.dtype).float()
    return rounded @ weight.float().T


@multiply.register_fake
def _shape(rows: Tensor, weight: Tensor) -> Tensor:
    return rows.new_empty(len(rows), len(weight))


def _quantised(rows: Tensor) -> Tensor:
    """The rows with int8 values, times the scales of their blocks."""
    count, width = rows.shape
    block = BLOCK if count == 1 else width
    blocks = functional.pad(rows, (0, -width % block)).view(count, -1, block)
    largest = blocks.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8)
    quantised = torch.round(blocks * (INT8_MAX / largest)) * (largest / INT8_MAX)
    return quantised.view(count, -1)[:, :width]
