"""The files of each split in a folder, by the usual names of public data sets."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from neuron_sum.errors import DataError, reading
from neuron_sum.recipes.schema import SPLITS, DataConfig, Split

NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "validate", "val", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tests", "tst"),
}
SPLIT_OF: dict[str, Split] = {name: split for split, names in NAMES.items() for name in names}
SUFFIXES = {
    "sample": (".jsonl",),
    "dialogsum": (".jsonl",),
    "samsum": (".json",),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv", ".tsv"),
}
TRANSCRIPTS = (".vtt", ".srt")
PACKED = (".gz", ".bz2", ".xz", ".zst")
"""A packed file counts as the split's file, so that reading it names the command that unpacks it."""
SHARD = re.compile(r"[-_.](\d{5})-of-(\d{5})(?:-[0-9a-f]+)?$")
DOCUMENTS = ("readme", "license", "licence", "notice", "citation", "changelog")
SHOWN = 10


def split_of(name: str) -> Split | None:
    """The split that a name without suffix states, in any case; None if it states none or several.

    The name may contain other words, such as in dialogsum.dev, train-00000-of-00002 and MTS-Dialog-TrainingSet.
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    found = {SPLIT_OF.get(re.sub(r"(?<=.)(set|data|split)$", "", word.lower())) for word in words} - {None}
    return found.pop() if len(found) == 1 else None


def one_claim(claims: Iterable[tuple[Split, str]], place: str, hint: str) -> dict[Split, str]:
    """The name of each split.

    Args:
        claims: Splits and the names that state them.
        place: The source of the names, for messages.
        hint: The remedy if two names state the same split, in which {split} and {name} are replaced.

    Raises:
        DataError: If two names state the same split.
    """
    names: dict[Split, str] = {}
    for split, name in claims:
        if (first := names.setdefault(split, name)) != name:
            single = next((claim for claim in (first, name) if not claim.endswith(("/", "-*"))), None)
            raise DataError(
                f"{first} and {name} in {place} are both the {split} split",
                hint.format(split=split, name=single) if single else "move one of them to another folder",
            )
    return {split: names[split] for split in SPLITS if split in names}


def split_files(folder: Path, config: DataConfig) -> tuple[dict[Split, list[Path]], list[str]]:
    """The files of each split, in order, and the names of the files that are not used.

    A split is one file, its shards, or a folder of files. `data.files` takes precedence over the usual names.

    Raises:
        DataError: If no file is found, a configured one is missing, two claim the same split, or a shard is missing.
    """
    suffixes = SUFFIXES[config.source]
    entries = _visible(folder)
    names = listing(path for path in entries if not is_folder(path))
    configured = {split: folder / name for split in SPLITS if (name := getattr(config.files, split)) is not None}
    for split, path in configured.items():
        with reading(path, DataError, f"use one of the files in this folder: {names}"):
            if path.is_dir():
                raise DataError(f"data.files.{split} = {path.name!r} is a folder", "use a file in it")
            if not path.exists():
                hint = f"use one of the files in this folder: {names}"
                raise DataError(f"data.files.{split} = {getattr(config.files, split)!r} is not in {folder}", hint)
    files: dict[Split, list[Path]] = {split: [path] for split, path in configured.items()}
    claimed: list[tuple[Split, str, Path]] = []
    others: list[str] = []
    readable = set(_readable(entries, suffixes))
    for entry in entries:
        stated = split_of(entry.name if is_folder(entry) else _stem(entry.name, suffixes) or "")
        if is_folder(entry):
            inside = [path for path in _visible(entry) if not is_folder(path)]
            used = _readable(inside, suffixes) if stated is not None and stated not in configured else []
            claimed += [(stated, f"{entry.name}/", path) for path in used if stated is not None]
            others += [f"{entry.name}/{path.name}" for path in inside if path not in used]
            for path in used:
                if (other := split_of(_stem(path.name, suffixes) or "")) not in (None, stated):
                    raise DataError(
                        f"{path.name} in {entry} is in a folder of the {stated} split, but its name states {other}",
                        "move it to another folder, or rename it",
                    )
        elif stated is not None and stated not in configured and entry in readable:
            stem = str(_stem(entry.name, suffixes))
            shard = SHARD.search(stem)
            claimed.append((stated, f"{stem[: shard.start()]}-*" if shard else entry.name, entry))
    claimed = _without_variants(claimed, suffixes)
    one_claim((claim[:2] for claim in claimed), str(folder), "choose one: data.files.{split}={name}")
    for split, _, path in claimed:
        files.setdefault(split, []).append(path)
    for paths in files.values():
        check_shards(paths)
    if not files:
        expected = ", ".join(f"{split}{suffixes[0]}" for split in SPLITS)
        raise DataError(f"{folder} contains none of {expected}", _hint(entries))
    chosen = {path for paths in files.values() for path in paths}
    unused = [path.name for path in entries if path not in chosen and not is_folder(path)]
    unused += [name for name in others if folder / name not in chosen]
    ordered = {split: files[split] for split in SPLITS if split in files}
    return ordered, [name for name in unused if not name.lower().startswith(DOCUMENTS)]


def _visible(folder: Path) -> list[Path]:
    with reading(folder, DataError, "check data.path and its permissions"):
        return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")))


def _readable(paths: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    """The files with one of the suffixes, without packed ones next to the unpacked file."""
    names = {path.name for path in paths}
    return [
        path
        for path in paths
        if _stem(path.name, suffixes) is not None and not (path.suffix.lower() in PACKED and path.stem in names)
    ]


def _without_variants(claimed: list[tuple[Split, str, Path]], suffixes: Sequence[str]) -> list[tuple[Split, str, Path]]:
    """The claims, without names such as train_small of a split that one exact name, such as train, states."""
    exact: dict[Split, set[str]] = {}
    for split, name, _ in claimed:
        stem = name.removesuffix("/").removesuffix("-*")
        if (_stem(stem, suffixes) or stem).lower() in SPLIT_OF:
            exact.setdefault(split, set()).add(name)
    return [claim for claim in claimed if len(exact.get(claim[0], ())) != 1 or claim[1] in exact[claim[0]]]


def check_shards(paths: Sequence[Path]) -> None:
    """Checks that all shards of a file such as train-00000-of-00002.parquet are present.

    Raises:
        DataError: If one is missing.
    """
    groups: dict[tuple[str, int], set[int]] = {}
    for path in paths:
        if shard := SHARD.search(path.name.split(".")[0]):
            group = (str(path.parent / path.name[: shard.start()]), int(shard[2]))
            groups.setdefault(group, set()).add(int(shard[1]))
    for (base, count), present in groups.items():
        if missing := sorted(set(range(min(count, 100_000))) - present):
            names = ", ".join(f"{number:05}-of-{count:05}" for number in missing[:3])
            raise DataError(f"{base}: {len(missing)} of {count} shards are missing: {names}", "download them again")


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; False also for a path that the file system rejects, such as a too long one."""
    try:
        return path.is_dir()
    except OSError:
        return False


