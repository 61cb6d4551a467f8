"""A model.tar.gz for AWS's last DJL container with Neuron, which holds DJL 0.30 and transformers-neuronx.

Our handler is not in it and nothing is compiled ahead: the container's own handler reads a Llama checkpoint and
compiles it when it starts. It gets a whole prompt as `inputs`, not a dialogue, and answers with `generated_text`.
Support for it has ended; stack.py's ENDED_CONTAINERS says when, and who says so.

    serving.properties    for that container's handler
    config.json …         the checkpoint, at the root

The keys are those of DJL's branch 0.30.0-dlc: djl_python/properties_manager/tnx_properties.py and what it derives from,
PyModel.java for the entry point and the time to load. tests/test_neuronx_container.py holds them against that class.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neuron_sum import files
from neuron_sum.errors import ModelError
from neuron_sum.recipes.schema import FullMethod, PromptTuningMethod, Recipe
from neuron_sum.runs.folder import RunFolder
from serving.package import pack

CONTAINER = "djl-0.30-neuronx"

CORES = 2
"""NeuronCores that share the model: all of ml.inf2.xlarge and ml.inf2.8xlarge."""

DTYPE = "bf16"
"""What Inferentia2 computes in, and what Llama and TinyLlama are published in; the container's own default is fp16."""

LOADING_TIMEOUT_S = 1600
"""From that version's own guide: the container compiles the model before it answers."""

FAMILY = "llama"
CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja")
"""No pickles."""


def write_archive(run: RunFolder, target: Path) -> str:
    """Packs a run's checkpoint: the same bytes for the same checkpoint and recipe.

    Args:
        run: A finished run of a Llama: trained in full, or LoRA and merged.
        target: The archive; replaced at once when it is whole.

    Returns:
        Its serving.properties.

    Raises:
        ModelError: If that container cannot serve what the run made, with what can.
    """
    checkpoint = _find_checkpoint(run)
    settings = render(files.read_json(checkpoint / "config.json"), run.recipe)
    files.check_writable(target.parent, files.folder_size(checkpoint))
    pack(target, settings, _contents(checkpoint))
    return settings


def render(config: dict[str, Any], recipe: Recipe) -> str:
    """serving.properties as that container reads it.

    There is no option.model_id: the container takes a relative one for a model on the hub. Without one it takes the
    folder that serving.properties lies in.

    Args:
        config: The checkpoint's config.json.
        recipe: For lengths and batch sizes.

    Raises:
        ModelError: If the model does not fit.
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
        # Up to 11 in a batch the container takes transformers-neuronx' own continuous batching, from 12 on its vLLM.
        "option.rolling_batch": "auto",
        "option.max_rolling_batch_size": max(recipe.compile.batch_sizes),
        "option.model_loading_timeout": LOADING_TIMEOUT_S,
    }
    return "".join(f"{name}={value}\n" for name, value in values.items())


def _find_checkpoint(run: RunFolder) -> Path:
    """The run's plain weights, in Hugging Face's layout."""
    method, adapter = run.recipe.method, run.weights / "adapter_config.json"
    ours = "our own container serves it: neuron-sum compile RUN, then neuron-sum package ARTIFACT"
    if adapter.is_file() and files.read_json(adapter)["task_type"] != "CAUSAL_LM":
        raise ModelError(f"{run.path} adapts an encoder-decoder model; {CONTAINER} serves {FAMILY} alone", ours)
    if isinstance(method, PromptTuningMethod):
        raise ModelError(f"{run.path} is a soft prompt, which {CONTAINER} cannot take", ours)
    checkpoint = run.weights if isinstance(method, FullMethod) else run.path / "merged"
    if not isinstance(method, FullMethod) and not checkpoint.is_dir():
        raise ModelError(f"{run.path} is an adapter apart from its base", f"neuron-sum merge {run.path}")
    family = files.read_json(checkpoint / "config.json")["model_type"]
    if family != FAMILY:
        raise ModelError(f"{run.path} is a {family} model; {CONTAINER} serves {FAMILY} alone", ours)
    if not any(checkpoint.glob("*.safetensors")):
        raise ModelError(f"{checkpoint} holds no safetensors", "neuron-sum train and merge write them; copy it again")
    return checkpoint


def _contents(checkpoint: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted({path for pattern in CHECKPOINT_FILES for path in checkpoint.glob(pattern)}):
        yield path.name, path
