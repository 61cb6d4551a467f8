"""Facts of an English text that can be compared literally: speaker tags, numbers, clock times, dates, and names."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

FactKind = Literal["tag", "number", "time", "date", "name"]

TAG = re.compile(r"#\s?[^\W\d_]+(?:[\s_-]?\d+)?(?:#|\s#(?!\w))")
"""A speaker tag and its variants: #Person1#, #Person 1#, #person_1#; but "#one #two" are two hashtags."""
SPEAKER = re.compile(r"^[ \t]*([^:\s][^:\n]{0,39}):(?=\s|$)", re.MULTILINE)
"""The speaker at the start of a turn."""

UNIT_WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
TEN_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
ORDINAL_WORDS = """first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth
fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth"""
UNITS = {word: value for value, word in enumerate(UNIT_WORDS.split())}
TENS = {word: 10 * value for value, word in enumerate(TEN_WORDS.split(), 2)}
ORDINALS = {word: value for value, word in enumerate(ORDINAL_WORDS.split(), 1)} | {
    word[:-1] + end: value for word, value in TENS.items() for end in ("ieth", "ies")
}
"""Ordinals, and decades: "the twentieth", "the twenties"."""
SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
FOLLOWING_SCALE = re.compile(r"\s+(hundred|thousand|grand|million|billion|dozen)\b", re.IGNORECASE)
NUMBER_WORDS = {**UNITS, **TENS, **ORDINALS, "once": 1, "twice": 2}
LETTER_SCALES = {"k": 1000, "m": 10**6, "bn": 10**9}

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTH_WORDS = "january february march april may june july august september october november december"
MONTHS = tuple(MONTH_WORDS.split())
DAY_PARTS = {
    "morning": "morning",
    "noon": "noon",
    "lunchtime": "noon",
    "afternoon": "afternoon",
    "evening": "night",
    "night": "night",
    "tonight": "night",
    "midnight": "night",
    "today": "today",
    "tomorrow": "tomorrow",
    "yesterday": "yesterday",
}
DATES = {
    **{day: day for day in WEEKDAYS},
    **{day[:3]: day for day in WEEKDAYS},
    **{short: day for short, day in (("tues", "tuesday"), ("thurs", "thursday"))},
    **{month: month for month in MONTHS},
    **{month[:3]: month for month in MONTHS},
    "sept": "september",
    **DAY_PARTS,
}
"""Words of dates, and their value. Abbreviations, March and May count only with a capital letter."""
CAPITALIZED = {day[:3] for day in WEEKDAYS} | {month[:3] for month in MONTHS} | {"march", "may", "tues", "thurs"}

NUMBER_WORD = "|".join(sorted({*NUMBER_WORDS, *SCALES}, key=len, reverse=True))
SUFFIX = r"st|nd|rd|th|s|km|kg|cm|mm|ft|lbs?|mph|mg|ml|gb|mb|hrs?|h|mins?"
NUMBER = re.compile(
    rf"(?<![\w#])(?<!\d[.:])(?:(?P<digits>(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?)(?P<scale>k|m|bn)?(?:{SUFFIX})?(?![\w#])"
    rf"|(?P<words>(?:{NUMBER_WORD})(?:(?:[\s-]+|\s+and\s+)(?:{NUMBER_WORD}))*)\b)",
    re.IGNORECASE,
)
HOUR = rf"\d{{1,2}}|{'|'.join(list(UNITS)[1:13])}"
CLOCK = re.compile(
    r"(?<![\w#])(?<!\d[.,:])(?:"
    rf"(?P<past>half|a?\s?quarter|\d{{1,2}}|ten|twenty|five|twenty[\s-]five)\s+(?:minutes\s+)?(?P<side>past|to|after)\s+"
    rf"(?P<other>{HOUR})\b"
    r"|(?P<hour>\d{1,2})(?::(?P<minute>\d{2})|\.(?P<dot>\d{2})(?=\s*[ap]\.?m\b))(?:\s*[ap]\.?m\b\.?)?"
    rf"|(?P<full>{HOUR})\s*(?:o['’ ]?\s?clock|[ap]\.?\s?m\b\.?)"
    r")",
    re.IGNORECASE,
)
HALF_OF_DAY = re.compile(r"(?<![^\W\d])([ap])\.?\s?m\b", re.IGNORECASE)
RANGE_BEFORE = re.compile(r"\b(?:from|between)\s$", re.IGNORECASE)
RANGE_AFTER = re.compile(
    r"\s?(?:%|(?:percent|people|persons|dollars|yuan|euros|pounds|times|minutes|hours|days|weeks|months|years)\b)",
    re.IGNORECASE,
)
"""The text around "5 to 10" if that is a range, and not five minutes to ten."""
DATE = re.compile(
    rf"\b(?:(?:{'|'.join([*WEEKDAYS, *DAY_PARTS])})(?=s?\b)|(?:{'|'.join(sorted(DATES, key=len, reverse=True))})\b)",
    re.IGNORECASE,
)
MAY_BEFORE = re.compile(
    r"(?:\b(?:in|of|on|by|this|next|last|since|until|early|late)|\d(?:st|nd|rd|th)?)\s$", re.IGNORECASE
)
MAY_AFTER = re.compile(r"\s\d")
"""The text around May if it is the month, and neither a verb nor a name."""
NEAR = 10
"""Characters before a fact that are read with it; a search from the start would take quadratic time."""

