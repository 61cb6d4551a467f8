"""Rows of predictions files that other programs write: text, JSON, JSON Lines, CSV and TSV.

Every form becomes rows of named values; `predictions.py` checks them and joins them with the data.
"""

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuron_sum import files, text_files
from neuron_sum.errors import DataError, reading

MAX_BYTES = 1 << 30
FORMS = ".txt (one summary per line), .json, .jsonl, .csv or .tsv"
JSON_FORMS = (
    "use a list of texts, a list of objects, an object with lists of the same length, or an object of texts by id"
)
PREDICTIONS = ("predictions", "generated_predictions", "summaries", "generated_summaries", "outputs", "data", "rows")
"""Keys of a JSON object whose list contains the summaries, or the rows."""
DELIMITERS = ",;\t|"
INVALID_BYTES = re.compile("[\udc80-\udcff]")
"""Bytes of another encoding, as `text_files.open_lines` returns them."""

Row = tuple[str, Mapping[str, Any]]
"""File and line of a row, and its values by column."""


@dataclass(frozen=True)
class PredictionColumns:
    """The column names of a predictions file.

    Attributes:
        prediction: The column of the system's summary.
        references: The columns of human summaries, if the file has any: one per row, or several columns.
        id: The column that joins the file with the data, and rows of one example with each other.
        dialogue: The column of the dialogue for speaker tags, if the file has one.
    """

    prediction: str = "prediction"
    references: tuple[str, ...] = ()
    id: str = "id"
    dialogue: str = "dialogue"

    @property
    def required(self) -> tuple[str, ...]:
        """The columns that every row must have."""
        return (self.prediction, *self.references)


def read_rows(path: Path, columns: PredictionColumns) -> Iterator[Row]:
    """The rows of a file.

    Args:
        path: The file.
        columns: The names of its columns, also for forms without names.

    Raises:
        DataError: If it cannot be read; names the line.
    """
    suffix = path.suffix.lower()
    readers: dict[str, Callable[[Path, PredictionColumns], Iterator[Row]]] = {
        ".txt": _text_rows,
        ".json": _json_rows,
        ".jsonl": _jsonl_rows,
        ".ndjson": _jsonl_rows,
        ".csv": _csv_rows,
        ".tsv": _csv_rows,
    }
    if suffix not in readers:
        raise DataError(f"{path}: predictions must be {FORMS}", "rename the file if it has one of these forms")
    text_files.check_file(path, DataError)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise DataError(f"{path} has {size:,} bytes; the maximum is {MAX_BYTES:,}", "keep only ids and summaries")
    with reading(path, DataError):
        yield from readers[suffix](path, columns)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with text_files.open_lines(path, "utf-8", DataError) as lines:
        for number, line in text_files.numbered(lines):
            if line is None:
                raise DataError(
                    f"{path.name}:{number}: the line has more than {text_files.MAX_CHARACTERS:,} characters", "split it"
                )
            if found := INVALID_BYTES.search(line):
                byte = f"0x{ord(found[0]) - 0xDC00:02x}"
                raise DataError(
                    f"{path.name}:{number}: byte {byte} is not UTF-8", text_files.conversion_of(path, is_data=False)
                )
            yield number, line


def _text_rows(path: Path, columns: PredictionColumns) -> Iterator[Row]:
    for number, line in _lines(path):
        yield f"{path.name}:{number}", {columns.prediction: line.rstrip("\r\n")}


def _jsonl_rows(path: Path, columns: PredictionColumns) -> Iterator[Row]:
    for number, line in _lines(path):
        if number == 1 and line.lstrip().startswith("["):  # an array in spite of its name
            yield from _json_rows(path, columns)
            return
        if line.strip():
            yield _named(f"{path.name}:{number}", _parse(line, f"{path.name}:{number}"), columns)


