"""Data sets of a hub, and local folders in their layout, read by the `datasets` library."""

import re
import shlex
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neuron_sum.data.readers import Rows
from neuron_sum.data.splits import check_shards, is_folder, listing, one_claim, split_of
from neuron_sum.errors import DataError, reading
from neuron_sum.recipes.schema import SPLITS, DataConfig, Split
from neuron_sum.text_files import conversion_of

STRING, MARK = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL), re.compile(rb"[\[\]{}]|[^\s,:\[\]{}]+")
MAX_DEPTH = 500
DATA_SUFFIXES = (".parquet", ".json", ".jsonl", ".csv", ".tsv", ".arrow")
PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")

NUMBER = re.compile(r"[-_.]\d{5}-of-\d{5}|(?<=.)[-_.]?\d{1,9}$")
"""The number of one of several files that `datasets` joins in order."""


def read_hub(config: DataConfig) -> tuple[dict[Split, Rows], list[str]]:
    """The rows of each split, and the names of the splits that are not used.

    Raises:
        DataError: If the data set cannot be read, has a loading script, or has several configurations and `data.config`
            names none of them.
    """
    with _loading(config):
        loaded = _load(config)
    chosen = {split: name for split in SPLITS if (name := getattr(config.files, split)) is not None}
    for key, name in chosen.items():
        if name not in loaded:
            raise DataError(
                f"data.files.{key} = {name!r} is not a split of data.path = {config.path!r}",
                f"use one of its splits: {listing(loaded)}",
            )
    claims = [(split, name) for name in loaded if (split := split_of(name)) and split not in chosen]
    claimed = one_claim(claims, f"data.path = {config.path!r}", "choose one: data.files.{split}={name}")
    names = {split: name for split in SPLITS if (name := chosen.get(split) or claimed.get(split)) is not None}
    if not names:
        raise DataError(
            f"data.path = {config.path!r} has no train, validation or test split; splits: {listing(loaded)}",
            "choose one: data.files.train=SPLIT",
        )

    def rows(split: Split, name: str) -> Rows:
        with _loading(config):
            for number, fields in enumerate(loaded[name], 1):
                yield f"{config.path}/{split}:{number}", fields

    unused = [f"split {name}" for name in loaded if name not in names.values()]
    return {split: rows(split, name) for split, name in names.items()}, unused


def card_license(config: DataConfig) -> str | None:
    """The licence that the card of a data set states; None if it has no card or no licence."""
    from huggingface_hub import DatasetCard

    folder = Path(str(config.path))
    if is_folder(folder) and not (folder / "README.md").is_file():
        return None
    try:
        with reading(str(config.path), DataError):
            card = DatasetCard.load(folder / "README.md" if is_folder(folder) else str(config.path))
            licence = card.data.get("license")
            return ", ".join(map(str, licence)) if isinstance(licence, list) else licence and str(licence)
    except DataError:  # the card is not needed for reading the data
        return None


def _load(config: DataConfig) -> Mapping[str, Any]:
    """The data set's splits by name."""
    import datasets

    path = str(config.path)
    folder = Path(path)
    is_saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    if is_saved and config.config is not None:
        raise DataError(f"{folder} was saved by save_to_disk and has no configurations", "omit data.config")
    if (folder / "dataset_dict.json").is_file():
        return dict(datasets.load_from_disk(path))
    if is_saved:
        single = datasets.load_from_disk(path)
        return {str(single.split or split_of(folder.name) or "train"): single}
    if is_folder(folder):
        _check_folder(folder)
    try:
        return dict(datasets.load_dataset(path, name=config.config, revision=config.revision))
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ or error from error


def _check_folder(folder: Path) -> None:
    """Checks for missing shards, and for two files that claim one split, which `datasets` would join."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in DATA_SUFFIXES
        and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    )
    check_shards(files)
    for path in files:
        if path.suffix.lower() in (".json", ".jsonl"):
            _check_json(path)
    card = folder / "README.md"
    header = card.read_text(encoding="utf-8", errors="replace").split("---")[1:2] if card.is_file() else []
    if any("configs" in text for text in header):
        return
    names = {path.parent / NUMBER.split(path.stem)[0]: path for path in files}
    claims = [
        (split, str(path.relative_to(folder)))
        for base, path in names.items()
        if (split := split_of(base.name)) is not None
    ]
    one_claim(claims, str(folder), "remove one of them, or list the files in `configs` in README.md")


def _check_json(path: Path) -> None:
    """Rejects JSON on which pyarrow 21 crashes: deep nesting, keys that are not UTF-8, a single value instead of a row.

    Raises:
        DataError: With the line.
    """
    depth = 0
    with reading(path, DataError), path.open("rb") as content:
        for number, line in enumerate(content, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number} is not UTF-8: {error.reason}", conversion_of(path)) from error
            for mark in MARK.findall(STRING.sub(b"", line.removeprefix(BOM_UTF8))):
                depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(mark, 0)
                if depth == 0 and mark not in (b"]", b"}"):
                    raise DataError(f"{path}:{number}: {mark.decode()[:40]} is not a row", "remove it")
                if depth > MAX_DEPTH:
                    raise DataError(f"{path}:{number}: nested more than {MAX_DEPTH} times", "use rows of plain texts")


@contextmanager
def _loading(config: DataConfig) -> Iterator[None]:
    """Converts the exceptions of `datasets` into errors with a remedy."""
    place = f"data.path = {config.path!r}"
    folder = Path(str(config.path))
    is_local = is_folder(folder)
    hint = "check the id and the network, or download the data and use data.source=jsonl data.path=FOLDER"
    if is_local:
        hint = "check its files and README.md; or convert them to JSON Lines and use data.source=jsonl"
    try:
        yield
    except (DataError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        text = str(error)
        if "scripts are no longer supported" in text:
            name = "ID" if is_local else shlex.quote(str(config.path))
            command = f"hf download {name} --repo-type dataset --revision refs/convert/parquet --local-dir FOLDER"
            remedy = f"use its Parquet files: {command}; then set data.path=FOLDER"
            if not is_local:
                remedy = f"use its Parquet files: set data.revision=refs/convert/parquet, or {command}"
            raise DataError(
                f"{place} is read by a script, which is not run: {text.rpartition(' ')[2]}", remedy
            ) from error
        if (valid := re.search(r"(?:configs|Available): \[(.*?)\]", text)) and "onfig" in text:
            names = valid[1].replace("'", "")
            problem = f"data.config = {config.config!r} is not one of" if config.config else "set data.config to one of"
            if config.config:
                raise DataError(f"{place}: {problem} {names}", f"set data.config={names.split(', ')[0]}") from error
            raise DataError(
                f"{place} has several configurations: {names}", f"choose one: data.config={names.split(', ')[0]}"
            ) from error
        with reading(place, DataError, hint):
            raise
