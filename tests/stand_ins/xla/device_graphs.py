"""Lowers T5's graphs twice: in the preflight's form, and as traced by targets/neuron.py, parameters aliased.

    python device_graphs.py < REQUEST, one JSON line [the preflight's account, the traced module's] for each graph

The request is that of compile/preflight/xla_process.py.
"""

import json
import sys
from dataclasses import asdict

import torch
from torch import nn
from torch.utils._pytree import tree_map
from transformers import AutoConfig

from compile.graphs.static import EncodeGraph, StepGraph, static_model
from compile.preflight.hlo import account
from compile.preflight.xla_process import graph_options, hlo, hlo_text, insert_placeholders, placeholder
from compile.targets.neuron import device_graph
from neuron_sum.artifact import GraphFile


def traced(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> str:
    """The HLO of all its outputs: logits or constants, then the next values of its state."""
    insert_placeholders(module)
    with torch.no_grad():
        return hlo_text(module(*tree_map(placeholder, inputs)))


if __name__ == "__main__":
    for job in json.load(sys.stdin)["jobs"]:
        for dump in job["graphs"]:
            graph = GraphFile.model_validate_json(json.dumps(dump))
            with torch.device("meta"):
                model = static_model(AutoConfig.for_model(**job["config"]), graph_options(job["options"]))
                device = device_graph(model, graph)
            device_text = traced(device, device.example_inputs())
            insert_placeholders(model)
            ours = EncodeGraph(model) if graph.kind == "encode" else StepGraph(model)
            text = hlo(ours, ours.example_inputs(graph))
            print(json.dumps([asdict(account(text)), asdict(account(device_text))]), flush=True)
