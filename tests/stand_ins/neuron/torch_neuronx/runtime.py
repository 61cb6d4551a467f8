"""The Neuron runtime's classes (runtime.cpp) on XLA's CPU device; tensors "on the device" are in main memory."""

import hashlib
import os
import subprocess
import tempfile
import threading
import time
import types
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch_xla
import torch_xla.core.xla_builder as xb
from libneuronxla import record
from torch import Tensor
from torch.utils.cpp_extension import include_paths, library_paths

from torch_neuronx.lowering import DTYPES, METANEFF, Kind

SOURCE = Path(__file__).with_name("runtime.cpp")
_lock = threading.Lock()
_libraries: list[torch.library.Library] = []


def install() -> None:
    """Registers the device, the classes and the operators, once for each process."""
    device = types.ModuleType("neuron")
    vars(device).update(
        _is_in_bad_fork=lambda: False, manual_seed_all=lambda seed: None
    )  # torch.manual_seed calls them
    torch._register_device_module("privateuseone", device)
    torch.ops.load_library(str(library()))
    aten = torch.library.Library("aten", "IMPL")
    aten.impl("empty.memory_format", _empty, "PrivateUse1")
    aten.impl("empty_strided", _empty_strided, "PrivateUse1")
    neuron = torch.library.Library("neuron", "FRAGMENT")
    neuron.impl("_parallel_load", _parallel_load, "CompositeExplicitAutograd")
    own = torch.library.Library("neuron_stand_in", "FRAGMENT")
    own.impl("load", _load, "CompositeExplicitAutograd")
    own.impl("example", _example, "CompositeExplicitAutograd")
    own.impl("run", _run, "CompositeExplicitAutograd")
    _libraries.extend([aten, neuron, own])


def library() -> Path:
    """The compiled classes, built once for each torch."""
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir(), f"neuron-stand-in-{key}.so")
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".so", delete=False) as partial:
            subprocess.run(
                [
                    *("g++", "-O0", "-shared", "-fPIC", "-std=c++17", str(SOURCE), "-o", partial.name),
                    *(f"-I{folder}" for folder in include_paths("cpu")),
                    *(f"-L{folder}" for folder in library_paths("cpu")),
                    *("-ltorch", "-ltorch_cpu", "-lc10"),
                ],
                check=True,
            )
        Path(partial.name).replace(path)
    return path


def _empty(size: Sequence[int], *, dtype: Any = None, **_: Any) -> Tensor:
    return torch.empty(size, dtype=dtype)


def _empty_strided(size: Sequence[int], stride: Sequence[int], *, dtype: Any = None, **_: Any) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype)


def _parallel_load(checkpoint: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{name: tensor.clone() for name, tensor in rank.items()} for rank in checkpoint]


@cache
def _program(neff: bytes) -> Any:
    return xb.computation_from_module_proto("graph", neff)


@cache
def _described(metaneff: bytes) -> Any:
    return METANEFF["MetaNeff"].FromString(metaneff)


def _load(
    neff: Tensor, metaneff: Tensor, inputs: list[Tensor], states: dict[str, Tensor], weights: dict[str, Tensor]
) -> list[Tensor]:
    described = _described(metaneff.numpy().tobytes())
    for tensor in described.input_tensors:
        if tensor.type in (Kind.INPUT_STATE, Kind.INPUT_WEIGHT):
            name = tensor.checkpoint_key.decode()
            found = (states if tensor.type == Kind.INPUT_STATE else weights)[name]
            assert list(found.shape) == list(tensor.shape) and found.dtype == DTYPES[tensor.data_type], name
    record(call="load", visible=os.environ.get("NEURON_RT_VISIBLE_CORES"))
    return []


def _example(
    neff: Tensor, metaneff: Tensor, inputs: list[Tensor], states: dict[str, Tensor], weights: dict[str, Tensor]
) -> list[Tensor]:
    """Outputs of the right shapes, with which upstream traces a model before its weights exist."""
    described = _described(metaneff.numpy().tobytes())
    return [
        torch.zeros(list(tensor.shape), dtype=DTYPES[tensor.data_type])
        for index, tensor in enumerate(described.output_tensors)
        if index not in described.output_aliases_to
    ]


def _run(
    neff: Tensor, metaneff: Tensor, inputs: list[Tensor], states: dict[str, Tensor], weights: dict[str, Tensor]
) -> list[Tensor]:
    time.sleep(float(os.environ.get("NEURON_STAND_IN_STEP_S", "0")))
    described, given, operands = _described(metaneff.numpy().tobytes()), list(inputs), dict[int, Tensor]()
    for tensor in described.input_tensors:
        if tensor.type == Kind.USER_INPUT:
            value = given.pop(0)
            assert list(value.shape) == list(tensor.shape) and value.dtype == DTYPES[tensor.data_type], value.shape
        elif tensor.type == Kind.CONSTANT:
            content = torch.frombuffer(bytearray(tensor.content), dtype=DTYPES[tensor.data_type])
            value = content.reshape(list(tensor.shape))
        else:
            value = (states if tensor.type == Kind.INPUT_STATE else weights)[tensor.checkpoint_key.decode()]
        operands[tensor.parameter] = value
    with _lock:
        outputs = torch_xla._XLAC._xla_user_computation(
            "xla::graph", [operands[number].to("xla") for number in sorted(operands)], _program(neff.numpy().tobytes())
        )
        results = torch_xla._XLAC._xla_get_cpu_tensors(outputs)  # one execution; output.cpu() would be one for each
    for index, place in described.output_aliases_to.items():
        states[described.input_tensors[place].checkpoint_key.decode()].copy_(results[index])
    return [result for index, result in enumerate(results) if index not in described.output_aliases_to]
