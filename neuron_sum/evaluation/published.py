"""Published experiments: their recipes, and the scores that others reported for them, from published.yaml."""

from pathlib import Path

import yaml

from neuron_sum.errors import RecipeError
from neuron_sum.recipes.schema import Section

PUBLISHED = Path(__file__).with_name("published.yaml")


class Experiment(Section):
    """A published experiment."""

    title: str
    runs: dict[str, str]
    """The recipe of each trained system."""
    source: str
    """The authors of the scores."""
    protocol: str
    """How they were measured."""
    scores: dict[str, dict[str, float]]
    """ROUGE in points, by system and kind."""


def published_experiments() -> dict[str, Experiment]:
    """All experiments by name."""
    content = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    return {name: Experiment.model_validate(values) for name, values in content.items()}


def find_experiment(name: str) -> Experiment:
    """An experiment by its name.

    Raises:
        RecipeError: If there is no such experiment.
    """
    experiments = published_experiments()
    if name not in experiments:
        raise RecipeError(
            f"unknown experiment {name!r:.80}; valid: {', '.join(experiments)}",
            "use `neuron-sum compare` for runs of other recipes",
        )
    return experiments[name]
