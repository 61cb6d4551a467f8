"""A model.tar.gz and the environment for Hugging Face's image with vLLM and the plugin of optimum-neuron.

The image runs `optimum-cli neuron serve` on port 8080, with an option for each variable SM_ON_* (optimum-neuron v0.4.5,
docker/vllm/Dockerfile). SageMaker unpacks the archive to /opt/ml/model, which SM_ON_MODEL names. vLLM answers /ping and
/invocations, the latter with the request of a chat completion (vllm 0.11.0, entrypoints/openai/api_server.py).

    container.json          the environment, for `neuron-sum aws deploy`
    config.json …           a checkpoint, or an export of optimum-neuron with neuron_config.json
    tokenizer.json …        the tokenizer; its chat template is the prompt of training
    generation_config.json  greedy search, the most new tokens and the end tokens: the defaults of each request

Settings, from optimum-neuron v0.4.5 (commands/neuron/serve.py, neuron/vllm) and vllm 0.11.0:

- SM_ON_BATCH_SIZE becomes --max-num-seqs, SM_ON_SEQUENCE_LENGTH --max-model-len, SM_ON_TENSOR_PARALLEL_SIZE
  --tensor-parallel-size; `serve` rejects values that differ from those of an export. The dtype is that of config.json.
- A batch size of 1 has no continuous batching (_get_neuron_config of each model class).
- The plugin sets the block size to the maximum length, turns prefix caching off, and rejects LoRA, speculative
  decoding, pipeline and data parallelism.
- SM_ON_MAX_NUM_BATCHED_TOKENS: with the default of 2,048, a longer prompt is never scheduled (fixed after 0.4.5 by
  optimum-neuron 5f8e901d).
- A checkpoint without neuron_config.json is exported when the server starts, with the compiled graphs of Hugging Face's
  public cache if it has them. SM_ON_ALLOW_NON_CACHED_MODEL (empty, because the option has no value) lets the server
  compile the others. It reads the cache in any case, so the endpoint needs the internet.
- Beam search, min_new_tokens and no_repeat_ngram_size: the compiled graph chooses the next token.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerFast

from neuron_sum import files
from neuron_sum.artifact import RECIPE, TOKENIZER, Artifact
from neuron_sum.contents import kind_fault
from neuron_sum.errors import ArtifactError, ModelError, RecipeError
from neuron_sum.models import base as models
from neuron_sum.models.rotary import check_positions
from neuron_sum.models.weights import GENERATION_CONFIG
from neuron_sum.platform import optimum_limits
from neuron_sum.platform.containers import ENVIRONMENT_FILE, VLLM
from neuron_sum.platform.matrix import PLATFORMS
from neuron_sum.prompts import Prompt
from neuron_sum.recipes.loading import load_recipe, load_resolved
from neuron_sum.recipes.schema import FullMethod, GenerateConfig, ModelConfig, PromptTuningMethod, Recipe
from neuron_sum.runs.folder import RunFolder
from neuron_sum.runs.merge import merge
from neuron_sum.runtimes import optimum
from serving.chat_template import chat_template
from serving.package import pack

MODEL_FOLDER = "/opt/ml/model"
"""The folder to which SageMaker unpacks a model.tar.gz."""

CORES = 2
"""NeuronCores that share a checkpoint: all cores of ml.inf2.xlarge and ml.inf2.8xlarge."""
DTYPE = "bfloat16"
"""The dtype of a checkpoint's graphs, and of those in Hugging Face's cache; upstream casts the weights."""
SMALLEST_BUDGET = 2048
"""vLLM's default of --max-num-batched-tokens."""

SETTINGS = ("generate.", "compile.batch_sizes", "compile.source_lens", "compile.target_len")
"""Keys that --set may change for a run; an artifact is already compiled."""
TARGET = "compile.target=inf2"
REMEDY = "copy the output of neuron-sum train again"
ALTERNATIVE = "run `neuron-sum compile RUN`, then `neuron-sum package ARTIFACT` for neuron-sum's container"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class Packed:
    """The result of packing.

    Attributes:
        environment: The environment variables of the container.
        precompiled: Whether the archive contains compiled graphs.
    """

    environment: dict[str, str]
    precompiled: bool


