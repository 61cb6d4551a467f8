"""One evaluation or comparison from start to end: which recipe rules, which examples, then system by system."""

from collections.abc import Sequence
from pathlib import Path

from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import DataError, RunError
from neuron_sum.evaluation.compare import Comparison, compare
from neuron_sum.evaluation.evaluate import evaluate_system
from neuron_sum.evaluation.predictions import PredictionColumns, read_predictions
from neuron_sum.evaluation.systems import UNTUNED, System
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import Recipe


class Session:
    """The systems of one command, and the data that all of them summarize.

    The data and the ROUGE protocol come from --recipe, else from the first run or artifact; prompt and generation
    settings from each one's own recipe. With neither, a predictions file must bring its own references.

    Attributes:
        origin: What people call the data.
        license: The data's licence.
    """

    def __init__(
        self, systems: Sequence[System], recipe_name: str | None, overrides: Sequence[str], columns: PredictionColumns
    ) -> None:
        self._systems, self._columns = systems, columns
        self._own_data = recipe_name is None  # then predictions may be kept in the runs' own folders
        self._first_run = next((system.run for system in systems if system.run is not None), None)
        self._own_recipes = {
            system.name: load_recipe(str(system.own_recipe), overrides)
            for system in systems
            if system.own_recipe is not None
        }
        if recipe_name is not None:
            self._recipe = load_recipe(recipe_name, overrides)
        elif self._own_recipes:
            self._recipe = next(iter(self._own_recipes.values()))
            self._check_same_data()
        elif all(system.file is not None for system in systems):
            self._recipe = load_recipe("tiny", overrides)  # for the protocol alone
            self._take_examples_from(systems[0])
            return
        else:
            names = ", ".join(system.name for system in systems)
            raise RunError(
                f"{names}: no run or artifact brings the data", "name it with --recipe, such as --recipe tiny"
            )
        dataset = load_dataset(self._recipe.data)
        split = self._recipe.evaluate.split
        self.origin, self.license, self._examples = dataset.origin, dataset.license, dataset[split]
        if not self._examples:
            raise DataError(
                f"{dataset.origin} has no {split} split", "choose another one: --set evaluate.split=validation"
            )

    def default_folder(self) -> Path:
        """Where one system's evaluation goes."""
        system = self._systems[0]
        if system.run is not None and self._own_data:
            return system.run.path / "evaluation" / self._recipe.evaluate.split
        return Path("evaluation") / system.name

    def run(self, folder: Path) -> Comparison:
        """Evaluates every system; a run's predictions are kept in its own folder and found again there."""
        evaluations = []
        for system in self._systems:
            recipe = self._recipe
            kept = folder if len(self._systems) == 1 else folder / system.name
            base = self._first_run if system.builtin == UNTUNED else None
            # The untuned model is asked as its tuned forms are.
            asked_as = next((s.name for s in self._systems if s.run is base), "") if base is not None else system.name
            if asked_as in self._own_recipes:
                recipe = self._own_recipes[asked_as].model_copy(update={"evaluate": self._recipe.evaluate})
            if system.run is not None and len(self._systems) > 1 and self._own_data:
                kept = system.run.path / "evaluation" / recipe.evaluate.split
            evaluations.append(evaluate_system(system, recipe, self._examples, kept, self._columns, base, self.origin))
        return compare(self._examples, evaluations, self._recipe.evaluate)

    def _take_examples_from(self, system: System) -> None:
        assert system.file is not None
        self._examples = tuple(read_predictions(system.file, system.columns(self._columns), None)[0])
        self.origin, self.license = system.file.name, None

    def _check_same_data(self) -> None:
        """Scores on different dialogues cannot be compared."""
        sources = {name: _data_of(recipe) for name, recipe in self._own_recipes.items()}
        first = next(iter(sources))
        if different := [name for name, source in sources.items() if source != sources[first]]:
            raise RunError(
                f"{', '.join(different)} was trained on other data than {first}",
                "say which data to compare them on: --recipe NAME",
            )


def _data_of(recipe: Recipe) -> dict[str, object]:
    return recipe.data.model_dump(include={"source", "path", "revision", "files", "columns", "max_eval_examples"})
