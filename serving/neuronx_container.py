"""A model.tar.gz for the last DJL container of AWS with Neuron, which contains DJL 0.30 and transformers-neuronx.

The archive has neither neuron-sum's handler nor compiled graphs: the handler in the container reads a Llama checkpoint
and compiles it at startup. It expects a whole prompt as `inputs`, not a dialogue, and answers with `generated_text`.
Support has ended; ENDED_CONTAINERS in neuron_sum/platform/matrix.py has the date and the source.

    serving.properties    for the container's handler
    config.json …         the checkpoint, at the root

The keys are those of DJL's branch 0.30.0-dlc: djl_python/properties_manager/tnx_properties.py and its base classes, and
PyModel.java for the entry point and the loading timeout. tests/server/test_neuronx_container.py checks them against
that class.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neuron_sum import files
from neuron_sum.console import command
from neuron_sum.contents import kind_fault
from neuron_sum.errors import ModelError
from neuron_sum.recipes.schema import FullMethod, PromptTuningMethod, Recipe
from neuron_sum.runs.folder import RunFolder
from serving import properties
from serving.package import pack

CONTAINER = "djl-0.30-neuronx"

CORES = 2
"""NeuronCores that share the model: all cores of ml.inf2.xlarge and ml.inf2.8xlarge."""

DTYPE = "bf16"
"""The dtype of Inferentia2 and of the published Llama and TinyLlama weights; the container's default is fp16."""

LOADING_TIMEOUT_S = 1600
"""Seconds, from the documentation of that version: the container compiles the model before it answers."""

FAMILY = "llama"
NUMBERS = ("max_position_embeddings", "num_attention_heads")
REMEDY = "copy the output of neuron-sum train or merge again"
CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja")
"""Files to pack; no pickles."""


def write_archive(run: RunFolder, target: Path) -> str:
    """Pack a run's checkpoint: the same bytes for the same checkpoint and recipe.

    Args:
        run: A finished run of a Llama model: fully fine-tuned, or LoRA and merged.
        target: The archive; replaced atomically when it is complete.

    Returns:
        The archive's serving.properties.

    Raises:
        ModelError: If the container cannot serve the run's model; the hint names an alternative.
    """
    checkpoint = _find_checkpoint(run)
    settings = render(_read_config(checkpoint), run.recipe)
    files.check_writable(target.parent, files.folder_size(checkpoint))
    pack(target, {properties.FILE: settings}, list(_contents(checkpoint)))
    return settings


def render(config: dict[str, Any], recipe: Recipe) -> str:
    """The text of serving.properties for the container.

    option.model_id is left out: the container interprets a relative one as a model on the hub. Without it, the
    container loads the folder of serving.properties.

    Args:
        config: The content of the checkpoint's config.json.
        recipe: The recipe with the lengths and batch sizes.

    Raises:
        ModelError: If the model has too few positions or an unsuitable number of attention heads.
    """
    positions = recipe.data.max_source_length + recipe.generate.max_new_tokens
    if positions > config["max_position_embeddings"]:
        raise ModelError(
            f"data.max_source_length + generate.max_new_tokens is {positions}, the model has "
            f"{config['max_position_embeddings']} positions",
            "train with a shorter data.max_source_length",
        )
    if config["num_attention_heads"] % CORES:
        raise ModelError(f"{config['num_attention_heads']} attention heads cannot be shared by {CORES} NeuronCores")
    values = {
        "engine": "Python",
        "option.entryPoint": "djl_python.transformers_neuronx",
        "option.tensor_parallel_degree": CORES,
        "option.n_positions": positions,
        "option.dtype": DTYPE,
        # For batches up to 11 the container uses the continuous batching of transformers-neuronx, above that vLLM.
        "option.rolling_batch": "auto",
        "option.max_rolling_batch_size": max(recipe.compile.batch_sizes),
        "option.model_loading_timeout": LOADING_TIMEOUT_S,
    }
    return "".join(f"{name}={value}\n" for name, value in values.items())


def _find_checkpoint(run: RunFolder) -> Path:
    """The folder of the run's weights without adapters, in Hugging Face's layout."""
    method, adapter = run.recipe.method, run.weights / "adapter_config.json"
    remedy = "run `neuron-sum compile RUN`, then `neuron-sum package ARTIFACT` for neuron-sum's container"
    if run.recipe.output.sections:
        raise ModelError(f"output.sections: {CONTAINER} chooses the tokens and cannot force headings", remedy)
    if adapter.is_file() and files.read_json(adapter, ModelError, REMEDY).get("task_type") != "CAUSAL_LM":
        raise ModelError(f"{run.path} adapts an encoder-decoder model; {CONTAINER} serves only {FAMILY}", remedy)
    if isinstance(method, PromptTuningMethod):
        raise ModelError(f"{run.path} is a soft prompt, which {CONTAINER} cannot load", remedy)
    checkpoint = run.weights if isinstance(method, FullMethod) else run.path / "merged"
    if not isinstance(method, FullMethod) and not checkpoint.is_dir():
        raise ModelError(f"{run.path} is an adapter that is not merged", f"run `{command('merge', run.path)}`")
    family = _read_config(checkpoint)["model_type"]
    if family != FAMILY:
        raise ModelError(f"{run.path} is a {family} model; {CONTAINER} serves only {FAMILY}", remedy)
    if not any(checkpoint.glob("*.safetensors")):
        raise ModelError(f"{checkpoint} contains no .safetensors file", REMEDY)
    return checkpoint


def _read_config(checkpoint: Path) -> dict[str, Any]:
    """The content of config.json, with the values that are needed here."""
    config = files.read_json(checkpoint / "config.json", ModelError, REMEDY)
    numbers = NUMBERS if config.get("model_type") == FAMILY else ()
    for name, kind in (("model_type", str), *((name, int) for name in numbers)):
        if type(config.get(name)) is not kind:
            raise ModelError(f"{checkpoint / 'config.json'}: {name} is {str(config.get(name))[:80]!r}", REMEDY)
    return config


def _contents(checkpoint: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted({path for pattern in CHECKPOINT_FILES for path in checkpoint.glob(pattern)}):
        if fault := kind_fault(path):
            raise ModelError(f"{path} {fault}", REMEDY)
        yield path.name, path
