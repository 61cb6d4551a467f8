"""True and false claims made of human summaries, for the training and the measurement of checkers.

A perturbation changes one thing so that a true sentence becomes false. The changes are made by rules without a model,
so that a few results are still true (two speakers who like each other) or unidiomatic.
"""

import random
import re
from collections.abc import Sequence
from typing import get_args

from neuron_sum.data.facts import DATES, MONTHS, UNITS, WEEKDAYS, Fact, find_facts, normalized_name, speakers
from neuron_sum.data.sentences import split_claims
from neuron_sum.recipes.schema import Perturbation

PERTURBATIONS: tuple[Perturbation, ...] = get_args(Perturbation)

SPARE_NAMES = """Alice Anna Ben Carol Daniel Emma Frank George Helen Ivan Jack Kate Laura Martin Nancy Oliver Peter
Rachel Simon Tina Victor Wendy Brown Clark Davis Evans Fisher Green Hill Johnson King Lewis Miller
Nelson Parker Roberts"""
NAMES = tuple(SPARE_NAMES.split())
"""Names that replace others, in addition to those of the other summaries."""
PARTS = ("morning", "afternoon", "evening", "night")
RELATIVE = ("today", "tomorrow", "yesterday")

NEGATED = {
    "is": "isn't", "are": "aren't", "was": "wasn't", "were": "weren't", "will": "won't", "can": "can't",
    "could": "couldn't", "should": "shouldn't", "would": "wouldn't", "has": "hasn't", "have": "haven't",
    "does": "doesn't", "do": "don't", "did": "didn't",
}  # fmt: skip
AFFIRMED = {negated: plain for plain, negated in NEGATED.items()} | {"cannot": "can"}
AUXILIARY = re.compile(rf"\b({'|'.join([*AFFIRMED, *NEGATED])})\b(\s+not\b)?")
VERB = re.compile(r"(?<=[\w#'’])\s+([a-z]{3,})\b")
IRREGULAR = {"goes": "go", "does": "do", "has": "have", "says": "say"}
NO_VERB = frozenset(("this", "his", "its", "always", "sometimes", "plus"))

ANTONYMS = {
    "likes": "dislikes", "loves": "hates", "agrees": "refuses", "accepts": "rejects", "buy": "sell", "buys":
    "sells", "increase": "decrease", "remember": "forget", "remembers": "forgets", "expensive": "cheap", "good":
    "bad", "happy": "sad", "satisfied": "dissatisfied", "before": "after", "more": "less", "big": "small", "early":
    "late", "easy": "difficult", "hot": "cold", "new": "old", "best": "worst", "better": "worse", "high": "low",
    "long": "short", "open": "close", "opens": "closes", "start": "stop", "starts": "stops", "find": "lose",
    "finds": "loses", "borrow": "lend", "borrows": "lends", "win": "lose", "wins": "loses", "young": "old",
    "strong": "weak", "different": "similar", "important": "unimportant", "healthy": "unhealthy", "possible":
    "impossible", "able": "unable", "always": "never", "inside": "outside", "husband": "wife", "mother": "father",
    "son": "daughter", "brother": "sister", "invites": "ignores", "praises": "criticizes", "recommends":
    "discourages", "helps": "hinders", "thanks": "blames", "thinks": "doubts", "wants": "refuses", "arrive":
    "leave", "arrives": "leaves", "most": "least", "with": "without",
}  # fmt: skip
OPPOSITES = {**{second: first for first, second in ANTONYMS.items()}, **ANTONYMS}
NOUN = re.compile(
    r"\b(?:a|an|the|his|her|their|some|#'s)\s+([a-z]{4,})(?=[.,;]|\s+(?:and|to|for|in|on|at|of|from|with)\b)"
)


def perturb(
    text: str, dialogue: str, kind: Perturbation, others: Sequence[str], generator: random.Random
) -> str | None:
    """A false version of a true text; None if this kind does not apply to it.

    Args:
        text: A true summary or sentence.
        dialogue: Its dialogue; what replaces a name, number or date does not occur in it.
        kind: The kind of the change: `speakers` swaps two speakers, `number`, `name` and `time` (weekdays, months,
            parts of the day, clock times) replace one, `negation` negates a verb or removes a negation, `antonym`
            replaces a word by its opposite, `detail` a noun by one of another text, and `other` takes another text.
        others: Texts about other dialogues.
        generator: The source of random choices.
    """
    changed = {
        "speakers": _swap_speakers,
        "number": _change_number,
        "name": _change_name,
        "negation": _negate,
        "other": _other,
        "time": _change_time,
        "antonym": _oppose,
        "detail": _change_noun,
    }[kind](text, dialogue, others, generator)
    return changed if changed is not None and changed != text else None


def _swap_speakers(text: str, dialogue: str, others: Sequence[str], generator: random.Random) -> str | None:
    counts = {name: len(re.findall(_as_word(name), text)) for name in speakers(dialogue)}
    names = sorted(counts, key=lambda name: -counts[name])
    if len(names) < 2 or not counts[names[0]]:
        return None
    mentioned = [name for name in names if counts[name]]
    first, second = mentioned[:2] if len(mentioned) > 1 else (names[0], generator.choice(names[1:]))
    both = "|".join(_as_word(name) for name in sorted((first, second), key=len, reverse=True))
    pair = re.compile(rf"(?:{both})\s+(?:and|or)\s+(?:{both})|({both})")
    if not any(match[1] for match in pair.finditer(text)):
        return None  # "Tom and Ann meet" stays true
    return pair.sub(lambda match: {first: second, second: first}[match[1]] if match[1] else match[0], text)


