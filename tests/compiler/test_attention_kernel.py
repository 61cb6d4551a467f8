"""Attention: its definition in torch, and the kernel in a compiled graph."""

from pathlib import Path

import pytest
import torch
from artifacts import kernel_source
from torch import Tensor, nn

from compile.graphs.kv_cache import MASKED
from compile.graphs.layers import GraphOptions, Memory, attend
from compile.targets import attention, attention_kernel
from compile.targets.cpu import INDUCTOR

WIDTH = 64


class Attention(nn.Module):
    """Attention between other operations, over one memory or two."""

    def __init__(self, options: GraphOptions) -> None:
        super().__init__()
        self.options = options

    def forward(self, query: Tensor, *memories: Tensor) -> Tensor:
        """Query (B, H, Q, D); for each memory keys, values and bias."""
        triples = [(memories[at], memories[at + 1], memories[at + 2] * 1) for at in range(0, len(memories), 3)]
        return attend(query * 2, triples, self.options, WIDTH**-0.5) + 1


def memory(length: int, bias: tuple[int, ...], dtype: torch.dtype, *, masked: float = 0.3) -> Memory:
    """Keys and values of 2 examples with 3 heads; a part of the positions is masked, and the first is not."""
    keys, values = (torch.randn(2, 3, length, WIDTH).to(dtype) for _ in range(2))
    biases = torch.where(torch.rand(*bias, length) < masked, MASKED, torch.randn(*bias, length))
    biases[..., 0] = 0.5
    return keys, values, biases


def error(result: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((result - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("queries", [1, 5])
def test_the_definition_is_attention(queries: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 3, queries, WIDTH)
    memories = [memory(17, (2, 1, 1), torch.float32), memory(40, (1, 3, queries), torch.float32)]
    assert error(attention.attend(query, memories), attend(query, memories, GraphOptions())) < 1e-5


def test_a_query_whose_positions_are_masked_has_zeros() -> None:
    query = torch.randn(2, 3, 2, WIDTH)
    keys, values, bias = memory(17, (2, 1, 2), torch.float32)
    bias[1, 0, 1] = MASKED
    result = attention.attend(query, [(keys, values, bias)])
    assert result[1, :, 1].abs().max() == 0
    assert bool((result[1, :, 0] != 0).all())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "pairs", "queries", "lengths", "biases"),
    [
        pytest.param(torch.float32, True, 3, [33, 7], [(2, 1, 1), (2, 3, 3)], id="fp32, two memories"),
        pytest.param(torch.bfloat16, True, 9, [5, 64], [(1, 1, 1), (2, 1, 3)], id="bf16, two memories"),
        pytest.param(torch.bfloat16, True, 38, [19], [(2, 1, 19)], id="bf16, a prompt"),
        pytest.param(torch.bfloat16, False, 38, [19], [(2, 1, 19)], id="bf16 without its instructions"),
    ],
)
def test_the_kernel_computes_the_definition(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    pairs: bool,
    queries: int,
    lengths: list[int],
    biases: list[tuple[int, ...]],
) -> None:
    if not attention.is_compiled():
        pytest.skip("this CPU lacks the instructions")
    if not pairs:
        header = attention_kernel.HEADER.replace("#ifdef __AVX512BF16__", "#if false")
        assert header != attention_kernel.HEADER
        monkeypatch.setattr(attention_kernel, "HEADER", header)
    torch.manual_seed(0)
    attention_kernel.register()
    module, compiled = Attention(GraphOptions(attend=attention.attend)), None
    for masked in (0.0, 0.3, 0.97):  # whole blocks of 16 positions are masked in the last
        memories = [memory(length, bias, dtype, masked=masked) for length, bias in zip(lengths, biases, strict=True)]
        if masked > 0.9:  # the positions of an example without a prompt
            for _, _, bias in memories:
                bias[-1] = MASKED
        inputs = torch.randn(2, 3, queries, WIDTH), *(tensor for each in memories for tensor in each)
        with torch.no_grad():
            if compiled is None:
                exported = torch.export.export(module, inputs, strict=False)
                path = str(tmp_path / "attention.pt2")
                torch._inductor.aoti_compile_and_package(exported, package_path=path, inductor_configs=INDUCTOR)
                assert "neuron_sum::attend<" in kernel_source(Path(path))
                compiled = torch._inductor.aoti_load_package(path)
            assert error(compiled(*inputs), module(*inputs)) < (1e-5 if dtype == torch.float32 else 0.02)
