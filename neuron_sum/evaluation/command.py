"""`neuron-sum evaluate`, `compare` and `summarize`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import RunError
from neuron_sum.recipes.command import SetOption

if TYPE_CHECKING:
    from neuron_sum.evaluation.predictions import PredictionColumns

SYSTEM_HELP = (
    "A run, an artifact, a checkpoint or an adapter (folders); untuned, lead-3, longest-3 or human; or any system's "
    "predictions (.jsonl, .csv, .tsv; FILE#COLUMN picks a column). NAME=… renames it."
)
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", "-r", help="Data and protocol, where no run brings them: a name or a file.")
]
PredictionColumn = Annotated[str, typer.Option(help="Of a predictions file: the system's summary.")]
ReferenceColumn = Annotated[
    list[str] | None, typer.Option(help="Of a predictions file: a human summary; may be given several times.")
]
DialogueColumn = Annotated[str, typer.Option(help="Of a predictions file: the dialogue, for speaker tags.")]
IdColumn = Annotated[str, typer.Option(help="Of a predictions file: joins rows of one example.")]


def evaluate(
    system: Annotated[str, typer.Argument(metavar="SYSTEM", help=SYSTEM_HELP)],
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    output: Annotated[Path | None, typer.Option(help="Default: RUN/evaluation/SPLIT, or evaluation/NAME.")] = None,
    prediction_column: PredictionColumn = "prediction",
    reference_column: ReferenceColumn = None,
    id_column: IdColumn = "id",
    dialogue_column: DialogueColumn = "dialogue",
) -> None:
    """Measure one system: predictions.jsonl, metrics.json, report.html, and the model card of a run."""
    columns = _columns(prediction_column, reference_column, id_column, dialogue_column)
    _compare([system], recipe, overrides, output, columns)


def compare(
    systems: Annotated[list[str], typer.Argument(metavar="SYSTEM...", help=SYSTEM_HELP)],
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    output: Annotated[Path, typer.Option(help="The folder for report.html and comparison.json.")] = Path("comparison"),
    prediction_column: PredictionColumn = "prediction",
    reference_column: ReferenceColumn = None,
    id_column: IdColumn = "id",
    dialogue_column: DialogueColumn = "dialogue",
) -> None:
    """Set systems beside each other and beside the human summaries, with improvements and their significance."""
    columns = _columns(prediction_column, reference_column, id_column, dialogue_column)
    _compare(systems, recipe, overrides, output, columns)


def summarize(
    run: Annotated[Path, typer.Argument(metavar="RUN|ARTIFACT", help="A finished run, or a compiled artifact.")],
    file: Annotated[Path, typer.Argument(help="A text file with one dialogue; - is standard input.")] = Path("-"),
    overrides: SetOption = None,
) -> None:
    """Summarize one dialogue."""
    if not (run / "recipe.yaml").is_file():
        raise RunError(
            f"{run} is neither a run nor an artifact: it holds no recipe.yaml", "neuron-sum train RECIPE makes a run"
        )
    dialogue = console.read_dialogue(file)

    from neuron_sum.evaluation.systems import parse_systems, summarize_one
    from neuron_sum.recipes.loading import load_recipe

    system = parse_systems([str(run)])[0]
    settings = load_recipe(str(system.own_recipe), overrides or [])
    made = summarize_one(system, settings, dialogue)
    if made.truncated:
        console.warn(f"the dialogue was cut to fit data.max_source_length = {settings.data.max_source_length} tokens")
    if made.hit_limit:
        console.warn(f"the summary ends at generate.max_new_tokens = {settings.generate.max_new_tokens}")
    console.emit(
        {
            "summary_text": made.summary,
            "truncated": made.truncated,
            "input_tokens": made.input_tokens,
            "output_tokens": made.output_tokens,
        },
        made.summary,
    )


def _columns(prediction: str, references: list[str] | None, example_id: str, dialogue: str) -> "PredictionColumns":
    from neuron_sum.evaluation.predictions import PredictionColumns

    return PredictionColumns(prediction, tuple(references or ()), example_id, dialogue)


def _compare(
    specs: list[str],
    recipe_name: str | None,
    overrides: list[str] | None,
    output: Path | None,
    columns: "PredictionColumns",
) -> None:
    from neuron_sum import files
    from neuron_sum.evaluation.render import render
    from neuron_sum.evaluation.report import write_report
    from neuron_sum.evaluation.session import Session
    from neuron_sum.evaluation.systems import parse_systems
    from neuron_sum.runs.card import write_model_card

    systems = parse_systems(specs)
    session = Session(systems, recipe_name, overrides or [], columns)
    folder = output or session.default_folder()
    folder.mkdir(parents=True, exist_ok=True)
    comparison = session.run(folder)
    title = (
        f"Evaluation of {systems[0].name}"
        if len(systems) == 1
        else "Comparison of " + ", ".join(s.name for s in systems)
    )
    write_report(folder / "report.html", comparison, title, session.origin, session.license)
    files.write_json(folder / "comparison.json", comparison.as_dict())
    for evaluation in comparison.evaluations:
        if evaluation.system.run is not None:
            run = evaluation.system.run
            write_model_card(run, run.read_results(), evaluation.metrics, Path(session.origin).name)
    console.emit(
        {**comparison.as_dict(), "report": str(folder / "report.html")},
        render(comparison),
        f"report: {folder / 'report.html'}",
    )
