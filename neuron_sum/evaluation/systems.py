"""The systems that can be compared: runs, artifacts, the untuned model, baselines, people, any other system's file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from neuron_sum import files
from neuron_sum.artifact import RECIPE, Artifact, artifact_name, is_artifact, open_artifact
from neuron_sum.data.examples import Example
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import ArtifactError, RunError
from neuron_sum.evaluation.baselines import BASELINES
from neuron_sum.evaluation.predictions import Prediction, PredictionColumns, read_predictions, write_predictions
from neuron_sum.recipes.schema import Recipe
from neuron_sum.runs.folder import RunFolder, open_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from neuron_sum.runtimes.base import Generator

HUMAN, UNTUNED = "human", "untuned"
BUILT_IN = (UNTUNED, *BASELINES, HUMAN)


@dataclass(frozen=True)
class System:
    """Something that summarizes: exactly one of builtin, run, artifact, weights and file says what.

    Attributes:
        name: Its name in tables; unique in a comparison.
        builtin: One of BUILT_IN.
        run: A trained model.
        artifact: A compiled one.
        weights: A checkpoint or adapter in Hugging Face's layout that is no run of ours, or a part of one.
        file: Predictions that another program made.
        column: The column of that file, where several systems share it.
    """

    name: str
    builtin: str | None = None
    run: RunFolder | None = None
    artifact: Artifact | None = None
    weights: Path | None = None
    file: Path | None = None
    column: str | None = None

    @property
    def own_recipe(self) -> Path | None:
        """The recipe that a run or an artifact brings."""
        if self.artifact is not None:
            return self.artifact.path / RECIPE
        return self.run.recipe_path if self.run is not None else None

    def columns(self, columns: PredictionColumns) -> PredictionColumns:
        """The columns of its file: those of the command, but its own #COLUMN for the summary."""
        return columns if self.column is None else replace(columns, prediction=self.column)


def parse_systems(specs: Sequence[str]) -> list[System]:
    """Reads `[NAME=]SPEC`: a run, an artifact, a checkpoint or adapter, a built-in, or a predictions file [#COLUMN].

    Raises:
        RunError: For a SPEC that is none of these, or a name that is given twice or is no name.
    """
    systems: list[System] = []
    for spec in specs:
        name, equals, rest = spec.partition("=")
        if not equals or Path(spec).exists():  # a path may hold an equals sign
            name, rest = "", spec
        system = _parse(rest, name or None)
        if any(system.name == other.name for other in systems):
            raise RunError(f"two systems are named {system.name!r}", f"name one of them: OTHER={rest}")
        if "/" in system.name or system.name in ("", ".", ".."):
            raise RunError(
                f"{system.name!r} is no name for a system: it names files too", "NAME=SPEC, with a plain NAME"
            )
        systems.append(system)
    return systems


def _parse(spec: str, name: str | None) -> System:
    if spec in BUILT_IN:
        return System(name or spec, builtin=spec)
    path = Path(spec)
    if path.is_file():
        return System(name or path.stem, file=path)
    file, hash_sign, column = spec.rpartition("#")
    if hash_sign and Path(file).is_file():
        return System(name or column, file=Path(file), column=column)
    if is_artifact(path):
        return System(name or artifact_name(path), artifact=open_artifact(path))
    if (path / "recipe.yaml").is_file():
        run = open_run(path)
        return System(name or run.path.resolve().name, run=run)
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return System(name or path.resolve().name, weights=path)
    raise RunError(
        f"no system {spec!r}: neither a run, an artifact, a checkpoint or adapter, a predictions file, "
        f"nor {', '.join(BUILT_IN)}",
        "neuron-sum train RECIPE makes a run",
    )


def predict(
    system: System,
    recipe: Recipe,
    examples: Sequence[Example],
    columns: PredictionColumns,
    folder: Path,
    base: RunFolder | None,
) -> list[Prediction]:
    """One prediction per example; a model's are taken from `folder` if the same weights and settings made them.

    Args:
        system: Any but `human`, who are not one system.
        recipe: For prompt and generation.
        examples: What to summarize.
        columns: Of a predictions file.
        folder: Where predictions.jsonl is kept.
        base: For `untuned`: a run that started from it; None to load what the recipe names.
    """
    if system.builtin in BASELINES:
        return [Prediction(example.id, BASELINES[system.builtin](example.dialogue)) for example in examples]
    if system.file is not None:
        return read_predictions(system.file, system.columns(columns), examples)[1]
    return _predict_with_model(system, recipe, examples, folder, base)


def _predict_with_model(
    system: System, recipe: Recipe, examples: Sequence[Example], folder: Path, base: RunFolder | None
) -> list[Prediction]:
    from neuron_sum.evaluation.generate import fingerprint, summarize_all

    ids, dialogues = [example.id for example in examples], [example.dialogue for example in examples]
    key = fingerprint(recipe, ids, dialogues, _hashes(system, base))
    record, finished = folder / "generation.json", folder / "predictions.jsonl"
    if record.is_file() and files.read_json(record)["fingerprint"] == key:
        return [Prediction(**entry) for entry in files.read_jsonl(finished)]
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"partial-{key}.jsonl"
    generator, tokenizer = _load(system, recipe, base)
    predictions = summarize_all(generator, tokenizer, recipe, ids, dialogues, partial, f"summarizing: {system.name}")
    record.unlink(missing_ok=True)
    write_predictions(finished, predictions)
    files.write_json(record, {"fingerprint": key, "generate": recipe.generate.model_dump()})
    partial.unlink()
    return predictions


def summarize_one(system: System, recipe: Recipe, dialogue: str) -> Prediction:
    """One dialogue, nothing kept.

    Args:
        system: A run or an artifact.
        recipe: For prompt and generation.
        dialogue: The text.
    """
    from neuron_sum.evaluation.generate import summarize_all

    generator, tokenizer = _load(system, recipe, None)
    return summarize_all(generator, tokenizer, recipe, ["dialogue"], [dialogue], quiet=True)[0]


def _hashes(system: System, base: RunFolder | None) -> list[str]:
    """Of everything on disk that a system's summaries depend on."""
    if system.artifact is not None:
        return list(system.artifact.manifest.files.values())
    run = system.run or base
    folders = [Path(run.model_source())] if run is not None else []
    folders += [path for path in (system.run.weights if system.run else None, system.weights) if path is not None]
    return [files.sha256(file) for folder in folders for file in sorted(folder.glob("*.safetensors"))]


def _load(system: System, recipe: Recipe, base: RunFolder | None) -> "tuple[Generator, PreTrainedTokenizerFast]":
    from neuron_sum.models import base as models
    from neuron_sum.runs import trained
    from neuron_sum.runtimes.hugging_face import TransformersGenerator
    from neuron_sum.runtimes.load import load_generator

    if system.artifact is not None:
        if recipe.prompt.resolve().sha256 != system.artifact.manifest.prompt.sha256:
            raise ArtifactError("prompt: another one than the artifact was compiled with", "leave the recipe's prompt")
        return load_generator(system.artifact)
    if system.run is not None:
        model, tokenizer = trained.load_trained(system.run)
    elif system.weights is not None:
        model, tokenizer = trained.load_weights(system.weights)
    elif base is not None:
        model, tokenizer = trained.load_untuned(base)
    else:
        tokenizer = models.load_tokenizer(recipe.model, load_dataset(recipe.data).training_texts())
        model = models.load_base(recipe.model, tokenizer)
    return TransformersGenerator(model, tokenizer, recipe.generate.batch_size), tokenizer
