"""The product of one row and an int8 weight: its definition in torch, and the kernel in a compiled graph."""

from pathlib import Path

import pytest
import torch
from artifacts import kernel_source
from torch import Tensor, nn

from compile.targets import one_row, row_kernel
from compile.targets.cpu import INDUCTOR
from neuron_sum.platform import cpu


class Product(nn.Module):
    """A product between other operations, which Inductor may not fuse into it."""

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        weight = torch.randint(-127, 128, (outputs, width), dtype=torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (in,) -> (out,)."""
        return one_row.multiply(inputs * 2, self.weight).abs()


@pytest.mark.parametrize("width", [1, 63, 64, 200])
def test_the_definition_is_close_to_the_product_of_floats(width: int) -> None:
    """The error is at most half a quantum of each value: 1 / 254 of the largest of its block."""
    torch.manual_seed(0)
    row, weight = torch.randn(width), torch.randint(-127, 128, (40, width), dtype=torch.int8)
    row[: width // 2] *= 1000  # blocks have separate scales
    largest = max(float(block.abs().max()) for block in torch.split(row, one_row.BLOCK))
    error = (one_row.multiply(row, weight) - weight.float() @ row).abs()
    bound = weight.float().abs().sum(1) * largest / 254
    assert bool((error <= bound * 1.001 + 1e-3).all())
    assert one_row.multiply(torch.zeros(width), weight).abs().max() == 0


@pytest.mark.slow
@pytest.mark.parametrize(("outputs", "width"), [(64, 128), (5, 77)])
def test_the_kernel_computes_the_definition(tmp_path: Path, outputs: int, width: int) -> None:
    if lacking := cpu.missing("int8"):
        pytest.skip(f"this CPU has no {lacking}")
    torch.manual_seed(0)
    row_kernel.register()
    product, inputs = Product(outputs, width), torch.randn(width)
    with torch.no_grad():
        exported = torch.export.export(product, (inputs,), strict=False)
        path = str(tmp_path / "product.pt2")
        torch._inductor.aoti_compile_and_package(exported, package_path=path, inductor_configs=INDUCTOR)
        assert "neuron_sum::multiply_row<" in kernel_source(Path(path))
        graph = torch._inductor.aoti_load_package(path)
        for weight in (product.weight, torch.full_like(product.weight, 127), torch.full_like(product.weight, -127)):
            product.weight.data = weight.data
            graph.load_constants({"weight": product.weight}, check_full_update=True, user_managed=True)
            expected = product(inputs)
            assert float((graph(inputs) - expected).abs().max() / expected.abs().max()) < 1e-5
