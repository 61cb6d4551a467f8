"""Reading each source into examples; every bad row is known by file and line."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from neuron_sum.data.checks import Problem, merged_references, near_overlap, without_duplicate_ids, without_overlap
from neuron_sum.data.examples import Dataset, Example, evenly_spaced
from neuron_sum.errors import DataError
from neuron_sum.recipes.schema import SPLITS, Columns, DataConfig, Split

SAMPLE = Path(__file__).parent / "sample"
PROBLEMS_SHOWN = 20

COLUMNS = {
    "sample": Columns(id="fname", topic="topic"),
    "dialogsum": Columns(id="fname", topic="topic"),
    "samsum": Columns(id="id"),
}
ORIGINS = {"sample": "the bundled sample", "dialogsum": "DialogSum", "samsum": "SAMSum"}
LICENSES = {"sample": "Apache-2.0", "dialogsum": "CC BY-NC-SA 4.0", "samsum": "CC BY-NC-ND 4.0"}
"""Of the data sets whose form we know: github.com/cylnlp/dialogsum, arXiv:1911.12237."""

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
"""Where it stands, and its fields."""
Rows = Iterator[Row | Problem]


def load_dataset(config: DataConfig) -> Dataset:
    """Reads every split, checks it, and takes `max_examples` of it.

    Raises:
        DataError: All bad rows with file, line and remedy (twenty of them shown), unless `skip_bad`; or a source that
            is not there at all.
    """
    problems: list[Problem] = []
    columns = COLUMNS.get(config.source, config.columns)
    splits: dict[Split, list[Example]] = {}
    for split, rows in _rows_by_split(config).items():
        found = merged_references(_examples(rows, columns, split, problems), problems, by_dialogue=split != "train")
        splits[split] = without_duplicate_ids(found, problems)
    splits = without_overlap(splits, problems)
    if problems and not config.skip_bad:
        shown = "\n  ".join(str(problem) for problem in problems[:PROBLEMS_SHOWN])
        more = f"\n  … and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        count = "1 bad row" if len(problems) == 1 else f"{len(problems)} bad rows"
        raise DataError(f"{count}\n  {shown}{more}", "mend them, or leave them out with --skip-bad")
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
            f"data.path = {config.path!r} is not a folder (looked for {folder.absolute()})",
            "a path in a recipe is relative to the recipe's file, in an override to the current folder",
        )
    files: dict[Split, Path] = {}
    for split in SPLITS:
        named = getattr(config.files, split)
        if named is not None and not (folder / named).is_file():
            raise DataError(f"data.files.{split} = {named!r} is not in {folder}", f"files there: {_listing(folder)}")
        for name in (named,) if named is not None else FILE_NAMES[config.source][split]:
            if (folder / name).is_file():
                files[split] = folder / name
                break
    if not files:
        wanted = ", ".join(names[0] for names in FILE_NAMES[config.source].values())
        raise DataError(
            f"{folder} has none of {wanted}", f"name them with data.files.train=… ; files there: {_listing(folder)}"
        )
    return {split: READERS[config.source](path, config) for split, path in files.items()}


def _examples(rows: Rows, columns: Columns, split: Split, problems: list[Problem]) -> Iterator[Example]:
    """The good rows as examples; the bad ones go to `problems`."""
    for row in rows:
        example = row if isinstance(row, Problem) else _example(*row, columns, split)
        if isinstance(example, Problem):
            problems.append(example)
        else:
            yield example


def _example(where: str, fields: Mapping[str, Any], columns: Columns, split: Split) -> Example | Problem:
    """One row as an example, or what is wrong with it."""
    summaries = (columns.summary,) if isinstance(columns.summary, str) else columns.summary
    if columns.summary == "summary" and "summary" not in fields:  # DialogSum's test form: summary1, summary2, summary3
        summaries = tuple(sorted(key for key in fields if re.fullmatch(r"summary\d+", key))) or summaries
    texts: dict[str, str] = {}
    for column in (columns.dialogue, *summaries):
        if column not in fields:
            there = ", ".join(str(key) for key in fields)
            return Problem("missing column", where, f"no {column!r}, there are {there}", "map it with data.columns")
        text = fields[column]
        if not isinstance(text, str):
            return Problem("not text", where, f"{column!r} is {text!r:.60}", "make it a string")
        if any("\udc80" <= character <= "\udcff" for character in text):
            return Problem("wrong encoding", where, f"{column!r} is not UTF-8", "save it as UTF-8 or set data.encoding")
        texts[column] = text.replace("\r\n", "\n").strip()
        if not texts[column]:
            kind = "empty dialogue" if column == columns.dialogue else "empty summary"
            return Problem(kind, where, f"{column!r} has no text", "fill it in or remove the row")
    topic = fields.get(columns.topic) or fields.get(f"{columns.topic}1") if columns.topic else None
    return Example(
        id=str(fields[columns.id])
        if columns.id is not None and columns.id in fields
        else f"{split}_{where.rpartition(':')[2]}",
        dialogue=texts[columns.dialogue],
        references=tuple(texts[column] for column in summaries),
        topic=str(topic) if topic else None,
        where=where,
    )


def _open(path: Path, config: DataConfig) -> TextIO:
    """Opens a text file so that bytes of another encoding survive as lone surrogates, and are found row by row."""
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
        raise DataError(f"data.encoding = {config.encoding!r}: {error}", "such as utf-8, latin-1, cp1252") from error


def _jsonl_rows(path: Path, config: DataConfig) -> Rows:
    with _open(path, config) as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                yield Problem("invalid JSON", where, f"{error.msg} at column {error.colno}", "one JSON object a line")
                continue
            if isinstance(fields, dict):
                yield where, fields
            else:
                yield Problem("invalid JSON", where, f"a {type(fields).__name__}", "one JSON object a line")


def _json_rows(path: Path, config: DataConfig) -> Rows:
    """SAMSum's form: one array of objects. The number after the colon is the item's place in it, from 1."""
    with _open(path, config) as text:
        try:
            items = json.load(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path.name}:{error.lineno}: invalid JSON: {error.msg}", "one array of objects") from error
    if not isinstance(items, list):
        raise DataError(f"{path.name}:1: invalid JSON: a {type(items).__name__}", "one array of objects")
    for number, fields in enumerate(items, 1):
        where = f"{path.name}:{number}"
        yield (
            (where, fields)
            if isinstance(fields, dict)
            else Problem("invalid JSON", where, f"{fields!r:.60}", "an object")
        )


def _csv_rows(path: Path, config: DataConfig) -> Rows:
    csv.field_size_limit(2**31 - 1)
    delimiter = "\t" if path.suffix == ".tsv" else config.delimiter
    with _open(path, config) as text:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            wanted = {
                config.columns.dialogue,
                *([config.columns.summary] if isinstance(config.columns.summary, str) else config.columns.summary),
            }
            if missing := sorted(wanted - set(header)):
                raise DataError(
                    f"{path.name}:1: missing column {', '.join(missing)}; there are {', '.join(header) or 'none'}",
                    "map them with data.columns.dialogue=… data.columns.summary=…, or set data.delimiter",
                )
            start = reader.line_num + 1
            for cells in reader:
                where = f"{path.name}:{start}"
                start = reader.line_num + 1
                if len(cells) == len(header):
                    yield where, dict(zip(header, cells, strict=True))
                elif cells:
                    detail = f"{len(cells)} cells under {len(header)} columns"
                    yield Problem("ragged row", where, detail, "quote cells that hold the delimiter or a line break")
        except csv.Error as error:
            raise DataError(f"{path.name}:{reader.line_num}: invalid CSV: {error}", "check its quotes") from error


def _hub_rows(config: DataConfig) -> dict[Split, Rows]:
    import datasets

    try:
        loaded = datasets.load_dataset(config.path, revision=config.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"data.path = {config.path!r} cannot be loaded: {str(error).splitlines()[0]}",
            "check the id and the network, or download it and use data.source=jsonl data.path=FOLDER",
        ) from error

    def rows(split: Split) -> Rows:
        for number, fields in enumerate(loaded[split], 1):
            yield f"{config.path}/{split}:{number}", fields

    return {split: rows(split) for split in SPLITS if split in loaded}


def _license(config: DataConfig) -> str | None:
    """The licence of a source we know, or of a hub data set's card."""
    if config.source != "hub":
        return LICENSES.get(config.source)
    from huggingface_hub import DatasetCard
    from huggingface_hub.errors import EntryNotFoundError

    local_card = Path(str(config.path)) / "README.md"
    try:
        card = DatasetCard.load(local_card if local_card.is_file() else str(config.path))
    except (EntryNotFoundError, OSError):
        return None
    found = card.data.get("license")
    return ", ".join(found) if isinstance(found, list) else found


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
