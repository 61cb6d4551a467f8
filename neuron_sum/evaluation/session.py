"""One evaluation or comparison from start to end: choice of recipe and examples, then one system after another."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from neuron_sum import console, files
from neuron_sum.data.examples import Dataset
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import DataError, RunError
from neuron_sum.evaluation.claims import Checker
from neuron_sum.evaluation.compare import Comparison, compare
from neuron_sum.evaluation.evaluate import evaluate_system
from neuron_sum.evaluation.minimum import Minimum, check_scores
from neuron_sum.evaluation.prediction_files import PredictionColumns
from neuron_sum.evaluation.predictions import read_predictions
from neuron_sum.evaluation.preferences import preferences_of
from neuron_sum.evaluation.ratings import read_ratings
from neuron_sum.evaluation.systems import UNTUNED, System
from neuron_sum.recipes.loading import NAME_RECIPE, RecipeSource, load_recipe
from neuron_sum.recipes.schema import LIMITS, Recipe, Split
from neuron_sum.runs.contents import is_run
from neuron_sum.runs.fingerprint import LENGTHS, check_data, differences, model_parts, record_of
from neuron_sum.runs.folder import RunFolder


class Session:
    """The systems of one command, and the data that all of them summarize.

    The data and the ROUGE protocol come from --recipe, or else from the first run or artifact; prompt and generation
    settings come from the recipe of each system. With neither, a predictions file must contain references.

    Args:
        systems: The systems.
        recipe: The recipe for data and protocol; None for that of the first run or artifact.
        overrides: Changes to the recipes.
        columns: The columns of predictions files.
        minima: Minimum scores, which `run` checks to be among those that it will compute.

    Attributes:
        origin: The name of the data.
        license: The data's licence.
        available: Number of examples of the evaluated split before its limit; None for predictions files.
    """

    available: int | None = None

    def __init__(
        self,
        systems: Sequence[System],
        recipe: RecipeSource | None,
        overrides: Sequence[str],
        columns: PredictionColumns,
        minima: Sequence[Minimum] = (),
    ) -> None:
        self._systems, self._columns, self._minima = systems, columns, minima
        self._uses_data_of_runs = recipe is None  # then predictions may be stored in the folders of the runs
        self._first_run = next((system.run for system in systems if system.run is not None), None)
        self._system_recipes = {
            system.name: load_recipe(str(system.recipe_path), overrides)
            for system in systems
            if system.recipe_path is not None
        }
        if recipe is not None:
            self._recipe = load_recipe(recipe, overrides)
        elif self._system_recipes:
            self._recipe = next(iter(self._system_recipes.values()))
            self._check_same_data()
        elif all(system.file is not None for system in systems):
            self._recipe = load_recipe("tiny", overrides)  # only for the protocol
            self._read_examples_from(systems[0])
            return
        else:
            names = ", ".join(system.name for system in systems)
            raise RunError(
                f"{names}: no run or artifact determines the data", f"{NAME_RECIPE}, which supplies the data"
            )
        dataset = load_dataset(self._recipe.data, self._recipe.output)
        split = self._recipe.evaluate.split
        if self._uses_data_of_runs:
            self._check_unchanged(dataset)
        self.origin, self.license, self._examples = dataset.origin, dataset.license, dataset[split]
        self.available = dataset.available[split] if self._examples else None
        if not self._examples:
            raise DataError(
                f"{dataset.origin} has no {split} split", "choose another one, such as --set evaluate.split=validation"
            )

    def default_folder(self) -> Path:
        """The output folder for the evaluation of one system."""
        system = self._systems[0]
        if system.run is not None and self._uses_data_of_runs:
            return system.run.path / "evaluation" / self._recipe.evaluate.split
        return Path("evaluation") / system.name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the runs of the session, whose folders receive predictions and model cards.

        Raises:
            RunError: If another process holds one of them.
        """
        with ExitStack() as locks:
            for system in self._systems:
                if system.run is not None:
                    locks.enter_context(files.lock(system.run.path))
            yield

    def run(self, folder: Path) -> Comparison:
        """Evaluate every system; a run's predictions are stored in the run folder and reused from there.

        Several systems are also compared by the human ratings in the folder.
        """
        if len(self._systems) > 1:
            read_ratings(folder)  # a damaged file is reported before the work
        evaluations = []
        checking = self._recipe.evaluate.claims
        if missing := sum(not example.dialogue.strip() for example in self._examples):
            lacking = f"{missing:,} of {len(self._examples):,} examples have no dialogue"
            if checking is not None:
                raise DataError(
                    f"evaluate.claims: {lacking}, with which claims are compared",
                    "set the column of the dialogues with --dialogue-column, or the data with --recipe",
                )
            if missing < len(self._examples):
                console.warn(f"{lacking}, so that there are no scores of faithfulness")
        check_scores(self._minima, has_checker=checking is not None, has_dialogues=not missing)
        checker = Checker(checking) if checking is not None else None
        for system in self._systems:
            recipe = self._recipe
            predictions_folder = folder if len(self._systems) == 1 else folder / system.name
            base = self._first_run if system.builtin == UNTUNED else None
            # The untuned model uses the prompt and settings of the run that started from it.
            owner = next((s.name for s in self._systems if s.run is base), "") if base is not None else system.name
            if owner in self._system_recipes:
                recipe = self._system_recipes[owner].model_copy(update={"evaluate": self._recipe.evaluate})
            if system.run is not None and len(self._systems) > 1 and self._uses_data_of_runs:
                predictions_folder = system.run.path / "evaluation" / recipe.evaluate.split
            evaluations.append(
                evaluate_system(
                    system,
                    recipe,
                    self._examples,
                    predictions_folder,
                    self._columns,
                    base,
                    self.origin,
                    self.available,
                    checker,
                    self._recipe.output.sections,
                )
            )
        comparison = compare(self._examples, evaluations, self._recipe.evaluate)
        if len(self._systems) == 1:
            return comparison
        return replace(comparison, ratings=preferences_of(folder, comparison.texts(), self._recipe.evaluate))

    def _read_examples_from(self, system: System) -> None:
        assert system.file is not None
        self._examples = tuple(read_predictions(system.file, system.columns(self._columns), None)[0])
        self.origin, self.license = system.file.name, None

    def _check_unchanged(self, dataset: Dataset) -> None:
        """Raise if the evaluated split differs from the one at the time of the training; warn if a run was retrained.

        A split chosen by an override of the data, and not by the recipe of the run or artifact, is not compared.
        """
        split = self._recipe.evaluate.split
        for system in self._systems:
            source = system.run or system.artifact
            if source is None:
                continue
            record = record_of(source)
            if _data_of(source.recipe, split) == _data_of(self._recipe, split):
                check_data(record, dataset, split, source.path)
            if system.artifact is not None and is_run(origin := Path(system.artifact.manifest.source.path)):
                now = RunFolder(origin, source.recipe).read_record().fingerprint
                if changed := differences(model_parts(record), model_parts(now)):
                    console.warn(f"{origin} changed since {source.path} was compiled from it: {', '.join(changed)}")

    def _check_same_data(self) -> None:
        """Raise if the recipes have different data, because scores on different dialogues cannot be compared."""
        split = self._recipe.evaluate.split
        sources = {name: _data_of(recipe, split) for name, recipe in self._system_recipes.items()}
        first = next(iter(sources))
        if different := [name for name, source in sources.items() if source != sources[first]]:
            raise RunError(
                f"{', '.join(different)} was trained on different data than {first}",
                f"{NAME_RECIPE}, which supplies the data for the comparison",
            )


def _data_of(recipe: Recipe, split: Split) -> dict[str, object]:
    """The settings that determine the evaluated dialogues."""
    other_limits = {name for other, name in LIMITS.items() if other != split}
    data = recipe.data.model_dump(exclude={*other_limits, "license", *LENGTHS})
    return {**data, "sections": recipe.output.sections}