def _json_rows(path: Path, columns: PredictionColumns) -> Iterator[Row]:
    text = text_files.read_text(path, DataError).strip()
    first, _, rest = text.partition("\n")
    if first.startswith("{") and first.endswith("}") and rest:  # JSON Lines in spite of its name
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield _named(f"{path.name}:{number}", _parse(line, f"{path.name}:{number}"), columns)
        return
    content = _parse(text, path.name)
    items = _items(content, columns) if isinstance(content, dict) else content
    if not isinstance(items, list):
        raise DataError(f"{path.name} contains no list of predictions", JSON_FORMS)
    for number, item in enumerate(items, 1):
        yield _named(f"{path.name}:{number}", item, columns)


def _parse(text: str, location: str) -> Any:
    try:
        return files.parse_json(text)
    except ValueError as error:
        raise DataError(f"{location}: invalid JSON: {error}", JSON_FORMS) from error


def _named(location: str, item: Any, columns: PredictionColumns) -> Row:
    """A row; a text, or a missing value among texts, is a prediction."""
    if isinstance(item, dict):
        return location, item
    if item is None or isinstance(item, str | float):
        return location, {columns.prediction: item}
    raise DataError(f"{location}: neither an object nor a text: {item!r:.60}", JSON_FORMS)


def _items(content: dict[str, Any], columns: PredictionColumns) -> Any:
    """The rows of a JSON object, or None."""
    lists = {name: value for name, value in content.items() if isinstance(value, list | dict)}
    key = next((name for name in (columns.prediction, *PREDICTIONS) if name in lists), None)
    if key is not None:
        keyed = lists[key]
        lists = {
            columns.prediction if name == key else name: _values(value)
            for name, value in lists.items()
            if len(value) == len(keyed)
        }
        if any(isinstance(item, dict) for item in lists[columns.prediction]):
            return lists[columns.prediction]
        if isinstance(keyed, dict) and columns.id not in lists and list(keyed) != [*map(str, range(len(keyed)))]:
            lists[columns.id] = list(keyed)  # otherwise pandas' numbers of the rows
    elif isinstance(content.get(columns.prediction), str):
        return [content]
    elif content and all(value is None or isinstance(value, str) for value in content.values()):
        lists = {columns.id: list(content), columns.prediction: list(content.values())}
    elif len({len(values) for values in lists.values()}) == 1:
        lists = {name: _values(value) for name, value in lists.items()}
    else:
        return None
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _values(value: list[Any] | dict[str, Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _csv_rows(path: Path, columns: PredictionColumns) -> Iterator[Row]:
    csv.field_size_limit(text_files.MAX_CHARACTERS)
    lines = _lines(path)
    skipped, first = 0, next(lines, (1, ""))[1]
    delimiter: str | None = None
    if stated := re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE):  # for Excel
        skipped, delimiter, first = 1, stated[1], next(lines, (2, ""))[1]
    delimiter = delimiter or _delimiter(first, "\t" if path.suffix.lower() == ".tsv" else ",", columns.required)
    reader = csv.reader(_chain(first, lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = skipped + 1
    try:
        for cells in reader:
            location, start = f"{path.name}:{start}", skipped + reader.line_num + 1
            if header is None:
                header = [name.strip() for name in cells]
                if doubled := next((name for name in columns.required if header.count(name) > 1), None):
                    raise DataError(f"{location}: two columns are named {doubled!r}", "rename one of them")
                continue
            while len(cells) > len(header) and not cells[-1]:
                cells.pop()
            if cells and len(cells) != len(header):
                raise DataError(
                    f"{location}: {len(cells)} cells under {len(header)} columns",
                    "quote cells that contain a delimiter",
                )
            if cells:
                yield location, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path.name}:{start}: invalid CSV: {error}", "check the quotes") from error


def _chain(first: str, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    yield first
    for _, line in lines:
        yield line


def _delimiter(header: str, default: str, required: Sequence[str]) -> str:
    """The delimiter under which the header has the required columns, otherwise the one with the most columns."""

    def rank(delimiter: str) -> tuple[int, int, bool]:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        return sum(name in names for name in required), len(names), delimiter == default

    return max(DELIMITERS, key=rank)
