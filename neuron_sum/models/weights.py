"""Weights of a checkpoint: only safetensors, exactly the tensors of the model, and finite values.

transformers initializes missing weights randomly and ignores unexpected ones, with a warning only.
"""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel

from neuron_sum.errors import ModelError, reading
from neuron_sum.models.checkpoint import DAMAGED_HINT, HUB_HINT, find_file, read_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
GENERATION_CONFIG = "generation_config.json"
ADAPTER = "adapter_config.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
DTYPES = ("F64", "F32", "F16", "BF16")
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file."""

    file: Path
    shape: tuple[int, ...]

    def read(self, name: str) -> torch.Tensor:
        """The values."""
        with reading(self.file, ModelError, DAMAGED_HINT), safe_open(self.file, "pt") as tensors:
            values: torch.Tensor = tensors.get_tensor(name)
            return values


def load_weights(
    model_class: type[PreTrainedModel],
    settings: PretrainedConfig,
    source: str,
    revision: str | None,
    *,
    head_may_be_embedding: bool = False,
) -> PreTrainedModel:
    """The model of a checkpoint in fp32, with every parameter from its files.

    Args:
        model_class: The class of the model.
        settings: The checked configuration.
        source: A local folder or a hub id.
        revision: The commit on the hub.
        head_may_be_embedding: Whether a missing head means a copy of the embedding.

    Raises:
        ModelError: If the files are missing or damaged, contain other tensors than the model has, or values that are
            not finite, or an adapter lies beside them, whose base transformers would load instead.
    """
    if (path := find_file(source, ADAPTER, revision)) is not None:
        raise ModelError(
            f"{source} holds an adapter beside the weights of a model: {path}",
            f"remove {ADAPTER} to use the model, or name the folder of the adapter as the system",
        )
    stored = stored_tensors(source, revision, model_class)
    if (path := find_file(source, GENERATION_CONFIG, revision)) is not None:
        read_object(path)
    with reading(source, ModelError, HUB_HINT):
        model, report = model_class.from_pretrained(
            source,
            config=settings,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported below, with their names
            output_loading_info=True,
        )
    if head_may_be_embedding and HEAD in report["missing_keys"]:
        model.get_output_embeddings().weight.data.copy_(model.get_input_embeddings().weight)
        report["missing_keys"].remove(HEAD)
    parameters = model.state_dict()
    wrong_shapes = [
        f"{name} {list(stored[name].shape) if name in stored else ''} instead of {list(parameters[name].shape)}"
        for name in report["mismatched_keys"]
    ]
    differences = {"missing": report["missing_keys"], "unexpected": report["unexpected_keys"], "shape": wrong_shapes}
    found = [f"{kind}: {_some(names)}" for kind, names in differences.items() if names]
    if found:
        raise ModelError(
            f"the tensors of {source} do not match its config.json: {'; '.join(found)}",
            "use the config.json that was saved with the weights",
        )
    _check_tied(parameters, stored, source)
    _fill_embedding(model, stored)
    check_finite(model, source)
    return model


def check_finite(model: torch.nn.Module, source: str) -> None:
    """Rejects parameters with NaN or infinite values; a sum per tensor, which neither copies nor misses any.

    Raises:
        ModelError: With the names of the parameters.
    """
    damaged = [
        name
        for name, parameter in model.named_parameters()
        if not torch.isfinite(parameter.detach().sum()) and not torch.isfinite(parameter.detach()).all()
    ]
    if damaged:
        raise ModelError(
            f"{source} has NaN or infinite values in {_some(damaged)}",
            "use a checkpoint saved before training diverged",
        )


def stored_tensors(source: str, revision: str | None, model_class: type[PreTrainedModel]) -> dict[str, Stored]:
    """The tensors of a checkpoint by name, from the headers of its safetensors files.

    Args:
        source: A local folder or a hub id.
        revision: The commit on the hub.
        model_class: The class of the model, for the command that converts other files.

    Raises:
        ModelError: If the folder has no weights, a shard is missing, or a file is damaged or quantized.
    """
    single = find_file(source, SINGLE, revision)
    if single is not None:
        stored = _header(single)
    elif (index := find_file(source, INDEX, revision)) is not None:
        stored = _sharded(source, index, revision)
    else:
        raise _no_weights(source, model_class)
    if not stored:
        raise ModelError(f"{single or source} contains no tensors", DAMAGED_HINT)
    return stored


def _header(file: Path) -> dict[str, Stored]:
    stored = {}
    with reading(file, ModelError, DAMAGED_HINT), safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - not a dict
            part = tensors.get_slice(name)
            if part.get_dtype() not in DTYPES:
                raise ModelError(
                    f"{file}: {name} has dtype {part.get_dtype()}; valid: {', '.join(DTYPES)}",
                    "use a checkpoint that is not quantized",
                )
            stored[name] = Stored(file, tuple(part.get_shape()))
    return stored


def _sharded(source: str, index: Path, revision: str | None) -> dict[str, Stored]:
    """The tensors of all shards, which must be exactly those that the index lists."""
    listed = read_object(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(shard, str) for shard in listed.values()):
        raise ModelError(f"{index} has no weight_map of file names", DAMAGED_HINT)
    stored: dict[str, Stored] = {}
    for shard in sorted(set(listed.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelError(f"{index} lists {shard!r}, which is not a safetensors file next to it", DAMAGED_HINT)
        file = find_file(source, shard, revision, required=True)
        assert file is not None
        stored |= _header(file)
    if different := sorted(set(listed) ^ set(stored)):
        raise ModelError(f"{index} and its files list different tensors: {_some(different)}", DAMAGED_HINT)
    return stored


def _check_tied(parameters: dict[str, torch.Tensor], stored: dict[str, Stored], source: str) -> None:
    """Rejects a file with different values for one tied parameter, of which transformers 4 silently keeps one."""
    groups: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        if name in stored and not parameter.is_meta:
            groups.setdefault(parameter.data_ptr(), []).append(name)
    for first, *others in groups.values():
        for name in others:
            if not torch.equal(stored[name].read(name), stored[first].read(first)):
                raise ModelError(
                    f"{source}: {name} differs from {first}, but config.json ties them",
                    "use the config.json that was saved with the weights (tie_word_embeddings may be wrong)",
                )


def _fill_embedding(model: PreTrainedModel, stored: dict[str, Stored]) -> None:
    """Loads the embedding from another name of the tied parameter, which transformers 4 leaves without values."""
    embedding = model.get_input_embeddings()
    if embedding.weight.is_meta:
        other = next(name for name in model._tied_weights_keys if name in stored)
        embedding.weight = torch.nn.Parameter(stored[other].read(other).float())
        model.tie_weights()


def _no_weights(source: str, model_class: type[PreTrainedModel]) -> ModelError:
    message = f"{source} contains neither {SINGLE} nor {INDEX}"
    pickled = any((Path(source) / name).is_file() for name in PICKLES)
    if Path(source).is_dir() and not pickled:
        return ModelError(message, "use a folder in which transformers saved a whole model")
    target = source if pickled else source.split("/")[-1]
    code = (
        f"from transformers import {model_class.__name__} as M; "
        f"M.from_pretrained({source!r}, use_safetensors=False, dtype='auto').save_pretrained({target!r})"
    )
    command = f"python -c {shlex.quote(code)}"
    if pickled:
        return ModelError(
            f"{message}; .bin files are not loaded, because they can run code",
            f"if you trust their origin, convert them: {command}",
        )
    return ModelError(message, f"if it has .bin files that you trust, download and convert them: {command}")


def _some(names: Iterable[str], count: int = 4) -> str:
    """The first names."""
    first = list(names)
    more = f" and {len(first) - count} more" if len(first) > count else ""
    return ", ".join(first[:count]) + more
