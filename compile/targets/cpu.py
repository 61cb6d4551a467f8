"""The CPU target: AOTInductor packages with matrix products of oneDNN.

Weights are not compiled in: a package depends only on the model's dimensions, so that the next fine-tuned checkpoint of
the same shape needs no compilation.
"""

import functools
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch._inductor.config
import torch._inductor.inductor_prims  # registers inductor_force_stride_order
from torch import Tensor
from transformers import PretrainedConfig

from compile.graphs.kv_cache import write_column
from compile.graphs.layers import Linear, frozen
from compile.graphs.static import EncodeGraph, ShortEncodeGraph, StaticModel, StepGraph, graph_module
from compile.targets import attention, few_rows
from neuron_sum import console
from neuron_sum.artifact import Dtype, GraphFile
from neuron_sum.errors import CompileError, ResourceError
from neuron_sum.platform import cpu
from neuron_sum.recipes.schema import CompileConfig
from neuron_sum.runtimes import aoti, native

INT8_MAX = 127
ZERO_POINT = 128
"""Activations are unsigned: oneDNN's u8 x s8 is several times faster than s8 x s8 on VNNI."""

PROCESS_BYTES = 1.3e9
"""Memory of Python, torch and the C++ compiler for one graph, without the model's size; see docs/compile.md."""

SOURCE_STEP = 32
"""Encode graphs take prompts of each multiple of it: oneDNN prepares its products for every length on its first use."""

INDUCTOR = {
    "aot_inductor.package_constants_in_so": False,  # weights.safetensors holds them, once for all graphs
    "always_keep_tensor_constants": True,  # no literals for small tensors, because another checkpoint has other values
    "epilogue_fusion": False,  # the kernels store their results themselves
    "cpp.vec_isa_ok": True,  # without probes of the C++ compiler, which take 6 s; `check` knows the CPU's instructions
    "cpp.dynamic_threads": True,  # the number of threads of the machine it runs on, not of the one that compiled it
}

CONSTANTS = """
#include <string>
#include <unordered_map>

using Update = int (*)(void*, void*, bool, bool);

extern "C" int load_constants(Update update, void* container, const char** names, void** tensors, size_t count) {
  std::unordered_map<std::string, void*> map;
  for (size_t i = 0; i < count; ++i) map.emplace(names[i], tensors[i]);
  return update(container, &map, false, true);
}
"""
"""Source of a library in each package: it calls AOTInductorModelContainerUpdateUserManagedConstantBuffer, the function
of torch 2.8 that sets constants, which takes a C++ map."""


class FloatLinear(Linear):
    """fp32 or bf16: for a few rows the plain weight, for more oneDNN's product with the packed one.

    For one row in fp32, oneDNN reads a weight at about half the speed of the loop that Inductor writes
    (docs/performance.md). The packed form is created on loading, and only if a graph needs it.
    """

    def make_weight(self) -> None:
        """See `Linear`."""
        super().make_weight()
        self.packed = frozen(torch.empty(self.out_features, self.in_features, dtype=self.dtype))

    def product(self, inputs: Tensor) -> Tensor:
        """See `Linear`."""
        rows = inputs.reshape(-1, self.in_features)
        if few_rows.are_faster(rows.shape[0], self.in_features, self.dtype):
            few: Tensor = few_rows.multiply(rows, self.weight)
            return few.view(*inputs.shape[:-1], -1)
        if rows.shape[0] == 1:
            return (self.weight * _materialized(rows)).sum(-1).view(*inputs.shape[:-1], -1)
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs.to(self.dtype), self.packed, None, "none", [], "")
        return outputs


