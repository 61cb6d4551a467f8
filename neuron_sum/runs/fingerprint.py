"""The fingerprint of everything that a result depends on: a hash for each part, so that differences have a name.

Parts of models are hashes of their files, those of a model on a hub its name and commit. Parts of data are hashes of
the examples that are used, after reading, so that neither the folder's name nor other files in it matter.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from neuron_sum import __version__, files
from neuron_sum.artifact import Artifact
from neuron_sum.console import command
from neuron_sum.data.examples import Dataset, Example
from neuron_sum.errors import ModelError, NeuronSumError, ResourceError, RunError
from neuron_sum.models.gguf import folder_of
from neuron_sum.recipes.schema import DataConfig, FullMethod, ModelConfig, Recipe, Split, TrainedTokenizer
from neuron_sum.runs.folder import RunFolder, open_run

Fingerprint = dict[str, str]

VERSION, PROMPT = "version of neuron-sum", "prompt"
BASE, TRAINED = "the base model", "the trained model"
DATA: dict[Split, str] = {"train": "training data", "validation": "validation data", "test": "test data"}

WEIGHTS, SHARDS, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
LENGTHS = ("max_source_length", "max_target_length", "long", "merge_until")
"""The fields of DataConfig that change no example."""
FILES = {
    "configuration": ("config.json", "adapter_config.json"),
    "generation configuration": ("generation_config.json",),
    "tokenizer": (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "special_tokens_map.json",
        "added_tokens.json",
        "spiece.model",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
    ),
}
"""The files that transformers and PEFT read in a model's folder, in addition to its weights."""

CACHED_FROM_BYTES = 1 << 20
"""Smaller files are hashed every time, because a lookup in the cache takes about as long."""

SETTLED_AFTER_S = 2.0
"""Seconds since the last change of a file after which its times distinguish it from a later version."""


def of_model(name_or_path: str, whose: str, revision: str | None = None) -> Fingerprint:
    """The parts of a base model, a checkpoint or an adapter.

    Args:
        name_or_path: A folder, a hub id, or a model that is converted (see models/gguf.py).
        whose: BASE or TRAINED.
        revision: The revision of a model on a hub.
    """
    folder = Path(folder_of(name_or_path))
    if not folder.is_dir():
        commit = f"{name_or_path}@{_commit(name_or_path, revision)}"
        return {f"{kind} of {whose}": commit for kind in ("weights", *FILES)}
    return {
        f"weights of {whose}": _hash_files(_weights(folder)),
        **{f"{kind} of {whose}": _hash_files(folder / name for name in names) for kind, names in FILES.items()},
    }


def of_weights(folder: Path, base: ModelConfig | None = None) -> Fingerprint:
    """The parts of a checkpoint, or of an adapter and its base model.

    Args:
        folder: The folder of the checkpoint or adapter.
        base: The base model of an adapter.
    """
    parts = of_model(str(folder), TRAINED)
    return parts if base is None else parts | of_model(str(base.name_or_path), BASE, base.revision)


def of_data(dataset: Dataset, *splits: Split) -> Fingerprint:
    """The parts of the given splits."""
    return {DATA[split]: of_examples(dataset[split]) for split in splits}


def of_examples(examples: Iterable[Example]) -> str:
    """The hash of ids, dialogues, summaries and claims, in their order."""
    return digest(
        [
            [example.id, example.dialogue, example.references, *([example.claim] if example.claim else [])]
            for example in examples
        ]
    )


def of_recipe(recipe: Recipe) -> Fingerprint:
    """The prompt and the version of neuron-sum."""
    return {PROMPT: recipe.prompt.resolve().sha256, VERSION: __version__}


def of_base(recipe: Recipe, base: Path | None = None) -> Fingerprint:
    """The parts of a recipe's base model and of a separate tokenizer.

    Args:
        recipe: The recipe.
        base: The folder in a run for a base model with random weights; without it, they are created from the recipe.
    """
    model, stored = recipe.model, base is not None and base.is_dir()
    if model.name_or_path is None:
        if stored:
            return of_model(str(base), BASE)
        content = model.config
        if isinstance(content, str):
            content = files.read_json(Path(content), ModelError)
        if isinstance(model.tokenizer, str):
            return {
                f"weights of {BASE}": digest([content, model.seed]),
                f"tokenizer of {BASE}": _of_tokenizer(model.tokenizer),
            }
        return {f"weights of {BASE}": digest([content, model.seed, model.model_dump(mode="json")["tokenizer"]])}
    parts = of_model(str(base) if stored else model.name_or_path, BASE, model.revision)
    if isinstance(model.tokenizer, str):
        parts[f"tokenizer of {BASE}"] = _of_tokenizer(model.tokenizer)
    elif isinstance(model.tokenizer, TrainedTokenizer):
        del parts[f"tokenizer of {BASE}"]
    return parts


def record_of(source: RunFolder | Artifact) -> Fingerprint:
    """The fingerprint recorded for a run, or for the run that an artifact was compiled from."""
    return source.read_record().fingerprint if isinstance(source, RunFolder) else source.manifest.source.fingerprint


def model_parts(fingerprint: Mapping[str, str]) -> Fingerprint:
    """Only the parts of the base model and the trained model."""
    return {part: value for part, value in fingerprint.items() if part.endswith((BASE, TRAINED))}


