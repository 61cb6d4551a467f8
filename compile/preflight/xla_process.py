"""Lower graphs with torch_xla on its CPU device: python -m compile.preflight.xla_process < REQUEST.

Prints one JSON line per graph. A separate program, because accelerate uses XLA once torch_xla is imported. No weights
are allocated: every tensor is a torch_xla placeholder, which has a type and a shape but no memory.
"""

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch_xla
import torch_xla.core.xla_builder as xla_builder
import torch_xla.core.xla_op_registry as xla_op_registry
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from transformers import AutoConfig

from compile.graphs.kv_cache import write_scatter, write_where
from compile.graphs.layers import GraphOptions
from compile.graphs.static import TORCH_DTYPES, EncodeGraph, StepGraph, graph_module, static_model
from compile.preflight.error_codes import rejections
from compile.preflight.hlo import account_of, parse
from neuron_sum.artifact import AdapterSpec, GraphFile


def main() -> None:
    """Reads a request from compile/preflight/lowering.py, and prints the result of each graph."""
    request = json.load(sys.stdin)
    for job in request["jobs"]:
        options = graph_options(job["options"])
        config = AutoConfig.for_model(**job["config"])
        with torch.device("meta"):
            model = static_model(config, options)
        insert_placeholders(model)
        for dump in job["graphs"]:
            started = time.monotonic()
            graph = GraphFile.model_validate_json(json.dumps(dump))
            module = graph_module(model, graph)
            inputs = module.example_inputs(graph)
            text = hlo(module, inputs)
            if request["folder"]:
                (Path(request["folder"]) / f"{Path(graph.file).name}.hlo").write_text(text)
            parsed = parse(text)
            account = account_of(parsed)
            answer = {
                # Every step of a graph reads all inputs, because a core has no memory on the chip for the weights.
                "account": asdict(replace(account, read=account.read * graph.steps)),
                "rejections": asdict(rejections(parsed)),
                "weights": sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]),
                "inputs": sum(tensor.nbytes for tensor in tree_leaves(inputs)),
                "state": sum(tensor.nbytes for tensor in tree_leaves(inputs[-2:])) if graph.kind == "step" else 0,
                "seconds": round(time.monotonic() - started, 2),
            }
            print(json.dumps(answer), flush=True)


def graph_options(values: dict[str, Any]) -> GraphOptions:
    """The graph options from the JSON values of a request."""
    return GraphOptions(
        dtype=TORCH_DTYPES[values["dtype"]],
        kv_dtype=TORCH_DTYPES[values["kv_dtype"]],
        write=WRITES[values["write"]],
        source_len=values["source_len"],
        target_len=values["target_len"],
        soft_prompt_tokens=values["soft_prompt_tokens"],
        adapters=AdapterSpec.model_validate_json(json.dumps(values["adapters"])) if values["adapters"] else None,
    )


def hlo(module: EncodeGraph | StepGraph, inputs: tuple[Any, ...]) -> str:
    """The HLO text of a graph, with the state of a step among its results."""
    inputs = tree_map(placeholder, inputs)
    with torch.no_grad():
        outputs = module(*inputs)
    return hlo_text([*outputs, *inputs[-1]] if isinstance(module, StepGraph) else outputs)


def hlo_text(outputs: list[Tensor]) -> str:
    """The HLO text of the computation that produces these tensors."""
    text: str = torch_xla._XLAC._get_xla_tensors_hlo(outputs)
    return text


def insert_placeholders(module: nn.Module) -> None:
    """Replaces every parameter and buffer with a placeholder; shared tensors stay shared."""
    replacements: dict[int, Tensor] = {}
    for owner in module.modules():
        for tensors in (owner._parameters, owner._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in replacements:
                    replacement = placeholder(tensor)
                    if isinstance(tensor, nn.Parameter):
                        replacement = nn.Parameter(replacement, requires_grad=tensor.requires_grad)
                    replacements[id(tensor)] = replacement
                tensors[name] = None if tensor is None else replacements[id(tensor)]  # type: ignore[assignment]


def placeholder(like: Any) -> Any:
    """An XLA tensor of the same type and shape; other values are returned unchanged."""
    if not isinstance(like, Tensor):
        return like
    return xla_builder.create_placeholder_tensor(tuple(like.shape), like.dtype)


def _update_slice(cache: Any, column: Any, start: Any, example: int) -> Any:
    zero, at = (xla_builder.Op.scalar(start.builder(), n, dtype=xla_builder.Type.S32) for n in (0, example))
    return cache.dynamic_update_slice(column, [at, zero, start, zero])


UPDATE_SLICE = xla_op_registry.register("write_column", _update_slice)


def write_slice(cache: Tensor, column: Tensor, position: Tensor) -> Tensor:
    """`write_column` as HLO's dynamic-update-slice, which no torch operator lowers to: one for each example."""
    starts, new = (position * column.shape[2]).to(torch.int32), column.to(cache.dtype)
    for example, start in enumerate(starts.unbind()):
        cache = UPDATE_SLICE(cache, new[example : example + 1], start, example=example)
    return cache


WRITES = {"in_place": write_slice, "scatter": write_scatter, "where": write_where}

if __name__ == "__main__":
    main()
