"""The systems that can be compared: runs, artifacts, the untuned model, baselines, human summaries, and files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from neuron_sum import files
from neuron_sum.artifact import RECIPE, TOKENIZER, Artifact, artifact_name, is_artifact, open_artifact
from neuron_sum.data.examples import Example
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import ArtifactError, RunError
from neuron_sum.evaluation.baselines import BASELINES
from neuron_sum.evaluation.prediction_files import PredictionColumns
from neuron_sum.evaluation.predictions import Prediction, read_predictions
from neuron_sum.models.adapter_config import base_of, check_unused_base, is_adapter, nested_hint
from neuron_sum.prompts import CHAT
from neuron_sum.recipes.schema import ModelConfig, Recipe, TrainedTokenizer
from neuron_sum.runs.folder import RunFolder
from neuron_sum.sections import SectionCoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from neuron_sum.prompts import Tokenizer
    from neuron_sum.runtimes.base import Generator

HUMAN, UNTUNED = "human", "untuned"
BUILT_IN = (UNTUNED, *BASELINES, HUMAN)


@dataclass(frozen=True)
class System:
    """A system that summarizes: exactly one of builtin, run, artifact, weights and file is set.

    Attributes:
        name: The name in tables, unique in a comparison.
        builtin: One of BUILT_IN.
        run: A trained model.
        artifact: A compiled model.
        weights: A checkpoint or adapter in Hugging Face's layout that is not a run, or is a part of one.
        base: The base model if `weights` is an adapter.
        file: Predictions of another program.
        column: The column of that file, if several systems share it.
    """

    name: str
    builtin: str | None = None
    run: RunFolder | None = None
    artifact: Artifact | None = None
    weights: Path | None = None
    base: ModelConfig | None = None
    file: Path | None = None
    column: str | None = None

    @property
    def recipe_path(self) -> Path | None:
        """The recipe of a run or an artifact; None for other systems."""
        if self.artifact is not None:
            return self.artifact.path / RECIPE
        return self.run.recipe_path if self.run is not None else None

    def columns(self, columns: PredictionColumns) -> PredictionColumns:
        """The columns of its file: those of the command, with #COLUMN for the summary if it is set."""
        return columns if self.column is None else replace(columns, prediction=self.column)


def parse_systems(specs: Sequence[str] | Mapping[str, str], base: str | None = None) -> list[System]:
    """Parse `[NAME=]SPEC`: a run, an artifact, a checkpoint or adapter, a built-in, or a predictions file [#COLUMN].

    Args:
        specs: The specifications; or those without a name, by name.
        base: The base model of all adapters, in place of the one that adapter_config.json names.

    Raises:
        RunError: If a SPEC matches nothing, or a name is invalid or occurs twice.
        ModelError: If an adapter is not supported, or has no base.
    """
    systems: list[System] = []
    for name, spec in specs.items() if isinstance(specs, Mapping) else map(_split, specs):
        system = _parse(spec, name, base)
        if any(system.name == other.name for other in systems):
            raise RunError(f"two systems are named {system.name!r}", f"rename one of them: OTHER={spec}")
        if "/" in system.name or system.name in ("", ".", ".."):
            raise RunError(
                f"invalid name of a system: {system.name!r} (the name is also used for files)",
                "use NAME=SPEC with a NAME without slashes",
            )
        systems.append(system)
    if not any(system.base for system in systems):
        check_unused_base(base, Path(next(iter(specs.values() if isinstance(specs, Mapping) else specs))))
    return systems


def _split(spec: str) -> tuple[str | None, str]:
    """The name, if any, and the rest of `[NAME=]SPEC`."""
    name, equals, rest = spec.partition("=")
    return (name or None, rest) if equals and not Path(spec).exists() else (None, spec)  # a path may contain "="


def _parse(spec: str, name: str | None, base: str | None) -> System:
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
        from neuron_sum.runs.fingerprint import open_trained

        run = open_trained(path)
        return System(name or run.path.resolve().name, run=run)
    if is_adapter(path):
        return System(name or path.resolve().name, weights=path, base=base_of(path, base))
    if (path / "config.json").is_file():
        return System(name or path.resolve().name, weights=path)
    raise RunError(
        f"no system {spec!r}: neither a run, an artifact, a checkpoint or adapter, a predictions file, "
        f"nor {', '.join(BUILT_IN)}",
        nested_hint(path) or "run `neuron-sum train RECIPE` to create a run",
    )


def predict(
    system: System,
    recipe: Recipe,
    examples: Sequence[Example],
    columns: PredictionColumns,
    folder: Path,
    base: RunFolder | None,
) -> list[Prediction]:
    """One prediction per example; those of a model are reused from `folder` if weights and settings are the same.

    Args:
        system: Any system except `human`, which has several authors.
        recipe: The recipe, for prompt and generation.
        examples: The examples to summarize.
        columns: The columns of a predictions file.
        folder: The folder of predictions.jsonl.
        base: For `untuned`: a run that started from it; None to load the model of the recipe.
    """
    if system.builtin in BASELINES:
        return [Prediction(example.id, BASELINES[system.builtin](example.dialogue)) for example in examples]
    if system.file is not None:
        return read_predictions(system.file, system.columns(columns), examples)[1]
    return _predict_with_model(system, recipe, examples, folder, base)


