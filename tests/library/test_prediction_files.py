"""Predictions files that other programs write, in every form, and damaged."""

import codecs
import json
import math
import os
from pathlib import Path

import pytest

from neuron_sum.data.examples import Example
from neuron_sum.errors import DataError
from neuron_sum.evaluation.prediction_files import PredictionColumns
from neuron_sum.evaluation.predictions import read_predictions

IDS = ("a", "b", "c")
EXAMPLES = [Example(name, "d", ("s",)) for name in IDS]
TEXTS = ["Tom; is here, now.", "Ann\tleft.", "Bé said “hi”."]
ROWS = [{"id": name, "prediction": text} for name, text in zip(IDS, TEXTS, strict=True)]
BACKWARDS = ROWS[::-1]
COLUMNS = {"id": [*IDS], "prediction": TEXTS}
CSV = 'id;prediction\na;"Tom; is here, now."\nb;"Ann\tleft."\nc;Bé said “hi”.\n'
LINES = "".join(json.dumps(row) + "\n" for row in BACKWARDS)
NUMBERED = {str(number): text for number, text in enumerate(TEXTS)}


def read(path: Path, content: str | bytes, **columns: str) -> list[str]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    examples, predictions = read_predictions(path, PredictionColumns(**columns), EXAMPLES)
    assert [example.id for example in examples] == [prediction.id for prediction in predictions] == [*IDS]
    return [prediction.summary for prediction in predictions]


