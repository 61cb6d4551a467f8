"""Whether a system loses more than a margin, decided by a paired bootstrap."""

import numpy as np
import pytest

from neuron_sum.evaluation import statistics
from neuron_sum.recipes.schema import EvaluateConfig

CONFIG = EvaluateConfig()


def drop(mean: float, spread: float, count: int, margin: float = 1.0) -> statistics.Drop:
    """A system whose differences have exactly this mean and standard deviation."""
    noise = np.random.default_rng(1).normal(size=count)
    noise = (noise - noise.mean()) / max(float(noise.std()), 1e-9)
    baseline = np.full(count, 40.0)
    return statistics.measure_drop(baseline + mean + spread * noise, baseline, margin, CONFIG)


@pytest.mark.parametrize(
    ("mean", "spread", "count", "outcome"),
    [
        (0.0, 0.0, 12, "passed"),  # the same texts
        (0.0, 1.0, 32, "passed"),
        (0.5, 3.0, 32, "passed"),
        (-0.5, 1.0, 100, "passed"),  # a loss, but a small one
        (-5.0, 5.0, 100, "failed"),
        (-2.0, 1.0, 32, "failed"),
        (-1.3, 8.0, 24, "undecided"),
        (1.2, 8.0, 24, "undecided"),
        (1.2, 8.0, 100, "passed"),
        (-1.3, 8.0, 100, "undecided"),
        (0.0, 0.0, 9, "undecided"),
        (-50.0, 1.0, 9, "undecided"),
    ],
)
def test_a_drop_is_passed_failed_or_undecided(mean: float, spread: float, count: int, outcome: str) -> None:
    found = drop(mean, spread, count)
    assert found.outcome == outcome
    assert (found.examples_needed is not None) == (outcome == "undecided")


@pytest.mark.parametrize("mean", [-1.3, 0.0, 0.4])
def test_the_examples_needed_decide_for_a_system_without_a_loss(mean: float) -> None:
    needed = drop(mean, 8.0, 24).examples_needed
    assert needed is not None
    assert needed == pytest.approx((1.96 * 8 / 1) ** 2, rel=0.3)  # 246
    assert drop(0.0, 8.0, round(1.3 * needed)).outcome == "passed"
    assert drop(0.0, 8.0, round(0.5 * needed)).outcome == "undecided"


def test_a_loss_near_the_margin_needs_at_least_twice_as_many_examples() -> None:
    found = drop(-0.9, 3.0, 100)
    assert found.outcome == "undecided"
    assert found.examples_needed == 200


def test_no_number_of_examples_shows_that_nothing_is_lost() -> None:
    assert drop(0.0, 1.0, 50, margin=0.0) == statistics.Drop(drop(0.0, 1.0, 50).interval, "undecided", None)
    assert drop(0.0, 0.0, 50, margin=0.0).outcome == "passed"
