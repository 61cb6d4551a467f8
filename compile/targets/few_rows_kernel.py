"""The kernel of `few_rows.multiply` (few_rows_kernel.h), for a CPU with AVX-512.

It reads the weight once and in order. oneDNN's products, which are made for many rows, took 1.4 times as long with 8
rows (docs/performance.md).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compile.targets import cpp_kernel
from compile.targets.few_rows import BLOCK

FOLDER = Path(__file__).parent
HEADER = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("registers.h", "few_rows_kernel.h"))


def register() -> None:
    """Lets Inductor compile `few_rows.multiply` with this kernel instead of calling its Python function."""
    operator = torch.ops.neuron_sum.few_rows.default
    cpp_kernel.register(
        operator, HEADER, _call, lambda inputs: [inputs["rows"].get_size()[0], inputs["weight"].get_size()[0]]
    )


def _call(kernel: Any, inputs: Mapping[str, Any]) -> str:
    rows = kernel.size(inputs["rows"], 0)
    outputs, width = (kernel.size(inputs["weight"], dim) for dim in range(2))
    is_int8 = inputs["weight"].get_dtype() == torch.int8
    kind = "int8_t" if is_int8 else "at::BFloat16"
    block = BLOCK if is_int8 and inputs["rows"].get_size()[0] == 1 else width
    return f"neuron_sum::multiply<{kind}, {rows}, {width}, {block}>(rows, weight, {outputs}, result);"
