"""Read a data source into examples; every bad row is reported with file and line."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from neuron_sum.data.checks import Problem, merge_references, near_overlap, remove_duplicate_ids, remove_overlap
from neuron_sum.data.examples import Dataset, Example, evenly_spaced
from neuron_sum.errors import DataError
from neuron_sum.recipes.schema import SPLITS, Columns, DataConfig, Split

SAMPLE = Path(__file__).parent / "sample"
PROBLEMS_SHOWN = 20
JSON_LINES, JSON_ARRAY = "write one JSON object per line", "write one array of objects"

COLUMNS = {
    "sample": Columns(id="fname", topic="topic"),
    "dialogsum": Columns(id="fname", topic="topic"),
    "samsum": Columns(id="id"),
}
ORIGINS = {"sample": "the bundled sample", "dialogsum": "DialogSum", "samsum": "SAMSum"}
LICENSES = {"sample": "Apache-2.0", "dialogsum": "CC BY-NC-SA 4.0", "samsum": "CC BY-NC-ND 4.0"}
"""Licences of the data sets with a known format: github.com/cylnlp/dialogsum, arXiv:1911.12237."""

FILE_NAMES: dict[str, dict[Split, tuple[str, ...]]] = {
    "dialogsum": {
        "train": ("train.jsonl", "dialogsum.train.jsonl"),
        "validation": ("validation.jsonl", "dialogsum.dev.jsonl"),
        "test": ("test.jsonl", "dialogsum.test.jsonl"),
    },
    "samsum": {"train": ("train.json",), "validation": ("val.json",), "test": ("test.json",)},
    "jsonl": {split: (f"{split}.jsonl",) for split in SPLITS},
    "csv": {split: (f"{split}.csv", f"{split}.tsv") for split in SPLITS},
}
FILE_NAMES["sample"] = FILE_NAMES["jsonl"]

Row = tuple[str, Mapping[str, Any]]
"""File and line of a row, and its fields."""
Rows = Iterator[Row | Problem]


def load_dataset(config: DataConfig) -> Dataset:
    """Reads and checks every split, and selects `max_examples` of it.

    Raises:
        DataError: If the source does not exist, or, unless `skip_bad`, if it has bad rows; the message lists the first
            twenty with file, line and remedy.
    """
    problems: list[Problem] = []
    columns = COLUMNS.get(config.source, config.columns)
    splits: dict[Split, list[Example]] = {}
    for split, rows in _rows_by_split(config).items():
        merged = merge_references(_examples(rows, columns, split, problems), problems, by_dialogue=split != "train")
        splits[split] = remove_duplicate_ids(merged, problems)
    splits = remove_overlap(splits, problems)
    if problems and not config.skip_bad:
        listing = "\n  ".join(str(problem) for problem in problems[:PROBLEMS_SHOWN])
        more = f"\n  … and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        count = "1 bad row" if len(problems) == 1 else f"{len(problems)} bad rows"
        raise DataError(f"{count}\n  {listing}{more}", "fix them, or skip them with --skip-bad")
    skipped: dict[str, int] = {}
    for problem in problems:
        skipped[problem.kind] = skipped.get(problem.kind, 0) + 1
    return Dataset(
        splits={
            split: evenly_spaced(examples, config.max_examples if split == "train" else config.max_eval_examples)
            for split, examples in splits.items()
        },
        origin=ORIGINS.get(config.source, str(config.path)),
        license=config.license or _license(config),
        skipped=skipped,
        near_overlap=near_overlap(splits.get("train", []), splits.get("validation", []) + splits.get("test", [])),
    )


def _rows_by_split(config: DataConfig) -> dict[Split, Rows]:
    if config.source == "hub":
        return _hub_rows(config)
    folder = SAMPLE if config.source == "sample" else Path(str(config.path))
    if not folder.is_dir():
        raise DataError(
            f"data.path = {config.path!r} is not a folder (absolute path: {folder.absolute()})",
            "set data.path to a folder; in a recipe it is relative to its file, in an override to the current folder",
        )
    files: dict[Split, Path] = {}
    for split in SPLITS:
        configured = getattr(config.files, split)
        if configured is not None and not (folder / configured).is_file():
            hint = f"use one of the files in this folder: {_listing(folder)}"
            raise DataError(f"data.files.{split} = {configured!r} is not in {folder}", hint)
        for name in (configured,) if configured is not None else FILE_NAMES[config.source][split]:
            if (folder / name).is_file():
                files[split] = folder / name
                break
    if not files:
        expected = ", ".join(names[0] for names in FILE_NAMES[config.source].values())
        hint = f"set data.files.train=… to one of the files in this folder: {_listing(folder)}"
        raise DataError(f"{folder} contains none of {expected}", hint)
    return {split: READERS[config.source](path, config) for split, path in files.items()}


def _examples(rows: Rows, columns: Columns, split: Split, problems: list[Problem]) -> Iterator[Example]:
    """Yields the valid rows as examples, and adds the bad ones to `problems`."""
    for row in rows:
        example = row if isinstance(row, Problem) else _example(*row, columns, split)
        if isinstance(example, Problem):
            problems.append(example)
        else:
            yield example


def _example(location: str, fields: Mapping[str, Any], columns: Columns, split: Split) -> Example | Problem:
    """One row as an example, or its problem."""
    summaries = (columns.summary,) if isinstance(columns.summary, str) else columns.summary
    if columns.summary == "summary" and "summary" not in fields:  # DialogSum's test split: summary1, summary2, summary3
        summaries = tuple(sorted(key for key in fields if re.fullmatch(r"summary\d+", key))) or summaries
    texts: dict[str, str] = {}
    for column in (columns.dialogue, *summaries):
        if column not in fields:
            names = ", ".join(str(key) for key in fields)
            return Problem("missing column", location, f"{column!r} is not one of {names}", "map it with data.columns")
        text = fields[column]
        if not isinstance(text, str):
            return Problem("not text", location, f"{column!r} is {text!r:.60}", "use a string")
        if any("\udc80" <= character <= "\udcff" for character in text):
            return Problem(
                "wrong encoding", location, f"{column!r} is not UTF-8", "save it as UTF-8 or set data.encoding"
            )
        texts[column] = text.replace("\r\n", "\n").strip()
        if not texts[column]:
            kind = "empty dialogue" if column == columns.dialogue else "empty summary"
            return Problem(kind, location, f"{column!r} is empty", "fill it in or remove the row")
    topic = fields.get(columns.topic) or fields.get(f"{columns.topic}1") if columns.topic else None
    return Example(
        id=str(fields[columns.id])
        if columns.id is not None and columns.id in fields
        else f"{split}_{location.rpartition(':')[2]}",
        dialogue=texts[columns.dialogue],
        references=tuple(texts[column] for column in summaries),
        topic=str(topic) if topic else None,
        location=location,
    )


def _open(path: Path, config: DataConfig) -> TextIO:
    """Opens a text file; bytes of another encoding become lone surrogates, so that they are reported for each row."""
    with path.open("rb") as raw:
        start = raw.read(2)
    if start in (b"\xff\xfe", b"\xfe\xff") and not config.encoding.lower().startswith("utf-16"):
        raise DataError(
            f"{path.name}:1: wrong encoding: this is UTF-16", "save it as UTF-8 or set data.encoding=utf-16"
        )
    encoding = "utf-8-sig" if config.encoding.lower() in ("utf-8", "utf8") else config.encoding
    try:
        return path.open(encoding=encoding, errors="surrogateescape", newline="")
    except LookupError as error:
        raise DataError(
            f"data.encoding = {config.encoding!r}: {error}", "use a name such as utf-8, latin-1, cp1252"
        ) from error


def _jsonl_rows(path: Path, config: DataConfig) -> Rows:
    with _open(path, config) as lines:
        for number, line in enumerate(lines, 1):
            location = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                yield Problem("invalid JSON", location, f"{error.msg} at column {error.colno}", JSON_LINES)
                continue
            if isinstance(fields, dict):
                yield location, fields
            else:
                yield Problem("invalid JSON", location, f"a {type(fields).__name__}", JSON_LINES)


def _json_rows(path: Path, config: DataConfig) -> Rows:
    """Reads SAMSum's format, one array of objects. The number after the colon is the position in it, from 1."""
    with _open(path, config) as text:
        try:
            items = json.load(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path.name}:{error.lineno}: invalid JSON: {error.msg}", JSON_ARRAY) from error
    if not isinstance(items, list):
        raise DataError(f"{path.name}:1: invalid JSON: a {type(items).__name__}", JSON_ARRAY)
    for number, fields in enumerate(items, 1):
        location = f"{path.name}:{number}"
        yield (
            (location, fields)
            if isinstance(fields, dict)
            else Problem("invalid JSON", location, f"{fields!r:.60}", "use an object")
        )