def _as_word(name: str) -> str:
    """A pattern for a speaker as a whole word; a tag such as #Person1# may be followed by a letter."""
    return re.escape(name) if name[-1] == "#" else rf"(?<!\w){re.escape(name)}(?!\w)"


def _change_number(text: str, dialogue: str, others: Sequence[str], generator: random.Random) -> str | None:
    facts = [fact for fact in find_facts(text) if fact.kind == "number" and 1 < float(fact.value) < 10**12]
    present = {fact.value for fact in find_facts(dialogue)}
    if not facts:
        return None
    fact = generator.choice(facts)
    value = float(fact.value)
    candidates = [value + 1, value + 2, value - 1, value * 2, value * 10, value + 10, value * 3, value / 2, value + 5]
    whole = [number for number in candidates if number > 1 and number == int(number) and number not in present]
    if not whole:
        return None
    number = int(generator.choice(whole))
    words = {value: word for word, value in UNITS.items()}
    as_word = not any(char.isdigit() for char in fact.text) and number in words
    return _replaced(text, fact, words[number] if as_word else f"{number:,}" if number > 9999 else str(number))


def _change_name(text: str, dialogue: str, others: Sequence[str], generator: random.Random) -> str | None:
    known = {normalized_name(word) for word in re.findall(r"[\w'’.-]+", dialogue)}
    facts = [fact for fact in find_facts(text) if fact.kind == "name" and str(fact.value) in known]
    if not facts:
        return None
    fact = generator.choice(facts)
    pool = [each.text for other in generator.sample(others, min(20, len(others))) for each in find_facts(other)
            if each.kind == "name" and each.start > 0 and other[each.start - 1] == " "]  # fmt: skip
    pool = [name for name in (*pool, *generator.sample(NAMES, 10)) if normalized_name(name) not in known]
    same = re.compile(rf"(?<!\w){re.escape(fact.text)}(?!\w)")
    return same.sub(generator.choice(pool), text) if pool else None


def _change_time(text: str, dialogue: str, others: Sequence[str], generator: random.Random) -> str | None:
    facts = [fact for fact in find_facts(text) if fact.kind in ("date", "time")]
    present = {fact.value for fact in find_facts(dialogue)}
    if not facts:
        return None
    fact = generator.choice(facts)
    if fact.kind == "time":
        minutes = [value for value in range(60, 720, 30) if value not in present]
        chosen = generator.choice(minutes)
        return _replaced(text, fact, f"{chosen // 60}:{chosen % 60:02}")
    groups: tuple[Sequence[str], ...] = (WEEKDAYS, MONTHS, PARTS, RELATIVE)
    word = fact.text.lower()
    group = next((group for group in groups if word in group or (fact.value in group and group[0] != "morning")), PARTS)
    candidates = [each for each in group if DATES[each] not in present and DATES[each] != fact.value]
    if not candidates:
        return None
    chosen_word = generator.choice(candidates)
    return _replaced(text, fact, chosen_word.capitalize() if fact.text[0].isupper() else chosen_word)


def _negate(text: str, dialogue: str, others: Sequence[str], generator: random.Random) -> str | None:
    places = [(match.start(), match) for match in AUXILIARY.finditer(text)]
    for match in VERB.finditer(text):
        word = match[1]
        follows_subject = text[: match.start()].endswith("#") or text[: match.start()].split()[-1][0].isupper()
        third_person = word.endswith("s") and not word.endswith(("ss", "us")) and word not in {*NO_VERB, *NEGATED}
        if follows_subject and third_person:
            places.append((match.start(1), match))
    if not places:
        return None
    _, match = generator.choice(places)
    if match.re is VERB:
        return f"{text[: match.start(1)]}doesn't {_infinitive(match[1])}{text[match.end(1) :]}"
    word = match[1]
    changed = word if match[2] else AFFIRMED.get(word) or NEGATED[word]
    return text[: match.start()] + changed + text[match.end() :]


def _infinitive(verb: str) -> str:
    """The infinitive of a verb in the third person: "wants", "tries", "watches"."""
    if verb in IRREGULAR:
        return IRREGULAR[verb]
    if verb.endswith("ies"):
        return f"{verb[:-3]}y"
    return verb[:-2] if verb.endswith(("ches", "shes", "sses", "xes", "zzes", "oes")) else verb[:-1]


def _other(text: str, dialogue: str, others: Sequence[str], generator: random.Random) -> str | None:
    if not others:
        return None
    chosen = generator.choice(others)
    return generator.choice(split_claims(chosen)) if len(split_claims(text)) == 1 else chosen


def _oppose(text: str, dialogue: str, others: Sequence[str], generator: random.Random) -> str | None:
    places = [match for match in re.finditer(r"\b[a-z]+\b", text) if match[0] in OPPOSITES]
    if not places:
        return None
    match = generator.choice(places)
    return text[: match.start()] + OPPOSITES[match[0]] + text[match.end() :]


def _change_noun(text: str, dialogue: str, others: Sequence[str], generator: random.Random) -> str | None:
    places = list(NOUN.finditer(text))
    known = set(re.findall(r"[a-z]+", dialogue.lower()))
    sample = generator.sample(others, min(20, len(others)))
    pool = [match[1] for other in sample for match in NOUN.finditer(other) if match[1] not in known]
    if not places or not pool:
        return None
    match = generator.choice(places)
    return text[: match.start(1)] + generator.choice(pool) + text[match.end(1) :]


def _replaced(text: str, fact: Fact, new: str) -> str:
    return text[: fact.start] + new + text[fact.end :]
