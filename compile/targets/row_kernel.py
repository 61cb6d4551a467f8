"""The kernel of `one_row.int8_row` (row_kernel.h), for a CPU with AVX-512 VNNI.

For one row the weight is read once, so memory limits the speed. Inductor widens int8 to float32, 16 values per
instruction, and reaches half of the memory's rate; VNNI multiplies 64 int8 values per instruction and reaches all of
it, if it reads one output after another (docs/performance.md).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compile.targets import cpp_kernel
from compile.targets.one_row import BLOCK


def register() -> None:
    """Lets Inductor compile `one_row.int8_row` with this kernel instead of calling its Python function."""
    header = Path(__file__).with_suffix(".h").read_text(encoding="utf-8")
    operator = torch.ops.neuron_sum.int8_row.default
    cpp_kernel.register(operator, header, _call, lambda inputs: inputs["weight"].get_size()[:1])


def _call(kernel: Any, inputs: Mapping[str, Any]) -> str:
    outputs, width = (kernel.size(inputs["weight"], dim) for dim in range(2))
    return f"neuron_sum::multiply_row<{outputs}, {width}, {BLOCK}>(row, scales, weight, result);"
