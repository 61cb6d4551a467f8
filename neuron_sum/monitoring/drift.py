"""Comparison of requests with those before: effect sizes, tests, and the verdict for each measure."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from neuron_sum.data.statistics import DialogueCounter, DialogueStatistics

Verdict = Literal["same", "drift", "undecided", "not measured"]

LENGTH_THRESHOLD = 0.2
"""Kolmogorov-Smirnov distance of two length distributions, from 0 to 1, from which they count as different."""
SHARE_THRESHOLD = 0.05
"""Increase of a share from which it counts as different, and the accepted share of what has no baseline."""
ALPHA = 0.001
"""The highest p-value of a difference that counts: about 0.01 for the table of seven measures (Bonferroni)."""
TERMS = 100
"""Terms of Kolmogorov's series, which converges faster for every p-value below 0.99."""
TRAINING, EVALUATION = "training data", "evaluation"
"""The baselines: the dialogues of the training data, and the summaries of the run's evaluation."""


@dataclass
class Answers:
    """Numbers of summaries.

    Attributes:
        tokens: The number of summaries for each number of tokens.
        invented: Summaries with a speaker tag that is not in the dialogue.
        paired: Summaries whose dialogue is known.
    """

    tokens: Counter[int] = field(default_factory=Counter)
    invented: int = 0
    paired: int = 0


@dataclass(frozen=True)
class Measure:
    """One measure of the requests next to its baseline.

    Attributes:
        name: The name of the measure.
        source: TRAINING or EVALUATION; None for a share that needs no baseline.
        baseline: A median length, or a share from 0 to 1; None if there is none.
        requests: The same for the requests; None if nothing was measured.
        count: The number of dialogues, summaries or lines that were measured.
        difference: The Kolmogorov-Smirnov distance, or the increase of the share.
        p_value: The probability of at least this difference if both came from the same source; without a baseline, of
            at least this share if the true one is the threshold.
        threshold: The difference from which the measure counts as different.
        is_share: Whether the values are shares.
    """

    name: str
    source: str | None
    baseline: float | None
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
        figures = {"baseline": self.baseline, "requests": self.requests, "difference": self.difference}
        return {
            "measure": self.name,
            "compared_with": self.source,
            "count": self.count,
            **{key: value if value is None else round(value, 4) for key, value in figures.items()},
            "p_value": self.p_value,
            "threshold": self.threshold,
            "verdict": self.verdict,
        }


def compare(
    training: DialogueStatistics,
    evaluated: Answers | None,
    dialogues: DialogueCounter,
    answers: Answers,
    *,
    rejected: int,
    answered: int,
    unreadable: int,
    entries: int,
) -> list[Measure]:
    """Compare the requests with the training data, and the answers with those of the evaluation.

    Args:
        training: The statistics of the training data.
        evaluated: The answers of the run's evaluation; None if it was not evaluated.
        dialogues: The counts of the requests.
        answers: The counts of their answers.
        rejected: Number of rejected dialogues.
        answered: Number of dialogues with a summary or an error.
        unreadable: Number of lines that cannot be read.
        entries: Number of these and of the dialogues and answers.
    """
    count = dialogues.source_tokens.total()
    before, now = evaluated or Answers(), answers if evaluated is not None else Answers()
    return [
        _length("tokens per dialogue", TRAINING, training.source_tokens, dialogues.source_tokens),
        _share("dialogues truncated", TRAINING, training.truncated, training.dialogues, dialogues.truncated, count),
        _share(
            "dialogues with unknown tokens",
            TRAINING,
            training.unknown or 0,
            training.dialogues if training.unknown is not None else 0,
            dialogues.unknown,
            count,
        ),
        _length("tokens per summary", EVALUATION, before.tokens, now.tokens),
        _share("summaries with invented tags", EVALUATION, before.invented, before.paired, now.invented, now.paired),
        _rate("dialogues rejected", rejected, answered),
        _rate("lines not readable", unreadable, entries),
    ]


def _length(name: str, source: str, before: Mapping[int, int], found: Mapping[int, int]) -> Measure:
    count, total = sum(found.values()), sum(before.values())
    baseline = _median(before)
    if not count or not total:
        return Measure(name, source, baseline, None, 0, 0.0, 1.0, LENGTH_THRESHOLD, is_share=False)
    distance = ks_distance(before, found)
    p_value = ks_p_value(distance, total, count)
    return Measure(name, source, baseline, _median(found), count, distance, p_value, LENGTH_THRESHOLD, is_share=False)


def _share(name: str, source: str, before: int, total: int, found: int, count: int) -> Measure:
    """A share, of which only an increase counts."""
    baseline = before / total if total else None
    if not count or baseline is None:
        return Measure(name, source, baseline, None, 0, 0.0, 1.0, SHARE_THRESHOLD, is_share=True)
    p_value = fisher_p_value(found, count, before, total)
    return Measure(
        name, source, baseline, found / count, count, found / count - baseline, p_value, SHARE_THRESHOLD, is_share=True
    )


def _rate(name: str, found: int, count: int) -> Measure:
    """A share that should be zero."""
    if not count:
        return Measure(name, None, None, None, 0, 0.0, 1.0, SHARE_THRESHOLD, is_share=True)
    p_value = binomial_p_value(found, count, SHARE_THRESHOLD)
    return Measure(name, None, None, found / count, count, found / count, p_value, SHARE_THRESHOLD, is_share=True)


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
    cases = found + training
    every = _log_choose(cases, count + total)
    tail = sum(
        math.exp(_log_choose(number, count) + _log_choose(cases - number, total) - every)
        for number in range(max(found, cases - total), min(count, cases) + 1)
    )
    return min(tail, 1.0)


def binomial_p_value(found: int, count: int, rate: float) -> float:
    """The probability of at least this many cases.

    Args:
        found: The number of cases.
        count: The number of requests.
        rate: The probability of a case.
    """
    logs = math.log(rate), math.log1p(-rate)
    tail = sum(
        math.exp(_log_choose(number, count) + number * logs[0] + (count - number) * logs[1])
        for number in range(found, count + 1)
    )
    return min(tail, 1.0)


def _log_choose(number: int, of: int) -> float:
    return math.lgamma(of + 1) - math.lgamma(number + 1) - math.lgamma(of - number + 1)


def _median(counts: Mapping[int, int]) -> float | None:
    half, seen = sum(counts.values()) / 2, 0
    for value, count in sorted(Counter(counts).items()):
        seen += count
        if seen >= half:
            return float(value)
    return None