NAME = re.compile(r"(?<![\w#'’&])[^\W\d_a-z][^\W_]*(?:[-'’&.](?=\w)[^\W_]+)*", re.UNICODE)
POSSESSIVE = re.compile(r"['’](?:s|ll|d|re|ve|m|t)?$", re.IGNORECASE)
TITLES = """mr mrs ms miss dr prof professor doctor sir madam uncle aunt mum mom dad grandma grandpa mister president
director manager captain officer nurse judge coach senator"""
STARTERS = """a about above according actually after afterwards again all also although always an and another any
anyone apart are as at based because before beside besides both but by can considering customers despite do due
during each either employees even eventually every everybody everyone everything except few finally first firstly for
from furthermore generally he hence her here hers him his how however i if in initially instead is it its just last
lastly later lots many maybe meanwhile moreover most my neither next no nobody none nor not nothing now of ok okay on
once one only or other others otherwise our out over people perhaps please plus regarding secondly she since so some
somebody someone something sometimes soon still students such than that the their them then there therefore these
they thirdly this those though through thus to together too two ultimately unlike until upon usually was we were what
whatever when whenever where whether which while who whose why with within without yes yet you your"""
NO_NAMES = frozenset((*TITLES.split(), *STARTERS.split(), *NUMBER_WORDS, *DATES))
"""Words with a capital letter, such as those that begin sentences, which do not count as names."""
COMMON_ENDING = re.compile(r"\w{2,}(?:ing|tions?|ments?|ness|fully|ately|ently|antly|inally)$", re.IGNORECASE)
"""Endings of common words; at the start of a sentence such a word does not count as a name."""
SENTENCE_START = re.compile(r"(?:^|[.!?:\n]|[.!?:\n][\"”’'“‘]|[.!?:][\"”’']?\s[\"“‘']?)$")
LATIN = str.maketrans("\u0130\u0131\u017f\u212a", "IisK")
"""Letters that re.IGNORECASE takes for i, s and k."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact in a text.

    Attributes:
        kind: The kind of the fact.
        text: The text as written.
        start: The position of its first character.
        end: The position after its last character.
        value: The normalized value: the tag or name in lower case, the number, minutes of a 12-hour clock, or the date.
    """

    kind: FactKind
    text: str
    start: int
    end: int
    value: str | float


def find_facts(text: str) -> list[Fact]:
    """All facts of a text in order, without overlaps: a time is not also a number, nor a weekday a name."""
    found: list[Fact] = []
    taken = bytearray(len(text))
    plain = text.translate(LATIN)
    for facts in (_tags(plain), _clocks(plain), _dates(plain), _numbers(plain), _names(plain)):
        for fact in facts:
            if not any(taken[fact.start : fact.end]):
                found.append(replace(fact, text=text[fact.start : fact.end]))
                taken[fact.start : fact.end] = b"\1" * (fact.end - fact.start)
    return sorted(found, key=lambda fact: fact.start)


def day_parts(fact: Fact) -> set[str]:
    """The parts of the day of a clock time with a.m. or p.m., or an hour from 13; of 12 o'clock, noon and night."""
    hour, half = float(fact.value) // 60, HALF_OF_DAY.search(fact.text)
    written = re.match(r"\d+", fact.text)
    if half and half[1].lower() == "a":
        return {"night"} if hour == 0 else {"morning", "night"} if hour < 5 else {"morning"}
    if half or (written and 13 <= int(written[0]) < 24):
        return {"noon", "afternoon"} if hour == 0 else {"afternoon", "night"} if hour < 7 else {"night"}
    return {"noon", "night"} if fact.value == 0 else set()


def normalized_tag(tag: str) -> str:
    """A speaker tag in lower case without separators: "person1" for #Person 1#."""
    return re.sub(r"[\s#_-]", "", tag).casefold()