def listing(paths: Iterable[Path | str]) -> str:
    """The first names of a folder's files, for messages."""
    names = [path if isinstance(path, str) else path.name for path in paths]
    return ", ".join(names[:SHOWN]) + (f" … ({len(names)} files)" if len(names) > SHOWN else "") or "none"


def _stem(name: str, suffixes: Sequence[str]) -> str | None:
    """The name without suffix; None if it has another suffix."""
    for packed in ("", *PACKED):
        for suffix in suffixes:
            if name.lower().endswith(suffix + packed):
                return name[: -len(suffix + packed)]
    return None


def _hint(entries: Sequence[Path]) -> str:
    paths = [path for path in entries if not is_folder(path)]
    names = [path.name.lower() for path in paths]
    if any(name.endswith(TRANSCRIPTS) for name in names):
        return "transcripts have no summaries: use `neuron-sum summarize RUN FILE`, or write them into a .jsonl file"
    for source in ("jsonl", "csv"):
        if found := [path for path in paths if split_of(_stem(path.name, SUFFIXES[source]) or "") is not None]:
            return f"set data.source={source} to read {listing(found)}"
    if any(name.endswith((".parquet", ".arrow")) or name == "dataset_dict.json" for name in names):
        return "set data.source=hub to read Parquet and Arrow files"
    return f"set data.files.train=… to one of the files in this folder: {listing(paths)}"
