"""A stand-in for torch_neuronx on XLA's CPU device, for the Python code of neuronx-distributed.

neuronx-distributed is real: it traces, saves, loads and routes, with ModelBuilder (optimum-neuron's Llama) and
ModelBuilderV2 (T5's graphs), and its parallel layers train. This package replaces the closed parts that it calls:
lowering.py turns a module into HLO with torch_xla, operators.py has the operators that are written in HLO, libneuronxla
compiles nothing, and runtime.py runs the HLO with torch_xla behind the runtime's classes (runtime.cpp). tracing.py is
torch_neuronx.trace, in TorchScript, with which optimum-neuron exports T5. As in AWS Neuron's documentation and
upstream's tests:

- with ModelBuilderV2, buffers that a module assigns become aliased outputs, and with ModelBuilder the outputs that it
  names: the runtime writes them into the tensors that it was given;
- a buffer that a graph only reads counts as a weight (with NEURON_STAND_IN_READ=state, as state);
- with ModelBuilder, a buffer that is not saved is a constant of the graph;
- an input that a graph does not use is dropped;
- only outputs of asynchronous calls stay on the device.

Modules that are not here, such as kernels, can be imported but not used. Requests are recorded in the file that
NEURON_STAND_IN_CALLS names, and NEURON_STAND_IN_FAILS makes the compiler fail. Each call of a graph takes
NEURON_STAND_IN_STEP_S more seconds, without using a CPU. It cannot show what neuronx-cc accepts, the types and layouts
on a device, or speed.
"""

import contextlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch_xla  # noqa: F401  (it looks for libneuronxla, before this package has one)

ROOTS = ("torch_neuronx", "neuronxcc", "nkilib", "libneuronxla")
__version__ = version("torch-neuronx")


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Creates the other modules of the vendor's packages, in which every name exists."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in ROOTS:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__getattr__ = name  # type: ignore[method-assign]


class Names(type):
    """A class whose attributes are their names, as of an enumeration."""

    def __getattr__(cls, attribute: str) -> str:
        return name(attribute).__name__


def name(attribute: str) -> Any:
    """A class that also works as a decorator."""
    if attribute.startswith("__"):
        raise AttributeError(attribute)
    return Names(attribute, (), {"__init__": lambda *_, **__: None, "__call__": lambda _, value=None, **__: value})


sys.meta_path.append(Absent())

from torch_neuronx import lowering, operators, runtime, tracing  # noqa: E402

runtime.install()


def module(path: str, **names: Any) -> None:
    """Adds a module with these names."""
    made = types.ModuleType(path)
    made.__path__ = []
    vars(made).update(names)
    made.__getattr__ = name  # type: ignore[method-assign]
    sys.modules[path] = made
    parent, _, child = path.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, made)


def platform(*_: Any) -> str:
    """The type of the instance, which optimum-neuron sets on a host without a device."""
    return os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE", "inf2")


BucketModelConfig = type("BucketModelConfig", (), {})
trace, move_trace_to_device, experimental = tracing.trace, tracing.nothing, tracing.experimental
module("torch_neuronx.xla_impl")
module("torch_neuronx.xla_impl.trace", **lowering.TRACE)
module("torch_neuronx.xla_impl.structure", Flattener=lowering.Flattener, Packer=lowering.Packer)
module("torch_neuronx.xla_impl.ops", **operators.OPERATORS)
module("torch_neuronx.xla_impl.base", xla_hlo_call=operators.xla_hlo_call)
module("torch_neuronx.pyhlo", hlo_pb2=lowering.hlo, xla_data_pb2=types.SimpleNamespace())
module("torch_neuronx.proto", metaneff_pb2=lowering.metaneff)
module("torch_neuronx.utils", get_platform_target=platform)
module("torch_neuronx.utils.utils", get_platform_target=platform, SUPPORTED_TYPES=("inf2", "trn1"))
module("torch_neuronx.contexts", disable_nrt_load=contextlib.nullcontext)
module("libneuronxla.neuron_cc_cache", CacheUrl=tracing.CacheUrl, CompileCache=type("CompileCache", (), {}))
import neuronxcc  # noqa: E402, F401  (which imports this package)

module("neuronxcc.nki")
module("neuronxcc.nki._private_kernels")
module("neuronxcc.nki._private_kernels.cumsum", cumsum=operators.cumsum)
module("neuronxcc.nki._pre_prod_kernels")
module("neuronxcc.nki._pre_prod_kernels.collectives", CollectivesConfig=operators.CollectivesConfig)
module("neuronx_distributed.kernels.topk")  # a kernel of which only the import would need SciPy
