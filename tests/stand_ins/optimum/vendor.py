"""The names of AWS modules that optimum-neuron 0.4.5 needs to export, load and run T5 and Llama, on one CPU core.

torch_neuronx.trace and neuronx-distributed's ModelBuilder create TorchScript with state, as the real ones do, but
with CPU operators. Every layer is complete: sharing between cores is not shown here. Each request for a graph is
written as a line of JSON to the file that NEURON_STAND_IN_CALLS names; NEURON_STAND_IN_FAILS is the compiler's message
if it fails.
"""

import importlib
import os
import types
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from model_builder import ModelBuilder
from torch import Tensor, nn
from torch.nn import functional
from tracing import Traceable, described, record


def fill(module: types.ModuleType) -> None:
    """Gives a module of the table its names."""
    vars(module).update(MODULES.get(module.__name__, {}))
    if module.__name__ in VERSIONS:
        module.__version__ = version(VERSIONS[module.__name__])  # type: ignore[attr-defined]
    if module.__name__ == "torch_neuronx":
        torch.classes.neuron.Runtime = Runtime

    def absent(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if any(f"{other}.".startswith(f"{module.__name__}.{name}.") for other in MODULES):
            return importlib.import_module(f"{module.__name__}.{name}")
        return type(name, (nn.Module,), {})

    module.__getattr__ = absent  # type: ignore[method-assign]


class Runtime:
    """torch.classes.neuron.Runtime: the cores of a process."""

    def initialize(self) -> None:
        record(runtime="initialize", visible=os.environ.get("NEURON_RT_VISIBLE_CORES"))

    def set_default_neuron_cores(self, first: int, count: int) -> None:
        record(runtime="cores", first=first, count=count)


class _Stateful(nn.Module):
    """A function whose aliased parameters receive their outputs; they come first in parameters()."""

    def __init__(self, function: nn.Module, aliases: Mapping[Tensor, int]) -> None:
        super().__init__()
        self.outputs = list(aliases.values())
        self.state = nn.ParameterList(aliases)
        self.function = function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        made = [output.clone() for output in self.function(*inputs)]
        for parameter, output in zip(self.state, self.outputs, strict=True):
            parameter.copy_(made[output])
        return tuple(made)


def trace(
    function: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    compiler_args: str,
    cpu_backend: bool,
    input_output_aliases: Mapping[Tensor, int] | None,
    inline_weights_to_neff: bool,
    compiler_workdir: str | None,
) -> torch.jit.ScriptModule:
    """torch_neuronx.trace, with exactly the arguments of optimum-neuron 0.4.5."""
    aliases = input_output_aliases or {}
    record(
        trace=type(function).__name__,
        compiler_args=compiler_args,
        cpu_backend=cpu_backend,
        inline_weights=inline_weights_to_neff,
        inputs=described(example_inputs),
        aliases=[[index, *described([tensor])[0]] for tensor, index in aliases.items()],
        target=os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE"),
        workdir=compiler_workdir,
    )
    module = _Stateful(function, aliases).eval()
    before = [parameter.detach().clone() for parameter in module.state]
    with torch.no_grad(), Traceable():
        traced = torch.jit.trace(module, example_inputs, check_trace=False, strict=False)
    for parameter, value in zip(module.state, before, strict=True):  # tracing ran it once
        parameter.data.copy_(value)
    return traced


class ParallelLinear(nn.Module):
    """A complete linear layer."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool = True,
        gather_output: bool = True,
        dtype: torch.dtype = torch.float32,
        **_: Any,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outputs, dtype=dtype), requires_grad=False) if bias else None
        self.gather_output, self.tensor_parallel_group = gather_output, None

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs.to(self.weight.dtype), self.weight, self.bias)


class ParallelEmbedding(nn.Embedding):
    """A complete embedding."""

    def __init__(self, count: int, width: int, padding: int | None, dtype: torch.dtype, **_: Any) -> None:
        super().__init__(count, width, dtype=dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.embedding(tokens.long(), self.weight)


class SPMDRank(nn.Module):
    """The rank of the process: a weight, so that all processes can share a graph."""

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self.rank = nn.Parameter(torch.zeros(world_size, dtype=torch.int32), requires_grad=False)

    def get_rank(self) -> Tensor:
        return self.rank


class RmsNorm:
    """The mathematics of the custom call."""

    @staticmethod
    def apply(hidden: Tensor, weight: Tensor, epsilon: float, dim: int) -> Tensor:
        return hidden * torch.rsqrt(hidden.pow(2).mean(dim, keepdim=True) + epsilon) * weight.float()


class Hardware:
    """Names of chips."""

    TRN1, TRN2, TRN3, INF2 = "trn1", "trn2", "trn3", "inf2"

    def __new__(cls, name: str) -> Any:
        return name


class Group:
    """A group of one process."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


def xla_hlo_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same in PyTorch as a kernel written in HLO."""
    return {"fill_prefix": fill_prefix, "xla_dynamic_update_slice": update_slice, "rand_like": torch.rand_like}.get(
        function.__name__, function
    )


def fill_prefix(tensor: Tensor, update: Tensor) -> Tensor:
    """DynamicUpdateSlice at 0."""
    return update_slice(tensor, update, *(torch.tensor(0) for _ in update.shape))


def update_slice(tensor: Tensor, update: Tensor, *starts: Tensor) -> Tensor:
    """DynamicUpdateSlice; its starts are tensors, so that a traced graph does not hold them as constants."""
    dims = update.dim()
    places = [
        (torch.arange(size) + start.long()).view([-1 if dim == at else 1 for at in range(dims)])
        for dim, (size, start) in enumerate(zip(update.shape, starts, strict=True))
    ]
    return tensor.index_put(places, update.to(tensor.dtype))


def nki_jit(*_: Any, **__: Any) -> Callable[[Any], Any]:
    """Returns a kernel unchanged."""
    return lambda kernel: kernel


def cumsum(tensor: Tensor, output: Tensor, axis: int) -> None:
    """The result of the NKI kernel."""
    output.copy_(torch.cumsum(tensor, axis))


def topk(tensor: Tensor, k: int, dim: int, **_: Any) -> Any:
    """topk of one core."""
    return torch.topk(tensor, k, dim=dim)


def argmax(tensor: Tensor, dim: int, keepdim: bool = False, **_: Any) -> Tensor:
    """argmax of one core."""
    return torch.argmax(tensor, dim=dim, keepdim=keepdim)


def same(value: Any = None, *_: Any, **__: Any) -> Any:
    """A collective of one process."""
    return value


def nothing(*_: Any, **__: Any) -> None:
    """A feature that only a device needs."""


class CacheUrl:
    """The folder in which neuronx-cc keeps compiled graphs."""

    @staticmethod
    def get_cache_url(cache_dir: str | None = None) -> None:
        return None


VERSIONS = {
    "torch_neuronx": "torch-neuronx",
    "neuronxcc": "neuronx-cc",
    "neuronx_distributed": "neuronx-distributed",
}
"""Modules with a __version__, and the distributions that bring them."""
LAYERS = "neuronx_distributed.parallel_layers"
MODULES: dict[str, dict[str, Any]] = {
    "torch_neuronx": {
        "trace": trace,
        "move_trace_to_device": nothing,
        "experimental": types.SimpleNamespace(set_neuron_cores=nothing),
    },
    "torch_neuronx.utils": {"get_platform_target": lambda: "trn1"},
    "torch_neuronx.xla_impl.ops": {"RmsNorm": RmsNorm, "nki_jit": nki_jit, "xla_hlo_call": xla_hlo_call},
    "torch_neuronx.xla_impl.base": {"xla_hlo_call": xla_hlo_call},
    "libneuronxla.neuron_cc_cache": {
        "CacheUrl": CacheUrl,
        "CompileCache": type("CompileCache", (), {}),
        "create_compile_cache": nothing,
    },
    "neuronxcc.nki._private_kernels.cumsum": {"cumsum": cumsum},
    "neuronxcc.nki._private_kernels.attention": {"attention_isa_kernel": nothing},
    f"{LAYERS}.layers": {
        "BaseParallelLinear": ParallelLinear,
        "ColumnParallelLinear": ParallelLinear,
        "RowParallelLinear": ParallelLinear,
        "ParallelEmbedding": ParallelEmbedding,
        "SPMDRank": SPMDRank,
    },
    f"{LAYERS}.mappings": {"_gather_along_dim": same},
    f"{LAYERS}.pad": {"get_number_of_extra_heads": lambda heads, degree: -heads % degree},
    f"{LAYERS}.parallel_state": {
        "model_parallel_is_initialized": lambda: True,
        "get_tensor_model_parallel_group": lambda *_, **__: Group(),
        "get_tensor_model_parallel_size": lambda *_, **__: 1,
        "get_tensor_model_parallel_rank": lambda *_, **__: 0,
    },
    f"{LAYERS}.utils": {
        "divide": lambda number, by: number // by,
        "get_padding_length": lambda length, multiple: -length % multiple,
    },
    "neuronx_distributed.operators.argmax": {"argmax": argmax},
    "neuronx_distributed.operators.topk": {"topk": topk},
    "neuronx_distributed.trace.hlo_utils": {"NXD_LAYOUT_TRANSFORMATION_OPTIONS": "NXD_LAYOUT_TRANSFORMATION_OPTIONS"},
    "neuronx_distributed.trace.model_builder": {
        "BaseModelInstance": type("BaseModelInstance", (), {}),
        "ModelBuilder": ModelBuilder,
    },
    "neuronx_distributed.utils.utils": {"hardware": Hardware},
}
"""By module, the names that optimum-neuron 0.4.5 uses for T5 and Llama."""