def rejected(path: Path, content: str | bytes, **columns: str) -> str:
    with pytest.raises(DataError) as error:
        read(path, content, **columns)
    assert "\n" not in error.value.message
    assert len(error.value.message) < 1000
    assert error.value.hint
    return error.value.message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "\n".join(TEXTS)),  # run_summarization.py writes no last newline
        ("p.txt", "\r\n".join(TEXTS) + "\r\n"),
        ("P.TXT", "\n".join(TEXTS) + "\n"),
        ("p.json", json.dumps(TEXTS)),
        ("p.json", json.dumps(BACKWARDS)),
        ("p.json", json.dumps(ROWS, indent=2)),
        ("p.json", json.dumps(COLUMNS)),
        ("p.json", json.dumps({"predictions": TEXTS})),
        ("p.json", json.dumps({"generated_predictions": TEXTS, "rouge1": 40.0, "id": [*IDS]})),
        ("p.json", json.dumps({"predictions": BACKWARDS, "model": "x"})),
        ("p.json", json.dumps({"id": {"0": "a", "1": "b", "2": "c"}, "prediction": NUMBERED})),  # pandas
        ("p.json", json.dumps({"prediction": NUMBERED})),
        ("p.json", json.dumps({row["id"]: row["prediction"] for row in BACKWARDS})),
        ("p.json", json.dumps({"predictions": {row["id"]: row["prediction"] for row in BACKWARDS}})),
        ("p.json", LINES),
        ("p.jsonl", LINES),
        ("p.jsonl", "\n" + LINES + "\n\n"),
        ("p.jsonl", json.dumps(BACKWARDS)),
        ("p.jsonl", "".join(json.dumps(text) + "\n" for text in TEXTS)),
        ("p.csv", CSV),
        ("p.csv", "sep=;\n" + CSV),
        ("p.csv", "SEP=;\r\n" + CSV.replace("\n", "\r\n")),
        ("p.csv", codecs.BOM_UTF8 + b"sep=;\n" + CSV.encode()),
        ("p.csv", codecs.BOM_UTF16_LE + CSV.encode("utf-16-le")),
        ("p.csv", codecs.BOM_UTF16_BE + ("sep=;\r\n" + CSV).encode("utf-16-be")),
        ("p.csv", 'id\tprediction\na\tTom; is here, now.\nb\t"Ann\tleft."\nc\tBé said “hi”.\n'),
        ("p.csv", 'id,prediction,note, x\na,"Tom; is here, now.",,\nb,Ann\tleft.,1,\nc,Bé said “hi”.,,,,\n'),
        ("p.tsv", 'prediction\tid\nTom; is here, now.\ta\n"Ann\tleft."\tb\nBé said “hi”.\tc\n'),
        ("p.tsv", CSV),
        ("p.csv", 'prediction\n"Tom; is here, now."\nAnn\tleft.\nBé said “hi”.\n'),
    ],
)
def test_every_form_gives_the_same_summaries(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert read(tmp_path / name, content) == TEXTS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.json"])
def test_a_byte_order_mark_states_the_encoding(tmp_path: Path, name: str, encoding: str) -> None:
    content = "\n".join(TEXTS) if name == "p.txt" else LINES
    assert read(tmp_path / name, content.encode(encoding)) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.txt", "one\ntwo", "has 2 summaries without ids, but the data has 3 examples"),
        (
            "p.txt",
            "one\ntwo\nthree\n\n",
            "has 4 summaries without ids, but the data has 3 examples (the last 1 are empty lines)",
        ),
        (
            "p.txt",
            "one\n\n\n\n",
            "has 4 summaries without ids, but the data has 3 examples (the last 3 are empty lines)",
        ),
        ("p.txt", "", "contains no rows"),
        ("p.csv", "prediction\none\nnan\nthree", "1 of 3 rows lack a value (null or NaN) in prediction: p.csv:3"),
        ("p.json", "[]", "contains no rows"),
        ("p.json", '["one", null, NaN]', "2 of 3 rows lack a value (null or NaN) in prediction: p.json:2, p.json:3"),
        ("p.json", '{"predictions": ["one", "two"]}', "has 2 summaries without ids"),
        ("p.json", '{"rouge": 1}', "p.json contains no list of predictions"),
        ("p.json", '"text"', "p.json contains no list of predictions"),
        ("p.json", "[1, 2, 3]", "p.json:1: neither an object nor a text: 1"),
        ("p.json", '[["x"]]', "p.json:1: neither an object nor a text: ['x']"),
        ("p.json", "[1", "p.json: invalid JSON: Expecting ',' delimiter at column 3"),
        ("p.json", "[" * 100_000, "p.json: invalid JSON: nested too deeply"),
        ("p.json", f"[{'9' * 5000}]", "p.json: invalid JSON: an integer has too many digits"),
        ("p.json", '{"id": ["a", "b"], "prediction": ["x"]}', "has 1 summaries without ids"),
        ("p.json", '{"x": [1], "y": [1, 2]}', "contains no list of predictions"),
        ("p.json", '[{"id": "a", "prediction": "\\ud800"}]', "p.json:1: prediction is not valid Unicode"),
        ("p.json", '[{"id": "\\udc80", "prediction": "x"}]', "p.json:1: id is not valid Unicode"),
        ("p.json", '[{"id": "a", "prediction": ["x"]}]', "p.json:1: prediction is not a text: ['x']"),
        ("p.json", '[{"id": "a", "prediction": true}]', "p.json:1: prediction is not a text: True"),
        ("p.json", '[{"id": "a", "prediction": 1.5}]', "p.json:1: prediction is not a text: 1.5"),
        ("p.json", '[{"id": ["a"], "prediction": "x"}]', "p.json:1: id is not a text: ['a']"),
        ("p.json", '[{"id": "a", "prediction": "x"}, {"prediction": "y"}]', "p.json:2: no id in column 'id'"),
        ("p.json", '[{"id": "a", "text": "x"}]', "p.json:1: missing column prediction; the columns are id, text"),
        ("p.jsonl", '{"id": "a", "prediction": "x"}\n{"id": "b", "pre', "p.jsonl:2: invalid JSON"),
        ("p.jsonl", '{"id": "a", "id": "b", "prediction": "x"}', "p.jsonl:1: invalid JSON: duplicate key 'id'"),
        ("p.jsonl", '{"a": ' * 100_000, "p.jsonl:1: invalid JSON: nested too deeply"),
        ("p.jsonl", "x" * (1 << 24) + "y", "p.jsonl:1: the line has more than 16,777,216 characters"),
        ("p.csv", "id,prediction\na,x\na,y\n", "p.csv:3: a second, different prediction for 'a'"),
        ("p.csv", "id,prediction\na,x\n", "lacks predictions for 2 of 3 examples: b, c"),
        ("p.csv", "id,prediction\na,NaN\nb,None\nc,null\n", "3 of 3 rows lack a value"),
        ("p.csv", "id,prediction\na\n", "p.csv:2: 1 cells under 2 columns"),
        ("p.csv", "id,prediction\na,x,y\n", "p.csv:2: 3 cells under 2 columns"),
        ("p.csv", 'id,prediction\na,"x\n', "p.csv:2: invalid CSV: unexpected end of data"),
        ("p.csv", "id,prediction,prediction\na,x,y\n", "p.csv:1: two columns are named 'prediction'"),
        ("p.csv", "id,prediction\n,x\n", "p.csv:2: no id in column 'id'"),
        ("p.csv", b"id;prediction\na;Tom\x92s\n", "p.csv:2: byte 0x92 is not UTF-8"),
        ("p.csv", "sep=;", "contains no rows"),
        ("p.csv", "", "contains no rows"),
        ("p.txt", b"caf\xe9\nb\nc", "p.txt:1: byte 0xe9 is not UTF-8"),
        ("p.jsonl", b'{"prediction": "caf\xe9"}', "p.jsonl:1: byte 0xe9 is not UTF-8"),
        ("p.txt", "a\nb\nc".encode("utf-16-le"), "p.txt is UTF-16LE without a byte order mark"),
        ("p.csv", b"PK\x03\x04" + b"\0" * 50, "is a zip archive"),
        ("p.json.gz", b"\x1f\x8b\x08", "predictions must be .txt (one summary per line), .json, .jsonl, .csv or .tsv"),
        ("p.xlsx", b"PK\x03\x04", "predictions must be .txt"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, name: str, content: str | bytes, expected: str) -> None:
    assert expected in rejected(tmp_path / name, content)


def test_a_text_file_has_no_missing_values(tmp_path: Path) -> None:
    assert read(tmp_path / "p.txt", "None\nnan\nnull\n") == ["None", "nan", "null"]


def test_the_command_that_converts_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p q.csv"
    path.write_bytes(b"id;prediction\na;Tom\x92s caf\xe9\n")
    with pytest.raises(DataError) as error:
        read_predictions(path, PredictionColumns(), EXAMPLES)
    assert f"iconv -f cp1252 -t utf-8 '{path}'" in str(error.value.hint)


def test_an_empty_text_is_an_empty_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read(tmp_path / "p.csv", "id,prediction\na,\nb, \nc,x\n") == ["", " ", "x"]
    assert "p.csv: 2 of 3 summaries are empty: a, b" in capsys.readouterr().err
    assert read(tmp_path / "p.txt", "\n\nx\n") == ["", "", "x"]


def test_a_join_by_order_and_unused_predictions_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read(tmp_path / "p.txt", "x\ny\nz")
    assert "p.txt has no ids: its 3 summaries are joined with the data by their order" in capsys.readouterr().err
    read(tmp_path / "p.json", json.dumps([*ROWS, {"id": "z", "prediction": "w"}]))
    assert "p.json: 1 predictions are not used, because the data has no z" in capsys.readouterr().err


def test_summaries_without_references_need_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.txt").write_text("x\ny\n")
    with pytest.raises(DataError, match=r"p\.txt contains only summaries, so that it has no human"):
        read_predictions(tmp_path / "p.txt", PredictionColumns(references=("human",)), None)
    (tmp_path / "p.csv").write_text("human,prediction\na,x\nb,y\n")
    columns = PredictionColumns(references=("human",))
    examples, _ = read_predictions(tmp_path / "p.csv", columns, None)
    assert "each row counts as a separate example" in capsys.readouterr().err
    read_predictions(tmp_path / "p.csv", columns, examples)
    assert capsys.readouterr().err == ""


def test_numbers_as_ids_are_texts(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('[{"id": 1, "prediction": "x"}, {"id": 2.0, "prediction": "y"}]')
    examples = [Example(name, "d", ("s",)) for name in ("2", "1")]
    predictions = read_predictions(tmp_path / "p.json", PredictionColumns(), examples)[1]
    assert [prediction.summary for prediction in predictions] == ["y", "x"]


def test_references_may_be_a_list(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"predictions": ["x", "y"], "references": [["a", "b"], "c"]}')
    columns = PredictionColumns(references=("references",))
    examples, predictions = read_predictions(tmp_path / "p.json", columns, None)
    assert [example.references for example in examples] == [("a", "b"), ("c",)]
    assert [prediction.summary for prediction in predictions] == ["x", "y"]


@pytest.mark.parametrize("value", [None, math.nan, "NaN", "<NA>", [], ["a", None], ""])
def test_a_missing_reference_is_rejected(tmp_path: Path, value: object) -> None:
    (tmp_path / "p.json").write_text(json.dumps([{"prediction": "x", "human": value}]))
    with pytest.raises(DataError, match=r"lack a value|empty reference in human"):
        read_predictions(tmp_path / "p.json", PredictionColumns(references=("human",)), None)


def test_a_pipe_or_a_folder_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.txt")
    (tmp_path / "p.csv").mkdir()
    for name, expected in (("p.txt", "is not a regular file"), ("p.csv", "is a folder"), ("q.csv", "cannot be read")):
        with pytest.raises(DataError, match=expected):
            read_predictions(tmp_path / name, PredictionColumns(), EXAMPLES)