def is_same_data(one: DataConfig, other: DataConfig) -> bool:
    """Whether two recipes read the same examples."""
    lengths = dict.fromkeys(LENGTHS)
    return one.model_copy(update=lengths) == other.model_copy(update=lengths)


def digest(value: object) -> str:
    """The hash of a value that JSON can represent."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode(errors="surrogatepass")).hexdigest()


def differences(recorded: Mapping[str, str], actual: Mapping[str, str]) -> list[str]:
    """A description of each part in `actual` that differs from its record."""
    return [
        f"{part} ({_short(recorded.get(part))}, now {_short(value)})"
        for part, value in actual.items()
        if recorded.get(part) != value
    ]


def check(recorded: Mapping[str, str], actual: Mapping[str, str], path: Path, hint: str) -> None:
    """Compares parts with their record.

    Args:
        recorded: The fingerprint recorded for a run or an artifact.
        actual: The parts that are about to be used.
        path: The folder of the run or artifact.
        hint: The remedy.

    Raises:
        RunError: If a part differs; names each of them.
    """
    if changed := differences(recorded, actual):
        raise RunError(f"changed since {path} was written: {', '.join(changed)}", hint)


def open_trained(path: Path) -> RunFolder:
    """Opens a finished run whose trained model, base model and prompt are those of its training.

    Raises:
        RunError: If the folder is not a finished run, or if a part has changed; names it.
    """
    run = open_run(path)
    parts = {**of_model(str(run.weights), TRAINED), PROMPT: run.recipe.prompt.resolve().sha256}
    if not isinstance(run.recipe.method, FullMethod):
        parts |= of_base(run.recipe, run.base)
    check(run.read_record().fingerprint, parts, path, f"put the old files back, or train again: {_again(run)}")
    return run


def check_base(run: RunFolder) -> Fingerprint:
    """The parts of the base model of a run.

    Raises:
        RunError: If a part has changed since the training.
    """
    parts = of_base(run.recipe, run.base)
    check(run.read_record().fingerprint, parts, run.path, f"put the old files back, or train again: {_again(run)}")
    return parts


def check_data(record: Mapping[str, str], dataset: Dataset, split: Split, path: Path) -> None:
    """Compares one split with the data recorded for a run or an artifact; a compiled checkpoint has no such record.

    Raises:
        RunError: If it has changed since the training.
    """
    hint = f"put the old data in {dataset.origin} back, or name the data to use with --recipe"
    if DATA[split] in record:
        check(record, of_data(dataset, split), path, hint)


def _again(run: RunFolder) -> str:
    return command("train", run.recipe_path, output=run.path, overwrite=True)


def _short(value: str | None) -> str:
    if value is None:
        return "not recorded"
    return f"{value[:12]}…" if len(value) == 64 and value.isalnum() else value


def _commit(name: str, revision: str | None) -> str:
    from neuron_sum.models.base import load_config

    commit = getattr(load_config(ModelConfig(name_or_path=name, revision=revision)), "_commit_hash", None)
    return str(commit or revision)


def _of_tokenizer(source: str) -> str:
    path = Path(folder_of(source))
    if path.is_dir():
        return _hash_files(path / name for name in FILES["tokenizer"])
    if path.is_file():
        return _hash_files([path])
    from huggingface_hub import try_to_load_from_cache

    cached = (try_to_load_from_cache(source, name) for name in FILES["tokenizer"])
    return f"{source}@{next((Path(file).parent.name for file in cached if isinstance(file, str)), None)}"


def _weights(folder: Path) -> list[Path]:
    """The files of the weights that transformers or PEFT load, without others that lie beside them."""
    found = [folder / WEIGHTS, folder / ADAPTER]
    if not found[0].is_file() and (folder / SHARDS).is_file():
        index = folder / SHARDS
        with suppress(NeuronSumError):  # loading reports a damaged index
            shards = {str(shard) for shard in dict(files.read_json(index).get("weight_map", {})).values()}
            found += [index, *(folder / name for name in sorted(shards))]
    return found


def _hash_files(paths: Iterable[Path]) -> str:
    return digest([[path.name, file_hash(path)] for path in paths if path.is_file()])


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, which is read only once as long as it does not change.

    A file is recognized by path, size, inode and times; the time of its last status change cannot be set back. A
    damaged entry of the cache counts as a missing one.
    """
    before = path.stat()
    if before.st_size < CACHED_FROM_BYTES:
        return files.sha256(path)
    identity = _identity(path, before)
    entry = files.cache_folder() / "hashes" / hashlib.sha256(identity.encode()).hexdigest()
    with suppress(OSError, ValueError):
        digest, check = entry.read_text(encoding="ascii").split()
        if check == _check(identity, digest):
            return digest
    digest = files.sha256(path)
    after = path.stat()
    if _identity(path, after) == identity and time.time() - max(after.st_mtime, after.st_ctime) > SETTLED_AFTER_S:
        with suppress(OSError, ResourceError):
            entry.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(entry, f"{digest} {_check(identity, digest)}\n")
    return digest


def _identity(path: Path, found: os.stat_result) -> str:
    numbers = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return f"{path.resolve()} {numbers}"


def _check(identity: str, digest: str) -> str:
    return hashlib.sha256(f"{identity} {digest}".encode()).hexdigest()
