"""A compiler's, runtime's or SageMaker's log to known causes: what is in known_failures.py is told, nothing is guessed.

A log is read once, a piece of a line at a time, so its size and the length of its lines do not matter.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from neuron_sum.doctor.known_failures import CAUSES, Cause

PIECE_BYTES = 64 * 1024
"""A longer line is read in pieces; they overlap, so that no message is lost at a cut."""
OVERLAP = 2048
BATCH_CHARACTERS = 256 * 1024
QUOTE = 300
"""Characters of a line that are quoted, around what was recognized."""

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_QUANTIFIERS = "?*+{"


def mark_of(pattern: str) -> str:
    """The longest text that is in every line a pattern matches, in lower case.

    It is looked for first, for `in` is a hundred times as fast as a regular expression. A pattern may have no
    alternatives outside parentheses.
    """
    runs: list[str] = []
    run, depth, at = "", 0, 0
    while at < len(pattern):
        character, escaped = pattern[at], pattern[at] == "\\"
        if escaped:
            at += 1
            character = pattern[at]
        at += 1
        plain = not character.isalnum() if escaped else character not in "^$.|()[]{}?*+"
        if not escaped and character in "([{":
            depth += 1
        optional = at < len(pattern) and pattern[at] in _QUANTIFIERS
        if plain and depth == 0 and not optional:
            run += character
        else:
            runs, run = [*runs, run], ""
        if not escaped and character in ")]}":
            depth -= 1
    return max([*runs, run], key=len).lower()


_PATTERNS: dict[str, list[tuple[Cause, re.Pattern[str]]]] = {}
for _cause in CAUSES:
    for _pattern in _cause.patterns:
        _PATTERNS.setdefault(mark_of(_pattern), []).append((_cause, re.compile(_pattern, re.IGNORECASE)))


@dataclass
class Finding:
    """A known cause in a log.

    Attributes:
        cause: Which.
        line: The number of the first line that tells it, from 1.
        text: That line, without control characters, cut to what matters.
        times: How many lines tell it.
        last: The number of the last of them.
    """

    cause: Cause
    line: int
    text: str
    times: int = 0
    last: int = 0


@dataclass(frozen=True)
class Explanation:
    """What a log tells.

    Attributes:
        findings: Known causes in order of appearance; none if nothing is known.
        lines: How many lines were read.
    """

    findings: tuple[Finding, ...]
    lines: int


def explain(log: BinaryIO) -> Explanation:
    """Reads a log to its end.

    Args:
        log: Bytes; what is not UTF-8 in them is read as a replacement character.
    """
    found: dict[str, Finding] = {}
    number = 0
    for batch in _batches(log):
        lower = "\n".join(text for _, text in batch).lower()
        marks = [mark for mark in _PATTERNS if mark in lower]
        for number, text in batch if marks else batch[-1:]:
            for match, cause in _told(text, marks):
                known = found.setdefault(cause.name, Finding(cause, number, _quote(text, match)))
                if number > known.last:
                    known.last, known.times = number, known.times + 1
    return Explanation(tuple(found.values()), number)


def _told(text: str, marks: list[str]) -> list[tuple[re.Match[str], Cause]]:
    """What one line tells, from left to right."""
    lower = text.lower()
    told = [
        (match, cause)
        for mark in marks
        if mark in lower
        for cause, pattern in _PATTERNS[mark]
        if (match := pattern.search(text))
    ]
    return sorted(told, key=lambda item: item[0].start())


def clean(text: str) -> str:
    """Without escape sequences, control characters and marks that turn the direction of writing; tabs stay."""
    return _CONTROL.sub("", _ESCAPES.sub("", text))


def _batches(log: BinaryIO) -> Iterator[list[tuple[int, str]]]:
    """Cleaned lines with their numbers, many at a time: most of a log has nothing in it, and is passed over at once."""
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
    """The number of each line and its text; a long line comes in several pieces that overlap."""
    number, before, ended = 0, "", True
    while piece := log.readline(PIECE_BYTES):
        if ended:
            number, before = number + 1, ""
        ended = piece.endswith(b"\n")
        text = before + piece.decode("utf-8", errors="replace")
        yield number, text.rstrip("\r\n")
        before = text[-OVERLAP:]


def _quote(text: str, match: re.Match[str]) -> str:
    """The line, or as much of it around the match as people read."""
    if len(text) <= QUOTE:
        return text.strip()
    start = max(match.start() - QUOTE // 3, 0)
    cut = text[start : start + QUOTE]
    return f"{'…' if start else ''}{cut.strip()}{'…' if start + QUOTE < len(text) else ''}"
