"""The common part of both compilers: record the request, and trace it with torch.jit."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def record(**call: Any) -> None:
    """Records the request; fails if the test requests it."""
    if path := os.environ.get("NEURON_STAND_IN_CALLS"):
        with Path(path).open("a", encoding="utf-8") as calls:
            calls.write(json.dumps(call) + "\n")
    if failure := os.environ.get("NEURON_STAND_IN_FAILS"):
        if failure == "this process is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        workdir = Path(os.environ["BASE_COMPILE_WORK_DIR"], "graph")
        workdir.mkdir(parents=True)
        (workdir / "log-neuron-cc.txt").write_text(failure)  # the place of neuronx-cc's log; it prints nothing
        status = -9 if "F137" in failure else 70  # a traceback quotes the next line
        raise RuntimeError(f"neuronx-cc failed with {status}")


def described(tensors: Sequence[Tensor]) -> list[Any]:
    """Dtypes and shapes."""
    return [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors]


class Traceable(TorchFunctionMode):
    """Converts what upstream writes for an XLA device to a form that torch.jit.trace can keep on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("xla"):
            kwargs["device"] = "cpu"
        if func in (torch.full, Tensor.index_fill_) and isinstance(args[-1], bool):  # TorchScript fills with numbers
            args = (*args[:-1], int(args[-1]))
            if func is torch.full:
                kwargs["dtype"] = torch.bool
        return func(*args, **kwargs)
