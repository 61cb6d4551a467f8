"""Print as JSON the arguments that optimum-neuron's T5 exporter passes to torch_neuronx.trace:

    python tests/stand_ins/xla/upstream_trace.py FILE

Its compiler arguments for several settings, its keywords, and the outputs of a decoder's parameters. Also the
difference between this package's graphs and themselves when torch_xla computes them, moved to its device as in
torch_neuronx. FILE receives the exporter's messages.
"""

import json
import sys
import types
from pathlib import Path
from typing import Any

import stand_ins
import torch
from torch import nn


def main() -> None:
    stand_ins.install()
    for name, names in MODULES.items():
        stand_ins._module(name, names)
    from optimum.exporters.neuron import convert
    from optimum.exporters.neuron.model_configs import T5DecoderNeuronConfig

    config = types.SimpleNamespace(
        MODEL_TYPE="t5-decoder", LIBRARY_NAME="transformers", dynamic_batch_size=False, _config=types.SimpleNamespace()
    )
    arguments = {
        f"{cast or 'none'} {cast_type} {level}": convert.prepare_compiler_flags(config, "inf2", cast, cast_type, level)
        for cast, cast_type, level in ((None, "bf16", "2"), ("matmul", "bf16", "1"), ("all", "tf32", "3"))
    }
    decoder = nn.Module()
    decoder.num_beams = 4
    decoder.past_key_values_sa = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(4))
    decoder.past_key_values_ca = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(4))
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    aliases = T5DecoderNeuronConfig.generate_io_aliases(None, decoder)
    seen: dict[str, Any] = {}

    def trace(model: Any, inputs: Any, **keywords: Any) -> torch.jit.ScriptModule:
        seen.update(keywords)
        return torch.jit.script(nn.Identity())

    convert.neuronx = types.SimpleNamespace(trace=trace)  # upstream imports it if neuronx-cc is installed
    convert.trace_neuronx(nn.Identity(), config, (), arguments["matmul bf16 1"], Path(sys.argv[1]), 1, aliases, False)
    print(
        json.dumps(
            {
                "arguments": arguments,
                "keywords": sorted(seen),
                "cpu_backend": seen["cpu_backend"],
                "inline_weights_to_neff": seen["inline_weights_to_neff"],
                "type": type(seen["compiler_args"]).__name__,
                "own_graphs_on_xla": {kind: own_on_xla(kind) for kind in ("encode", "step")},
                "aliases": [[names[id(parameter)], output] for parameter, output in aliases.items()],
            }
        )
    )


VOCABULARY = 4000
"""More than fit into as many chunks as a step returns candidates, so that only some are sorted."""


def own_on_xla(kind: str) -> float:
    """The largest difference of any output, relative to the largest value."""
    from transformers import T5Config

    from compile.graphs.kv_cache import write_where
    from compile.graphs.layers import GraphOptions
    from compile.graphs.static import static_model
    from compile.targets.neuron import device_graph
    from neuron_sum.artifact import AdapterSpec, GraphFile

    torch.manual_seed(0)
    config = T5Config(
        d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=VOCABULARY, decoder_start_token_id=0
    )
    spec = AdapterSpec(rank=2, slots=2, target_modules=("q", "v"))
    options = GraphOptions(
        source_len=16, target_len=6, write=write_where, row_sums=False, adapters=spec, soft_prompt_tokens=2
    )
    steps: dict[str, Any] = {"target_len": 6, "num_beams": 3} if kind == "step" else {}
    graph = GraphFile(kind=kind, batch=2, source_len=16, file="none", **steps)
    model = static_model(config, options)
    model.load_state_dict({name: _drawn(tensor) for name, tensor in model.state_dict().items()} | model.tables())
    module = device_graph(model, graph)
    kept = module.device_tensors()
    for _, tensor in kept:
        tensor.copy_(_drawn(tensor))
    limits = (VOCABULARY, 6, 3, 2) if kind == "step" else (VOCABULARY, 2, 2)
    inputs = [torch.randint(0, limit, t.shape) for limit, t in zip(limits, module.example_inputs(), strict=True)]
    with torch.no_grad():
        expected = module(*inputs)
        actual = module.to("xla")(*(tensor.to("xla") for tensor in inputs))
    assert [name for name, _ in module.device_tensors()] == [name for name, _ in kept]
    pairs = zip(actual, expected, strict=True)
    return max(float((one.cpu() - other).abs().max() / (other.abs().max() + 1)) for one, other in pairs)


def _drawn(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.dtype.is_floating_point:
        return torch.randint(0, 2, tensor.shape)
    return torch.randn(tensor.shape)


MODULES: dict[str, dict[str, Any]] = {
    "neuronx_distributed.trace": {f"parallel_model_{what}": None for what in ("trace", "save", "load")},
    "neuronx_distributed.trace.hlo_utils": {},
    "neuronx_distributed.trace.model_builder": {
        "BaseModelInstance": stand_ins.absent("BaseModelInstance"),
        "ModelBuilder": stand_ins.absent("ModelBuilder"),
    },
}
"""Modules that the exporter imports and training does not."""

if __name__ == "__main__":
    main()
