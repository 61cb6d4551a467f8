"""The Python API of the evaluation: `evaluate`, `compare` and `Summarizer`; docs/python.md has an example.

Nothing heavy is imported before a function is called, so that `import neuron_sum` is fast.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_sum import console, files
from neuron_sum.artifact import Artifact
from neuron_sum.calls import api_call
from neuron_sum.errors import DataError, ResourceError, RunError
from neuron_sum.recipes.loading import NAME_RECIPE, RecipeSource, load_recipe
from neuron_sum.recipes.schema import Recipe
from neuron_sum.runs.folder import RunFolder
from neuron_sum.text_files import SURROGATE

if TYPE_CHECKING:
    from neuron_sum.evaluation.compare import Comparison
    from neuron_sum.evaluation.minimum import Minimum
    from neuron_sum.evaluation.prediction_files import PredictionColumns
    from neuron_sum.evaluation.predictions import Prediction
    from neuron_sum.evaluation.session import Session
    from neuron_sum.evaluation.statistics import Difference, Interval
    from neuron_sum.evaluation.systems import System
    from neuron_sum.prompts import Tokenizer
    from neuron_sum.runtimes.base import Generator

SystemSource = str | Path | RunFolder | Artifact
"""A run, an artifact or their folder, or any other SYSTEM of the command line, such as "untuned" or "NAME=FOLDER"."""
TRAINED = ("recipe.yaml", "config.json", "adapter_config.json")
"""One of these files is in the folder of every run, artifact, checkpoint and adapter."""


@dataclass(frozen=True)
class Report:
    """The result of `evaluate` and `compare`; print() displays the tables of the commands.

    Attributes:
        comparison: The dialogues and the evaluations with all predictions and metrics.
        path: The file report.html; comparison.json is in the same folder.
    """

    comparison: "Comparison"
    path: Path

    @property
    def scores(self) -> "dict[str, dict[str, Interval]]":
        """The scores in points, each a mean with its interval: by system, then by score (ROUGE-1, facts, …)."""
        from neuron_sum.evaluation.statistics import Interval

        return {
            evaluation.system.name: {
                name: Interval(**interval)
                for scores in (evaluation.metrics["scores"], evaluation.metrics["faithfulness"]["scores"])
                for name, interval in scores.items()
            }
            for evaluation in self.comparison.evaluations
        }

    @property
    def improvements(self) -> "dict[str, dict[str, Difference]]":
        """The points above the reference system, with interval and p-value: by system, then by score."""
        return self.comparison.differences

    def summaries(self, index: int) -> dict[str, str]:
        """The summaries of one dialogue side by side: by every system, and by `human`.

        Args:
            index: The position of the dialogue in `comparison.examples`.
        """
        human = {"human": self.comparison.examples[index].references[0]}
        return human | {each.system.name: each.predictions[index].summary for each in self.comparison.evaluations}

    def as_dict(self) -> dict[str, Any]:
        """What the commands print with --json."""
        return {**self.comparison.as_dict(), "report": str(self.path)}

    def __str__(self) -> str:
        from neuron_sum.evaluation.render import render

        return console.as_text(render(self.comparison))


def evaluate(
    system: SystemSource,
    *,
    recipe: RecipeSource | None = None,
    overrides: Sequence[str] = (),
    base: str | None = None,
    output: str | Path | None = None,
    columns: "PredictionColumns | None" = None,
    progress: bool = False,
) -> Report:
    """Evaluates one system; writes the files of `neuron-sum evaluate`, and the model card of a run.

    The files are predictions.jsonl, metrics.json, summaries.jsonl, comparison.json and report.html.

    Args:
        system: The system.
        recipe: The recipe for data and protocol. Default: that of the run or artifact.
        overrides: Changes to the recipe, such as "evaluate.split=validation".
        base: The base model (folder or hub id) of an adapter. Default: the one that adapter_config.json names.
        output: The output folder. Default: RUN/evaluation/SPLIT or evaluation/NAME.
        columns: The columns of a predictions file.
        progress: Whether to print progress to standard error.

    Returns:
        The report; its `scores` have intervals.

    Raises:
        NeuronSumError: One of its subclasses for each failure.
    """
    return _report([_spec(system)], recipe, overrides, base, output, columns, progress)


def compare(
    systems: Sequence[SystemSource] | Mapping[str, SystemSource],
    *,
    recipe: RecipeSource | None = None,
    overrides: Sequence[str] = (),
    base: str | None = None,
    output: str | Path = "comparison",
    columns: "PredictionColumns | None" = None,
    minima: "Sequence[Minimum]" = (),
    progress: bool = False,
) -> Report:
    """Compares systems with each other and with the human summaries; writes report.html and comparison.json.

    Args:
        systems: The systems; a mapping names them.
        recipe: The recipe for data and protocol. Default: that of the first run or artifact.
        overrides: Changes to the recipe, such as "generate.num_beams=4".
        base: The base model (folder or hub id) of all adapters. Default: the one that adapter_config.json names.
        output: The output folder.
        columns: The columns of predictions files.
        minima: Minimum scores for `evaluation.minimum.check_minima`; checked here is only that they will be computed.
        progress: Whether to print progress to standard error.

    Returns:
        The report; its `improvements` have intervals and p-values.

    Raises:
        NeuronSumError: One of its subclasses for each failure.
    """
    if isinstance(systems, str) or not isinstance(systems, Sequence | Mapping) or not systems:
        raise RunError(f"not a list of systems: {systems!r:.100}", 'use a list, such as compare(["untuned", run])')
    if isinstance(systems, Mapping):
        named = {str(name): _spec(system) for name, system in systems.items()}
        return _report(named, recipe, overrides, base, output, columns, progress, minima)
    specs = [_spec(system) for system in systems]
    return _report(specs, recipe, overrides, base, output, columns, progress, minima)


class Summarizer:
    """A trained or compiled model that summarizes dialogues; it is loaded once, for the first dialogue.

    Args:
        source: A run, an artifact, or the folder of one; with `recipe`, also that of a checkpoint or an adapter.
        recipe: The recipe for prompt, lengths and generation. Default: that of the run or artifact.
        overrides: Changes to the recipe, such as "generate.num_beams=4".
        base: The base model (folder or hub id) of an adapter. Default: the one that adapter_config.json names.
        progress: Whether to print progress to standard error.

    Attributes:
        recipe: The recipe with its changes.

    Raises:
        NeuronSumError: One of its subclasses, if the source cannot be used.
    """

    def __init__(
        self,
        source: str | Path | RunFolder | Artifact,
        *,
        recipe: RecipeSource | None = None,
        overrides: Sequence[str] = (),
        base: str | None = None,
        progress: bool = False,
    ) -> None:
        path, self._progress = Path(_spec(source)), progress
        with api_call(progress):
            from neuron_sum.evaluation.systems import parse_systems
            from neuron_sum.models.adapter_config import nested_hint

            if not any((path / name).is_file() for name in TRAINED):
                raise RunError(
                    f"{path} is neither a run, an artifact, a checkpoint nor an adapter",
                    nested_hint(path) or "run `neuron-sum train RECIPE` to create a run",
                )
            self._system = parse_systems([str(path)], base)[0]
            chosen = recipe or self._system.recipe_path
            if chosen is None:
                raise RunError(f"{path} has no recipe", f"{NAME_RECIPE}, which supplies prompt, lengths and generation")
            self.recipe = load_recipe(chosen, overrides)

    def summarize(self, texts: Sequence[str]) -> list[str]:
        """Summarizes dialogues; warns if one or its summary is truncated.

        Args:
            texts: The dialogues, one turn per line.

        Returns:
            One summary per dialogue.

        Raises:
            NeuronSumError: One of its subclasses, if a text or the model cannot be used.
        """
        return [prediction.summary for prediction in self.predict(texts)]

    def predict(self, texts: Sequence[str]) -> "list[Prediction]":
        """Summarizes dialogues as `summarize` does, and also returns the numbers of tokens and what was truncated.

        Args:
            texts: The dialogues, one turn per line.

        Returns:
            One prediction per dialogue.

        Raises:
            NeuronSumError: One of its subclasses, if a text or the model cannot be used.
        """
        texts = _checked(texts)
        if not texts:
            return []
        with api_call(self._progress):
            from neuron_sum.evaluation.generate import summarize_all

            recipe, generator, tokenizer = self._loaded
            ids = [str(number) for number in range(len(texts))]
            alone = len(texts) == 1
            predictions = summarize_all(generator, tokenizer, recipe, ids, texts, quiet=alone)
            lengths, settings = recipe.data, recipe.generate
            if truncated := sum(prediction.truncated for prediction in predictions):
                what = "the dialogue was" if alone else f"{truncated} of {len(texts)} dialogues were"
                console.warn(
                    f"{what} truncated to data.max_source_length = {lengths.max_source_length} tokens; "
                    "data.long=merge keeps the rest"
                )
            if unfinished := sum(prediction.hit_limit for prediction in predictions):
                what = "the summary was" if alone else f"{unfinished} of {len(texts)} summaries were"
                console.warn(f"{what} truncated at generate.max_new_tokens = {settings.max_new_tokens}")
            return predictions

    @cached_property
    def _loaded(self) -> "tuple[Recipe, Generator, Tokenizer]":
        from neuron_sum.evaluation.systems import load_system, rendered

        recipe = rendered(self._system, self.recipe)
        return recipe, *load_system(self._system, recipe)


def _spec(system: SystemSource) -> str:
    """A system as on the command line."""
    if isinstance(system, RunFolder | Artifact):
        return str(system.path)
    if isinstance(system, str | Path):
        return str(system)
    raise RunError(
        f"not a system: {system!r:.100}", "use a run, an artifact, the path of one, or a name such as untuned"
    )


def _checked(texts: Sequence[str]) -> list[str]:
    """The dialogues as a list.

    Raises:
        DataError: If one is not a text, is empty, or has half a character.
    """
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise DataError(f"not a list of dialogues: {texts!r:.60}", "use a list, such as summarize([dialogue])")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"dialogue {number} is not a text: {text!r:.60}", "convert it with str()")
        if not text.strip():
            raise DataError(f"dialogue {number} is empty", "leave it out")
        if found := SURROGATE.search(text):
            raise DataError(f"dialogue {number} contains the lone surrogate U+{ord(found[0]):04X}", "remove it")
    return list(texts)


def _report(
    specs: list[str] | dict[str, str],
    recipe: RecipeSource | None,
    overrides: Sequence[str],
    base: str | None,
    output: str | Path | None,
    columns: "PredictionColumns | None",
    progress: bool,
    minima: "Sequence[Minimum]" = (),
) -> Report:
    with api_call(progress):
        from neuron_sum.evaluation.prediction_files import PredictionColumns
        from neuron_sum.evaluation.session import Session
        from neuron_sum.evaluation.systems import parse_systems

        systems = parse_systems(specs, base)
        session = Session(systems, recipe, overrides, columns or PredictionColumns(), minima)
        folder = Path(output) if output is not None else session.default_folder()
        with session.locked():
            return Report(write_comparison(session, folder, systems), folder / "report.html")


def write_comparison(session: "Session", folder: Path, systems: "list[System]") -> "Comparison":
    """Evaluates the systems of a session, and writes the results and the model cards of its runs.

    Args:
        session: The session, whose runs are locked.
        folder: The folder for report.html and comparison.json.
        systems: The systems of the session.
    """
    from neuron_sum.evaluation.report import write_report
    from neuron_sum.runs.card import write_model_card
    from neuron_sum.runs.tracking import log_scores

    files.check_writable(folder, 0)
    comparison = session.run(folder)
    title = (
        f"Evaluation of {systems[0].name}"
        if len(systems) == 1
        else "Comparison of " + ", ".join(s.name for s in systems)
    )
    write_report(folder / "report.html", comparison, title, session.origin, session.license)
    files.write_json(folder / "comparison.json", comparison.as_dict())
    files.write_text(folder / "summaries.jsonl", "".join(files.to_json(entry) + "\n" for entry in comparison.texts()))
    for evaluation in comparison.evaluations:
        if evaluation.system.run is not None:
            run = evaluation.system.run
            try:
                write_model_card(run, run.read_results(), evaluation.metrics, Path(session.origin).name)
            except ResourceError as error:  # the run may be read-only
                console.warn(f"the model card is not updated: {error.message}")
            log_scores(run, evaluation.metrics)
    return comparison
