"""Predictions of systems: the record, and a reader for files of any system (JSONL, CSV, TSV)."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neuron_sum import console, files
from neuron_sum.data.examples import Example
from neuron_sum.errors import DataError


@dataclass(frozen=True, slots=True)
class Prediction:
    """One summary by one system.

    Attributes:
        id: The id of the example.
        summary: The text.
        truncated: Whether the dialogue was truncated.
        input_tokens: The number of tokens of the prompt; None if unknown.
        output_tokens: The number of tokens of the summary, including the end token; None if unknown.
        hit_limit: Whether generation ended at max_new_tokens instead of an end token.
    """

    id: str
    summary: str
    truncated: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None
    hit_limit: bool = False

    def to_json(self) -> str:
        """One line of predictions.jsonl."""
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass(frozen=True)
class PredictionColumns:
    """The column names of a predictions file.

    Attributes:
        prediction: The column of the system's summary.
        references: The columns of human summaries, if the file has any: one per row, or several columns.
        id: The column that joins the file with the data, and rows of one example with each other.
        dialogue: The column of the dialogue for speaker tags, if the file has one.
    """

    prediction: str = "prediction"
    references: tuple[str, ...] = ()
    id: str = "id"
    dialogue: str = "dialogue"


def read_predictions(
    path: Path, columns: PredictionColumns, examples: Sequence[Example] | None
) -> tuple[list[Example], list[Prediction]]:
    """Read a system's file: a row per prediction or per (prediction, reference), or several references in a row.

    Args:
        path: A .jsonl, .csv or .tsv file.
        columns: The names of its columns.
        examples: The summarized examples; None to read the references from the file itself.

    Returns:
        The examples, and one prediction for each, in the same order.

    Raises:
        DataError: If a column is missing, an example has no prediction, or an example has two different predictions.
    """
    rows = _rows(path)
    if not rows:
        raise DataError(f"{path} contains no rows")
    required = [columns.prediction, *columns.references]
    for location, row in rows:
        if not isinstance(row, dict) or None in row:
            raise DataError(
                f"{location}: not a row of named values",
                "write one JSON object per line, or as many cells as columns",
            )
        if missing := [column for column in required if not isinstance(row.get(column), str | int)]:
            raise DataError(
                f"{location}: missing column {', '.join(missing)}; the columns are {', '.join(map(str, row))}",
                "set the names with --prediction-column, --reference-column and --id-column",
            )
    if examples is None and not columns.references:
        raise DataError(
            f"{path}: no references to compare the predictions with",
            "set the file's references with --reference-column, or the data with --recipe",
        )
    if examples is None and columns.id not in rows[0][1]:
        console.warn(f"{path.name} has no column {columns.id!r}: each row counts as a separate example (--id-column)")
    examples_by_id: dict[str, Example] = {}
    predictions: dict[str, Prediction] = {}
    for number, (location, row) in enumerate(rows, 1):
        if blank := [column for column in columns.references if not str(row[column]).strip()]:
            raise DataError(f"{location}: empty reference in {', '.join(blank)}", "add the reference or remove the row")
        row_id = str(row[columns.id]) if row.get(columns.id) is not None else f"row_{number}"
        prediction = Prediction(row_id, str(row[columns.prediction]))
        if predictions.setdefault(row_id, prediction).summary != prediction.summary:
            raise DataError(
                f"{location}: a second, different prediction for {row_id!r}", "keep one prediction per example"
            )
        earlier = examples_by_id[row_id].references if row_id in examples_by_id else ()
        references = tuple(str(row[column]) for column in columns.references)
        dialogue = str(row.get(columns.dialogue, ""))
        examples_by_id[row_id] = Example(row_id, dialogue, earlier + references, location=location)
    if examples is None:
        return list(examples_by_id.values()), list(predictions.values())
    if missing_ids := [example.id for example in examples if example.id not in predictions]:
        raise DataError(
            f"{path} lacks predictions for {len(missing_ids)} of {len(examples)} examples: "
            f"{', '.join(missing_ids[:5])}{' …' if len(missing_ids) > 5 else ''}",
            f"set another column with --id-column (the first id in the file is {next(iter(predictions))!r})",
        )
    return list(examples), [predictions[example.id] for example in examples]


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions.jsonl."""
    files.write_text(path, "".join(prediction.to_json() + "\n" for prediction in predictions))


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            kind = path.suffix.lower()
            if kind == ".jsonl":
                return [
                    (f"{path.name}:{number}", json.loads(line)) for number, line in enumerate(text, 1) if line.strip()
                ]
            if kind in (".csv", ".tsv"):
                csv.field_size_limit(2**31 - 1)
                reader = csv.DictReader(text, delimiter="\t" if kind == ".tsv" else ",")
                return [(f"{path.name}:{reader.line_num}", row) for row in reader]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}", "use UTF-8 JSON Lines, CSV or TSV") from error
    raise DataError(f"{path}: predictions must be a .jsonl, .csv or .tsv file")
