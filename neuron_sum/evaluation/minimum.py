"""Minimum scores of a comparison, which stop a script before it deploys a worse model."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from neuron_sum.errors import RecipeError, ScoreError
from neuron_sum.evaluation.compare import Comparison
from neuron_sum.evaluation.rouge import ROUGE_TYPES


@dataclass(frozen=True)
class Minimum:
    """The lowest accepted mean of a score.

    Attributes:
        score: The name of the score.
        points: The points, or the difference to the reference system.
        is_difference: Whether `points` is such a difference.
    """

    score: str
    points: float
    is_difference: bool


def parse_minimum(text: str) -> Minimum:
    """Read SCORE=POINTS; POINTS with a sign is a difference.

    Raises:
        RecipeError: If the score is unknown, or the points are not a number.
    """
    score, _, points = text.partition("=")
    try:
        value = float(points)
    except ValueError:
        value = math.nan
    if score not in ROUGE_TYPES.values() or not math.isfinite(value):
        raise RecipeError(
            f"--fail-below {text}: not SCORE=POINTS with a score of {', '.join(ROUGE_TYPES.values())}",
            "use --fail-below ROUGE-1=35, or --fail-below ROUGE-1=-0.5 for a difference to the first system",
        )
    return Minimum(score, value, points[0] in "+-")


def check_minima(comparison: Comparison, minima: Sequence[Minimum]) -> None:
    """Compare the models with the minimum scores; built-in systems are not checked, nor is a reference to others.

    Raises:
        ScoreError: If a model has a lower score; names all of them.
    """
    if missed := list(_missed(comparison, minima)):
        raise ScoreError("; ".join(missed), "keep the previous model; report.html shows the summaries of both")


def _missed(comparison: Comparison, minima: Sequence[Minimum]) -> Iterator[str]:
    models = [each for each in comparison.evaluations if each.system.builtin is None]
    reference = comparison.reference
    if not models:
        yield "no model is compared: built-in systems are not checked"
    if len(models) > 1:
        models = [each for each in models if each.system.name != reference]
    for each in models:
        name = each.system.name
        for minimum in minima:
            if not minimum.is_difference:
                if (value := each.metrics["scores"][minimum.score]["value"]) < minimum.points:
                    yield f"{name} has {minimum.score} {value:.2f}, below {minimum.points:g}"
            elif name == reference:
                yield f"{minimum.score}={minimum.points:+g} needs a second system, with which {name} is compared"
            elif (value := comparison.differences[name][minimum.score].interval.value) < minimum.points:
                yield f"{name} has {minimum.score} {value:+.2f} relative to {reference}, below {minimum.points:+g}"
