"""`neuron-sum evaluate`, `compare` and `summarize`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import ResourceError, RunError
from neuron_sum.recipes.command import BaseOption, SetOption

if TYPE_CHECKING:
    from neuron_sum.evaluation.compare import Comparison
    from neuron_sum.evaluation.prediction_files import PredictionColumns
    from neuron_sum.evaluation.session import Session
    from neuron_sum.evaluation.systems import System

SYSTEM_HELP = (
    "Folder of a run, an artifact, a checkpoint or an adapter; or untuned, lead-3, longest-3 or human; or a file of "
    "predictions (.txt, .json, .jsonl, .csv, .tsv; FILE#COLUMN selects a column). NAME=… renames the system."
)
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", "-r", help="Recipe (name or file) for data and protocol. Default: that of the first run."),
]
PredictionColumn = Annotated[str, typer.Option(help="Column of a predictions file with the system's summary.")]
ReferenceColumn = Annotated[
    list[str] | None, typer.Option(help="Column of a predictions file with a human summary; repeatable.")
]
DialogueColumn = Annotated[str, typer.Option(help="Column of a predictions file with the dialogue, for speaker tags.")]
IdColumn = Annotated[str, typer.Option(help="Column of a predictions file with the id of the example.")]


def evaluate(
    system: Annotated[str, typer.Argument(metavar="SYSTEM", help=SYSTEM_HELP)],
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    base: BaseOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Output folder. Default: RUN/evaluation/SPLIT or evaluation/NAME.")
    ] = None,
    prediction_column: PredictionColumn = "prediction",
    reference_column: ReferenceColumn = None,
    id_column: IdColumn = "id",
    dialogue_column: DialogueColumn = "dialogue",
) -> None:
    """Evaluate one system: write predictions.jsonl, metrics.json, report.html, and the model card of a run."""
    columns = _columns(prediction_column, reference_column, id_column, dialogue_column)
    _compare([system], recipe, overrides, base, output, columns)


def compare(
    systems: Annotated[list[str], typer.Argument(metavar="SYSTEM...", help=SYSTEM_HELP)],
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    base: BaseOption = None,
    output: Annotated[Path, typer.Option(help="Folder for report.html and comparison.json.")] = Path("comparison"),
    prediction_column: PredictionColumn = "prediction",
    reference_column: ReferenceColumn = None,
    id_column: IdColumn = "id",
    dialogue_column: DialogueColumn = "dialogue",
) -> None:
    """Compare systems with each other and with the human summaries, with improvements and their significance."""
    columns = _columns(prediction_column, reference_column, id_column, dialogue_column)
    _compare(systems, recipe, overrides, base, output, columns)


def summarize(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|ARTIFACT",
            help="Folder of a run or an artifact; or, with --recipe, of a checkpoint or an adapter.",
        ),
    ],
    file: Annotated[
        Path,
        typer.Argument(help="Text or transcript (WebVTT, SRT, chat export) of one dialogue; - reads standard input."),
    ] = Path("-"),
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="Recipe (name or file) for prompt, lengths and generation.")
    ] = None,
    overrides: SetOption = None,
    base: BaseOption = None,
) -> None:
    """Summarize one dialogue."""
    from neuron_sum.models.adapter_config import nested_hint

    if not any((run / name).is_file() for name in ("recipe.yaml", "config.json", "adapter_config.json")):
        raise RunError(
            f"{run} is neither a run, an artifact, a checkpoint nor an adapter",
            nested_hint(run) or "run `neuron-sum train RECIPE` to create a run",
        )
    from neuron_sum.data.transcripts import read_dialogue
    from neuron_sum.evaluation.systems import parse_systems, summarize_one
    from neuron_sum.recipes.loading import load_recipe

    system = parse_systems([str(run)], base)[0]
    recipe = recipe or (str(system.recipe_path) if system.recipe_path is not None else None)
    if recipe is None:
        raise RunError(f"{run} has no recipe", "pass --recipe NAME, which supplies prompt, lengths and generation")
    settings = load_recipe(recipe, overrides or [])
    dialogue = read_dialogue(file)
    prediction = summarize_one(system, settings, dialogue)
    if prediction.truncated:
        console.warn(f"the dialogue was truncated to data.max_source_length = {settings.data.max_source_length} tokens")
    if prediction.hit_limit:
        console.warn(f"the summary was truncated at generate.max_new_tokens = {settings.generate.max_new_tokens}")
    console.emit(
        {
            "summary_text": prediction.summary,
            "truncated": prediction.truncated,
            "input_tokens": prediction.input_tokens,
            "output_tokens": prediction.output_tokens,
        },
        prediction.summary,
    )


def _columns(prediction: str, references: list[str] | None, example_id: str, dialogue: str) -> "PredictionColumns":
    from neuron_sum.evaluation.prediction_files import PredictionColumns

    return PredictionColumns(prediction, tuple(references or ()), example_id, dialogue)


def _compare(
    specs: list[str],
    recipe_name: str | None,
    overrides: list[str] | None,
    base: str | None,
    output: Path | None,
    columns: "PredictionColumns",
) -> None:
    from neuron_sum.evaluation.session import Session
    from neuron_sum.evaluation.systems import parse_systems

    systems = parse_systems(specs, base)
    session = Session(systems, recipe_name, overrides or [], columns)
    folder = output or session.default_folder()
    with session.locked():
        comparison = write_comparison(session, folder, systems)

    from neuron_sum.evaluation.render import render

    console.emit(
        {**comparison.as_dict(), "report": str(folder / "report.html")},
        render(comparison),
        f"report: {folder / 'report.html'}",
    )


def write_comparison(session: "Session", folder: Path, systems: "list[System]") -> "Comparison":
    """Evaluate the systems of a session, and write the results and the model cards of its runs."""
    from neuron_sum import files
    from neuron_sum.evaluation.report import write_report
    from neuron_sum.runs.card import write_model_card

    files.check_writable(folder, 0)
    comparison = session.run(folder)
    title = (
        f"Evaluation of {systems[0].name}"
        if len(systems) == 1
        else "Comparison of " + ", ".join(s.name for s in systems)
    )
    write_report(folder / "report.html", comparison, title, session.origin, session.license)
    files.write_json(folder / "comparison.json", comparison.as_dict())
    files.write_text(
        folder / "summaries.jsonl",
        "".join(files.to_json(entry) + "\n" for entry in comparison.texts()),
    )
    for evaluation in comparison.evaluations:
        if evaluation.system.run is not None:
            run = evaluation.system.run
            try:
                write_model_card(run, run.read_results(), evaluation.metrics, Path(session.origin).name)
            except ResourceError as error:  # the run may be read-only
                console.warn(f"the model card is not updated: {error.message}")
    return comparison
