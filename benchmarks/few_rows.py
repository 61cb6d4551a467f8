"""Cost of the product of a few rows and a weight: oneDNN with a packed weight, compared with the plain one in a graph.

    python benchmarks/few_rows.py [--rows 1,4,8] [--out 4096] [--in 768]

Uses many copies of a weight in turn, as many bytes as a step of FLAN-T5-base reads, so that they do not fit into a
cache; one thread; medians of process CPU time. Cases in which the graph also uses oneDNN are left out. Also prints the
memory read rate with small and with huge pages.
"""

import argparse
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn

from compile.graphs.layers import GraphOptions, Linear
from compile.graphs.static import as_tensor
from compile.targets import few_rows, few_rows_kernel
from compile.targets.cpu import INDUCTOR, LINEARS
from neuron_sum.artifact import Dtype
from neuron_sum.platform import cpu
from neuron_sum.runtimes.weights import SharedWeights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
READ_BYTES = 150_000_000
ROUNDS = 7


class Product(nn.Module):
    """One projection without adapters."""

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (rows, in) -> (rows, out)."""
        return self.layer.product(inputs).float()


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,4,8", help="numbers of rows")
    parser.add_argument("--out", type=int, default=4096, help="number of output features")
    parser.add_argument("--in", type=int, default=768, dest="width", help="number of input features")
    options = parser.parse_args()
    torch.set_num_threads(1)
    few_rows_kernel.register()
    console = Console()
    console.print(f"{cpu.name()}, torch {torch.__version__}")
    size = options.out, options.width
    table = Table("rows", "dtype", "oneDNN µs", "in a graph µs", "ratio", title=f"a few rows, {size[0]} x {size[1]}")
    for rows in map(int, options.rows.split(",")):
        for dtype in LINEARS:
            if cpu.missing(dtype) is None and (rows == 1 or few_rows.are_faster(rows, size[1], DTYPES[dtype])):
                both = _onednn_us(dtype, rows, *size), _compiled_us(dtype, rows, *size)
                table.add_row(str(rows), dtype, *(f"{value:.0f}" for value in both), f"{both[0] / both[1]:.2f}")
    console.print(table)
    pages = Table("pages", "GB/s read", title="256 MB read in order")
    for name, huge in (("small", False), ("huge", True)):
        pages.add_row(name, f"{_read_rate(huge):.1f}")
    console.print(pages)


def _weights(dtype: Dtype, out: int, width: int) -> tuple[Linear, dict[str, Tensor]]:
    layer = LINEARS[dtype](
        {"one": out}, width, GraphOptions(dtype=torch.float32 if dtype == "fp32" else torch.bfloat16)
    )
    return layer, layer.weights({"one.weight": torch.randn(out, width)})


def _copies(weight: Tensor) -> int:
    return max(1, READ_BYTES // (weight.numel() * weight.element_size()))


def _onednn_us(dtype: Dtype, rows: int, out: int, width: int) -> float:
    _, stored = _weights(dtype, out, width)
    pack = torch.ops.onednn.qlinear_prepack if dtype == "int8" else torch.ops.mkldnn._reorder_linear_weight
    weights = [pack(stored["weight"].clone(), None) for _ in range(_copies(stored["weight"]))]
    if dtype != "int8":
        inputs = torch.randn(rows, width).to(stored["weight"].dtype)
        products = [lambda w=w: torch.ops.mkldnn._linear_pointwise(inputs, w, None, "none", [], "") for w in weights]
        return _median_us(products)
    quantised, unit = torch.randint(0, 255, (rows, width), dtype=torch.uint8), torch.ones(1)
    point, zero = torch.full((1,), 128, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    rest = (stored["scale"], zero, None, 1.0, 0, torch.float32, "none", [], "")
    return _median_us(
        [lambda w=w: torch.ops.onednn.qlinear_pointwise.tensor(quantised, unit, point, w, *rest) for w in weights]
    )


def _compiled_us(dtype: Dtype, rows: int, out: int, width: int) -> float:
    layer, stored = _weights(dtype, out, width)
    inputs = torch.randn(rows, width)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        exported = torch.export.export(Product(layer), (inputs,), strict=False)
        path = torch._inductor.aoti_compile_and_package(
            exported, package_path=str(folder / "product.pt2"), inductor_configs=INDUCTOR
        )
        graphs = []
        for copy in range(_copies(stored["weight"])):
            graph, file = torch._inductor.aoti_load_package(path), folder / f"{copy}.safetensors"
            save_file(stored, file)  # files, because a mapped one has the same memory in every copy
            tensors = SharedWeights(file, {}, {}).get(fqn.removeprefix("layer.") for fqn in graph.get_constant_fqns())
            constants = {f"layer.{name}": as_tensor(np.asarray(tensor)) for name, tensor in tensors.items()}
            graph.load_constants(constants, check_full_update=True, user_managed=True)
            graphs.append((graph, tensors))
        return _median_us([lambda g=graph: g(inputs) for graph, _ in graphs])


def _median_us(products: Sequence[Callable[[], object]]) -> float:
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for product in products:
            product()
        rounds.append((time.process_time() - started) / len(products) * 1e6)
    return statistics.median(rounds[1:])


def _read_rate(huge: bool) -> float:
    block = mmap.mmap(-1, 256 << 20)
    block.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    tensor = torch.frombuffer(block, dtype=torch.float32).fill_(1.0)
    seconds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        tensor.sum()
        seconds.append(time.process_time() - started)
    return tensor.numel() * 4 / statistics.median(seconds[1:]) / 1e9


if __name__ == "__main__":
    main()
