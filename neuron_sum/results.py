"""The command `neuron-sum results`: repeat a published experiment, and print its scores next to the published ones."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuron_sum import console, files
from neuron_sum.console import quote
from neuron_sum.errors import ModelError, RecipeError, RunError
from neuron_sum.recipes.command import SetOption

if TYPE_CHECKING:
    from rich.table import Table

    from neuron_sum.evaluation.compare import Comparison
    from neuron_sum.evaluation.published import Experiment
    from neuron_sum.recipes.schema import Recipe

OF_EVALUATION = ("generate.", "evaluate.", "data.max_test_examples=")
"""Beginnings of the changes that concern the comparison only, so that finished runs stay valid."""
DIMENSIONS = ("model_type", "d_model", "d_ff", "num_layers", "num_heads", "hidden_size", "num_hidden_layers")
"""Keys of a configuration that identify a published model."""
WEIGHTS = "model.name_or_path=FOLDER"
OF_WEIGHTS = ("model.name_or_path=", "model.config", "model.tokenizer")
PATHS_OF_DATA = ("data.source", "data.path", "data.columns.", "data.license")
PATHS = (*PATHS_OF_DATA, "model.name_or_path")
"""Settings that may state another place of the same data and weights."""


def results(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="The published experiment: flan-t5-base.")],
    overrides: SetOption = None,
    output: Annotated[
        Path, typer.Option(help="Folder for the runs, which are named after their recipes, and for the comparison.")
    ] = Path("runs"),
) -> None:
    """Train what is not yet trained of a published experiment, compare it, and print both sets of scores."""
    from neuron_sum.evaluation.published import find_experiment

    found = find_experiment(experiment)
    changes = [change for change in overrides or [] if not change.startswith(OF_EVALUATION)]
    of_evaluation = [change for change in overrides or [] if change.startswith(OF_EVALUATION)]
    recipes = _recipes(found, changes)
    kept = [change for change in overrides or [] if not change.startswith(OF_WEIGHTS)]
    again = console.command("results", experiment, set=[*kept, WEIGHTS], output=output)
    _check_weights(next(iter(recipes.values())), again)
    for recipe in recipes.values():
        _train(recipe, output / recipe.name)
        gc.collect()  # the model, before the next one is loaded
    systems = ["untuned", *(f"{name}={output / recipe.name}" for name, recipe in recipes.items()), "lead-3"]
    folder = output / f"results-{experiment}"
    places = [change for change in changes if change.startswith(PATHS_OF_DATA)]
    comparison = _compare(systems, [*places, *of_evaluation], folder)
    rows = _rows(found, comparison)
    changed = [*_changed(found, recipes), *of_evaluation]
    first = comparison.evaluations[0].metrics
    content = {
        "experiment": experiment,
        "source": found.source,
        "published_protocol": found.protocol,
        "changed": changed,
        "systems": rows,
        "report": str(folder / "report.html"),
    }
    files.write_json(folder / "results.json", content)
    if changed:
        console.warn(f"not the published experiment: {', '.join(changed)}")
    console.emit(
        content,
        f"{found.title}, {first['examples']} {first['split']} dialogues. "
        f'"published": {found.source}; not measured here',
        _table(rows),
        f"measured: {comparison.evaluations[0].metrics['protocol']['text']}",
        f"published: {found.protocol}",
        f"report: {folder / 'report.html'}",
    )


def _recipes(experiment: "Experiment", changes: Sequence[str]) -> "dict[str, Recipe]":
    from neuron_sum.recipes.loading import load_recipe

    return {name: load_recipe(recipe, changes) for name, recipe in experiment.runs.items()}


def _check_weights(recipe: "Recipe", again: str) -> None:
    """Check that the base model's configuration and weights can be read, before anything is trained.

    Args:
        recipe: A recipe of the experiment.
        again: The command that uses other weights.

    Raises:
        ModelError: If they cannot.
    """
    from neuron_sum.models.base import load_config
    from neuron_sum.models.checkpoint import find_file
    from neuron_sum.models.weights import INDEX, SINGLE

    name, revision = recipe.model.name_or_path, recipe.model.revision
    if name is None:
        raise RecipeError(
            "model.name_or_path is not set, and random weights do not repeat a published experiment",
            f"run `{again}`",
        )
    try:
        load_config(recipe.model)
        is_folder_or_id = Path(name).is_dir() or not (Path(name).exists() or ":" in name)
        if is_folder_or_id and find_file(name, INDEX, revision) is None:
            find_file(name, SINGLE, revision, required=True)
    except ModelError as error:
        raise ModelError(
            f"the weights of {name} are not available: {error.message}",
            "copy the model's folder (config.json, tokenizer files, safetensors) from a machine that can reach the hub "
            f"and run `{again}`",
        ) from error


def _train(recipe: "Recipe", folder: Path) -> None:
    """Train a recipe, continue its unfinished run, or use its finished run.

    Raises:
        RunError: If the folder contains a run with other settings or of another base model.
    """
    from neuron_sum.data.sources import load_dataset
    from neuron_sum.runs.contents import is_run
    from neuron_sum.runs.fingerprint import check, of_base, of_data
    from neuron_sum.runs.folder import open_run
    from neuron_sum.training import launch
    from neuron_sum.training.train import train

    launch.set_environment(recipe.train)
    console.note(f"\n{recipe.name} in {folder}")
    again = f"keep both with --output FOLDER, or remove the run: rm -r {quote(folder)}"
    try:
        run = train(recipe, folder, resume=is_run(folder))
    except RunError as error:
        if error.message.startswith("the run in"):  # it was started with other settings
            raise RunError(error.message, again) from error
        raise
    dataset = load_dataset(recipe.data, recipe.output)
    check(run.read_record().fingerprint, of_data(dataset, "train", "validation"), folder, again)
    check(run.read_record().fingerprint, of_base(recipe, run.base), folder, again)
    stored = open_run(folder).recipe
    if stored.model != recipe.model:  # the same weights in another place, from which `untuned` and LoRA load them
        files.write_text(run.recipe_path, stored.model_copy(update={"model": recipe.model}).to_yaml())


def _compare(specs: list[str], overrides: list[str], folder: Path) -> "Comparison":
    from neuron_sum.evaluation.api import write_comparison
    from neuron_sum.evaluation.prediction_files import PredictionColumns
    from neuron_sum.evaluation.session import Session
    from neuron_sum.evaluation.systems import parse_systems

    systems = parse_systems(specs)
    session = Session(systems, None, overrides, PredictionColumns())
    with session.locked():
        return write_comparison(session, folder, systems)


def _rows(experiment: "Experiment", comparison: "Comparison") -> list[dict[str, Any]]:
    return [
        {
            "system": evaluation.system.name,
            "measured": evaluation.metrics["scores"],
            "published": experiment.scores.get(evaluation.system.name),
        }
        for evaluation in comparison.evaluations
    ]


def _table(rows: Sequence[dict[str, Any]]) -> "Table":
    kinds = ("ROUGE-1", "ROUGE-2", "ROUGE-L")
    table = console.table("system", *(column for kind in kinds for column in (kind, "interval", "published")))
    for row in rows:
        cells = []
        for kind in kinds:
            score, published = row["measured"][kind], (row["published"] or {}).get(kind)
            cells += [
                f"{score['value']:.2f}",
                f"[{score['low']:.1f}, {score['high']:.1f}]",
                "" if published is None else f"{published:.2f}",
            ]
        table.add_row(row["system"], *cells)
    return table


def _changed(experiment: "Experiment", recipes: "dict[str, Recipe]") -> list[str]:
    """What differs from the experiment: settings, other data, and another model; not the places of data and weights."""
    from neuron_sum.models.base import load_config
    from neuron_sum.models.dimensions import base_config
    from neuron_sum.recipes.loading import differences, load_recipe

    found = dict.fromkeys(
        f"{key} = {now}"
        for name, recipe in recipes.items()
        for key, (_, now) in differences(load_recipe(experiment.runs[name]), recipe).items()
        if not key.startswith(PATHS)
    )
    now, published = next(iter(recipes.values())), load_recipe(next(iter(experiment.runs.values())))
    if now.data.source != "dialogsum" and (now.data.source, now.data.path) != (
        published.data.source,
        published.data.path,
    ):
        found[f"data = {now.data.source} {now.data.path or ''}".rstrip()] = None
    dimensions, expected = load_config(now.model).to_dict(), base_config(published.model).to_dict()
    if other := [key for key in DIMENSIONS if dimensions.get(key) != expected.get(key)]:
        found[f"another model than {published.model.name_or_path}: {', '.join(other)}"] = None
    return list(found)