def _predict_with_model(
    system: System, recipe: Recipe, examples: Sequence[Example], folder: Path, base: RunFolder | None
) -> list[Prediction]:
    from neuron_sum.evaluation.generate import fingerprint, keep, read_kept, summarize_all
    from neuron_sum.runs.fingerprint import digest

    recipe = rendered(system, recipe, base)
    ids, dialogues = [example.id for example in examples], [example.dialogue for example in examples]
    parts = fingerprint(recipe, ids, dialogues, parts_of(system, recipe, base))
    if (kept := read_kept(folder, parts)) is not None:
        return kept
    files.check_writable(folder, 0)
    partial = folder / f"partial-{digest(parts)[:16]}.jsonl"
    generator, tokenizer = load_system(system, recipe, base)
    what = f"summarizing: {system.name}"
    predictions = summarize_all(generator, tokenizer, recipe, ids, dialogues, partial, what, joins=True)
    keep(folder, parts, predictions, recipe.generate)
    partial.unlink()
    return predictions


def rendered(system: System, recipe: Recipe, base: RunFolder | None = None) -> Recipe:
    """The recipe with the text of the system's chat template, if it uses that.

    Args:
        system: A run, an artifact, a checkpoint, an adapter, or `untuned`.
        recipe: The recipe, for prompt and generation.
        base: For `untuned`: a run that started from it; None to load the model of the recipe.
    """
    is_loaded = system.run is not None or system.artifact is not None or base is not None
    if recipe.prompt.preset != CHAT or (is_loaded and not recipe.prompt.needs_tokenizer):
        return recipe
    from neuron_sum.models.chat import not_rendered, render_chat

    return render_chat(recipe if is_loaded else not_rendered(recipe), _tokenizer(system, recipe, base))


def parts_of(system: System, recipe: Recipe, base: RunFolder | None = None) -> dict[str, str]:
    """The hash of each part of a system's model.

    Args:
        system: A run, an artifact, a checkpoint, an adapter, or `untuned`.
        recipe: The recipe, whose model is that of `untuned` without a base.
        base: For `untuned`: a run that started from it.
    """
    from neuron_sum.runs import fingerprint as fingerprints

    if system.artifact is not None:
        return {f"{name} of the artifact": sha256 for name, sha256 in system.artifact.manifest.files.items()}
    if system.run is not None:
        return fingerprints.model_parts(system.run.read_record().fingerprint)
    if system.weights is not None:
        return fingerprints.of_weights(system.weights, system.base)
    if base is not None:
        return fingerprints.check_base(base)
    trains_tokenizer = isinstance(recipe.model.tokenizer, TrainedTokenizer)
    data = fingerprints.of_data(load_dataset(recipe.data, recipe.output), "train") if trains_tokenizer else {}
    return {**fingerprints.of_base(recipe), **data}


def _tokenizer(system: System, recipe: Recipe, base: RunFolder | None) -> "PreTrainedTokenizerFast":
    from neuron_sum.models import base as models
    from neuron_sum.runs import trained

    if system.weights is not None and system.base is not None:
        return trained.adapter_tokenizer(system.weights, system.base)
    run = system.run or base
    folder = system.artifact.path / TOKENIZER if system.artifact is not None else run.weights if run else system.weights
    if folder is not None:
        return models.load_tokenizer(ModelConfig(name_or_path=str(folder)))
    return models.load_tokenizer(recipe.model, load_dataset(recipe.data, recipe.output).training_texts())


def load_system(system: System, recipe: Recipe, base: RunFolder | None = None) -> "tuple[Generator, Tokenizer]":
    """Load the model of a system, and its tokenizer.

    Args:
        system: A run, an artifact, a checkpoint, an adapter, or `untuned`.
        recipe: The recipe, for prompt and generation.
        base: For `untuned`: a run that started from it; None to load the model of the recipe.

    Raises:
        ArtifactError: If the recipe has another prompt than the artifact.
        ModelError: If the model cannot be loaded, or has too few positions.
    """
    if system.artifact is not None:
        from neuron_sum.runtimes.load import load_generator

        if recipe.prompt.resolve().sha256 != system.artifact.manifest.prompt.sha256:
            raise ArtifactError(
                "prompt: differs from the prompt that the artifact was compiled with",
                "use the prompt of the artifact's recipe",
            )
        return load_generator(system.artifact, recipe.output.sections)
    from neuron_sum.models import base as models
    from neuron_sum.models.chat import render_chat
    from neuron_sum.models.rotary import check_positions, generation_lengths
    from neuron_sum.runs import trained
    from neuron_sum.runtimes.hugging_face import TransformersGenerator

    if system.run is not None:
        model, tokenizer = trained.load_trained(system.run)
    elif system.weights is not None:
        model, tokenizer = trained.load_weights(system.weights, system.base)
    elif base is not None:
        model, tokenizer = trained.load_untuned(base)
    else:
        tokenizer = _tokenizer(system, recipe, base)
        model = models.load_base(recipe.model, tokenizer)
    render_chat(recipe, tokenizer)
    models.set_special_tokens(model, tokenizer)
    adapter = getattr(model, "active_peft_config", None)
    check_positions(model.config, generation_lengths(recipe, getattr(adapter, "num_virtual_tokens", 0)))
    coder = SectionCoder.of(recipe.output.sections, tokenizer)
    return TransformersGenerator(model, tokenizer, recipe.generate.batch_size, coder), tokenizer
