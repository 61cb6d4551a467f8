"""The products of a few rows and a weight: their definition in torch, and the kernel in a compiled graph."""

from pathlib import Path

import pytest
import torch
from artifacts import kernel_source
from torch import Tensor, nn

from compile.targets import few_rows, few_rows_kernel
from compile.targets.cpu import INDUCTOR
from neuron_sum.artifact import Dtype
from neuron_sum.platform import cpu


class Products(nn.Module):
    """Products of several numbers of rows between other operations, which Inductor may not fuse into them."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """Inputs (rows, in) -> (rows, out)."""
        return [few_rows.multiply(rows * 2, self.weight).abs() for rows in inputs]


@pytest.mark.parametrize("width", [1, 63, 64, 200])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_definition_in_int8_is_close_to_the_product_of_floats(rows: int, width: int) -> None:
    """The error is at most half a quantum of each value: 1 / 254 of the largest of its block."""
    torch.manual_seed(0)
    inputs, weight = torch.randn(rows, width), torch.randint(-127, 128, (40, width), dtype=torch.int8)
    inputs[:, : width // 2] *= 1000  # blocks of one row have separate scales
    blocks = torch.split(inputs, few_rows.BLOCK if rows == 1 else width, dim=1)
    quantum = torch.cat([block.abs().amax(1, keepdim=True).expand_as(block) for block in blocks], dim=1) / 127
    error = (few_rows.multiply(inputs, weight) - inputs @ weight.float().T).abs()
    bound = quantum / 2 @ weight.float().abs().T
    assert bool((error <= bound * 1.001 + 1e-2).all())
    assert few_rows.multiply(torch.zeros(rows, width), weight).abs().max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "bf16"])
@pytest.mark.parametrize(("outputs", "width"), [(64, 128), (37, 77)])
def test_the_kernel_computes_the_definition(tmp_path: Path, dtype: Dtype, outputs: int, width: int) -> None:
    if lacking := cpu.missing(dtype):
        pytest.skip(f"this CPU has no {lacking}")
    torch.manual_seed(0)
    few_rows_kernel.register()
    inputs = tuple(torch.randn(rows, width) for rows in (1, 2, 3, 8, 11, 16))
    weight = torch.randint(-127, 128, (outputs, width)).to(torch.int8 if dtype == "int8" else torch.bfloat16)
    products = Products(weight)
    with torch.no_grad():
        exported = torch.export.export(products, inputs, strict=False)
        path = str(tmp_path / "products.pt2")
        torch._inductor.aoti_compile_and_package(exported, package_path=path, inductor_configs=INDUCTOR)
        assert kernel_source(Path(path)).count("neuron_sum::multiply<") == len(inputs)
        graph = torch._inductor.aoti_load_package(path)
        for changed in (weight, torch.full_like(weight, 127), torch.full_like(weight, -127)):
            products.weight.data = changed
            graph.load_constants({"weight": products.weight}, check_full_update=True, user_managed=True)
            for actual, expected in zip(graph(*inputs), products(*inputs), strict=True):
                assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-5
        for value in (torch.nan, torch.inf):
            for rows in inputs:
                rows[-1, 5] = value
            for actual in graph(*inputs):
                assert not actual[-1].isfinite().any()
                assert actual[:-1].isfinite().all()


def test_many_or_wide_rows_and_other_cpus_have_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "flags", lambda: {"avx512_vnni", "avx512_bf16"})
    assert few_rows.are_faster(16, 1024, torch.int8)
    assert few_rows.are_faster(8, 768, torch.bfloat16)
    assert not few_rows.are_faster(17, 64, torch.int8)
    assert not few_rows.are_faster(8, 769, torch.bfloat16)
    assert not few_rows.are_faster(8, 64, torch.float32)
    monkeypatch.setattr(cpu, "flags", lambda: {"avx512_vnni"})
    assert not few_rows.are_faster(1, 64, torch.bfloat16)
