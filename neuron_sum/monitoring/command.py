"""`neuron-sum watch`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console

if TYPE_CHECKING:
    from rich.table import Table

    from neuron_sum.monitoring.drift import Measure
    from neuron_sum.monitoring.redaction import Redacted
    from neuron_sum.monitoring.watch import Watched

LIMITS = (
    "not measured: whether a summary is correct, complete or useful, and requests that the capture left out; a model "
    "can fail without drift, and drift need not harm it"
)


def watch(
    requests: Annotated[
        list[Path],
        typer.Argument(
            metavar="REQUESTS...",
            help="Files of SageMaker's data capture, inputs of a batch transform next to their .out files, or folders.",
        ),
    ],
    run: Annotated[Path, typer.Option(help="Folder of the run that was deployed.")],
    fail: Annotated[bool, typer.Option("--fail", help="Exit with 17 if a measure has the verdict drift.")] = False,
    show: Annotated[
        int, typer.Option(min=0, help="Number of unusual dialogues to print with their texts; the default prints none.")
    ] = 0,
    redact: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Afterwards replace the files by copies in which this function has redacted every text.",
        ),
    ] = None,
) -> None:
    """Compare captured requests of an endpoint with the training data of its run, and answers with its evaluation."""
    from neuron_sum.errors import DataError, DriftError
    from neuron_sum.monitoring import watch as watching
    from neuron_sum.monitoring.redaction import load_hook, redact_files
    from neuron_sum.monitoring.requests import find_files
    from neuron_sum.runs.folder import open_run

    hook = load_hook(redact) if redact is not None else None
    opened, found = open_run(run), find_files(requests)
    if hook is not None and found.other:
        raise DataError(
            f"{found.describe_other()} would not be redacted",
            "delete them, move them out of the folder, or put the .out files of a batch next to their inputs",
        )
    try:
        watched = watching.watch(found.captured, opened, show)
    except DataError:
        if hook is not None:  # the files contain text also if nothing can be compared
            console.note(_redacted(redact_files(found.captured, hook)))
        raise
    result = {**watched.as_dict(), "other_files": len(found.other)}
    lines = [_summary(watched)]
    if found.other:
        lines.append(f"not read: {found.describe_other()}")
    if not watched.evaluated:
        lines.append(f"answers are not compared: run `{console.command('evaluate', run)}` for their baseline")
    if hook is not None:
        redacted = redact_files(found.captured, hook)
        result["redacted"] = {"files": redacted.files, "emptied_lines": redacted.emptied}
        lines.append(_redacted(redacted))
    if show:
        result["shown"] = [
            {
                "location": each.item.location,
                "reasons": each.reasons,
                "dialogue": each.item.dialogue,
                "summary": each.item.summary,
            }
            for each in watched.flagged
        ]
    texts = [
        f"\n{each.item.location}: {', '.join(each.reasons)}\n{each.item.dialogue or ''}\n-> {each.item.summary or ''}"
        for each in watched.flagged
    ]
    console.emit(result, *lines, _table(watched), *texts, LIMITS)
    if fail and watched.drifted:
        raise DriftError(
            "; ".join(_describe(measure) for measure in watched.drifted),
            "inspect the requests with --show 5, and train with data that is like them",
        )


def _redacted(redacted: "Redacted") -> str:
    return f"redacted: {redacted.files} files replaced, {redacted.emptied} unreadable lines emptied"


def _summary(watched: "Watched") -> str:
    text = (
        f"{watched.dialogues:,} dialogues, {watched.answers:,} summaries and {watched.rejected:,} rejections "
        f"in {watched.files:,} {'file' if watched.files == 1 else 'files'}"
    )
    if watched.unreadable:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in watched.unreadable.most_common())
        text += f"\nnot readable: {reasons}; the first is {watched.first_unreadable}"
    return text


def _table(watched: "Watched") -> "Table":
    table = console.table("measure", "compared with", "baseline", "requests", "of", "difference", "p", "verdict")
    for measure in watched.measures:
        table.add_row(
            measure.name,
            measure.source or "",
            _value(measure, measure.baseline),
            _value(measure, measure.requests),
            f"{measure.count:,}",
            _difference(measure),
            _p_value(measure),
            measure.verdict,
        )
    return table


def _value(measure: "Measure", value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f} %" if measure.is_share else f"{value:.0f} (median)"


def _difference(measure: "Measure") -> str:
    if measure.requests is None:
        return ""
    return f"{100 * measure.difference:+.1f} points" if measure.is_share else f"KS {measure.difference:.2f}"


def _p_value(measure: "Measure") -> str:
    if measure.requests is None:
        return ""
    return f"{measure.p_value:.4f}" if measure.p_value >= 0.0001 else "<0.0001"


def _describe(measure: "Measure") -> str:
    values = f"{_value(measure, measure.requests)} in the requests"
    before = f", {_value(measure, measure.baseline)} in the {measure.source}" if measure.source is not None else ""
    return f"{measure.name}: {values}{before} ({_difference(measure)})"
