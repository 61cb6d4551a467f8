"""Intervals and significance by a seeded bootstrap over examples."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neuron_sum.recipes.schema import EvaluateConfig

Values = NDArray[np.float64]
Indices = NDArray[np.int64]
Outcome = Literal["passed", "failed", "undecided"]
MIN_EXAMPLES = 10
"""Fewer examples are too few for a bootstrap, which knows no other values than theirs."""


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The entry in metrics.json."""
        return {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


@dataclass(frozen=True)
class Difference:
    """The mean of one system minus that of another on the same examples, and its significance.

    Attributes:
        interval: The difference and its interval.
        p_value: Two-sided rate at which resampling changes the sign (Koehn 2004, aclanthology.org/W04-3250).
    """

    interval: Interval
    p_value: float


@dataclass(frozen=True)
class Drop:
    """Whether a system loses more than a margin.

    Attributes:
        interval: The difference to the baseline and its interval.
        outcome: "passed" if the whole interval is above the accepted loss, "failed" if it is below, else "undecided".
        examples_needed: If undecided: about how many examples decide that a system without a loss passes; None if no
            number does, because no loss is accepted.
    """

    interval: Interval
    outcome: Outcome
    examples_needed: int | None = None


def bootstrap(values: Values, config: EvaluateConfig) -> Interval:
    """The mean of (examples,) values, with its interval."""
    return _interval(float(values.mean()), _resampled_means(values, config), config)


def paired_bootstrap(values: Values, baseline: Values, config: EvaluateConfig) -> Difference:
    """Compare two systems by resampling examples; both systems' values of an example stay together.

    Args:
        values: The scores (examples,) of one system.
        baseline: The scores (examples,) of the other system, in the same order.
        config: The number of samples, confidence and seed.
    """
    differences = values - baseline
    means = _resampled_means(differences, config)
    tail = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0)) / len(means)
    # The smallest p-value that this number of samples can resolve.
    p_value = min(1.0, max(2 * tail, 1 / len(means)))
    return Difference(_interval(float(differences.mean()), means, config), p_value)


def measure_drop(values: Values, baseline: Values, margin: float, config: EvaluateConfig) -> Drop:
    """Decide by a paired bootstrap whether a system is worse than another one by more than a margin.

    Args:
        values: The scores (examples,) of the system.
        baseline: The scores (examples,) of the other system, in the same order.
        margin: The accepted loss in points.
        config: The number of samples, confidence and seed.
    """
    interval = paired_bootstrap(values, baseline, config).interval
    if len(values) >= MIN_EXAMPLES and interval.low >= -margin:
        return Drop(interval, "passed")
    if len(values) >= MIN_EXAMPLES and interval.high < -margin:
        return Drop(interval, "failed")
    if margin == 0:
        return Drop(interval, "undecided", MIN_EXAMPLES if len(values) < MIN_EXAMPLES else None)
    # The width of an interval shrinks with the square root of the number of examples. Fewer than twice as many would
    # rarely decide if there is a loss near the margin.
    needed = math.ceil(len(values) * ((interval.value - interval.low) / margin) ** 2)
    least = MIN_EXAMPLES if len(values) < MIN_EXAMPLES else 2 * len(values)
    return Drop(interval, "undecided", max(needed, least))


def rank_correlation(values: Values, preferences: Values) -> float:
    """Spearman's rank correlation of paired differences.

    Each pair also counts with its systems exchanged, so that the result does not depend on which one is the first.

    Args:
        values: The differences (pairs,) of a score.
        preferences: The differences (pairs,) of the preferences, in the same order.

    Returns:
        The correlation; NaN if all differences of one kind are 0.
    """
    first, second = (_centred_ranks(np.concatenate([each, -each])) for each in (values, preferences))
    scale = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / scale if scale else math.nan


def bootstrap_statistic(statistic: Callable[[Indices], float], count: int, config: EvaluateConfig) -> Interval:
    """A statistic of examples, with its interval.

    Args:
        statistic: The statistic of the examples with these indices, which can repeat; NaN if it is not defined.
        count: The number of examples.
        config: The number of samples, confidence and seed.
    """
    value = statistic(np.arange(count))
    if math.isnan(value) or count < MIN_EXAMPLES:
        return Interval(value, math.nan, math.nan)
    samples = _resampled(statistic, count, config)
    return _interval(value, samples[np.isfinite(samples)], config)


def _centred_ranks(values: Values) -> Values:
    """Ranks with mean 0; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[inverse]
    return np.asarray(ranks - ranks.mean(), dtype=np.float64)


def _resampled_means(values: Values, config: EvaluateConfig) -> Values:
    return _resampled(lambda chosen: float(values[chosen].mean()), len(values), config)


def _resampled(statistic: Callable[[Indices], float], count: int, config: EvaluateConfig) -> Values:
    """(bootstrap_samples,) values; drawn one by one, because the whole matrix of indices can be large."""
    generator = np.random.default_rng(config.seed)
    return np.array([statistic(generator.integers(0, count, count)) for _ in range(config.bootstrap_samples)])


def _interval(value: float, means: Values, config: EvaluateConfig) -> Interval:
    tail = 50 * (1 - config.confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
