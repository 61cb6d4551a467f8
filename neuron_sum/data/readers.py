"""Rows of JSON Lines, JSON and CSV files; a bad row becomes a problem with file and line."""

import csv
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from neuron_sum import files, text_files
from neuron_sum.data.checks import Problem
from neuron_sum.errors import DataError, reading
from neuron_sum.recipes.schema import DataConfig

MAX_SEPARATOR_LINE = 20
JSON_LINES, JSON_ARRAY = "write one JSON object per line", "write one array of objects"

Row = tuple[str, Mapping[str, Any]]
"""File and line of a row, and its fields."""
Rows = Iterator[Row | Problem]


def read_rows(paths: list[Path], config: DataConfig) -> Rows:
    """The rows of a split's files, in order."""
    hint = f"check that the file is complete and in data.encoding = {config.encoding!r}"
    for path in paths:
        is_array = config.source == "samsum" or path.suffix.lower() == ".json"
        reader = _csv_rows if config.source == "csv" else _json_rows if is_array else _jsonl_rows
        with text_files.open_lines(path, config.encoding, DataError) as lines, reading(path, DataError, hint):
            yield from reader(lines, path, config)


def _jsonl_rows(lines: TextIO, path: Path, config: DataConfig) -> Rows:
    for number, line in text_files.numbered(lines):
        location = f"{path.name}:{number}"
        if line is None:
            yield _too_long(location)
            continue
        if not line.strip():
            continue
        if found := text_files.INVALID.search(line):
            yield _wrong_encoding(location, path, config, found[0])
            continue
        try:
            fields = files.parse_json(line)
        except ValueError as error:
            yield Problem("invalid JSON", location, str(error), JSON_LINES)
            continue
        if isinstance(fields, dict):
            yield location, fields
        else:
            yield Problem("invalid JSON", location, f"a {type(fields).__name__}", JSON_LINES)


def _json_rows(lines: TextIO, path: Path, config: DataConfig) -> Rows:
    """Rows of one array of objects, such as SAMSum's files, or else of JSON Lines.

    The number after the colon is the position in the array, from 1.
    """
    start = lines.read(1)
    while start.isspace():
        start = lines.read(1)
    if not start:
        raise DataError(f"{path.name}: the file is empty", JSON_ARRAY)
    if start != "[":
        lines.seek(0)
        yield from _jsonl_rows(lines, path, config)
        return
    try:
        items = files.parse_json(start + lines.read())
    except ValueError as error:
        raise DataError(f"{path.name}: invalid JSON: {error}", JSON_ARRAY) from error
    if not items:
        raise DataError(f"{path.name}: the array is empty", JSON_ARRAY)
    for number, fields in enumerate(items, 1):
        location = f"{path.name}:{number}"
        if isinstance(fields, dict):
            yield location, fields
        else:
            yield Problem("invalid JSON", location, f"{fields!r:.60}", "use an object")


def _csv_rows(lines: TextIO, path: Path, config: DataConfig) -> Rows:
    csv.field_size_limit(text_files.MAX_CHARACTERS)
    read: list[str] = [""]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else config.delimiter
    skipped = 0
    if stated := re.fullmatch(r'"?sep=(.)"?\s*', lines.readline(MAX_SEPARATOR_LINE), re.IGNORECASE):  # for Excel
        skipped, delimiter = 1, stated[1]
    else:
        lines.seek(0)
    reader = csv.reader(_csv_lines(lines, path, read, skipped), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = skipped + 1
    while True:
        location, row = f"{path.name}:{start}", reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            # The next row begins on the next line, unless a quoted cell may continue there.
            if header is None or reader.line_num != row or read[0].count('"') % 2 or "field larger" in str(error):
                hint = "check the quotes; --skip-bad cannot skip this row, because the next row's start is unknown"
                raise DataError(f"{location}: invalid CSV: {error}", hint) from error
            yield Problem("invalid CSV", location, str(error), "check the quotes")
            start = skipped + reader.line_num + 1
            continue
        start = skipped + reader.line_num + 1
        if header is None:
            header = cells or []
            if found := text_files.INVALID.search("".join(header)):
                wrong = _wrong_encoding(location, path, config, found[0])
                raise DataError(f"{location}: {wrong.kind}: {wrong.detail}", text_files.conversion_of(path))
            _check_header(header, location, config)
        elif cells is None:
            return
        elif found := text_files.INVALID.search("".join(cells)):
            yield _wrong_encoding(location, path, config, found[0])
        elif len(cells) == len(header):
            yield location, dict(zip(header, cells, strict=True))
        elif cells:
            detail = f"{len(cells)} cells under {len(header)} columns"
            yield Problem("ragged row", location, detail, "quote cells with a delimiter or a line break")


def _csv_lines(lines: TextIO, path: Path, last: list[str], skipped: int) -> Iterator[str]:
    """The lines of a CSV file after `skipped` ones; `last` keeps the current one."""
    for number, line in text_files.numbered(lines):
        if line is None:
            raise DataError(f"{path.name}:{skipped + number}: {_too_long('').detail}", "split it, or check the quotes")
        last[0] = line
        yield line


def _check_header(header: list[str], location: str, config: DataConfig) -> None:
    summaries = list(config.columns.summaries(header))
    if config.columns.sections is not None:
        summaries = list(config.columns.sections.values())
        summaries = [
            name for name in summaries if not any(re.fullmatch(rf"{re.escape(name)}\d+", each) for each in header)
        ]
    names = ", ".join(header) or "none"
    if missing := sorted({config.columns.dialogue, *summaries} - set(header)):
        hint = "map them with data.columns.dialogue=… data.columns.summary=…, or set data.delimiter"
        if len(header) == 1 and (found := [mark for mark in ";\t|," if mark in header[0]]):
            hint = f"set data.delimiter={shlex.quote(found[0])}, which the first line contains"
            if found[0] == "\t":
                hint = "set data.delimiter='\\t', a tab, which the first line contains"
        raise DataError(
            f"{location}: missing column {', '.join(missing)}; columns: {names:.500}",
            hint,
        )
    read = [config.columns.dialogue, *summaries, config.columns.id, config.columns.topic]
    if doubled := next((name for name in read if name is not None and header.count(name) > 1), None):
        raise DataError(f"{location}: two columns are named {doubled!r}", "rename one of them")


def _wrong_encoding(location: str, path: Path, config: DataConfig, found: str) -> Problem:
    detail = f"byte 0x{ord(found) - 0xDC00:02x} is not {config.encoding.upper()}"
    return Problem("wrong encoding", location, detail, "convert the file or set data.encoding", path)


def _too_long(location: str) -> Problem:
    detail = f"the line has more than {text_files.MAX_CHARACTERS:,} characters"
    return Problem("too long", location, detail, "split the dialogue")
