"""Systems beside each other on the same dialogues: absolute improvements, significance, and the texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neuron_sum.data.examples import Example
from neuron_sum.evaluation.evaluate import Evaluation
from neuron_sum.evaluation.statistics import Difference, paired_bootstrap
from neuron_sum.evaluation.systems import HUMAN, UNTUNED
from neuron_sum.recipes.schema import EvaluateConfig

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """Several evaluations on the same examples.

    Attributes:
        examples: The dialogues and their human summaries.
        evaluations: In the order they were asked for.
        reference: The name of the system that improvements are measured from.
        differences: By system name, then by score; the reference itself is absent.
    """

    examples: Sequence[Example]
    evaluations: Sequence[Evaluation]
    reference: str
    differences: dict[str, dict[str, Difference]]

    def as_dict(self) -> dict[str, Any]:
        """For comparison.json and --json."""
        return {
            "reference": self.reference,
            "systems": [
                {
                    **evaluation.metrics,
                    "improvement": {
                        name: {**difference.interval.as_dict(), "p_value": difference.p_value}
                        for name, difference in self.differences.get(evaluation.system.name, {}).items()
                    },
                }
                for evaluation in self.evaluations
            ],
        }


def compare(examples: Sequence[Example], evaluations: Sequence[Evaluation], config: EvaluateConfig) -> Comparison:
    """Measures every system against the untuned model, or the first system where that is not among them.

    Args:
        examples: What all of them summarized.
        evaluations: One or more.
        config: For the paired bootstrap.
    """
    named = {evaluation.system.name: evaluation for evaluation in evaluations}
    untuned = [name for name, evaluation in named.items() if evaluation.system.builtin == UNTUNED]
    reference = untuned[0] if untuned else next(iter(named))
    differences = {
        name: {
            score: paired_bootstrap(values, named[reference].scores[score], config)
            for score, values in evaluation.scores.items()
        }
        for name, evaluation in named.items()
        if name != reference and evaluation.system.builtin != HUMAN  # people are no system that was improved
    }
    return Comparison(examples, evaluations, reference, differences)
