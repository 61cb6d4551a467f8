"""The claims of a summary: its sentences."""

import re

ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|vs|etc|e\.g|i\.e|a\.m|p\.m|U\.S|U\.K|[A-Z])\.$")
LONGEST_ABBREVIATION = 8
"""More characters than an abbreviation and the one before it, so that the time does not depend on the sentence."""
SENTENCE_END = re.compile(r"(?<=[.!?])[\"”’']?\s+(?=[\"“'‘#]?[A-Z\d#])|\n+")


def split_claims(summary: str) -> list[str]:
    """The sentences of a summary, each of which is one claim.

    A sentence ends at a new line, or at `.`, `!` or `?` before a space and a capital letter, a digit, a quote or a
    speaker tag, except after an initial and common abbreviations (Mr., Dr., a.m., U.S.).
    """
    return [summary[start:end] for start, end in claim_spans(summary)]


def claim_spans(summary: str) -> list[tuple[int, int]]:
    """The first position of each claim of `split_claims`, and the position after its last character."""
    spans: list[tuple[int, int]] = []
    start = 0
    for match in SENTENCE_END.finditer(summary):
        before = summary[max(start, match.start() - LONGEST_ABBREVIATION) : match.start()]
        if ABBREVIATION.search(before) and "\n" not in match[0]:
            continue
        spans.append((start, match.end()))
        start = match.end()
    spans.append((start, len(summary)))
    stripped = [
        (begin + len(text) - len(text.lstrip()), begin + len(text.rstrip()))
        for begin, text in ((begin, summary[begin:end]) for begin, end in spans)
    ]
    return [(begin, end) for begin, end in stripped if begin < end]