@dataclass(frozen=True)
class _Content:
    """The model of an archive.

    Attributes:
        recipe: The recipe with its name, lengths and generation settings.
        prompt: The prompt of training.
        tokenizer: The tokenizer.
        config: The configuration of the model.
        environment: The environment of the container.
        files: Name in the archive and path of each file of the model.
    """

    recipe: Recipe
    prompt: Prompt
    tokenizer: PreTrainedTokenizerFast
    config: PretrainedConfig
    environment: dict[str, str]
    files: list[tuple[str, Path]]


def write_archive(source: RunFolder | Artifact, target: Path, overrides: Sequence[str] = ()) -> Packed:
    """Pack a run's checkpoint, with LoRA merged, or an artifact of optimum-neuron's exporter.

    Args:
        source: A finished run, or an artifact for inf2.
        target: The archive; replaced atomically when it is complete.
        overrides: Changes to a run's recipe, limited to SETTINGS.

    Raises:
        ModelError: If the image cannot serve the model; the hint names an alternative.
        ArtifactError: If the image cannot load the artifact.
        RecipeError: If the image cannot apply a setting.
    """
    files.check_writable(target.parent, 0)
    with tempfile.TemporaryDirectory(prefix=f".{VLLM}-", dir=target.parent) as name:
        scratch = Path(name)
        content = (
            _of_artifact(source, overrides) if isinstance(source, Artifact) else _of_run(source, scratch, overrides)
        )
        content.tokenizer.chat_template = chat_template(content.prompt, content.tokenizer)
        content.tokenizer.save_pretrained(scratch / TOKENIZER)
        files.write_json(scratch / TOKENIZER / GENERATION_CONFIG, _generation(content))
        replaced = [(path.name, path) for path in sorted((scratch / TOKENIZER).iterdir())]
        names = {each for each, _ in replaced}
        packed = [*replaced, *((each, path) for each, path in content.files if each not in names)]
        files.check_writable(target.parent, sum(path.stat().st_size for _, path in packed))
        record = {"container": VLLM, "environment": content.environment}
        pack(target, {ENVIRONMENT_FILE: json.dumps(record, indent=2) + "\n"}, packed)
    return Packed(content.environment, isinstance(source, Artifact))


def environment(recipe: Recipe, *, batch: int, length: int, cores: int, precompiled: bool) -> dict[str, str]:
    """The environment variables of the container.

    Args:
        recipe: The recipe, whose name is the model's name in requests.
        batch: Simultaneous requests.
        length: Tokens of prompt and summary together.
        cores: NeuronCores that share the model.
        precompiled: Whether the archive contains compiled graphs, so that nothing is read from a hub.
    """
    return {
        "SM_ON_MODEL": MODEL_FOLDER,
        "SM_ON_SERVED_MODEL_NAME": recipe.name,
        "SM_ON_BATCH_SIZE": str(batch),
        "SM_ON_SEQUENCE_LENGTH": str(length),
        "SM_ON_TENSOR_PARALLEL_SIZE": str(cores),
        "SM_ON_MAX_NUM_BATCHED_TOKENS": str(max(length, SMALLEST_BUDGET)),
        "VLLM_NO_USAGE_STATS": "1",
        **({"HF_HUB_OFFLINE": "1"} if precompiled else {"SM_ON_ALLOW_NON_CACHED_MODEL": ""}),
    }


def _of_artifact(artifact: Artifact, overrides: Sequence[str]) -> _Content:
    manifest, remedy = artifact.manifest, "run `neuron-sum compile RUN --target inf2` for a Llama"
    if overrides:
        raise RecipeError(f"--set {overrides[0]}: an artifact is already compiled", "compile the run again with --set")
    if manifest.runtime != "optimum" or manifest.tokens.decoder_start is not None or manifest.compilation is None:
        raise ArtifactError(
            f"{artifact.path} is a {manifest.model_type} model compiled for {manifest.target}; {VLLM} serves only "
            f"{_families()}, exported by optimum-neuron",
            remedy,
        )
    if manifest.compilation.sdk != PLATFORMS[0].name:
        raise ArtifactError(
            f"{artifact.path} was compiled with other versions than those of {VLLM}, which are {PLATFORMS[0].name}'s",
            remedy,
        )
    [bucket] = manifest.buckets
    folder = artifact.path / optimum.FOLDER
    recipe = load_resolved(artifact.path / RECIPE)
    return _Content(
        recipe,
        Prompt(manifest.prompt.template, manifest.prompt.is_chat),
        models.load_tokenizer(ModelConfig(name_or_path=str(artifact.path / TOKENIZER))),
        models.load_config(ModelConfig(name_or_path=str(artifact.path / TOKENIZER))),
        environment(
            recipe,
            batch=bucket.batch,
            length=bucket.source_len + bucket.target_len,
            cores=manifest.compilation.tensor_parallel_size,
            precompiled=True,
        ),
        [
            (name.removeprefix(f"{optimum.FOLDER}/"), artifact.path / name)
            for name in sorted(manifest.files)
            if (artifact.path / name).is_relative_to(folder)
        ],
    )


