"""torch_neuronx.trace, with which optimum-neuron exports T5: TorchScript with state, with CPU operators."""

import os
import types
from collections.abc import Mapping
from typing import Any

import torch
from libneuronxla import record
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torch_neuronx.lowering import kind


class Traceable(TorchFunctionMode):
    """Converts what upstream writes for an XLA device to a form that torch.jit.trace can keep on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("xla"):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


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
        call="trace",
        module=type(function).__name__,
        compiler_args=compiler_args,
        cpu_backend=cpu_backend,
        inline_weights=inline_weights_to_neff,
        inputs=[kind(tensor) for tensor in example_inputs],
        aliases=[[index, *kind(tensor)] for tensor, index in aliases.items()],
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


class Runtime:
    """torch.classes.neuron.Runtime: the cores of a process."""

    def initialize(self) -> None:
        """Starts the runtime."""
        record(call="initialize", visible=os.environ.get("NEURON_RT_VISIBLE_CORES"))

    def set_default_neuron_cores(self, first: int, count: int) -> None:
        """Chooses cores."""
        record(call="cores", first=first, count=count)


torch.classes.neuron.Runtime = Runtime


def nothing(*_: Any, **__: Any) -> None:
    """A feature that only a device needs."""


experimental = types.SimpleNamespace(set_neuron_cores=nothing)


class CacheUrl:
    """The folder in which neuronx-cc keeps compiled graphs."""

    @staticmethod
    def get_cache_url(cache_dir: str | None = None) -> None:
        return None
