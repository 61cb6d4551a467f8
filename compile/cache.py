"""A cache of compiled graphs by the hash of their inputs, so that the next checkpoint of the same shape reuses them."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import torch
import transformers
from transformers import PretrainedConfig

from compile.graphs.layers import GraphOptions
from compile.targets.base import Target
from neuron_sum import files
from neuron_sum.artifact import GraphFile
from neuron_sum.errors import CompileError

SOURCES = (
    *(f"graphs/{name}.py" for name in ("kv_cache", "layers", "selection", "t5", "llama", "static")),
    "../neuron_sum/models/families.py",
)
"""The files, from this folder, that determine what a graph computes, for any target."""

IRRELEVANT = {
    "_name_or_path",
    "transformers_version",
    "architectures",
    "torch_dtype",
    "dtype",
    "use_cache",
    "task_specific_params",
    "dropout_rate",
    "attention_dropout",
    "initializer_factor",
    "initializer_range",
    "pad_token_id",
    "eos_token_id",
    "bos_token_id",
    "decoder_start_token_id",
    "n_positions",
}
"""Configuration fields that no graph reads."""


def folder() -> Path:
    """The folder of compiled graphs in neuron-sum's cache."""
    return files.cache_folder() / "graphs"


def key(
    config: PretrainedConfig,
    options: GraphOptions,
    graph: GraphFile,
    target: Target,
    weights_sha256: str | None,
    layout: str | None = None,
) -> str:
    """The hash of everything a compiled graph depends on: dimensions, shape, dtype, code, torch, compiler, machine.

    Args:
        config: The model's configuration.
        options: The options of the artifact's graphs.
        graph: The graph to compile.
        target: The device that the graph is compiled for.
        weights_sha256: The hash of the weights if they are compiled in, otherwise None.
        layout: The hash of the layout of the weights, if another graph chooses it.
    """
    content = {
        "config": {name: value for name, value in config.to_dict().items() if name not in IRRELEVANT},
        "options": [
            str(options.dtype),
            str(options.kv_dtype),
            options.linear.__name__,
            options.write.__name__,
            getattr(options.attend, "__name__", None),
            options.source_len,
            options.target_len,
            options.soft_prompt_tokens,
            options.adapters.model_dump(mode="json") if options.adapters else None,
        ],
        "graph": graph.model_dump(mode="json", exclude={"file"}),
        "code": [files.sha256(Path(__file__).parent / name) for name in (*SOURCES, *target.sources)],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "weights": weights_sha256,
        "layout": layout,
        **target.identity(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def path(graph_key: str, suffix: str) -> Path:
    """The file of a graph in the cache, whether it exists or not."""
    return folder() / f"{graph_key}{suffix}"


def copy(cached: Path, target: Path) -> None:
    """Copies a graph out of the cache.

    Raises:
        CompileError: If the file in the cache is damaged.
    """
    shutil.copyfile(cached, target)
    try:
        damaged = zipfile.ZipFile(target).testzip()  # a package is an archive, with a checksum of every part
    except zipfile.BadZipFile as error:
        damaged = str(error)
    if damaged is not None:
        raise CompileError(
            f"{cached} is damaged: {damaged}", f"run `rm {cached}`, then repeat the command to compile it again"
        )