def _of_run(run: RunFolder, scratch: Path, overrides: Sequence[str]) -> _Content:
    if other := next((text for text in overrides if not text.startswith(SETTINGS)), None):
        raise RecipeError(f"--set {other}: {VLLM} does not use it", f"use --set only with {', '.join(SETTINGS)}")
    recipe = load_recipe(str(run.recipe_path), [*overrides, TARGET])
    if isinstance(recipe.method, PromptTuningMethod):
        raise ModelError(f"{run.path} is a soft prompt, which {VLLM} cannot load", ALTERNATIVE)
    origin = str(run.weights) if isinstance(recipe.method, FullMethod) else run.model_source()
    config = models.load_config(ModelConfig(name_or_path=origin, revision=recipe.model.revision))
    if config.model_type not in optimum_limits.SUPPORTED:
        raise ModelError(f"{run.path} is a {config.model_type} model; {VLLM} serves only {_families()}", ALTERNATIVE)
    settings = recipe.compile
    source_len = max(settings.source_lens or (recipe.data.max_source_length,))
    target_len = settings.target_len or recipe.generate.max_new_tokens
    if faults := [*optimum_limits.model_faults(config, CORES), *_generation_faults(recipe)]:
        raise RecipeError(
            f"{VLLM} does not support this run:\n" + "\n".join(f"  {fault}" for fault in faults),
            f"change a setting with --set KEY=VALUE, or {ALTERNATIVE}",
        )
    check_positions(config, {"data.max_source_length": source_len, "generate.max_new_tokens": target_len})
    weights = run.weights
    if not isinstance(recipe.method, FullMethod):
        weights = scratch / "merged"
        merge(run.path, weights)
    found = [path for pattern in WEIGHTS for path in sorted(weights.glob(pattern))]
    if not found:
        raise ModelError(f"{weights} contains no .safetensors file", REMEDY)
    if fault := next((f"{path} {fault}" for path in found if (fault := kind_fault(path))), None):
        raise ModelError(fault, REMEDY)
    values = files.read_json(weights / models.CONFIG, ModelError, REMEDY)
    files.write_json(scratch / models.CONFIG, {**values, "torch_dtype": DTYPE, "dtype": DTYPE})
    return _Content(
        recipe,
        recipe.prompt.resolve(),
        models.load_tokenizer(ModelConfig(name_or_path=str(run.weights))),
        models.load_config(ModelConfig(name_or_path=str(weights))),
        environment(
            recipe,
            batch=max(settings.batch_sizes),
            length=source_len + target_len,
            cores=CORES,
            precompiled=False,
        ),
        [(models.CONFIG, scratch / models.CONFIG), *((path.name, path) for path in found)],
    )


def _families() -> str:
    return ", ".join(optimum_limits.SUPPORTED)


def _generation_faults(recipe: Recipe) -> Iterator[str]:
    if recipe.output.sections:
        yield f"output.sections: {optimum.NO_SECTIONS} (train without sections)"
    for name, reason in {"num_beams": "upstream has only greedy search", **optimum.UNSUPPORTED}.items():
        default = GenerateConfig.model_fields[name].default
        if (value := getattr(recipe.generate, name)) != default:
            yield f"generate.{name} = {value}: {reason} (generate.{name}={default})"


def _generation(content: _Content) -> Mapping[str, Any]:
    """The defaults of a request: temperature 0 is greedy search, and max_new_tokens is also the limit."""
    return {
        "max_new_tokens": content.recipe.generate.max_new_tokens,
        "temperature": 0.0,
        "eos_token_id": models.end_tokens(content.config, content.tokenizer),
        "pad_token_id": content.tokenizer.pad_token_id,
    }
