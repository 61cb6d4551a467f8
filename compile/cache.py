"""Compiled graphs by the content they were made from: the next checkpoint of the same shape finds them."""

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

SOURCES = ("graphs/layers.py", "graphs/t5.py", "graphs/llama.py", "graphs/static.py")
"""The files of this package that decide what a graph computes, whatever its target."""

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
"""Configuration that no graph reads."""


def folder() -> Path:
    """In neuron-sum's cache."""
    return files.cache_folder() / "graphs"


def key(
    config: PretrainedConfig, options: GraphOptions, graph: GraphFile, target: Target, weights_sha256: str | None
) -> str:
    """What a compiled graph depends on, hashed: dimensions, shape, dtype, code, torch, compiler, machine.

    Args:
        config: Of the model.
        options: Of the artifact's graphs.
        graph: Which.
        target: Where it will run.
        weights_sha256: Of the weights, where they are compiled in.
    """
    content = {
        "config": {name: value for name, value in config.to_dict().items() if name not in IRRELEVANT},
        "options": [
            str(options.dtype),
            str(options.kv_dtype),
            options.linear.__name__,
            options.write.__name__,
            options.row_sums,
            options.source_len,
            options.target_len,
            options.soft_prompt_tokens,
            options.adapters.model_dump(mode="json") if options.adapters else None,
        ],
        "graph": graph.model_dump(mode="json", exclude={"file", "kept"}),
        "code": [files.sha256(Path(__file__).parent / name) for name in (*SOURCES, *target.sources)],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "weights": weights_sha256,
        **target.identity(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def path(graph_key: str, suffix: str) -> Path:
    """Where a graph lies, or will."""
    return folder() / f"{graph_key}{suffix}"


def copy(cached: Path, target: Path) -> None:
    """Copies a graph out of the cache.

    Raises:
        CompileError: If it was damaged there.
    """
    shutil.copyfile(cached, target)
    try:
        damaged = zipfile.ZipFile(target).testzip()  # a package is an archive, with a checksum of every part
    except zipfile.BadZipFile as error:
        damaged = str(error)
    if damaged is not None:
        raise CompileError(
            f"{cached} is damaged: {damaged}", f"rm {cached} and run the same command: it is compiled again"
        )
