"""Minimum scores of a comparison, which stop a script before it deploys a worse model."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from neuron_sum.errors import RecipeError, ScoreError
from neuron_sum.evaluation.claims import CLAIMS
from neuron_sum.evaluation.compare import Comparison, reference_of
from neuron_sum.evaluation.preferences import SCORES
from neuron_sum.evaluation.rouge import ROUGE_TYPES
from neuron_sum.evaluation.systems import System


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

    def __str__(self) -> str:
        return f"{self.score}={self.points:{'+' if self.is_difference else ''}g}"


def parse_minimum(text: str) -> Minimum:
    """Read SCORE=POINTS; POINTS with a sign is a difference.

    Raises:
        RecipeError: If the score is unknown, or the points are not a number.
    """
    score, points = (part.strip() for part in text.partition("=")[::2])
    try:
        value = float(points)
    except ValueError:
        value = math.nan
    if score not in SCORES or not math.isfinite(value):
        raise RecipeError(
            f"--fail-below {text}: not SCORE=POINTS with a score of {', '.join(SCORES)}",
            "use --fail-below ROUGE-1=35, or --fail-below ROUGE-1=-0.5 for a difference to the first system",
        )
    return Minimum(score, value, points[0] in "+-")


def check_systems(systems: Sequence[System], minima: Sequence[Minimum]) -> None:
    """Check, before an evaluation, that the minimum scores apply to a system.

    Raises:
        RecipeError: If no model would be compared with them.
    """
    for minimum in minima:
        if not any(_applies(minimum, system, reference_of(systems)) for system in systems):
            other = " other than the first system or untuned" if minimum.is_difference else ""
            raise RecipeError(
                f"--fail-below {minimum}: no model{other} is among the systems; built-in systems are not checked",
                "use `neuron-sum compare old=RUN new=RUN`, with the run to check in the second place",
            )


def check_scores(minima: Sequence[Minimum], *, has_checker: bool, has_dialogues: bool) -> None:
    """Check, before an evaluation, that it computes the scores.

    Args:
        minima: The minimum scores.
        has_checker: Whether the claims are scored.
        has_dialogues: Whether every example has a dialogue.

    Raises:
        RecipeError: If a score will not be computed.
    """
    for minimum in minima:
        if minimum.score == CLAIMS and not has_checker:
            raise RecipeError(
                f"--fail-below {minimum}: no model scores the claims",
                "repeat the command with the checker, as --set evaluate.claims.model=RUN",
            )
        if minimum.score not in ROUGE_TYPES.values() and not has_dialogues:
            raise RecipeError(
                f"--fail-below {minimum}: examples without a dialogue have no score {minimum.score}",
                "set the column of the dialogues with --dialogue-column, or the data with --recipe",
            )


def check_minima(comparison: Comparison, minima: Sequence[Minimum]) -> None:
    """Compare the models with the minimum scores.

    Raises:
        ScoreError: If a model has a lower score; names all of them.
    """
    if missed := list(_missed(comparison, minima)):
        raise ScoreError("; ".join(missed), "keep the previous model; report.html shows the summaries of both")


def _applies(minimum: Minimum, system: System, reference: System) -> bool:
    return system.builtin is None and not (minimum.is_difference and system == reference)


def _missed(comparison: Comparison, minima: Sequence[Minimum]) -> Iterator[str]:
    reference = reference_of([each.system for each in comparison.evaluations])
    for each in comparison.evaluations:
        name = each.system.name
        for minimum in minima:
            if not _applies(minimum, each.system, reference):
                continue
            if minimum.is_difference:
                value = comparison.differences[name][minimum.score].interval.value
                if value < minimum.points:
                    relative = f"{value:+.2f} relative to {reference.name}"
                    yield f"{name} has {minimum.score} {relative}, below {minimum.points:+g}"
            elif (value := _value(each.metrics, minimum.score)) < minimum.points:
                yield f"{name} has {minimum.score} {value:.2f}, below {minimum.points:g}"


def _value(metrics: dict[str, Any], score: str) -> float:
    scores = {**metrics["scores"], **metrics["faithfulness"]["scores"]}
    return float(scores[score]["value"])
