"""What systems said: the record, and reading it from any system's file (JSONL, CSV, TSV)."""

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
        id: The example's.
        summary: The text.
        truncated: Whether the dialogue was cut to fit.
        input_tokens: Of the prompt; None where nobody counted.
        output_tokens: Of the summary, end token included.
        hit_limit: Whether generation ended at max_new_tokens and not at an end token.
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
    """Which column of a predictions file holds what.

    Attributes:
        prediction: The system's summary.
        references: The human summaries, where the file brings them: one per row, or several columns.
        id: Joins the file with the data, and rows of one example with each other.
        dialogue: For speaker tags, where the file brings it.
    """

    prediction: str = "prediction"
    references: tuple[str, ...] = ()
    id: str = "id"
    dialogue: str = "dialogue"


def read_predictions(
    path: Path, columns: PredictionColumns, examples: Sequence[Example] | None
) -> tuple[list[Example], list[Prediction]]:
    """Reads a system's file: a row per prediction or per (prediction, reference), or several references in a row.

    Args:
        path: .jsonl, .csv or .tsv.
        columns: The names of its columns.
        examples: What was to be summarized; None to take the references from the file itself.

    Returns:
        The examples, and one prediction for each, in the same order.

    Raises:
        DataError: For a missing column, examples without a prediction, or one example with two different ones.
    """
    rows = _rows(path)
    if not rows:
        raise DataError(f"{path} holds no rows")
    wanted = [columns.prediction, *columns.references]
    for where, row in rows:
        if not isinstance(row, dict) or None in row:
            raise DataError(f"{where}: not a row of named values", "one JSON object a line; as many cells as columns")
        if missing := [column for column in wanted if not isinstance(row.get(column), str | int)]:
            raise DataError(
                f"{where}: missing column {', '.join(missing)}; there are {', '.join(map(str, row))}",
                "name them with --prediction-column, --reference-column and --id-column",
            )
    if examples is None and not columns.references:
        raise DataError(
            f"{path}: nothing to compare its predictions with",
            "name the file's references with --reference-column, or the data with --recipe",
        )
    if examples is None and columns.id not in rows[0][1]:
        console.warn(
            f"{path.name} has no column {columns.id!r}: each row counts as an example of its own (--id-column)"
        )
    made: dict[str, Example] = {}
    predictions: dict[str, Prediction] = {}
    for number, (where, row) in enumerate(rows, 1):
        if blank := [column for column in columns.references if not str(row[column]).strip()]:
            raise DataError(f"{where}: empty reference in {', '.join(blank)}", "fill it in or remove the row")
        row_id = str(row[columns.id]) if row.get(columns.id) is not None else f"row_{number}"
        prediction = Prediction(row_id, str(row[columns.prediction]))
        if predictions.setdefault(row_id, prediction).summary != prediction.summary:
            raise DataError(f"{where}: a second, different prediction for {row_id!r}", "one prediction per example")
        earlier = made[row_id].references if row_id in made else ()
        found = tuple(str(row[column]) for column in columns.references)
        made[row_id] = Example(row_id, str(row.get(columns.dialogue, "")), earlier + found, location=where)
    if examples is None:
        return list(made.values()), list(predictions.values())
    if missing_ids := [example.id for example in examples if example.id not in predictions]:
        raise DataError(
            f"{path} lacks predictions for {len(missing_ids)} of {len(examples)} examples: "
            f"{', '.join(missing_ids[:5])}{' …' if len(missing_ids) > 5 else ''}",
            f"the file's ids are such as {next(iter(predictions))!r}; name another column with --id-column",
        )
    return list(examples), [predictions[example.id] for example in examples]


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Writes predictions.jsonl."""
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
        raise DataError(f"{path} cannot be read: {error}", "UTF-8 JSON Lines, CSV or TSV") from error
    raise DataError(f"{path}: predictions are read from .jsonl, .csv and .tsv")
