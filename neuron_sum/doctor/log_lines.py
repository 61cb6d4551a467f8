"""The lines of a log and the messages in them: compressed, in any encoding, as plain text, JSON or CSV.

A log is read once and in chunks, so its size and the length of its lines do not matter.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, cast

CHUNK_BYTES = 256 * 1024
OVERLAP = 2048
"""Bytes that two chunks of one long line share, so that no message is lost at a cut."""
JSON_DEPTH = 3
"""A log message that is itself JSON, in a log file of Docker, in an export of CloudWatch."""

_OPENERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
_ARCHIVES = {b"PK\x03\x04": "a zip archive", b"\x28\xb5\x2f\xfd": "compressed with zstd"}
_BOMS = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}

_ESCAPES = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")
_JSON_ASCII = re.compile(rb"(\\+)u00(?!22|5c|5C)([0-7][0-9A-Fa-f])")
_JSON_INVISIBLE = re.compile(rb"\\+u(?:200[b-f]|202[89a-e]|206[6-9]|feff)", re.IGNORECASE)
_CONTROL_BYTES = bytes([*range(9), *range(11, 13), *range(14, 32), 127])
_INVISIBLE = re.compile(rb"\xc2[\x80-\x9f]|\xe2\x80[\x8b-\x8f\xa8-\xae]|\xe2\x81[\xa6-\xa9]|\xef\xbb\xbf")
"""C1 control characters, characters of no width and text direction marks, in UTF-8."""

_LOGFMT = re.compile(r'\b(?:msg|message|err|error)="([^"\\]*(?:\\.[^"\\]*)*)"')
_STRING = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"(\s*:)?')
_MESSAGE_KEY = re.compile(
    r"@?message|msg|log|line|body|err(or)?|exception|(failure)?reason|stack_?trace|exc_info|traceback|textpayload",
    re.ASCII,
)
_LENIENT = json.JSONDecoder(strict=False)
_LINE_BREAKS = re.compile(r"[\r\n]+")
_ZONE = r"(?:[.,:]\d{1,9})?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?"
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_TIME = (
    rf"(?:\d{{4}}[-/](?:\d\d|{_MONTH})[-/]\d\d[T _:]{{1,2}}\d\d:\d\d(?::\d\d)?{_ZONE}"
    rf"|\d{{1,2}}[-/](?:\d\d|{_MONTH})[-/]\d{{2,4}}[ :,]{{1,2}}\d\d:\d\d:\d\d{_ZONE}(?: [AP]M)?"
    rf"|(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? )?{_MONTH} [ \d]?\d \d\d:\d\d:\d\d(?: \d{{4}})?{_ZONE}"
    rf"|\d\d:\d\d:\d\d{_ZONE}|\d{{13}}|\d{{10}}\.\d+)"
)
_STREAM = r"(?=[^\s\"]*[\d/_-])[\w./@$:\[\]-]{3,300}"
_LEVEL = r"(?:TRACE|DEBUG|INFO|NOTICE|WARN(?:ING)?|ERROR|FATAL|CRITICAL)\b"
_PREFIX = re.compile(
    rf"\s*(?:"
    rf"\[?{_TIME}\]?(?=[\s,|:-]|$)(?:[ \t]+{_STREAM}(?=\s))?"
    rf"|<\d{{1,3}}>1 {_TIME} \S+ \S+ \S+ \S+ (?:-|\[[^\]]{{0,500}}\])(?= )"  # syslog, RFC 5424
    r"|(?:[\w.-]{1,100} )?[\w./-]{1,100}\[\d+\]:"  # syslog: host python[812]:
    r"|<\d{1,3}>|#\d+ \d+\.\d+(?= )"  # the kernel, docker build
    rf"|[IWEF]\d{{4}} \d\d:\d\d:\d\d\.\d+\s+\d+ [^\s\]]{{1,200}}\]"  # glog, and torch's logging
    r"|\[[\w./:,@= #+-]{1,200}\](?:<std(?:out|err)>)?:?"  # [rank0]:, [pod/name/container], [1,0]<stderr>:
    r"|\([\w .=:,-]{1,200}\)"  # (RayTrainWorker pid=35385)
    r"|[\w.-]{1,100}\s+\|"  # docker compose: algo-1-x  |
    rf"|(?:[\w.]{{1,100}} - )?{_LEVEL}(?::[\w.]{{1,100}}:|[:\]])?(?: -)?"
    r"|std(?:out|err)(?: [FP](?= )|:)"  # containerd
    r"|(?:[\w.]{1,100} )?W-\d+-\S{1,200}-std(?:out|err):?(?: [\w.]{1,100} -)?"  # DJL Serving and TorchServe
    r"|[^\r\n]{0,500}?[\d.?]\s?(?:it|s|[kMG]?i?B|examples|ba|steps?)/(?:it|s|step|example)\]"  # a progress bar
    r"|[-|:](?=\s)"
    r")\s*"
)
_CSV_TIME = re.compile(rf'(?:^|,)"?{_TIME}"?(?:,|$)')
_CSV_HEADER = re.compile(r'"?@?\w+"?(?:,"?@?\w+"?)+', re.ASCII)


@dataclass(frozen=True)
class Chunk:
    """Consecutive lines of a log, or a piece of one long line.

    Attributes:
        data: Bytes in UTF-8, without escape sequences and control characters.
        line: The number of the first line, from 1.
        continued: Whether the first line began in an earlier chunk.
        cut: Whether the last line continues in the next chunk.
    """

    data: bytes
    line: int
    continued: bool = False
    cut: bool = False


class View(NamedTuple):
    """A text in which patterns are searched.

    Attributes:
        text: A line, or one that is quoted in a JSON or CSV line.
        is_message: Whether it is the message of a logger, perhaps behind a time and the like.
    """

    text: str
    is_message: bool


class UnsupportedLog(ValueError):
    """A file that is not read as a log, such as an archive."""


def chunks(log: BinaryIO) -> Iterator[Chunk]:
    """Yield the log in chunks that end at a line end, or inside a line longer than a chunk.

    Raises:
        UnsupportedLog: If the file is an archive.
        OSError, EOFError, lzma.LZMAError, zlib.error: If the file cannot be read or is damaged.
    """
    number, rest, continued = 1, b"", False
    for block in _blocks(log):
        data = rest + block
        if end := data.rfind(b"\n") + 1:
            yield Chunk(clean_bytes(data[:end]), number, continued)
            number, rest, continued = number + data.count(b"\n"), data[end:], False
        elif len(data) >= CHUNK_BYTES:
            yield Chunk(clean_bytes(data), number, continued, cut=True)
            rest, continued = data[-OVERLAP:], True
        else:
            rest = data
    if rest:
        yield Chunk(clean_bytes(rest), number, continued)


def _blocks(log: BinaryIO) -> Iterator[bytes]:
    """Yield the content, decompressed and in UTF-8 where the encoding is known."""
    buffered = io.BufferedReader(cast(io.RawIOBase, log), CHUNK_BYTES)
    try:
        head = buffered.peek(8)[:8]
        if kind := next((kind for magic, kind in _ARCHIVES.items() if head.startswith(magic)), None):
            raise UnsupportedLog(f"it is {kind}")
        opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
        source = io.BufferedReader(opener(buffered)) if opener else buffered
        if encoding := _wide_encoding(source.peek(4096)[:4096]):
            text = io.TextIOWrapper(source, encoding, errors="replace", newline="")
            while piece := text.read(CHUNK_BYTES // 4):
                yield piece.encode("utf-8", errors="replace")
            text.detach()
        else:
            while block := source.read(CHUNK_BYTES):
                yield block
    finally:
        buffered.detach()


def _wide_encoding(head: bytes) -> str | None:
    """The encoding of a text with two or four bytes per character; None for all others."""
    if b"\0" not in head:
        return None
    for bom, encoding in _BOMS.items():
        if head.startswith(bom):
            return encoding
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) * 4 < len(head) or min(even, odd) * 8 > len(head):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def clean_bytes(data: bytes) -> bytes:
    """Remove escape sequences, control characters and text direction marks, also those that JSON escapes.

    Tabs and line ends stay.
    """
    if b"\\u" in data:
        data = _JSON_INVISIBLE.sub(b"", _JSON_ASCII.sub(_json_character, data))
    if b"\x1b" in data:
        data = _ESCAPES.sub(b"", data)
    if not data.isascii():
        data = _INVISIBLE.sub(b"", data)
    return data.translate(None, _CONTROL_BYTES)


def _json_character(match: re.Match[bytes]) -> bytes:
    code = int(match[2], 16)
    letter = {9: b"t", 10: b"n", 13: b"r"}.get(code)
    return match[1] + letter if letter else bytes([code])


def is_csv_header(line: str) -> bool:
    """Return whether the line names the columns of a log: a time and a message, as CloudWatch exports them."""
    lower = line.lower()
    return "message" in lower and "time" in lower and _CSV_HEADER.fullmatch(line) is not None


def views(line: str, *, csv_log: bool = False, partial: bool = False) -> Iterator[View]:
    """Yield the texts that a line contains: the values of JSON and CSV first, then the line itself.

    Args:
        line: The line, without control characters except tabs and carriage returns.
        csv_log: Whether the log has a CSV header, so that a line may be part of a field.
        partial: Whether the line is a piece that may begin inside a string.
    """
    yield from _json_views(line, JSON_DEPTH)
    if partial:
        yield from _json_views('"' + line, JSON_DEPTH)
    for found in _LOGFMT.finditer(line) if '="' in line else ():
        yield from _plain_views(_decode(found[1]))
    for field in _fields(line, csv_log):
        if field != line:
            yield from _json_views(field, JSON_DEPTH)
            yield from _plain_views(field)
    if not partial:
        yield from _plain_views(line)
    else:
        yield View(line, is_message=False)


def _plain_views(text: str) -> Iterator[View]:
    for part in _LINE_BREAKS.split(text):
        if part and not part.isspace():
            yield View(part, is_message=True)


def _json_views(text: str, depth: int) -> Iterator[View]:
    """Yield the strings of a JSON object, or of a line of one; keys only decide which strings are messages."""
    if '"' not in text or not ("{" in text or text.lstrip()[:1] == '"') or not depth:
        return
    key = ""
    for found in _STRING.finditer(text):
        value = _decode(found[1])
        if found[2]:
            key = value.lower()
            continue
        if "{" in value:
            yield from _json_views(value, depth - 1)
        for view in _plain_views(value):
            yield View(view.text, _MESSAGE_KEY.fullmatch(key) is not None)


def _decode(literal: str) -> str:
    if "\\" not in literal:
        return literal
    try:
        text = str(_LENIENT.decode(f'"{literal}"'))
    except ValueError:
        return literal
    return clean_bytes(text.encode("utf-8", errors="replace")).decode()


def _fields(line: str, csv_log: bool) -> list[str]:
    """The fields of a line that is part of a table: CSV, tab-separated or with bars; empty for other lines."""
    if line.startswith("EVENTS\t"):
        return line.split("\t")
    if line.startswith("|"):
        return [field.strip() for field in line.split("|")]
    if "," in line or csv_log:
        try:
            if csv_log or _CSV_TIME.search(line):
                return [field.strip().strip('"') for row in csv.reader([line]) for field in row]
        except csv.Error:
            pass
    return []


def message(text: str) -> str:
    """Return a line's message without time, host, stream, rank, level and the like before it."""
    for _ in range(20):
        found = _PREFIX.match(text)
        if found is None or not found.end():
            break
        text = text[found.end() :]
    return text.strip()
