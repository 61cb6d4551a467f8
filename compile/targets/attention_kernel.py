"""The kernel of `attention.attention` (attention_kernel.h), for a CPU with AVX-512.

It keeps the scores of a few queries at a time instead of all in memory, and does not read blocks of 16 positions that
are all masked: padding, later steps, and of a prompt's attention about half (docs/performance.md).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compile.targets import cpp_kernel
from compile.targets.attention import UNREAD

FOLDER = Path(__file__).parent
HEADER = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("registers.h", "attention_kernel.h"))


def register() -> None:
    """Lets Inductor compile `attention.attention` with this kernel instead of calling its Python function."""
    operator = torch.ops.neuron_sum.attention.default
    cpp_kernel.register(operator, HEADER, _call, lambda inputs: inputs["query"].get_size())


def _call(kernel: Any, inputs: Mapping[str, Any]) -> str:
    query, memories = inputs["query"], []
    for index in range(len(inputs) // 3):
        bias = inputs[f"biases{index}"]
        strides = ["0" if bias.get_size()[dim] == 1 else kernel.stride(bias, dim) for dim in (0, 1)]
        lengths = [kernel.size(inputs[f"keys{index}"], 2), kernel.size(bias, 2), *strides]
        memories.append(f"{{keys{index}, values{index}, biases{index}, {', '.join(lengths)}}}")
    kind = "float" if inputs["keys0"].get_dtype() == torch.float32 else "at::BFloat16"
    batch, heads, queries, width = (kernel.size(query, dim) for dim in range(4))
    return f"""
    const neuron_sum::Memory<{kind}> memories[] = {{{", ".join(memories)}}};
    neuron_sum::attend<{kind}, {width}>(query, memories, {batch}, {heads}, {queries}, {UNREAD}f, result);
"""
