"""What optimum-neuron's own T5 exporter hands to torch_neuronx.trace, as JSON: python tests/xla/upstream_trace.py

Its compiler arguments for several choices, its keywords, and which of a decoder's parameters become which outputs.
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

    config = types.SimpleNamespace(MODEL_TYPE="t5-decoder", LIBRARY_NAME="transformers", dynamic_batch_size=False,
                                   _config=types.SimpleNamespace())  # fmt: skip
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

    convert.neuronx = types.SimpleNamespace(trace=trace)  # upstream imports it where neuronx-cc is installed
    convert.trace_neuronx(nn.Identity(), config, (), arguments["matmul bf16 1"], Path(sys.argv[1]), 1, aliases, False)
    print(
        json.dumps(
            {
                "arguments": arguments, "keywords": sorted(seen), "cpu_backend": seen["cpu_backend"],
                "inline_weights_to_neff": seen["inline_weights_to_neff"], "type": type(seen["compiler_args"]).__name__,
                "aliases": [[names[id(parameter)], output] for parameter, output in aliases.items()],
            }
        )
    )  # fmt: skip


MODULES: dict[str, dict[str, Any]] = {
    "neuronx_distributed.trace": {f"parallel_model_{what}": None for what in ("trace", "save", "load")},
    "neuronx_distributed.trace.hlo_utils": {},
    "neuronx_distributed.trace.model_builder": {
        "BaseModelInstance": stand_ins.absent("BaseModelInstance"), "ModelBuilder": stand_ins.absent("ModelBuilder"),
    },
}  # fmt: skip
"""What the exporter imports and training does not."""

if __name__ == "__main__":
    main()
