"""Predictions of systems: the record, and the predictions of other programs joined with the data."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neuron_sum import console
from neuron_sum.data.examples import Example
from neuron_sum.errors import DataError
from neuron_sum.evaluation.prediction_files import PredictionColumns, Row, read_rows

MISSING = ("nan", "null", "none", "<na>", "nat")
"""Texts that programs write for a missing value, in lower case."""
PLAIN_TEXT = ".txt"
"""A form without missing values: each line is a summary, so that even "none" is one."""
SURROGATE = re.compile("[\ud800-\udfff]")
LISTED = 5


@dataclass(frozen=True, slots=True)
class Prediction:
    """One summary by one system.

    Attributes:
        id: The id of the example.
        summary: The text.
        truncated: Whether the dialogue was truncated.
        input_tokens: The number of tokens of the prompt, or of the prompts of its pieces; None if unknown.
        output_tokens: The number of tokens of the summary, including the end token; None if unknown.
        hit_limit: Whether generation, also that of a piece's summary, ended at max_new_tokens instead of an end token.
        coverage: The share of the dialogue's turns that the prompts contained uncut, from 0 to 1; None if unknown.
    """

    id: str
    summary: str
    truncated: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None
    hit_limit: bool = False
    coverage: float | None = None

    def to_json(self) -> str:
        """One line of predictions.jsonl."""
        return json.dumps(asdict(self), ensure_ascii=False)


def read_predictions(
    path: Path, columns: PredictionColumns, examples: Sequence[Example] | None
) -> tuple[list[Example], list[Prediction]]:
    """Read a system's file: a row per prediction or per (prediction, reference), or several references in a row.

    Rows are joined with the data by id; if the file has no ids, by their order. Missing values (null, NaN) are
    rejected, an empty text is an empty summary.

    Args:
        path: A file in one of the forms of `prediction_files`.
        columns: The names of its columns.
        examples: The summarized examples; None to read the references from the file itself.

    Returns:
        The examples, and one prediction for each, in the same order.

    Raises:
        DataError: If a column is missing, an example has no prediction, or an example has two different predictions.
    """
    rows = list(read_rows(path, columns))
    if not rows:
        raise DataError(f"{path} contains no rows", "write one summary for each example")
    if examples is None and not columns.references:
        raise DataError(
            f"{path}: no references to compare the predictions with",
            "set the file's references with --reference-column, or the data with --recipe",
        )
    _check_values(path, rows, columns)
    ids = _ids(path, rows, columns, examples)
    examples_by_id: dict[str, Example] = {}
    predictions: dict[str, Prediction] = {}
    for row_id, (location, row) in zip(ids, rows, strict=True):
        prediction = Prediction(row_id, str(row[columns.prediction]))
        if predictions.setdefault(row_id, prediction).summary != prediction.summary:
            raise DataError(
                f"{location}: a second, different prediction for {row_id!r}", "keep one prediction per example"
            )
        earlier = examples_by_id[row_id].references if row_id in examples_by_id else ()
        references = tuple(str(text) for column in columns.references for text in _texts(row[column]))
        dialogue = str(row.get(columns.dialogue) or "")
        examples_by_id[row_id] = Example(row_id, dialogue, earlier + references, location=location)
    if empty := [prediction.id for prediction in predictions.values() if not prediction.summary.strip()]:
        console.warn(f"{path.name}: {len(empty)} of {len(predictions)} summaries are empty: {_listed(empty)}")
    if examples is None:
        return list(examples_by_id.values()), list(predictions.values())
    known = {example.id for example in examples}
    if missing_ids := [example.id for example in examples if example.id not in predictions]:
        raise DataError(
            f"{path} lacks predictions for {len(missing_ids)} of {len(examples)} examples: {_listed(missing_ids)}",
            f"set another column with --id-column (the first id in the file is {next(iter(predictions))!r})",
        )
    if unused := [row_id for row_id in predictions if row_id not in known]:
        console.warn(f"{path.name}: {len(unused)} predictions are not used, because the data has no {_listed(unused)}")
    return list(examples), [predictions[example.id] for example in examples]


def _check_values(path: Path, rows: Sequence[Row], columns: PredictionColumns) -> None:
    absent: dict[str, list[str]] = {}
    has_nulls = path.suffix.lower() != PLAIN_TEXT
    for location, row in rows:
        if missing := [column for column in columns.required if column not in row]:
            if columns.prediction in row and len(row) == 1:
                raise DataError(
                    f"{path.name} contains only summaries, so that it has no {', '.join(missing)}",
                    "omit --reference-column and name the data with --recipe, or use a file with columns",
                )
            raise DataError(
                f"{location}: missing column {', '.join(missing)}; the columns are {', '.join(map(str, row)):.500}",
                "set the names with --prediction-column, --reference-column and --id-column",
            )
        for column in columns.required:
            texts = _texts(row[column]) if column in columns.references else [row[column]]
            if not texts or (has_nulls and any(map(_is_missing, texts))):
                absent.setdefault(column, []).append(location)
                continue
            _check_texts(texts, f"{location}: {column}")
            if column in columns.references and not all(str(text).strip() for text in texts):
                raise DataError(f"{location}: empty reference in {column}", "add the reference or remove the row")
        if row.get(columns.dialogue) is not None:
            _check_texts([row[columns.dialogue]], f"{location}: {columns.dialogue}")
    for column, locations in absent.items():
        raise DataError(
            f"{path.name}: {len(locations)} of {len(rows)} rows lack a value (null or NaN) in {column}: "
            f"{_listed(locations)}",
            "add the texts; an empty text counts as an empty summary",
        )


def _check_texts(texts: Sequence[Any], location: str) -> None:
    for text in texts:
        if isinstance(text, bool) or not isinstance(text, str | int):
            raise DataError(f"{location} is not a text: {text!r:.60}", "write one text per example")
        if SURROGATE.search(str(text)):
            raise DataError(f"{location} is not valid Unicode: it has a lone surrogate", "write it as UTF-8")


def _texts(value: Any) -> list[Any]:
    """The references of a cell: one, or a list."""
    return value if isinstance(value, list) else [value]


def _ids(
    path: Path, rows: Sequence[Row], columns: PredictionColumns, examples: Sequence[Example] | None
) -> Sequence[str]:
    """The id of each row: its own, or that of the example at its position if the file has no ids."""
    if not any(columns.id in row for _, row in rows):
        numbered = [f"row_{number}" for number in range(1, len(rows) + 1)]
        if examples is None:
            console.warn(
                f"{path.name} has no column {columns.id!r}: each row counts as a separate example (--id-column)"
            )
            return numbered
        if len(rows) != len(examples):
            last = next((index for index, (_, row) in enumerate(reversed(rows)) if row[columns.prediction] != ""), 0)
            empty = f" (the last {last:,} are empty lines)" if last and path.suffix.lower() == PLAIN_TEXT else ""
            raise DataError(
                f"{path} has {len(rows):,} summaries without ids, but the data has {len(examples):,} examples{empty}",
                "write one summary per example, in the order of the data, or add ids (--id-column)",
            )
        ids = [example.id for example in examples]
        if ids != numbered:  # otherwise they are the rows of such a file
            console.note(f"{path.name} has no ids: its {len(rows):,} summaries are joined with the data by their order")
        return ids
    ids = []
    for location, row in rows:
        value = row.get(columns.id)
        if isinstance(value, float) and value.is_integer():  # pandas writes integers next to a missing value so
            value = int(value)
        if value is None or value == "":
            raise DataError(f"{location}: no id in column {columns.id!r}", "add an id to every row")
        _check_texts([value], f"{location}: {columns.id}")
        ids.append(str(value))
    return ids


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:LISTED])}{' …' if len(names) > LISTED else ''}"
