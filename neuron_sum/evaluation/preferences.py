"""The results of human ratings: win rates, agreement of the raters, and correlation with the scores."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from neuron_sum.evaluation.claims import CLAIMS
from neuron_sum.evaluation.faithfulness import FACTS, SUPPORT
from neuron_sum.evaluation.ratings import Pair, Rating, current_ratings, pairs_of
from neuron_sum.evaluation.rouge import ROUGE_TYPES
from neuron_sum.evaluation.statistics import (
    MIN_EXAMPLES,
    Difference,
    Indices,
    Interval,
    Values,
    bootstrap_statistic,
    paired_bootstrap,
    rank_correlation,
)
from neuron_sum.recipes.schema import EvaluateConfig

SCORES = (*ROUGE_TYPES.values(), FACTS, SUPPORT, CLAIMS)
FIRST, SECOND = "first", "second"


@dataclass(frozen=True)
class WinRate:
    """How often raters prefer each of two systems; the raters of a dialogue are averaged.

    Attributes:
        systems: The two systems.
        dialogues: The number of rated dialogues.
        ratings: The number of ratings.
        preferred: For each system, the percentage of the ratings that prefer it, with its interval over dialogues.
        equal: The percentage of `equal`.
        both_bad: The percentage of `both bad`.
        difference: The first percentage minus the second; None for fewer than ten dialogues.
    """

    systems: tuple[str, str]
    dialogues: int
    ratings: int
    preferred: tuple[Interval, Interval]
    equal: float
    both_bad: float
    difference: Difference | None

    def as_dict(self) -> dict[str, Any]:
        """The entry in comparison.json."""
        difference = self.difference
        return {
            "systems": list(self.systems),
            "dialogues": self.dialogues,
            "ratings": self.ratings,
            "preferred": {name: value.as_dict() for name, value in zip(self.systems, self.preferred, strict=True)},
            "equal": round(self.equal, 4),
            "both_bad": round(self.both_bad, 4),
            "difference": difference and {**difference.interval.as_dict(), "p_value": difference.p_value},
        }


@dataclass(frozen=True)
class Agreement:
    """Agreement of the raters on the pairs that several of them rated.

    Attributes:
        pairs: The number of these pairs.
        same: The percentage of two ratings of a pair that are the same; None without such pairs.
        alpha: Krippendorff's alpha for nominal values (one system, the other, equal, both bad), for any number of
            raters per pair; None without such pairs, or if all ratings are "equal" or all are "both bad".
    """

    pairs: int
    same: float | None
    alpha: float | None

    def describe(self, raters: int) -> str:
        """The agreement in one line."""
        text = f"{raters} rater{'s' if raters != 1 else ''}, {self.pairs} pairs with several ratings"
        same = "" if self.same is None else f", of which {self.same:.0f} % are the same"
        return f"{text}{same}" + ("" if self.alpha is None else f", Krippendorff's alpha {self.alpha:.2f}")


@dataclass(frozen=True)
class Reason:
    """The reason of a rater for a choice.

    Attributes:
        example: The id of the dialogue.
        systems: The two systems.
        choice: The preferred system, "equal" or "both bad".
        text: The reason.
    """

    example: str
    systems: tuple[str, str]
    choice: str
    text: str


@dataclass(frozen=True)
class Preferences:
    """The results of the ratings of a comparison.

    Attributes:
        raters: The number of raters whose ratings count.
        ratings: The number of ratings that count.
        other_texts: The number of ratings of other texts or systems, which do not count.
        win_rates: One entry for each rated pair of systems.
        agreement: Agreement of the raters.
        correlations: By score, the rank correlation of its differences between two systems with the preferences; only
            for ten or more dialogues.
        reasons: The reasons of the raters, oldest first; without their names, because reports are shared.
    """

    raters: int
    ratings: int
    other_texts: int
    win_rates: Sequence[WinRate]
    agreement: Agreement
    correlations: dict[str, Interval]
    reasons: Sequence[Reason]

    def as_dict(self) -> dict[str, Any]:
        """The entry in comparison.json."""
        return {
            "raters": self.raters,
            "ratings": self.ratings,
            "other_texts": self.other_texts,
            "win_rates": [each.as_dict() for each in self.win_rates],
            "agreement": vars(self.agreement),
            "correlations": {name: interval.as_dict() for name, interval in self.correlations.items()},
            "reasons": [{**vars(each), "systems": list(each.systems)} for each in self.reasons],
        }


@dataclass(frozen=True)
class _Rated:
    """A pair with its ratings, each as the preferred system (FIRST, SECOND) or another choice, by rater."""

    pair: Pair
    values: Mapping[str, str]

    def share(self, value: str) -> float:
        """The percentage of the ratings with this value."""
        return 100 * sum(each == value for each in self.values.values()) / len(self.values)

    @property
    def preference(self) -> float:
        """The mean of 100 for the first system and -100 for the second."""
        return self.share(FIRST) - self.share(SECOND)


def preferences_of(folder: Path, entries: Iterable[Mapping[str, Any]], config: EvaluateConfig) -> Preferences | None:
    """The results of the ratings in a folder.

    Args:
        folder: The folder of the comparison.
        entries: The lines of its summaries.jsonl.
        config: The settings of the bootstrap over dialogues.

    Returns:
        The results; None if there are no ratings.

    Raises:
        DataError: If ratings.jsonl is damaged.
    """
    pairs = pairs_of(entries)
    ratings, other_texts = current_ratings(folder, pairs)
    if not ratings and not other_texts:
        return None
    rated = list(_rated(pairs, ratings))
    by_systems: dict[tuple[str, str], list[_Rated]] = {}
    for each in rated:
        by_systems.setdefault(each.pair.systems, []).append(each)
    return Preferences(
        raters=len({rater for each in rated for rater in each.values}),
        ratings=len(ratings),
        other_texts=other_texts,
        win_rates=[_win_rate(systems, group, config) for systems, group in by_systems.items()],
        agreement=_agreement(rated),
        correlations=_correlations(rated, config),
        reasons=list(_reasons(pairs, ratings.values())),
    )


def _reasons(pairs: Iterable[Pair], ratings: Iterable[Rating]) -> Iterator[Reason]:
    by_key = {pair.key: pair for pair in pairs}
    for rating in ratings:
        if rating.reason:
            pair = by_key[rating.pair]
            chosen = {FIRST: pair.systems[0], SECOND: pair.systems[1]}
            value = _value(pair, rating)
            yield Reason(pair.example, pair.systems, chosen.get(value, value), rating.reason)


def _rated(pairs: Iterable[Pair], ratings: Mapping[tuple[str, str], Rating]) -> Iterable[_Rated]:
    by_key: dict[str, dict[str, Rating]] = {}
    for (rater, key), rating in ratings.items():
        by_key.setdefault(key, {})[rater] = rating
    for pair in pairs:
        if found := by_key.get(pair.key):
            yield _Rated(pair, {rater: _value(pair, rating) for rater, rating in found.items()})


def _value(pair: Pair, rating: Rating) -> str:
    if rating.choice in ("equal", "both bad"):
        return rating.choice
    preferred = rating.left if rating.choice == "left" else rating.right
    return FIRST if preferred == pair.systems[0] else SECOND


def _win_rate(systems: tuple[str, str], rated: Sequence[_Rated], config: EvaluateConfig) -> WinRate:
    first, second = (np.array([each.share(value) for each in rated]) for value in (FIRST, SECOND))
    return WinRate(
        systems=systems,
        dialogues=len(rated),
        ratings=sum(len(each.values) for each in rated),
        preferred=(_mean(first, config), _mean(second, config)),
        equal=float(np.mean([each.share("equal") for each in rated])),
        both_bad=float(np.mean([each.share("both bad") for each in rated])),
        difference=paired_bootstrap(first, second, config) if len(rated) >= MIN_EXAMPLES else None,
    )


def _mean(values: Values, config: EvaluateConfig) -> Interval:
    return bootstrap_statistic(lambda chosen: float(values[chosen].mean()), len(values), config)


def _agreement(rated: Iterable[_Rated]) -> Agreement:
    """See Krippendorff (2011), Computing Krippendorff's Alpha-Reliability, section C.

    In the disagreement by chance, both systems of a pair are preferred equally often, because raters do not know them
    and their sides are random. Otherwise, alpha would depend on which system is the first in each pair.
    """
    several = [each for each in rated if len(each.values) > 1]
    twos = [two for each in several for two in combinations(each.values.values(), 2)]
    same = 100 * sum(first == second for first, second in twos) / len(twos) if twos else None
    observed = sum(_disagreement(Counter(each.values.values())) for each in several)
    counts = Counter(value for each in several for value in each.values.values())
    half = (counts[FIRST] + counts[SECOND]) / 2
    expected = _disagreement({**counts, FIRST: half, SECOND: half}) if several else 0
    return Agreement(len(several), same, 1 - observed / expected if expected else None)


def _disagreement(counts: Mapping[str, float]) -> float:
    """The number of ordered pairs of different values, divided by the number of values minus one."""
    count = sum(counts.values())
    return (count**2 - sum(number**2 for number in counts.values())) / (count - 1)


def _correlations(rated: Sequence[_Rated], config: EvaluateConfig) -> dict[str, Interval]:
    found = {}
    for score in SCORES:
        groups: dict[str, list[tuple[float, float]]] = {}
        for each in rated:
            first, second = (entry.get(score) for entry in each.pair.entries)
            if isinstance(first, float) and isinstance(second, float) and math.isfinite(first - second):
                groups.setdefault(each.pair.dialogue, []).append((first - second, each.preference))
        if len(groups) >= MIN_EXAMPLES:  # with one pair, it is always 1 or -1
            found[score] = _correlation([np.array(group) for group in groups.values()], config)
    return found


def _correlation(groups: Sequence[Values], config: EvaluateConfig) -> Interval:
    """The correlation in (pairs, 2) differences and preferences; the pairs of a dialogue are drawn together."""

    def statistic(chosen: Indices) -> float:
        rows = np.concatenate([groups[index] for index in chosen])
        return rank_correlation(rows[:, 0], rows[:, 1])

    return bootstrap_statistic(statistic, len(groups), config)