class Int8Linear(Linear):
    """int8 weights with a scale per output; activations are quantised at run time.

    Weights are symmetric; oneDNN's activations are unsigned around `ZERO_POINT`, with a scale per row.
    """

    scale: Tensor

    def make_weight(self) -> None:
        """See `Linear`. In a graph, the packed weight has the shape that oneDNN's form reports: (in, out)."""
        self.weight = frozen(torch.empty(self.out_features, self.in_features, dtype=torch.int8))
        self.packed = frozen(torch.empty(self.in_features, self.out_features, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(self.out_features))

    def stored(self, weight: Tensor) -> dict[str, Tensor]:
        """See `Linear`."""
        weight = weight.float()
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / INT8_MAX
        return {"weight": torch.round(weight / scale[:, None]).to(torch.int8), "scale": scale}

    def product(self, inputs: Tensor) -> Tensor:
        """See `Linear`."""
        rows = inputs.reshape(-1, self.in_features)
        if few_rows.are_faster(rows.shape[0], self.in_features, torch.int8):
            few: Tensor = few_rows.multiply(rows, self.weight) * self.scale
            return few.view(*inputs.shape[:-1], -1)
        rows = _materialized(rows)
        largest = rows.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8)
        quantised = (torch.round(rows * (INT8_MAX / largest)) + ZERO_POINT).to(torch.uint8)
        unit, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)
        point = torch.full((1,), ZERO_POINT, dtype=torch.int32)
        products: Tensor = torch.ops.onednn.qlinear_pointwise.tensor(
            quantised, unit, point, self.packed, self.scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return (products * (largest / INT8_MAX)).view(*inputs.shape[:-1], self.out_features)


def _materialized(rows: Tensor) -> Tensor:
    """(rows, in), computed once; otherwise Inductor fuses their computation into each use and repeats it."""
    materialized: Tensor = torch.ops.prims.inductor_force_stride_order(rows, [rows.shape[1], 1])
    return materialized


LINEARS: dict[Dtype, type[Linear]] = {"fp32": FloatLinear, "bf16": FloatLinear, "int8": Int8Linear}


@dataclass(frozen=True)
class CpuTarget:
    """See `compile.targets.base.Target`.

    Args:
        settings: The compile section; `check` rejects a dtype that this CPU lacks.
    """

    settings: CompileConfig

    suffix: ClassVar[str] = ".pt2"
    sources: ClassVar[tuple[str, ...]] = (
        "targets/attention.py",
        "targets/attention_kernel.h",
        "targets/attention_kernel.py",
        "targets/cpp_kernel.py",
        "targets/cpu.py",
        "targets/few_rows.py",
        "targets/few_rows_kernel.h",
        "targets/few_rows_kernel.py",
        "targets/registers.h",
    )
    weights_inside: ClassVar[bool] = False
    shares_process: ClassVar[bool] = True

    @classmethod
    def of(cls, settings: CompileConfig) -> "CpuTarget":
        """The target of a recipe, with fp32 as the fallback if it is allowed and needed."""
        if settings.fallback and cpu.missing(settings.dtype):
            console.warn(f"this CPU lacks {cpu.missing(settings.dtype)}: compiling fp32 instead of {settings.dtype}")
            settings = settings.model_copy(update={"dtype": "fp32", "kv_dtype": None})
        return cls(settings)

    def check(self, config: PretrainedConfig) -> None:
        """See `Target`."""
        check_host(self.settings.dtype)

    def graph_options(self) -> dict[str, Any]:
        """See `Target`."""
        attend = attention.attend if attention.is_compiled() else None
        return {"linear": LINEARS[self.settings.dtype], "write": write_column, "attend": attend}

    def identity(self) -> dict[str, Any]:
        """See `Target`."""
        return {"compiler": _known_compiler(), "cpu": sorted(cpu.flags())}

    def manifest(self) -> dict[str, Any]:
        """See `Target`."""
        return {
            "runtime": "aoti",
            "target": "cpu",
            "stack": aoti.stack(),
            "source_step": SOURCE_STEP,
            "cpu_flags": tuple(sorted(cpu.flags())),
        }

    def process_bytes(self, parameters: int) -> float:
        """See `Target`."""
        return PROCESS_BYTES + parameters * 4

    def seconds(self, layers: int, graphs: int) -> float | None:
        """See `Target`; docs/compile.md has the measured times."""
        return 10 + graphs * (6 + 1.3 * layers) if graphs else 0.0

    def memory_advice(self) -> str:
        """See `Target`."""
        return "use --jobs 1, which needs the least memory"

    def first(self, graphs: Sequence[GraphFile]) -> None:
        """See `Target`."""

    def with_layout(self, first: GraphFile, path: Path) -> "CpuTarget":
        """See `Target`."""
        return self

    def compile_graph(
        self, model: StaticModel, graph: GraphFile, weights: Mapping[str, Tensor] | None, path: Path
    ) -> None:
        """See `Target`."""
        # One C++ compiler, because several processes like this one run; before the import, which would start a pool.
        torch._inductor.config.compile_threads = 1
        from compile.targets import attention_kernel, few_rows_kernel  # import most of Inductor

        attention_kernel.register()
        few_rows_kernel.register()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(path.parent / "inductor")
        module: EncodeGraph | StepGraph = graph_module(model, graph)
        lengths: dict[str, Any] | None = None
        if graph.kind == "encode" and graph.source_len > SOURCE_STEP:
            module = ShortEncodeGraph(model, graph.source_len)
            source = {1: torch.export.Dim("source", min=SOURCE_STEP, max=graph.source_len)}
            lengths = {"input_ids": source, "attention_mask": source, "slot": None}
        inputs = module.example_inputs(graph)
        try:
            with torch.no_grad(), _without_cuda():
                exported = torch.export.export(module, inputs, dynamic_shapes=lengths, strict=False)
                torch._inductor.aoti_compile_and_package(exported, package_path=str(path), inductor_configs=INDUCTOR)
            with zipfile.ZipFile(path, "a") as package:
                package.writestr(native.CONSTANTS, _constants_library(path.parent / native.CONSTANTS))
        except (RuntimeError, subprocess.CalledProcessError) as error:
            raise CompileError(f"{graph.file}: {error}") from error


def check_host(dtype: Dtype) -> None:
    """Verifies that this machine can compile and run graphs of a dtype.

    Raises:
        ResourceError: If the CPU lacks the instructions.
        CompileError: If there is no C++ compiler.
    """
    if lacking := cpu.missing(dtype):
        raise ResourceError(
            f"compile.dtype = {dtype} needs a CPU with {lacking}, which {cpu.name()} lacks",
            "use `--set compile.dtype=fp32`, or `--set compile.fallback=true` to compile fp32 on every CPU without it",
        )
    compiler_version()


def compiler_version() -> str:
    """The first line of the C++ compiler's --version.

    Raises:
        CompileError: If there is no C++ compiler.
    """
    command = _command()
    if shutil.which(command) is None:
        raise CompileError(f"no C++ compiler: {command} is not installed", "run `apt-get install g++` (Debian, Ubuntu)")
    return subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


@contextmanager
def _without_cuda() -> Iterator[None]:
    """Link graphs with the library that the runtime loads, without libtorch.so, which Inductor names as well."""
    from torch._inductor import cpp_builder

    def related(*arguments: Any, **options: Any) -> tuple[list[str], list[str], list[str]]:
        include, folders, libraries = original(*arguments, **options)
        return include, folders, [name for name in libraries if name != "torch"]

    original = cpp_builder._get_torch_related_args
    cpp_builder._get_torch_related_args = related
    try:
        yield
    finally:
        cpp_builder._get_torch_related_args = original


def _command() -> str:
    return os.environ.get("CXX", "g++")


def _constants_library(path: Path) -> bytes:
    """The compiled library of `CONSTANTS`, which is compiled into a file that is removed."""
    command = [_command(), "-x", "c++", "-", "-O2", "-shared", "-fPIC", "-o", str(path)]
    subprocess.run(command, input=CONSTANTS.encode(), check=True)
    content = path.read_bytes()
    path.unlink()
    return content


@functools.cache
def _known_compiler() -> str:
    return compiler_version()
