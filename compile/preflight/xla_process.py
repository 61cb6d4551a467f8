"""Lowers graphs with torch_xla on its CPU device: python -m compile.preflight.xla_process < REQUEST.

Writes one JSON line a graph. A program of its own, for with torch_xla imported accelerate turns to XLA. No weight is
made: every tensor is a placeholder of torch_xla's, which has a type and a shape and no memory.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch_xla
import torch_xla.core.xla_builder as xla_builder
import torch_xla.core.xla_op_registry as xla_op_registry
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from transformers import AutoConfig

from compile.graphs.layers import GraphOptions, write_where
from compile.graphs.static import EncodeGraph, StepGraph, static_model
from compile.preflight.hlo import account
from neuron_sum.artifact import AdapterSpec, GraphFile
from neuron_sum.runtimes.graphs import TORCH_DTYPES


def main() -> None:
    """Reads a request as compile/preflight/lowering.py writes it, and answers graph by graph."""
    request = json.load(sys.stdin)
    for job in request["jobs"]:
        options = graph_options(job["options"])
        config = AutoConfig.for_model(**job["config"])
        with torch.device("meta"):
            model = static_model(config, options)
        placeholders(model)
        for dump in job["graphs"]:
            started = time.monotonic()
            graph = GraphFile.model_validate_json(json.dumps(dump))
            module = EncodeGraph(model) if graph.kind == "encode" else StepGraph(model)
            inputs = module.example_inputs(graph)
            text = hlo(module, inputs)
            if request["folder"]:
                (Path(request["folder"]) / f"{Path(graph.file).name}.hlo").write_text(text)
            answer = {
                "account": asdict(account(text)),
                "weights": sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]),
                "inputs": sum(tensor.nbytes for tensor in tree_leaves(inputs)),
                "state": sum(tensor.nbytes for tensor in tree_leaves(inputs[-2:])) if graph.kind == "step" else 0,
                "seconds": round(time.monotonic() - started, 2),
            }
            print(json.dumps(answer), flush=True)


def graph_options(values: dict[str, Any]) -> GraphOptions:
    """The options of a request."""
    return GraphOptions(
        dtype=TORCH_DTYPES[values["dtype"]],
        kv_dtype=TORCH_DTYPES[values["kv_dtype"]],
        write=WRITES[values["write"]],
        row_sums=False,
        source_len=values["source_len"],
        target_len=values["target_len"],
        soft_prompt_tokens=values["soft_prompt_tokens"],
        adapters=AdapterSpec.model_validate_json(json.dumps(values["adapters"])) if values["adapters"] else None,
    )


def hlo(module: EncodeGraph | StepGraph, inputs: tuple[Any, ...]) -> str:
    """A graph's HLO, with the state of a step among its results."""
    inputs = tree_map(placeholder, inputs)
    with torch.no_grad():
        made = module(*inputs)
    return text_of([made, *inputs[-1]] if isinstance(module, StepGraph) else made)


def text_of(outputs: list[Tensor]) -> str:
    """The HLO that these tensors are the results of."""
    text: str = torch_xla._XLAC._get_xla_tensors_hlo(outputs)
    return text


def placeholders(module: nn.Module) -> None:
    """Puts a placeholder in the place of every parameter and buffer; what is shared stays shared."""
    made: dict[int, Tensor] = {}
    for owner in module.modules():
        for tensors in (owner._parameters, owner._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in made:
                    made[id(tensor)] = placeholder(tensor)
                    if isinstance(tensor, nn.Parameter):
                        made[id(tensor)] = nn.Parameter(made[id(tensor)], requires_grad=tensor.requires_grad)
                tensors[name] = None if tensor is None else made[id(tensor)]  # type: ignore[assignment]


def placeholder(like: Any) -> Any:
    """A tensor of XLA's of the same type and shape; anything but a tensor as it is."""
    if not isinstance(like, Tensor):
        return like
    return xla_builder.create_placeholder_tensor(tuple(like.shape), like.dtype)


def _update_slice(cache: Any, column: Any, start: Any) -> Any:
    zero = xla_builder.Op.scalar(start.builder(), 0, dtype=xla_builder.Type.S32)
    return cache.dynamic_update_slice(column, [zero, zero, start, zero])


UPDATE_SLICE = xla_op_registry.register("write_column", _update_slice)


def write_slice(cache: Tensor, column: Tensor, position: Tensor) -> Tensor:
    """`write_column` as HLO's dynamic-update-slice, which no operator of torch's becomes."""
    start = (position * column.shape[2])[0].to(torch.int32)
    written: Tensor = UPDATE_SLICE(cache, column.to(cache.dtype), start)
    return written


WRITES = {"in_place": write_slice, "where": write_where}

if __name__ == "__main__":
    main()