def _csv_rows(path: Path, config: DataConfig) -> Rows:
    csv.field_size_limit(2**31 - 1)
    delimiter = "\t" if path.suffix == ".tsv" else config.delimiter
    with _open(path, config) as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            required = {
                config.columns.dialogue,
                *([config.columns.summary] if isinstance(config.columns.summary, str) else config.columns.summary),
            }
            if missing := sorted(required - set(header)):
                raise DataError(
                    f"{path.name}:1: missing column {', '.join(missing)}; columns: {', '.join(header) or 'none'}",
                    "map them with data.columns.dialogue=… data.columns.summary=…, or set data.delimiter",
                )
            start = reader.line_num + 1
            for cells in reader:
                location = f"{path.name}:{start}"
                start = reader.line_num + 1
                if len(cells) == len(header):
                    yield location, dict(zip(header, cells, strict=True))
                elif cells:
                    detail = f"{len(cells)} cells under {len(header)} columns"
                    yield Problem("ragged row", location, detail, "quote cells with a delimiter or a line break")
        except csv.Error as error:
            raise DataError(f"{path.name}:{reader.line_num}: invalid CSV: {error}", "check the quotes") from error


def _hub_rows(config: DataConfig) -> dict[Split, Rows]:
    import datasets

    try:
        loaded = datasets.load_dataset(config.path, revision=config.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"cannot load data.path = {config.path!r}: {str(error).splitlines()[0]}",
            "check the id and the network, or download the data and use data.source=jsonl data.path=FOLDER",
        ) from error

    def rows(split: Split) -> Rows:
        for number, fields in enumerate(loaded[split], 1):
            yield f"{config.path}/{split}:{number}", fields

    return {split: rows(split) for split in SPLITS if split in loaded}


def _license(config: DataConfig) -> str | None:
    """The licence of a known source, or from the card of a hub data set."""
    if config.source != "hub":
        return LICENSES.get(config.source)
    from huggingface_hub import DatasetCard
    from huggingface_hub.errors import EntryNotFoundError

    local_card = Path(str(config.path)) / "README.md"
    try:
        card = DatasetCard.load(local_card if local_card.is_file() else str(config.path))
    except (EntryNotFoundError, OSError):
        return None
    licence = card.data.get("license")
    return ", ".join(licence) if isinstance(licence, list) else licence


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return ", ".join(names[:10]) + (" …" if len(names) > 10 else "") or "none"


READERS: dict[str, Callable[[Path, DataConfig], Rows]] = {
    "sample": _jsonl_rows,
    "dialogsum": _jsonl_rows,
    "jsonl": _jsonl_rows,
    "samsum": _json_rows,
    "csv": _csv_rows,
}
