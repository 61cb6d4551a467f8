"""A stand-in for torch_neuronx on a CPU: the four functions that neuron-sum calls, and the behaviour it relies on.

`trace` is torch.jit.trace around a module that keeps its aliased parameters and its weights separate. As in the real
package (from its documentation, and from what optimum-neuron 0.4.5 relies on):

- state comes first in the traced module's parameters(), in the order of the function's parameters(), whatever the
  order of input_output_aliases;
- moving the function to a device gives it new parameters, so that two names of one parameter become separate;
- aliased outputs are the parameters' next values and are not returned;
- move_trace_to_device replaces the traced module's state;
- an output stays on the device only if every input is there.

Every call is written to the file that NEURON_STAND_IN_CALLS names, and NEURON_STAND_IN_FAILS makes the compiler fail.
It cannot show what neuronx-cc accepts, bf16's numerics, the loading of compiled graphs, or speed.
"""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

DEVICES = ("neuron", "privateuseone", "xla")


def trace(
    func: nn.Module,
    example_inputs: Any,
    *_: Any,
    input_output_aliases: dict[Tensor, int],
    compiler_workdir: str,
    compiler_args: Any,
    inline_weights_to_neff: bool = True,
    cpu_backend: bool = False,
) -> Any:
    """Requires everything that neuron-sum and optimum-neuron pass; accepts nothing else."""
    assert not _, "torch_neuronx takes what follows example_inputs by name"
    order = {id(parameter): name for name, parameter in func.named_parameters()}
    kept = {order[id(tensor)]: output for tensor, output in input_output_aliases.items()}
    record(
        call="trace",
        func=type(func).__name__,
        compiler_args=compiler_args,
        cpu_backend=cpu_backend,
        inline_weights_to_neff=inline_weights_to_neff,
        inputs=[[str(tensor.dtype), list(tensor.shape)] for tensor in example_inputs],
        aliases=[[order[id(t)], str(t.dtype), list(t.shape), output] for t, output in input_output_aliases.items()],
        parameters=[name for name in order.values() if name in kept],
    )
    compile_it(Path(compiler_workdir))
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    moved = func._apply(torch.clone)
    torch.__future__.set_overwrite_module_params_on_conversion(False)
    module = Traced(moved, {name: kept[name] for name in order.values() if name in kept}, inline_weights_to_neff)
    before = [state.detach().clone() for state in module.states]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        outputs = module.func(*example_inputs)
        for state, index in zip(module.states, module.kept.values(), strict=True):
            if state.shape != outputs[index].shape or state.dtype != outputs[index].dtype:
                raise RuntimeError(f"output {index} is {tuple(outputs[index].shape)}, its alias {tuple(state.shape)}")
        traced = torch.jit.trace(module, tuple(example_inputs), check_trace=False, strict=False)
    for state, value in zip(module.states, before, strict=True):  # tracing ran it once
        state.data.copy_(value)
    return traced


def compile_it(workdir: Path) -> None:
    """Does the compiler's part, or fails if requested; its log is at the place of neuronx-cc's."""
    workdir.mkdir(parents=True)
    failure = os.environ.get("NEURON_STAND_IN_FAILS", "")
    if not failure:
        return
    if failure == "this process is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    (workdir / "log-neuron-cc.txt").write_text(failure)
    code = f"import sys; print({failure!r}, file=sys.stderr)"
    subprocess.run([sys.executable, "-c", code], check=True)
    raise RuntimeError("neuronx-cc failed with -9" if "F137" in failure else "neuronx-cc failed with 70")


class Traced(nn.Module):
    """A function with separate state.

    Args:
        func: A function on its device.
        kept: Output by parameter name.
        inlined: Whether the weights cannot be replaced.
    """

    def __init__(self, func: nn.Module, kept: dict[str, int], inlined: bool) -> None:
        super().__init__()
        self.kept = kept
        self.states = nn.ParameterList(func.get_parameter(name) for name in kept)
        for name, state in zip(kept, self.states, strict=True):  # from now on a plain attribute of the function
            parent, _, leaf = name.rpartition(".")
            module = func.get_submodule(parent)
            del module._parameters[leaf]
            vars(module)[leaf] = state
        self.func = func
        self.register_buffer("inlined", torch.tensor(inlined))

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        outputs = self.func(*inputs)
        made = [output.clone() for index, output in enumerate(outputs) if index not in self.kept.values()]
        values = [outputs[index].clone() for index in self.kept.values()]
        for state, value in zip(self.states, values, strict=True):
            state.copy_(value)
        return made


def replace_weights(neuron_model: Any, weights: Any) -> None:
    """Replaces weights by the names of the traced function's state dict; unknown names are ignored."""
    assert not neuron_model.inlined, "the weights are in the compiled graph"
    given = weights.state_dict() if isinstance(weights, nn.Module) else weights
    own = [name for name, _ in [*neuron_model.func.named_parameters(), *neuron_model.func.named_buffers()]]
    for name in own:
        parent, _, leaf = name.rpartition(".")
        module = neuron_model.func
        for part in parent.split(".") if parent else []:
            module = getattr(module, part)
        if name in given:
            assert getattr(module, leaf).shape == given[name].shape, name
            module._c.setattr(leaf, given[name])
    record(call="replace_weights", missing=sorted(set(own) - set(given)))


def move_trace_to_device(trace: Any, device_id: int) -> None:
    """Gives the state new tensors, as a copy to the device does."""
    record(call="move_trace_to_device", device_id=device_id)
    for name, state in list(trace.states._parameters.items()):
        trace.states._parameters[name] = state.clone()


def set_neuron_cores(trace: Any, start_nc: int = -1, nc_count: int = -1) -> None:
    """Rejects cores that do not exist, as the real one does."""
    visible = os.environ.get("NEURON_RT_VISIBLE_CORES") or "0-1"
    ends = [[int(end) for end in part.split("-")] for part in visible.split(",")]
    available = sum(part[-1] - part[0] + 1 for part in ends)
    if start_nc + nc_count > available:
        raise ValueError(f"Invalid NeuronCore count nc_count={nc_count}. NeuronCores available: {available}")
    record(call="set_neuron_cores", start_nc=start_nc, nc_count=nc_count, visible=visible)


experimental = SimpleNamespace(set_neuron_cores=set_neuron_cores)


def record(**call: Any) -> None:
    """Writes one line of JSON for each call, from any process."""
    if path := os.environ.get("NEURON_STAND_IN_CALLS"):
        with Path(path).open("a") as log:
            log.write(json.dumps({**call, "pid": os.getpid()}) + "\n")


_to = Tensor.to


def _to_device(self: Tensor, *args: Any, **options: Any) -> Tensor:
    """Tensor.to, which treats a Neuron device as main memory."""
    if args and isinstance(args[0], str) and args[0].partition(":")[0] in DEVICES:
        record(call="to", device=args[0])
        return self.clone()
    return _to(self, *args, **options)


Tensor.to = _to_device  # type: ignore[method-assign]
