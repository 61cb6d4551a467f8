"""The kernel of `one_row.int8_row` in AVX-512 VNNI instructions, which AOTInductor compiles into a graph's package.

For one row the weight is read once, so memory limits the speed. Inductor widens int8 to float32, 16 values per
instruction, and reaches half of the memory's rate; VNNI multiplies 64 int8 values per instruction and reaches all of
it, if it reads one output after another (docs/performance.md).
"""

from typing import Any

import torch
import torch._inductor.lowering  # the templates cannot be imported before it
from torch._inductor import ir
from torch._inductor.codegen.cpp import get_export_declaration
from torch._inductor.codegen.cpp_template import CppTemplate
from torch._inductor.lowering import register_lowering

from compile.targets.one_row import BLOCK

KERNEL = """
#include <immintrin.h>
extern "C" {export}
{definition}
{{
    // dpbusd multiplies unsigned with signed values: a weight w is read as w + 128, and 128 times the row subtracted.
    constexpr int64_t outputs = {outputs}, width = {width}, blocks = (width + {block} - 1) / {block};
    constexpr __mmask64 all = ~0ull, rest = all >> (blocks * {block} - width);
    const __m512i flip = _mm512_set1_epi8(-128);
    const auto add = [&](__m512 sums, __m512i weights, int64_t block) {{
        const auto values = _mm512_loadu_si512(row + block * {block});
        const auto products = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), weights, values));
        return _mm512_fmadd_ps(products, _mm512_set1_ps(scales[block]), sums);
    }};
    __m512 offset = _mm512_setzero_ps();
    for (int64_t block = 0; block < blocks; block++) offset = add(offset, flip, block);
    #pragma omp parallel for
    for (int64_t output = 0; output < outputs; output++) {{
        __m512 sums = _mm512_setzero_ps();
        for (int64_t block = 0; block < blocks; block++) {{
            const auto mask = block + 1 < blocks ? all : rest;
            const auto weights = _mm512_maskz_loadu_epi8(mask, weight + output * width + block * {block});
            sums = add(sums, _mm512_xor_si512(weights, flip), block);
        }}
        result[output] = _mm512_reduce_add_ps(_mm512_sub_ps(sums, offset));
    }}
}}
"""


def register() -> None:
    """Lets Inductor compile `one_row.int8_row` with this kernel instead of calling its Python function."""
    register_lowering(torch.ops.neuron_sum.int8_row.default, type_promotion_kind=None)(_lower)


class _Template(CppTemplate):
    """The kernel for the shapes of one product."""

    def render(self, **options: Any) -> str:
        """The C++ source; Inductor passes the kernel whose arguments it defines, and later the node of the output."""
        inputs: dict[str, Any] = dict(zip(("row", "scales", "weight"), self.input_nodes, strict=True))
        outputs, width = map(int, inputs["weight"].get_size())
        output = options.get("template_buffer_node") or self.output_node
        definition = options["kernel"].def_kernel(inputs=inputs, outputs={"result": output})
        header: str = self.header().getvalue()
        return header + KERNEL.format(
            export=get_export_declaration(), definition=definition, outputs=outputs, width=width, block=BLOCK
        )


def _lower(*inputs: Any) -> Any:
    kernel: Any = ir.ExternKernel
    contiguous = [kernel.require_contiguous(kernel.realize_input(each)) for each in inputs]
    _, scales, weight = contiguous
    layout = ir.FixedLayout(scales.get_device(), torch.float32, weight.get_size()[:1])
    template: Any = _Template("int8_row", contiguous, layout, num_threads=1)
    return template.generate().output_node()
