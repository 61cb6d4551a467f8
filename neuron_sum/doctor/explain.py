"""Find known causes of failures in a log of the compiler, the runtime, a server or SageMaker. Nothing is guessed."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, BinaryIO

from neuron_sum.doctor.known_failures import Cause, Pattern, known_failures
from neuron_sum.doctor.log_lines import Chunk, chunks, is_csv_header, message, views

if TYPE_CHECKING:
    from numpy import uint32
    from numpy.typing import NDArray

QUOTE = 300
"""Characters quoted from a line, around the match."""
GRAM = 4
"""Bytes by which marks are looked up."""
COMMON = b" 0123456789.:-/_etaoinsrhldcumfpgwybvkxjqz"
"""Bytes of logs, the most frequent first."""


@dataclass
class Finding:
    """A known cause in a log.

    Attributes:
        cause: The known cause.
        line: The number of the first matching line, from 1.
        text: That line, or the message in it, without control characters, shortened to the part around the match.
        times: The number of matching lines.
        last: The number of the last matching line.
    """

    cause: Cause
    line: int
    text: str
    times: int = 0
    last: int = 0


@dataclass(frozen=True)
class Explanation:
    """The known causes in a log.

    Attributes:
        findings: Known causes in order of appearance; empty if none was found.
        lines: The number of lines read.
    """

    findings: tuple[Finding, ...]
    lines: int


@dataclass(frozen=True)
class _Match:
    """A cause in a line: the text that contains it, and the place in that text."""

    cause: Cause
    text: str
    start: int


class _Marks:
    """The marks of all patterns, and a fast test which of them a chunk contains.

    A mark is looked up by its rarest four bytes, for all positions of a chunk at once, because searching for each of
    some hundred marks takes a hundred times as long.
    """

    def __init__(self) -> None:
        import numpy  # here, because commands that only print help must start at once

        self.numpy = numpy
        self.patterns: dict[str, list[tuple[Cause, Pattern]]] = {}
        for cause in known_failures():
            for pattern in cause.patterns:
                self.patterns.setdefault(pattern.mark, []).append((cause, pattern))
        known = Counter(
            gram for cause in known_failures() for example in cause.examples for gram in _grams(example.line)
        )
        self.by_gram: dict[int, list[str]] = {}
        for mark in self.patterns:
            rarest = min(_grams(mark), key=lambda gram: (known[gram], -sum(COMMON.find(byte) % 64 for byte in gram)))
            self.by_gram.setdefault(int.from_bytes(rarest, "little"), []).append(mark)
        self.table = numpy.zeros(1 << 16, dtype=bool)
        self.table[self._hash(numpy.array(list(self.by_gram), dtype=numpy.uint32))] = True

    def _hash(self, values: "NDArray[uint32]") -> "NDArray[uint32]":
        return (values * self.numpy.uint32(2654435761)) >> self.numpy.uint32(16)

    def present(self, data: bytes) -> list[str]:
        """Return the marks in the data, which is in lower case."""
        grams: set[int] = set()
        for offset in range(min(GRAM, max(len(data) - GRAM + 1, 0))):
            values = self.numpy.frombuffer(data, self.numpy.uint32, (len(data) - offset) // GRAM, offset)
            grams.update(self.numpy.unique(values[self.table.take(self._hash(values))]).tolist())
        return [mark for gram in grams & self.by_gram.keys() for mark in self.by_gram[gram] if mark.encode() in data]


def _grams(text: str) -> list[bytes]:
    data = text.lower().encode()
    return [data[start : start + GRAM] for start in range(len(data) - GRAM + 1)]


_marks = cache(_Marks)


def explain(log: BinaryIO) -> Explanation:
    """Read a log to its end and find known causes.

    Args:
        log: Bytes, also compressed with gzip, bzip2 or xz, in UTF-8, UTF-16 or UTF-32; invalid bytes are replaced.

    Raises:
        UnsupportedLog: If the file is an archive.
        OSError, EOFError, lzma.LZMAError, zlib.error: If the log cannot be read or is damaged.
    """
    found: dict[str, Finding] = {}
    lines, csv_log = 0, False
    for chunk in chunks(log):
        if chunk.line == 1 and not chunk.continued:
            csv_log = is_csv_header(chunk.data.split(b"\n", 1)[0].decode(errors="replace").strip())
        for number, match in _chunk_matches(chunk, csv_log):
            known = found.setdefault(match.cause.name, Finding(match.cause, number, _quote(match)))
            if number > known.last:
                known.last, known.times = number, known.times + 1
        lines = chunk.line - 1 + chunk.data.count(b"\n") + (not chunk.data.endswith(b"\n"))
    return Explanation(tuple(found.values()), lines)


def _chunk_matches(chunk: Chunk, csv_log: bool) -> Iterator[tuple[int, _Match]]:
    """Yield the matches of a chunk with their line numbers; most chunks contain no mark and are skipped at once."""
    marks = _marks().present(chunk.data.lower())
    lines = chunk.data.split(b"\n") if marks else []
    for index, data in enumerate(lines):
        lower = data.lower().decode(errors="replace")
        if hits := [mark for mark in marks if mark in lower]:
            partial = (chunk.continued and index == 0) or (chunk.cut and index == len(lines) - 1)
            for match in _line_matches(data.decode(errors="replace"), hits, csv_log=csv_log, partial=partial):
                yield chunk.line + index, match


def _line_matches(line: str, marks: list[str], *, csv_log: bool, partial: bool) -> list[_Match]:
    """The causes in one line, from left to right; a less specific one only if it is the only one."""
    matches: dict[str, _Match] = {}
    for view in views(line, csv_log=csv_log, partial=partial):
        lower = view.text.lower()
        inside: list[_Match] = []
        for cause, pattern in [pair for mark in marks if mark in lower for pair in _marks().patterns[mark]]:
            if cause.name in matches:
                continue
            if not pattern.whole:
                place = pattern.regex.search(view.text)
            else:
                place = pattern.regex.fullmatch(message(view.text)) if view.is_message else None
            if place:
                inside.append(_Match(cause, view.text, 0 if pattern.whole else place.start()))
        for match in sorted(inside, key=lambda item: item.start):
            matches.setdefault(match.cause.name, match)
    reasons = {name for name, match in matches.items() if not match.cause.symptom}
    return [
        match
        for match in matches.values()
        if not (match.cause.symptom and reasons) and not matches.keys() & set(match.cause.gives_way_to)
    ]


def _quote(match: _Match) -> str:
    """The line, or a readable part of it around the match."""
    text, start = match.text, max(match.start - QUOTE // 3, 0)
    if len(text) <= QUOTE:
        return re.sub(r"[\r\n]", "", text).strip()
    cut = text[start : start + QUOTE]
    return f"{'…' if start else ''}{cut.strip()}{'…' if start + QUOTE < len(text) else ''}"
