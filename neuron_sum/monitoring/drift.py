"""Comparison of requests with the training data: effect sizes, tests, and the verdict for each measure."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from neuron_sum.data.statistics import TextCounter, TextStatistics

Verdict = Literal["same", "drift", "undecided", "not measured"]

LENGTH_THRESHOLD = 0.2
"""Kolmogorov-Smirnov distance of two length distributions, from 0 to 1, from which they count as different."""
SHARE_THRESHOLD = 0.05
"""Increase of a share from which it counts as different."""
ALPHA = 0.001
"""The highest p-value of a difference that counts: about 0.01 for the table of eight measures (Bonferroni)."""
TERMS = 100
"""Terms of Kolmogorov's series, which converges faster for every p-value below 0.99."""


@dataclass(frozen=True)
class Measure:
    """One measure of the requests next to that of the training data.

    Attributes:
        name: The name of the measure.
        training: A median length, or a share from 0 to 1; None if the training data has none.
        requests: The same for the requests; None if nothing was measured.
        count: The number of dialogues or summaries that were measured.
        difference: The Kolmogorov-Smirnov distance, or the increase of the share.
        p_value: The probability of at least this difference if both came from the same source.
        threshold: The difference from which the measure counts as different.
        is_share: Whether the values are shares.
    """

    name: str
    training: float | None
    requests: float | None
    count: int
    difference: float
    p_value: float
    threshold: float
    is_share: bool

    @property
    def verdict(self) -> Verdict:
        """Whether the difference is large and not a coincidence; undecided if it is large but may be one."""
        if self.requests is None:
            return "not measured"
        if self.difference < self.threshold:
            return "same"
        return "drift" if self.p_value < ALPHA else "undecided"

    def as_dict(self) -> dict[str, Any]:
        """The entry in --json."""
        figures = {"training": self.training, "requests": self.requests, "difference": self.difference}
        return {
            "measure": self.name,
            "count": self.count,
            **{key: value if value is None else round(value, 4) for key, value in figures.items()},
            "p_value": self.p_value,
            "threshold": self.threshold,
            "verdict": self.verdict,
        }


def compare(
    training: TextStatistics, found: TextCounter, *, paired: int, new_letters: int, rejected: int, answered: int
) -> list[Measure]:
    """Compare the requests with the training data.

    Args:
        training: The statistics of the training data.
        found: The counts of the requests.
        paired: Number of summaries whose dialogue is known.
        new_letters: Number of dialogues with a letter that no training dialogue has.
        rejected: Number of rejected dialogues.
        answered: Number of dialogues with a summary or an error.
    """
    dialogues, summaries = found.source_tokens.total(), found.target_tokens.total()
    has_unknown = training.unknown is not None and bool(found.unknown_ids)
    return [
        _length("tokens per dialogue", training.source_tokens, found.source_tokens),
        _length("tokens per summary", training.target_tokens, found.target_tokens),
        _share("dialogues truncated", training.truncated, training.dialogues, found.truncated, dialogues),
        _share(
            "dialogues with unknown tokens",
            training.unknown or 0,
            training.dialogues,
            found.unknown,
            dialogues if has_unknown else 0,
        ),
        _share("dialogues with new letters", 0, training.dialogues, new_letters, dialogues),
        _share("summaries with invented tags", training.invented, training.summaries, found.invented, paired),
        _share("empty summaries", training.empty, training.summaries, found.empty, summaries),
        _share("dialogues rejected", 0, None, rejected, answered),
    ]


def _length(name: str, training: Mapping[int, int], found: Mapping[int, int]) -> Measure:
    count = sum(found.values())
    if not count:
        return Measure(name, _median(training), None, 0, 0.0, 1.0, LENGTH_THRESHOLD, is_share=False)
    distance = ks_distance(training, found)
    p_value = ks_p_value(distance, sum(training.values()), count)
    return Measure(name, _median(training), _median(found), count, distance, p_value, LENGTH_THRESHOLD, is_share=False)


def _share(name: str, training: int, total: int | None, found: int, count: int) -> Measure:
    """A share, of which only an increase counts; without a total it is 0 in the training data by definition."""
    expected = training / total if total else None
    if not count:
        return Measure(name, expected, None, 0, 0.0, 1.0, SHARE_THRESHOLD, is_share=True)
    increase = found / count - (expected or 0.0)
    p_value = fisher_p_value(found, count, training, total) if total else float(not found)
    return Measure(name, expected, found / count, count, increase, p_value, SHARE_THRESHOLD, is_share=True)


def ks_distance(one: Mapping[int, int], other: Mapping[int, int]) -> float:
    """The largest difference of two distribution functions (two-sample Kolmogorov-Smirnov statistic).

    Args:
        one: The number of observations for each value.
        other: The same of the other sample.
    """
    totals = sum(one.values()), sum(other.values())
    below, distance = [0, 0], 0.0
    for value in sorted({*one, *other}):
        below[0] += one.get(value, 0)
        below[1] += other.get(value, 0)
        distance = max(distance, abs(below[0] / totals[0] - below[1] / totals[1]))
    return distance


def ks_p_value(distance: float, one: int, other: int) -> float:
    """The asymptotic p-value of `ks_distance` (Smirnov 1948); too large, never too small, for whole numbers, which tie.

    Args:
        distance: The statistic.
        one: The size of a sample.
        other: The size of the other sample.
    """
    scaled = distance * math.sqrt(one * other / (one + other))
    if scaled < 0.3:  # the series converges slowly, and the value is above 0.99999
        return 1.0
    terms = ((-1.0) ** (number - 1) * math.exp(-2 * (number * scaled) ** 2) for number in range(1, TERMS))
    return min(max(2 * sum(terms), 0.0), 1.0)


def fisher_p_value(found: int, count: int, training: int, total: int) -> float:
    """The one-sided p-value of Fisher's exact test: a share at least as high as the found one, with equal rates.

    Args:
        found: The number of cases among the requests.
        count: The number of requests.
        training: The number of cases in the training data.
        total: The size of the training data.
    """

    def choose(number: int, of: int) -> float:
        return math.lgamma(of + 1) - math.lgamma(number + 1) - math.lgamma(of - number + 1)

    cases = found + training
    every = choose(cases, count + total)
    tail = sum(
        math.exp(choose(number, count) + choose(cases - number, total) - every)
        for number in range(max(found, cases - total), min(count, cases) + 1)
    )
    return min(tail, 1.0)


def _median(counts: Mapping[int, int]) -> float | None:
    half, seen = sum(counts.values()) / 2, 0
    for value, count in sorted(Counter(counts).items()):
        seen += count
        if seen >= half:
            return float(value)
    return None
