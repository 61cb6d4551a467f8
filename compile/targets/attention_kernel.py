"""The kernel of `few_queries.few_queries` (attention_kernel.h), for a CPU with AVX-512.

Each query reads every key and value once, so a matrix product has nothing to reuse but the few queries of a head;
oneDNN's products and Inductor's sums are several times slower than this loop (docs/performance.md). Blocks of 16
positions that are all masked, such as padding and later steps, are not read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compile.targets import cpp_kernel
from compile.targets.few_queries import UNREAD


def register() -> None:
    """Lets Inductor compile `few_queries.few_queries` with this kernel instead of calling its Python function."""
    header = Path(__file__).with_suffix(".h").read_text(encoding="utf-8")
    operator = torch.ops.neuron_sum.few_queries.default
    cpp_kernel.register(operator, header, _call, lambda inputs: inputs["query"].get_size())


def _call(inputs: Mapping[str, Any]) -> str:
    lengths = [int(tensor.get_size()[2]) for name, tensor in inputs.items() if name.startswith("keys")]
    memories = []
    for index, length in enumerate(lengths):
        bias = inputs[f"biases{index}"]
        steps = [0 if size == 1 else int(step) for size, step in zip(bias.get_size(), bias.get_stride(), strict=True)]
        memories.append(f"{{keys{index}, values{index}, biases{index}, {length}, {steps[0]}, {steps[1]}, {steps[2]}}}")
    type_ = "float" if inputs["keys0"].get_dtype() == torch.float32 else "at::BFloat16"
    blocks = sum(-(-length // 16) for length in lengths)
    numbers = ", ".join(map(str, (*inputs["query"].get_size(), blocks)))
    return f"""
    const neuron_sum::Memory<{type_}> memories[] = {{{", ".join(memories)}}};
    neuron_sum::attend<{type_}, {numbers}>(query, memories, {UNREAD}f, result);
"""
