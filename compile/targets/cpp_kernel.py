"""C++ kernels of operators, which AOTInductor compiles into a graph's package."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch._inductor.lowering  # the templates cannot be imported before it
from torch._inductor import ir
from torch._inductor.codegen.cpp import get_export_declaration
from torch._inductor.codegen.cpp_template import CppTemplate
from torch._inductor.lowering import register_lowering


def register(
    operator: Any,
    header: str,
    call: Callable[[Any, Mapping[str, Any]], str],
    size: Callable[[Mapping[str, Any]], list[Any]],
) -> None:
    """Lets Inductor compile an operator with a kernel instead of calling its Python function.

    Args:
        operator: The operator, with tensors and lists of tensors as arguments and one contiguous float32 result.
        header: C++ that the kernel needs, with an include guard.
        call: The C++ statements of the kernel, from Inductor's CppTemplateKernel and the inputs by name; a list's
            tensors are numbered: keys0, keys1, ... The pointers have these names too, and that of the result is
            `result`. Sizes can be dynamic.
        size: The shape of the result, from the inputs.
    """

    def lower(*arguments: Any) -> Any:
        names = [argument.name for argument in operator._schema.arguments]
        inputs: dict[str, Any] = {}
        for name, argument in zip(names, arguments, strict=True):
            several = isinstance(argument, list | tuple)
            tensors = {f"{name}{index}": each for index, each in enumerate(argument)} if several else {name: argument}
            inputs |= {name: _contiguous(tensor) for name, tensor in tensors.items()}
        first = next(iter(inputs.values()))
        layout = ir.FixedLayout(first.get_device(), torch.float32, size(inputs))
        template: Any = _Template(operator._opname, inputs, layout, header, call)
        return template.generate().output_node()

    register_lowering(operator, type_promotion_kind=None)(lower)


class _Template(CppTemplate):
    def __init__(
        self,
        name: str,
        inputs: dict[str, Any],
        layout: ir.Layout,
        source: str,
        call: Callable[[Any, Mapping[str, Any]], str],
    ) -> None:
        super().__init__(name, list(inputs.values()), layout, num_threads=1)
        self.inputs, self.source, self.call = inputs, source, call

    def render(self, **options: Any) -> str:
        """The C++ source; Inductor passes the kernel whose arguments it defines, and later the node of the output."""
        output = options.get("template_buffer_node") or self.output_node
        kernel = options["kernel"]
        definition = kernel.def_kernel(inputs=self.inputs, outputs={"result": output})
        return f"""{self.header().getvalue()}
{self.source}
extern "C" {get_export_declaration()} {definition} {{
    {self.call(kernel, self.inputs)}
}}
"""


def _contiguous(tensor: Any) -> Any:
    """The tensor, or a contiguous copy; a kernel gets the address of a buffer, without the offset of a view."""
    kernel: Any = ir.ExternKernel
    tensor = kernel.require_contiguous(kernel.realize_input(tensor))
    return tensor if tensor.get_layout().offset == 0 else kernel.copy_input(tensor)
