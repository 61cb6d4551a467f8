"""The process that calls optimum-neuron 0.4.5: reads request.json and checkpoint/, writes exported/ and result.json.

    python -m compile.exporters.optimum_process    (in a folder that compile/exporters/optimum.py created)

Names are relative to that folder on purpose: upstream adds compiler arguments for diffusion models if a model's path
contains `unet`, `transformer` or `text_encoder` (exporters/neuron/convert.py, add_stable_diffusion_compiler_args).
"""

import os
import shlex
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuron_sum import files

REQUEST, CHECKPOINT, EXPORTED, RESULT = "request.json", "checkpoint", "exported", "result.json"

T5_TASK = "text2text-generation"
AUTO_CAST = {"none": None, "matmult": "matmul"}
"""Names of neuronx-cc and the corresponding names of upstream."""


@dataclass(frozen=True)
class Request:
    """The export settings, with upstream's names."""

    decoder_only: bool
    target: str
    batch_size: int
    sequence_length: int
    num_beams: int
    auto_cast: str
    auto_cast_type: str
    optlevel: int
    inline_weights: bool
    tensor_parallel_size: int


def main() -> None:
    """Exports the checkpoint; an error prints a traceback on standard error, which is written to the log."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = Request(**files.read_json(Path(REQUEST)))
    from optimum.neuron.utils.instance import align_compilation_target
    from optimum.neuron.utils.version_utils import get_neuronxcc_version

    # Before the import of neuronx-distributed, which reads the target.
    align_compilation_target(request.target, override=True)
    arguments = _export_causal_lm(request) if request.decoder_only else _export_t5(request)
    files.write_json(Path(RESULT), {"compiler": get_neuronxcc_version(), "arguments": arguments})


def _export_causal_lm(request: Request) -> list[str]:
    """Exports with neuronx-distributed's ModelBuilder: one graph for the prompt and one for each next token."""
    from optimum.neuron import NeuronModelForCausalLM

    config = NeuronModelForCausalLM.get_neuron_config(
        CHECKPOINT,
        instance_type=request.target,
        batch_size=request.batch_size,
        sequence_length=request.sequence_length,
        tensor_parallel_size=request.tensor_parallel_size,
    )
    model = NeuronModelForCausalLM.export(CHECKPOINT, config, load_weights=False)
    model.save_pretrained(EXPORTED)
    return shlex.split(type(model).get_compiler_args(config))


def _export_t5(request: Request) -> list[str]:
    """Exports with torch_neuronx.trace: the encoder with all cross-attention keys and values, and the decoder step."""
    from optimum.exporters.neuron import main_export

    shapes = {
        "batch_size": request.batch_size,
        "sequence_length": request.sequence_length,
        "num_beams": request.num_beams,
    }
    auto_cast = AUTO_CAST[request.auto_cast]
    compiler: dict[str, Any] = {
        "auto_cast": auto_cast,
        "auto_cast_type": request.auto_cast_type if auto_cast else None,
        "instance_type": request.target,
    }
    main_export(
        CHECKPOINT,
        EXPORTED,
        compiler,
        task=T5_TASK,
        library_name="transformers",
        disable_neuron_cache=True,
        compiler_workdir="work",
        inline_weights_to_neff=request.inline_weights,
        optlevel=str(request.optlevel),
        do_validation=False,  # it needs a device; `compile verify` compares the summaries instead
        **shapes,
    )
    return _t5_arguments(request, compiler, shapes)


def _t5_arguments(request: Request, compiler: dict[str, Any], shapes: dict[str, int]) -> list[str]:
    """The compiler arguments of both graphs, from the function that upstream calls."""
    from optimum.exporters.neuron.convert import prepare_compiler_flags
    from optimum.exporters.tasks import TasksManager
    from optimum.neuron.utils import InputShapesArguments
    from transformers import AutoConfig

    constructor = TasksManager.get_exporter_config_constructor(
        exporter="neuron", model_type="t5-encoder", task=T5_TASK, library_name="transformers"
    )
    config = constructor(
        config=AutoConfig.from_pretrained(CHECKPOINT), task=T5_TASK, input_shapes=InputShapesArguments(**shapes)
    )
    return shlex.split(prepare_compiler_flags(config, **compiler, optlevel=str(request.optlevel)))


def _end_with_parent() -> None:
    """Kills this process group when the parent ends, however it ends: standard input is closed then."""
    while os.read(0, 1):  # not sys.stdin, because its lock would be held when Python exits
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
