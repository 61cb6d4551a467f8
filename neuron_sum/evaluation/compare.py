"""Comparison of systems on the same dialogues: absolute improvements, significance, and the texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from neuron_sum.data.examples import Example
from neuron_sum.evaluation.evaluate import Evaluation
from neuron_sum.evaluation.preferences import Preferences
from neuron_sum.evaluation.rouge import RougeProtocol, Scores
from neuron_sum.evaluation.statistics import Difference, paired_bootstrap
from neuron_sum.evaluation.systems import HUMAN, UNTUNED, System
from neuron_sum.recipes.schema import EvaluateConfig

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """Several evaluations on the same examples.

    Attributes:
        examples: The dialogues and their human summaries.
        evaluations: The evaluations in the order of the command line.
        reference: The name of the system relative to which improvements are measured.
        differences: The improvements by system name, then by score, without the reference system.
        ratings: The results of human ratings of these texts; None if there are none.
    """

    examples: Sequence[Example]
    evaluations: Sequence[Evaluation]
    reference: str
    differences: dict[str, dict[str, Difference]]
    ratings: Preferences | None = None

    def as_dict(self) -> dict[str, Any]:
        """The content of comparison.json and --json."""
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
            "ratings": self.ratings and self.ratings.as_dict(),
        }

    def texts(self) -> Iterator[dict[str, Any]]:
        """The content of summaries.jsonl: every dialogue, its human summaries, and each system's."""
        systems = [evaluation for evaluation in self.evaluations if evaluation.system.builtin != HUMAN]
        for index, example in enumerate(self.examples):
            yield {
                "id": example.id,
                "dialogue": example.dialogue,
                "references": list(example.references),
                "summaries": {
                    evaluation.system.name: {
                        "text": evaluation.predictions[index].summary,
                        **_scores(evaluation, index),
                    }
                    for evaluation in systems
                },
            }


def _all_scores(evaluation: Evaluation) -> Scores:
    return {**evaluation.scores, **evaluation.faithfulness}


def _scores(evaluation: Evaluation, index: int) -> dict[str, Any]:
    """The scores, findings and claims of one summary."""
    scores = _all_scores(evaluation)
    entry: dict[str, Any] = {name: round(float(values[index]), 2) for name, values in scores.items()}
    if (checked := evaluation.checks[index]) is not None:
        entry["findings"] = [finding.as_dict() for finding in checked.findings]
    if evaluation.claims is not None:
        entry["claim_scores"] = [claim.as_dict() for claim in evaluation.claims[index]]
    return entry


def reference_of(systems: Sequence[System]) -> System:
    """The system that the others are compared with: the untuned model, or the first system."""
    return next((system for system in systems if system.builtin == UNTUNED), systems[0])


def compare(examples: Sequence[Example], evaluations: Sequence[Evaluation], config: EvaluateConfig) -> Comparison:
    """Compare every system with the untuned model, or with the first system if the untuned model is not included.

    Warns about words of which the tokenizer of the ROUGE protocol drops letters.

    Args:
        examples: The dialogues that all systems summarized.
        evaluations: One or more evaluations.
        config: The settings of the paired bootstrap.
    """
    by_name = {evaluation.system.name: evaluation for evaluation in evaluations}
    reference = reference_of([evaluation.system for evaluation in evaluations]).name
    baseline = _all_scores(by_name[reference])
    differences = {
        name: {
            score: paired_bootstrap(values, baseline[score], config)
            for score, values in _all_scores(evaluation).items()
            if score in baseline
        }
        for name, evaluation in by_name.items()
        if name != reference and evaluation.system.builtin != HUMAN  # human summaries are not an improved system
    }
    protocol = RougeProtocol.of(config)
    protocol.warn([text for example in examples for text in example.references], "human summaries")
    for name, evaluation in by_name.items():
        if evaluation.system.builtin != HUMAN:
            protocol.warn([prediction.summary for prediction in evaluation.predictions], name)
    return Comparison(examples, evaluations, reference, differences)
