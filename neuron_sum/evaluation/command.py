"""`neuron-sum evaluate`, `compare`, `rate` and `summarize`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import RunError
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
DIALOGUES, SEED, PORT = 50, 42, 8082
"""Defaults of `rate`."""


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
        systems,
        recipe=recipe,
        overrides=overrides or (),
        base=base,
        output=output,
        columns=columns,
        minima=minima,
        progress=True,
    )
    _print(report)
    if minima:
        check_minima(report.comparison, minima)


def rate(
    comparison: Annotated[Path, typer.Argument(metavar="COMPARISON", help="Output folder of `compare`.")] = Path(
        "comparison"
    ),
    systems: Annotated[
        list[str] | None, typer.Option("--system", help="System to rate; repeat it for each. Default: all.")
    ] = None,
    dialogues: Annotated[int, typer.Option(min=1, help="Number of dialogues to rate.")] = DIALOGUES,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the dialogues, their order and the sides.")] = SEED,
    port: Annotated[int, typer.Option(help="Port of the page on 127.0.0.1; 0 for any free port.")] = PORT,
    results: Annotated[
        bool, typer.Option("--results", help="Print the results of all ratings so far; do not serve the page.")
    ] = False,
) -> None:
    """Serve a page on which people choose between summaries of hidden systems; `compare` then shows the results."""
    from neuron_sum.evaluation.preferences import preferences_of
    from neuron_sum.evaluation.rating_page import rating_page
    from neuron_sum.evaluation.ratings import RatingSession, choose_pairs, current_ratings, pairs_of, read_texts
    from neuron_sum.evaluation.render import render_ratings
    from neuron_sum.local_page import wait_for_interrupt
    from neuron_sum.recipes.schema import EvaluateConfig

    options = {
        "--system": bool(systems),
        "--dialogues": dialogues != DIALOGUES,
        "--seed": seed != SEED,
        "--port": port != PORT,
    }
    if results and (unused := [name for name, is_given in options.items() if is_given]):
        raise RunError(f"--results does not use {', '.join(unused)}", f"omit {' and '.join(unused)}")
    entries = read_texts(comparison)
    if results:
        found = preferences_of(comparison, entries, EvaluateConfig())
        shown = (
            render_ratings(found)
            if found and found.ratings
            else f"no ratings of these summaries; run `{console.command('rate', comparison)}`"
        )
        console.emit({"ratings": found and found.as_dict()}, shown)
        return
    all_pairs = pairs_of(entries)
    pairs = choose_pairs(all_pairs, systems or (), dialogues, seed)
    ratings, _ = current_ratings(comparison, all_pairs)
    session = RatingSession(comparison, pairs, seed)
    number = len({pair.dialogue for pair in pairs})
    with rating_page(session, port) as url:
        console.emit(
            {"url": url, "pairs": len(pairs), "dialogues": number, "ratings": len(ratings)},
            f"{len(pairs)} pairs of summaries of {number} dialogues; {len(ratings)} choices are in {session.path}",
            f"open {url}/ in a browser; press Ctrl-C to stop",
        )
        wait_for_interrupt()
    see = console.command("rate", comparison, results=True)
    console.note(f"run `{see}` to see the results; `neuron-sum compare` adds them to the report")


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
    if run.is_dir():
        from neuron_sum.runtimes.native import preload

        preload()
    from neuron_sum.data.transcripts import read_dialogue
    from neuron_sum.evaluation.api import Summarizer
    from neuron_sum.sections import parse_sections

    summarizer = Summarizer(run, recipe=recipe, overrides=overrides or (), base=base, progress=True)
    prediction = summarizer.predict([read_dialogue(file)])[0]
    sections = summarizer.recipe.output.sections
    console.emit(
        {
            "summary_text": prediction.summary,
            **({"sections": parse_sections(prediction.summary, sections).texts} if sections else {}),
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
