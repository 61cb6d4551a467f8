"""Find the causes of known_failures.py in a log of the compiler, the runtime or SageMaker. Nothing is guessed.

A log is read once and in pieces of lines, so its size and the length of its lines do not matter.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from neuron_sum.doctor.known_failures import CAUSES, Cause

PIECE_BYTES = 64 * 1024
"""Longer lines are read in pieces that overlap, so that no message is lost at a cut."""
OVERLAP = 2048
BATCH_CHARACTERS = 256 * 1024
QUOTE = 300
"""Characters quoted from a line, around the match."""

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


_PATTERNS: dict[str, list[tuple[Cause, re.Pattern[str]]]] = {}
"""Regular expressions by mark. The marks are searched for first, because `in` is a hundred times as fast."""
for _cause in CAUSES:
    for _mark, _regex in _cause.marked_patterns():
        _PATTERNS.setdefault(_mark, []).append((_cause, re.compile(_regex, re.IGNORECASE)))


@dataclass
class Finding:
    """A known cause in a log.

    Attributes:
        cause: The known cause.
        line: The number of the first matching line, from 1.
        text: That line without control characters, shortened to the part around the match.
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


def explain(log: BinaryIO) -> Explanation:
    """Read a log to its end and find known causes.

    Args:
        log: Bytes; invalid UTF-8 is read as replacement characters.
    """
    found: dict[str, Finding] = {}
    number = 0
    for batch in _batches(log):
        lower = "\n".join(text for _, text in batch).lower()
        marks = [mark for mark in _PATTERNS if mark in lower]
        for number, text in batch if marks else batch[-1:]:
            for match, cause in _matches(text, marks):
                known = found.setdefault(cause.name, Finding(cause, number, _quote(text, match)))
                if number > known.last:
                    known.last, known.times = number, known.times + 1
    return Explanation(tuple(found.values()), number)


def _matches(text: str, marks: list[str]) -> list[tuple[re.Match[str], Cause]]:
    """The matches in one line, from left to right."""
    lower = text.lower()
    matches = [
        (match, cause)
        for mark in marks
        if mark in lower
        for cause, pattern in _PATTERNS[mark]
        if (match := pattern.search(text))
    ]
    return sorted(matches, key=lambda item: item[0].start())


def clean(text: str) -> str:
    """Remove escape sequences, control characters and text direction marks; keep tabs."""
    return _CONTROL.sub("", _ESCAPES.sub("", text))


def _batches(log: BinaryIO) -> Iterator[list[tuple[int, str]]]:
    """Cleaned lines with their numbers, in batches, because most batches contain no mark and are skipped at once."""
    batch: list[tuple[int, str]] = []
    characters = 0
    for number, piece in _pieces(log):
        batch.append((number, piece if piece.isprintable() else clean(piece)))
        characters += len(piece)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _pieces(log: BinaryIO) -> Iterator[tuple[int, str]]:
    """The number and text of each line; a long line is split into overlapping pieces."""
    number, before, ended = 0, "", True
    while piece := log.readline(PIECE_BYTES):
        if ended:
            number, before = number + 1, ""
        ended = piece.endswith(b"\n")
        text = before + piece.decode("utf-8", errors="replace")
        yield number, text.rstrip("\r\n")
        before = text[-OVERLAP:]


def _quote(text: str, match: re.Match[str]) -> str:
    """The line, or a readable part of it around the match."""
    if len(text) <= QUOTE:
        return text.strip()
    start = max(match.start() - QUOTE // 3, 0)
    cut = text[start : start + QUOTE]
    return f"{'…' if start else ''}{cut.strip()}{'…' if start + QUOTE < len(text) else ''}"
