"""Checks of a summary against its dialogue by rules, without a model, for English.

Speaker tags, numbers, clock times, dates and names of the summary must occur in the dialogue, after normalization; and
a sentence about one speaker must not consist of words that only other speakers use. docs/evaluation.md has the measured
precision and what the rules cannot detect.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neuron_sum.data.facts import (
    NO_NAMES,
    SPEAKER,
    TAG,
    WEEKDAYS,
    Fact,
    FactKind,
    day_parts,
    find_facts,
    normalized_name,
    normalized_tag,
)
from neuron_sum.data.sentences import claim_spans

FindingKind = FactKind | Literal["speaker"]
MESSAGES: dict[FindingKind, str] = {
    "tag": "the dialogue has no such speaker",
    "number": "the number does not occur in the dialogue",
    "time": "the time does not occur in the dialogue",
    "date": "the day, month or part of the day does not occur in the dialogue",
    "name": "the name does not occur in the dialogue",
    "speaker": "the words of this sentence are those of another speaker",
}
FACTS, SUPPORT = "facts", "support"
"""The scores: 100 for a summary without a finding and else 0; and the share of its words that the dialogue supports.
An empty summary has 0 in both."""

COUNTED = (0.0, 1.0, 2.0)
"""Small numbers count things ("two reasons") more often than they quote the dialogue; as words they are not checked."""
ALIASES = (
    {"us", "usa", "america", "american", "united", "states"},
    {"uk", "britain", "british", "england", "english"},
    {"tv", "television"},
    {"cv", "resume", "vitae"},
)
SIMILAR = 0.8
"""The similarity (difflib) from which a name counts as another spelling of a word of the dialogue."""
FOREIGN_WORDS = 4
"""A sentence with this many words that only other speakers use, and none that only its speaker uses, is a finding."""
FRACTIONS = {25.0: "quarter", 50.0: "half", 75.0: "quarters"}
"""Percentages, and their words."""
ARTICLES = ("A", "I")
"""Labels of speakers that are also words, so that a sentence may begin with them and not be about the speaker."""
MAX_SPEAKERS = 50
"""Speakers beyond which sentences are not compared with the words of each."""
LONGEST_NAME = 30
"""Characters up to which the similarity of names is computed."""
MAX_SIMILAR = 300
"""Names of a dialogue with one first letter up to which their similarity is computed."""
GREETINGS = (
    "hello hi hey thank thanks good great sure well oh yeah yep wow sorry welcome excuse hmm right fine really let"
)
"""Words with a capital letter that are not spellings of a name."""
SMOOTHING = 2
"""Words added to those of a summary, so that one missing word weighs less in a short summary."""

WORD = re.compile(r"[^\W_]+(?:['’.&-][^\W_]+)*")
DIGITS = re.compile(r"\d+(?:[ ().,:/-]{1,3}\d+)*")
"""Digits that one number may be written in, such as 617-555 1234."""
SUFFIX = re.compile(r"(?<=\w{3})(?:ingly|ings|ing|edly|ies|ied|ed|es|ly|s)$")
FUNCTION_WORD_LIST = """about after all also and any are ask asks because been before being both but can could did
does doing don't for from get gets going had has have having her here hers him his how into
its it's just know let like make makes more need needs not now one our out over really say
says she should some take tell tells than that the their them then there they thing things
think thinks this too very want wants was well were what when where which who will with would
yes you your"""
FUNCTION_WORDS = frozenset(FUNCTION_WORD_LIST.split())
"""Words of three letters or more that every dialogue may contain."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A part of a summary that its dialogue does not support.

    Attributes:
        kind: The kind of the fact, or `speaker` for a sentence about the wrong speaker.
        text: The text in the summary.
        start: The position of its first character in the summary.
        end: The position after its last character.
    """

    kind: FindingKind
    text: str
    start: int
    end: int

    @property
    def message(self) -> str:
        """The finding as a sentence."""
        return MESSAGES[self.kind]

    def as_dict(self) -> dict[str, Any]:
        """The entry in files and answers."""
        return {**asdict(self), "message": self.message}


class Evidence:
    """The facts of a dialogue, prepared for the checks of its summaries.

    Args:
        dialogue: The dialogue, one turn per line.
    """

    def __init__(self, dialogue: str) -> None:
        facts = find_facts(dialogue)
        self._users: dict[str, set[str]] = {}
        for line in dialogue.splitlines():
            turn = SPEAKER.match(line)
            for word in _content_words(line[turn.end() :] if turn else line):
                self._users.setdefault(word, set()).add(turn[1].strip() if turn else "")
        names = sorted({match[1].strip() for match in SPEAKER.finditer(dialogue)}, key=len, reverse=True)
        subjects = [name for name in names if name not in ARTICLES]
        alternatives = (
            "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in subjects) if len(subjects) <= MAX_SPEAKERS else ""
        )
        self._speaker = re.compile(alternatives or r"(?!)")
        self._tags = {fact.value for fact in facts if fact.kind == "tag"} | {normalized_tag(name) for name in names}
        self._numbers = {float(fact.value) for fact in facts if fact.kind == "number"}
        self._times = {float(fact.value) for fact in facts if fact.kind == "time"}
        self._dates = {fact.value for fact in facts if fact.kind == "date"}
        for fact in facts:
            if fact.kind == "time":
                self._dates |= day_parts(fact)
            elif fact.text.lower() in ("noon", "midnight"):
                self._times.add(0.0)
        self._digits = [re.sub(r"\D", "", run) for run in DIGITS.findall(dialogue)]
        self._digits.append(_spelled_digits(facts))
        words = WORD.findall(dialogue)
        normalized = [normalized_name(word) for word in words]
        parts = [part for word in words for part in re.split(r"['’.&-]", word) if part]
        self._words = {*normalized, *(normalized_name(part) for part in parts)}
        following = [*normalized[1:], "", ""]
        self._joined = {
            text
            for first, second, third in zip(normalized, following, following[1:], strict=False)
            for text in (first + second, first + second + third)
        }
        self._initials = "".join(word[0].lower() for word in words)
        self._capital_initials = "".join(word[0].lower() if word[0].isupper() else " " for word in words)
        lower = {word.lower() for word in words if word[0].islower()} | NO_NAMES | set(GREETINGS.split())
        self._names: dict[str, set[str]] = {}
        for name in {normalized_name(part) for part in parts if not part[0].islower()} - lower:
            self._names.setdefault(name[:1], set()).add(name)

    def supports(self, fact: Fact) -> bool:
        """Whether a fact of a summary occurs in the dialogue."""
        value = fact.value
        if fact.kind == "tag":
            return value in self._tags
        if fact.kind == "date":
            return self._supports_date(str(value), fact.text.lower())
        if fact.kind == "time":
            hour, minute = divmod(float(value), 60)
            spoken = {hour or 12.0, hour + 12, minute}
            return value in self._times or bool(
                self._numbers & spoken and (minute == 0 or minute in self._numbers or minute in (15, 30, 45))
            )
        if fact.kind == "number":
            return self._supports_number(float(value), fact.text)
        return self._supports_name(str(value), is_acronym=fact.text.isupper())

    def _supports_date(self, value: str, word: str) -> bool:
        related = {"night": {"afternoon"}, "noon": {"afternoon"}}.get(value, set())
        if value in WEEKDAYS and word != value and word in self._words:  # "the Sun"
            return True
        return value in self._dates or bool(related & self._dates)

    def _supports_number(self, value: float, text: str) -> bool:
        if value in self._numbers or (value % 1 and any(abs(value - each) < 0.01 for each in self._numbers)):
            return True
        if value in COUNTED and not text[0].isdigit():
            return True
        if value % 1 and (
            value * 100 in self._numbers or (value % 1 == 0.5 and value // 1 in self._numbers and "half" in self._words)
        ):
            return True
        if (value / 100) % 1 and value / 100 in self._numbers:
            return True
        if FRACTIONS.get(value, "") in self._words:
            return True
        if text.endswith("s") and any(value % 100 == each % 100 for each in self._numbers):  # a decade
            return True
        digits = re.sub(r"\D", "", text) if text[-1].isdigit() else f"{value:.0f}"
        if len(digits) >= 3 and any(digits in run for run in self._digits):
            return True
        return any(value in (time // 60, time % 60, time // 60 + 12) for time in self._times)

    def _supports_name(self, name: str, *, is_acronym: bool) -> bool:
        parts = [part for part in re.split(r"['’&-]", name) if part]
        joined = "".join(parts)
        if is_acronym and joined in (self._initials if 3 <= len(joined) <= 5 else self._capital_initials):
            return True
        return joined in self._joined or all(self._supports_word(part) for part in parts)

    def _supports_word(self, word: str) -> bool:
        if word in self._words or word.rstrip("s") in self._words or f"{word}s" in self._words:
            return True
        if any(word in alias and alias & self._words for alias in ALIASES):
            return True
        names = self._names.get(word[:1], set())
        return any(_is_like(word, other, is_fast=len(names) > MAX_SIMILAR) for other in names)

    def foreign_words(self, sentence: str) -> tuple[re.Match[str] | None, int, int]:
        """The speaker that a sentence begins with, and the words about them by who uses them in the dialogue.

        The words are those up to the next speaker who begins a clause.

        Returns:
            The match of the speaker; None if the sentence begins with two speakers or has none. The number of words
            that only this speaker uses, and of words that only others use.
        """
        subject = self._speaker.search(sentence)
        if subject is None:
            return None, 0, 0
        rest = sentence[subject.end() :]
        if re.match(rf"\s*(?:,|and|or)\s*(?:{self._speaker.pattern})", rest):
            return None, 0, 0
        clause = re.search(
            r"(?:[,;]|\b(?:and|but|so|because|while|that|if|since|when)\b)\s*"
            rf"(?:{self._speaker.pattern})(?!['’]s)",
            rest,
        )
        users = [
            self._users.get(word, set()) for word in set(_content_words(rest[: clause.start()] if clause else rest))
        ]
        own = sum(user == {subject[0]} for user in users)
        return subject, own, sum(bool(user) and subject[0] not in user for user in users)

    def check(self, summary: str) -> "Checked":
        """The findings in a summary, and how much of it the dialogue supports."""
        if not summary.strip():
            return Checked((), 0.0)
        findings = [
            Finding(fact.kind, fact.text, fact.start, fact.end)
            for fact in find_facts(summary)
            if not self.supports(fact)
        ]
        foreign = 0
        for start, end in claim_spans(summary):
            subject, own, others = self.foreign_words(summary[start:end])
            foreign = max(foreign, others - own)
            if subject is not None and others >= FOREIGN_WORDS and not own:
                findings.append(Finding("speaker", subject[0], start + subject.start(), start + subject.end()))
        if findings:
            return Checked(tuple(sorted(findings, key=lambda finding: finding.start)), 0.0)
        words = _content_words(summary)
        supported = sum(word in self._users for word in words)
        return Checked((), (supported + SMOOTHING - foreign / 2) / (len(words) + SMOOTHING))


@dataclass(frozen=True)
class Checked:
    """The result for one summary.

    Attributes:
        findings: The parts that the dialogue does not support, in order.
        support: 0 with a finding, or for an empty summary. Otherwise the share of the words (without function words,
            after removing endings) that occur in the dialogue; words that only other speakers use count as half.
    """

    findings: tuple[Finding, ...]
    support: float


def check_summary(summary: str, dialogue: str) -> Checked | None:
    """Check a summary by rules.

    Args:
        summary: The summary.
        dialogue: The dialogue, one turn per line.

    Returns:
        The findings; None without a dialogue.
    """
    return Evidence(dialogue).check(summary) if dialogue.strip() else None


def rule_scores(checked: Sequence[Checked | None]) -> dict[str, NDArray[np.float64]]:
    """The scores in points per summary, by name; empty if a summary has no dialogue."""
    present = [each for each in checked if each is not None]
    if len(present) < len(checked):
        return {}
    return {
        FACTS: np.array([100.0 if each.support else 0.0 for each in present]),
        SUPPORT: np.array([100 * each.support for each in present]),
    }


def count_findings(checked: Sequence[Checked | None]) -> dict[str, int]:
    """The number of findings of each kind that occurs."""
    return dict(Counter(finding.kind for each in checked if each is not None for finding in each.findings))


def _content_words(text: str) -> list[str]:
    """The words of a text without speaker tags, function words and endings, in lower case."""
    words = (word.lower() for word in re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?", TAG.sub(" ", text)))
    stems = (SUFFIX.sub("", word) for word in words if len(word) > 2 and word not in FUNCTION_WORDS)
    return [stem[:-1] if len(stem) > 4 and stem[-1] in "ey" else stem for stem in stems]


def _spelled_digits(facts: Sequence[Fact]) -> str:
    """The numbers below 100 that follow each other, such as "six one seven", with a space between groups."""
    digits, end = "", -1
    for fact in facts:
        if fact.kind == "number" and float(fact.value) < 100:
            digits += f"{'' if fact.start <= end + 2 else ' '}{float(fact.value):g}"
            end = fact.end
    return digits


def _is_like(word: str, other: str, *, is_fast: bool = False) -> bool:
    """Whether two names begin alike, as China and Chinese or Rob and Robert, or, unless is_fast, are spelled alike."""
    longer, shorter = max(len(word), len(other)), min(len(word), len(other))
    common = next((at for at in range(shorter) if word[at] != other[at]), shorter)
    if common >= 4 or (common == shorter >= 3 and longer <= shorter + 4):
        return True
    if is_fast or longer > min(LONGEST_NAME, shorter + 2):
        return False
    return SequenceMatcher(None, word, other).ratio() >= SIMILAR
