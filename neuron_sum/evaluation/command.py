"""`neuron-sum evaluate`, `compare` and `summarize`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.recipes.command import BaseOption, SetOption

if TYPE_CHECKING:
    from neuron_sum.evaluation.api import Report
    from neuron_sum.evaluation.prediction_files import PredictionColumns

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
    from neuron_sum.evaluation import api

    columns = _columns(prediction_column, reference_column, id_column, dialogue_column)
    _print(
        api.evaluate(
            system, recipe=recipe, overrides=overrides or (), base=base, output=output, columns=columns, progress=True
        )
    )


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
    fail_below: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCORE=POINTS",
            help="Exit with 16 if a model has less, such as ROUGE-1=35; points with a sign (ROUGE-1=-0.5) are a "
            "difference to the untuned model or the first system. Repeatable.",
        ),
    ] = None,
) -> None:
    """Compare systems with each other and with the human summaries, with improvements and their significance."""
    from neuron_sum.evaluation import api
    from neuron_sum.evaluation.minimum import check_minima, check_systems, parse_minimum
    from neuron_sum.evaluation.systems import parse_systems

    if minima := [parse_minimum(text) for text in fail_below or ()]:
        check_systems(parse_systems(systems, base), minima)
    columns = _columns(prediction_column, reference_column, id_column, dialogue_column)
    report = api.compare(
        systems, recipe=recipe, overrides=overrides or (), base=base, output=output, columns=columns, progress=True
    )
    _print(report)
    if minima:
        check_minima(report.comparison, minima)


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
    from neuron_sum.data.transcripts import read_dialogue
    from neuron_sum.evaluation.api import Summarizer

    summarizer = Summarizer(run, recipe=recipe, overrides=overrides or (), base=base, progress=True)
    prediction = summarizer.predict([read_dialogue(file)])[0]
    console.emit(
        {
            "summary_text": prediction.summary,
            "truncated": prediction.truncated,
            "coverage": prediction.coverage,
            "input_tokens": prediction.input_tokens,
            "output_tokens": prediction.output_tokens,
        },
        prediction.summary,
    )


def _columns(prediction: str, references: list[str] | None, example_id: str, dialogue: str) -> "PredictionColumns":
    from neuron_sum.evaluation.prediction_files import PredictionColumns

    return PredictionColumns(prediction, tuple(references or ()), example_id, dialogue)


def _print(report: "Report") -> None:
    from neuron_sum.evaluation.render import render

    console.emit(report.as_dict(), render(report.comparison), f"report: {report.path}")
