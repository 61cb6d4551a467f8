"""Lowers T5's graphs twice: in the preflight's form, and as traced by targets/neuron.py, with the buffers it assigns.

    python device_graphs.py < REQUEST, one JSON line [the preflight's account, the traced module's] for each graph

The request is that of compile/preflight/xla_process.py, and the rows of the buffers on the device.
"""

import json
import sys
from dataclasses import asdict

import torch
import torch_xla.core.xla_op_registry as xla_op_registry
from torch.utils._pytree import tree_map
from transformers import AutoConfig

from compile.graphs.static import graph_module, static_model
from compile.preflight.hlo import account
from compile.preflight.xla_process import graph_options, hlo, hlo_text, insert_placeholders, placeholder
from compile.targets import device_graphs
from compile.targets.device_graphs import DeviceEncode, DeviceStep, device_graph
from neuron_sum.artifact import GraphFile

UPDATE_SLICE = xla_op_registry.register(
    "dynamic_update_slice", lambda tensor, update, *starts: tensor.dynamic_update_slice(update, list(starts))
)


def traced(module: DeviceEncode | DeviceStep) -> str:
    """The HLO of the assigned buffers, and of the outputs of a step."""
    insert_placeholders(module)
    with torch.no_grad():
        outputs = module(**tree_map(placeholder, module.example_inputs()))
    is_step = isinstance(module, DeviceStep)
    assigned = [getattr(module, name) for name in (module.state if is_step else module.constants)]
    return hlo_text([*(outputs if is_step else []), *assigned])


if __name__ == "__main__":
    device_graphs._update_slice = lambda tensor, update, starts: UPDATE_SLICE(tensor, update, *starts)
    request = json.load(sys.stdin)
    for job in request["jobs"]:
        for dump in job["graphs"]:
            graph = GraphFile.model_validate_json(json.dumps(dump))
            with torch.device("meta"):
                model = static_model(AutoConfig.for_model(**job["config"]), graph_options(job["options"]))
                device = device_graph(model, graph, request["rows"], job["options"]["write"])
            device_text = traced(device)
            insert_placeholders(model)
            ours = graph_module(model, graph)
            text = hlo(ours, ours.example_inputs(graph))
            print(json.dumps([asdict(account(text)), asdict(account(device_text))]), flush=True)
