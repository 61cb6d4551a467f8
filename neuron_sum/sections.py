"""Summaries with named sections: their text, and their tokens.

    Reason: The patient has had a headache since Monday.
    Outcome:
    Actions: Rest, and a second appointment on Friday.

Every section has one line, in the order of the recipe: the heading, a colon and the text, which may be empty in an
optional section. Training, generation, evaluation and serving write this form with `write_sections` and read it with
`parse_sections`.

As tokens, a heading is always the same ids, and the text of a section is tokenized with its heading only: a tokenizer
would otherwise join a heading with different neighbors in different texts.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from neuron_sum.errors import RecipeError
from neuron_sum.prompts import Tokenizer, without_control
from neuron_sum.recipes.schema import SectionConfig

Sections = Sequence[SectionConfig]

COLON = "[:\uff1a]"
"""A colon, also the wide one of Chinese and Japanese."""
MARKS = r"^[ \t]*(?:(?:\#{1,6}|\d{1,2}[.)])[ \t]+)?"
"""The start of a line before a heading: number signs as in Markdown, or a number."""
UNKNOWN = re.compile(
    r"^[ \t]*(\#{1,6}[ \t]+)?(\*\*)?([^\W\d_][\w'&/-]*(?:[ ]+[\w'&/-]+){0,3})(?:\*\*)?[ \t]*"
    r"(?:(:(?=\s|$|\*\*)|\uff1a)|$)",
    re.MULTILINE,
)
"""A line that may begin another section: up to four words and a colon, or up to four words alone."""
UPPER_LETTERS = 4
"""The fewest letters of a heading in upper case alone in its line; a shorter line is an abbreviation."""


@dataclass(frozen=True)
class Parsed:
    """The sections of a text.

    Attributes:
        texts: The text of each section in one line; empty for a section that the text lacks.
        outside: The text before the first heading, or all of it without a heading.
        found: The names of the headings that the text has, in its order.
        headings: The positions of the headings in the text: first character, and the one after the colon.
    """

    texts: dict[str, str]
    outside: str
    found: tuple[str, ...]
    headings: tuple[tuple[int, int], ...]

    @property
    def repeated(self) -> list[str]:
        """The sections with more than one heading."""
        return [name for name in self.texts if self.found.count(name) > 1]

    def missing(self, sections: Sections) -> list[str]:
        """The required sections without a text."""
        return [section.name for section in sections if section.required and not self.texts[section.name]]


def write_sections(texts: Mapping[str, str], sections: Sections) -> str:
    """The text with all sections.

    Args:
        texts: The text of each section by name; a missing one is empty.
        sections: The sections in their order.
    """
    return "\n".join(f"{section.heading}: {one_line(texts.get(section.name, ''))}".rstrip() for section in sections)


def parse_sections(text: str, sections: Sections) -> Parsed:
    """The sections of a text, which may have been written by people or by other programs.

    A heading begins a line, in upper or lower case, and ends with a colon; in Markdown (`## Reason`, `**Reason**`), or
    alone in its line, without one. It may have a number (`1. Reason:`), and a space before the colon, as in French.
    Unknown headings are part of the section before them.

    Args:
        text: Any text.
        sections: The sections to find.
    """
    text = text.replace("\r", "\n")
    longest_first = sorted(sections, key=lambda section: len(section.heading), reverse=True)
    pattern = _pattern(tuple(section.heading for section in longest_first))
    matches = list(pattern.finditer(text)) if sections else []
    found = [longest_first[(int(match.lastindex or 0) - 1) % len(sections)].name for match in matches]
    texts = {section.name: "" for section in sections}
    ends = [match.start() for match in matches[1:]] + [len(text)]
    for name, match, end in zip(found, matches, ends, strict=True) if matches else ():
        texts[name] = one_line(f"{texts[name]} {text[match.end() : end]}")
    return Parsed(
        texts,
        one_line(text[: matches[0].start()] if matches else text),
        tuple(found),
        tuple(match.span() for match in matches),
    )


def without_headings(text: str, sections: Sections) -> str:
    """The text with spaces in place of the headings, so that positions are unchanged; for scores and checks of it."""
    for start, end in parse_sections(text, sections).headings:
        text = text[:start] + " " * (end - start) + text[end:]
    return text


def unknown_headings(text: str, sections: Sections) -> list[str]:
    """The beginnings of lines that look like the heading of another section."""
    known = {start for start, _ in parse_sections(text, sections).headings}
    matches = [match for match in UNKNOWN.finditer(text.replace("\r", "\n")) if match.start() not in known]
    return [
        match[3]
        for match in matches
        if match[1] or match[2] or match[4] or (match[3].isupper() and len(match[3]) >= UPPER_LETTERS)
    ]


def one_line(text: str) -> str:
    """The text with single spaces in place of line breaks and other white space."""
    return " ".join(text.split())


@cache
def _pattern(headings: tuple[str, ...]) -> re.Pattern[str]:
    """A heading, with a group for each of them, bold and plain."""
    one = "|".join("(" + re.escape(heading).replace(r"\ ", r"[ _]+") + ")" for heading in headings)
    bold = rf"\*\*(?:{one})[ \t]*(?:{COLON}[ \t]*\*\*|\*\*(?:[ \t]*{COLON})?)"
    plain = rf"(?:{one})[ \t]*(?:{COLON}|$)"
    return re.compile(rf"{MARKS}(?:{bold}|{plain})", re.MULTILINE | re.IGNORECASE)


class SectionCoder:
    """The sections of a recipe as tokens of its tokenizer.

    Args:
        sections: One or more sections.
        tokenizer: A fast tokenizer.

    Raises:
        RecipeError: If the tokenizer has no tokens for a heading.

    Attributes:
        sections: The sections in their order.
        headings: The tokens of each heading, including the colon and, except for the first, the line break before it
            if the tokenizer has one.
    """

    def __init__(self, sections: Sections, tokenizer: Tokenizer) -> None:
        self.sections, self._tokenizer = tuple(sections), tokenizer
        lines = [f"{section.heading}:" for section in sections]
        self._alone = [self._ids(line) for line in lines]
        self.headings = (self._alone[0], *(self._ids(f"\n{line}") for line in lines[1:]))
        if empty := next((line for line, ids in zip(lines, self._alone, strict=True) if not ids), None):
            raise RecipeError(
                f"output.sections: the tokenizer has no tokens for the heading {empty!r}", "rename the section"
            )

    @classmethod
    def of(cls, sections: Sections, tokenizer: Tokenizer) -> "SectionCoder | None":
        """The coder of a recipe's sections; None if it has none."""
        return cls(sections, tokenizer) if sections else None

    @cached_property
    def blank(self) -> frozenset[int]:
        """The tokens without a visible character, such as spaces and control tokens."""
        vocabulary = range(len(self._tokenizer))
        texts = self._tokenizer.batch_decode([[token] for token in vocabulary], skip_special_tokens=True)
        return frozenset(token for token, text in zip(vocabulary, texts, strict=True) if not text.strip())

    @property
    def shortest(self) -> int:
        """The fewest tokens of a summary: the headings, and one token of each required section."""
        return sum(map(len, self.headings)) + sum(section.required for section in self.sections)

    def check_length(self, field: str, tokens: int, *, has_end: bool = False) -> None:
        """Check that a summary with all headings fits.

        Args:
            field: The field of the recipe with the limit.
            tokens: Its value.
            has_end: Whether the limit includes the end token.

        Raises:
            RecipeError: If it does not fit; names the smallest number of tokens.
        """
        needed, end = self.shortest + has_end, " and the end token" if has_end else ""
        if tokens < needed:
            raise RecipeError(
                f"{field} = {tokens}: the headings of output.sections, a token of each required section{end} take "
                f"{needed} tokens",
                f"use at least {field}={needed}; texts need more",
            )

    def encode(self, text: str) -> tuple[list[int], bool]:
        """The tokens of a text with sections, without an end token.

        Args:
            text: The text.

        Returns:
            The tokens, and whether a section was cut to its max_tokens.
        """
        texts, tokens, is_cut = parse_sections(text, self.sections).texts, list[int](), False
        for section, heading, alone in zip(self.sections, self.headings, self._alone, strict=True):
            content = self._content(texts[section.name], f"{section.heading}:", alone)
            is_cut |= section.max_tokens is not None and len(content) > section.max_tokens
            tokens += [*heading, *content[: section.max_tokens]]
        return tokens, is_cut

    def texts(self, tokens: Sequence[int]) -> dict[str, str]:
        """The text of each section of a generated summary."""
        bounds, end = list[int](), 0
        for heading in self.headings:
            start = _find(tokens, heading, end)
            end = start + len(heading)
            bounds += [start, end]
        # bounds: start and end of each heading; a section is from the end of its heading to the start of the next one.
        parts = [tokens[bounds[at] : bounds[at + 1]] for at in range(1, len(bounds) - 2, 2)] + [tokens[bounds[-1] :]]
        decoded = self._tokenizer.batch_decode(parts, skip_special_tokens=True)
        return {section.name: one_line(text) for section, text in zip(self.sections, decoded, strict=True)}

    def decode(self, tokens: Sequence[int]) -> str:
        """A generated summary as text."""
        return write_sections(self.texts(tokens), self.sections)

    def _content(self, text: str, line: str, heading: list[int]) -> list[int]:
        """The tokens of a section's text, with the space before it if the tokenizer has one."""
        if not text:
            return []
        text = without_control(self._tokenizer, text)
        joined = self._ids(f"{line} {text}")
        return joined[len(heading) :] if joined[: len(heading)] == heading else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def decode(tokens: Sequence[int], tokenizer: Tokenizer, coder: SectionCoder | None) -> str:
    """A generated summary as text.

    Args:
        tokens: The new tokens.
        tokenizer: The tokenizer of the model.
        coder: The sections of the recipe; None without sections.
    """
    return coder.decode(tokens) if coder is not None else tokenizer.decode(tokens, skip_special_tokens=True).strip()


def _find(tokens: Sequence[int], part: list[int], start: int) -> int:
    """The first place of a part of the tokens, from `start`; their end if it does not occur."""
    places = range(start, len(tokens) - len(part) + 1)
    return next((at for at in places if list(tokens[at : at + len(part)]) == part), len(tokens))