def normalized_name(name: str) -> str:
    """A name in lower case without accents and a possessive or contracted end."""
    decomposed = unicodedata.normalize("NFKD", POSSESSIVE.sub("", name.translate(LATIN)))
    return "".join(char for char in decomposed if not unicodedata.combining(char)).casefold().replace(".", "")


def speakers(dialogue: str) -> list[str]:
    """The speakers of a dialogue in the order of their first turn, as written before the colon."""
    return list(dict.fromkeys(match[1].strip() for match in SPEAKER.finditer(dialogue)))


def number_groups(words: str) -> list[float]:
    """The values of a run of number words: [25] for "twenty-five", [10, 30] for "ten thirty"."""
    groups: list[float] = []
    total, current, last = 0.0, 0.0, 1000.0

    def close() -> None:
        if last != 1000.0 or total:
            groups.append(total + current)

    for word in re.split(r"[\s-]+", words.lower()):
        if word == "and":
            continue
        if word in SCALES:
            if last == 1000.0:
                current = 1
            if SCALES[word] >= 1000:
                total, current = total + current * SCALES[word], 0
            else:
                current *= SCALES[word]
            last = 100.0
            continue
        value = NUMBER_WORDS[word]
        if last < 20 or (last < 100 and value >= 10):  # "two three", "thirty forty", "twenty fifteen"
            close()
            total, current = 0.0, 0.0
        current += value
        last = float(value)
    close()
    return groups


def _tags(text: str) -> Iterator[Fact]:
    for match in TAG.finditer(text):
        yield Fact("tag", match[0], match.start(), match.end(), normalized_tag(match[0]))


def _clocks(text: str) -> Iterator[Fact]:
    at = 0
    while match := CLOCK.search(text, at):
        at = match.end()
        if match["past"]:
            first, is_to = match["past"].lower(), match["side"].lower() == "to"
            minutes = 30.0 if first == "half" else 15.0 if "quarter" in first else _simple(first)
            if is_to and (minutes == 30 or minutes % 5 or _is_range(text, match)):
                at = match.end("past")
                continue
            hour = _simple(match["other"])
            value = hour * 60 - minutes if is_to else hour * 60 + minutes
        elif match["hour"]:
            value = int(match["hour"]) * 60 + int(match["minute"] or match["dot"])
        else:
            value = _simple(match["full"]) * 60
        yield Fact("time", match[0], match.start(), match.end(), float(value % 720))


def _is_range(text: str, match: re.Match[str]) -> bool:
    before = RANGE_BEFORE.search(text, max(0, match.start() - NEAR), match.start())
    return before is not None or RANGE_AFTER.match(text, match.end()) is not None


def _simple(text: str) -> float:
    return float(text) if text.isdigit() else number_groups(text)[0]


def _dates(text: str) -> Iterator[Fact]:
    for match in DATE.finditer(text):
        word = match[0].lower()
        if word in CAPITALIZED and not match[0][0].isupper():
            continue
        if word == "may" and not (
            MAY_BEFORE.search(text, max(0, match.start() - NEAR), match.start()) or MAY_AFTER.match(text, match.end())
        ):
            continue
        yield Fact("date", match[0], match.start(), match.end(), DATES[word])


def _numbers(text: str) -> Iterator[Fact]:
    for match in NUMBER.finditer(text):
        groups = [] if match["digits"] else number_groups(match["words"])
        if len(groups) < 2:
            value = groups[0] if groups else float(match["digits"].replace(",", ""))
            value *= LETTER_SCALES.get((match["scale"] or "").lower(), 1)
            end = match.end()
            if following := FOLLOWING_SCALE.match(text, end):
                value, end = value * SCALES.get(following[1].lower(), 1000), following.end()
            yield Fact("number", text[match.start() : end], match.start(), end, value)
            continue
        position = match.start()  # several numbers: one fact for each word that ends one
        for word in re.finditer(r"[A-Za-z]+", match[0]):
            if word[0].lower() in NUMBER_WORDS:
                start = position + word.start()
                value = float(NUMBER_WORDS[word[0].lower()])
                yield Fact("number", word[0], start, start + len(word[0]), value)


def _names(text: str) -> Iterator[Fact]:
    for match in NAME.finditer(text):
        word = POSSESSIVE.sub("", match[0]).rstrip(".")
        value = normalized_name(word)
        if value in NO_NAMES or len(value) < 2 or not word[0].isupper():
            continue
        if COMMON_ENDING.match(word) and SENTENCE_START.search(text, max(0, match.start() - 3), match.start()):
            continue
        yield Fact("name", word, match.start(), match.start() + len(word), value)
