"""Hostile rows and files: each is an error with file and line, and --skip-bad skips every bad row."""

import json
import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import DataError, NeuronSumError
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import Columns, DataConfig, SplitFiles

GOOD = {"id": "good", "dialogue": "A: fine", "summary": "Fine."}


def config(folder: Path, source: str = "jsonl", **options: object) -> DataConfig:
    return DataConfig(source=source, path=str(folder), columns=Columns(id="id", topic="topic"), **options)


def failure(data: DataConfig) -> DataError:
    with pytest.raises(DataError) as raised:
        load_dataset(data)
    assert raised.value.hint
    raised.value.message.encode()
    return raised.value


def row(**fields: object) -> bytes:
    return json.dumps({**GOOD, "id": "bad", **fields}).encode()


BAD_LINES = [
    (b'{"id": ' + b"9" * 5_000 + b', "dialogue": "x", "summary": "y"}', "an integer has too many digits"),
    (b'{"id": "bad", "dialogue": "x", "summary": ' + b"[" * 100_000, "nested too deeply"),
    (b'{"id": "bad", "x": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001, "nested too deeply"),
    (b'{"id": "bad", "dialogue": "x", "dialogue": "y", "summary": "z"}', "duplicate key 'dialogue'"),
    (b'{"id": "bad", "dialogue": "caf\xe9", "summary": "z"}', "byte 0xe9 is not UTF-8"),
    (b'{"id": "bad", "dialogue": "\xf0\x9f\x98", "summary": "z"}', "byte 0xf0 is not UTF-8"),
    (row(dialogue="\ud83d"), "lone surrogate U+D83D"),
    (row(summary="ok \udc00"), "lone surrogate U+DC00"),
    (row(id="\ud83d"), "'id' contains the lone surrogate"),
    (row(topic="\ud83d"), "'topic' contains the lone surrogate"),
    (row(dialogue="a\0b"), "contains NUL at character 1"),
    (row(dialogue=None), "'dialogue' is None"),
    (row(dialogue=["A: a", "B: b"]), "join the turns to one string"),
    (row(dialogue={"a": 1}), "'dialogue' is {'a': 1}"),
    (row(summary=1.5), "'summary' is 1.5"),
    (row(summary=True), "'summary' is True"),
    (row(id=[1]), "'id' is [1]"),
    (row(id=1.5), "'id' is 1.5"),
    (b'{"id": "bad", "dialogue": NaN, "summary": "z"}', "'dialogue' is nan"),
    (b"null", "a NoneType"),
    (b'"text"', "a str"),
    (b"17", "a int"),
    (b"{}", "'dialogue' is not one of"),
    (b'{"\xff": 1}', "byte 0xff is not UTF-8"),
    (b'{"\\ud800": 1}', "'dialogue' is not one of \\ud800"),
    (b"\0\0\0", "invalid JSON"),
    (b'{"id": "bad"', "invalid JSON"),
    (b'\xef\xbb\xbf{"id": "bad"}', "invalid JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_each_bad_line_has_a_reason_and_can_be_skipped(tmp_path: Path, line: bytes, reason: str) -> None:
    good = json.dumps(GOOD).encode()
    later = good.replace(b"good", b"later").replace(b"fine", b"also fine")
    (tmp_path / "train.jsonl").write_bytes(good + b"\n" + line + b"\n\n" + later + b"\n")
    message = failure(config(tmp_path)).message
    assert message.startswith("1 bad row\n  train.jsonl:2: ")
    assert reason in message
    dataset = load_dataset(config(tmp_path, skip_bad=True))
    assert [example.id for example in dataset["train"]] == ["good", "later"]
    assert sum(dataset.skipped.values()) == 1


def test_a_line_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuron_sum.text_files.MAX_CHARACTERS", 200)
    (tmp_path / "train.jsonl").write_bytes(row(dialogue="x" * 500) + b"\n" + json.dumps(GOOD).encode())
    assert "train.jsonl:1: too long: the line has more than 200 characters" in failure(config(tmp_path)).message
    assert len(load_dataset(config(tmp_path, skip_bad=True))["train"]) == 1
    (tmp_path / "train.csv").write_text("dialogue,summary\n" + "x" * 500 + ",y\n")
    assert "train.csv:2: the line has more than 200 characters" in failure(config(tmp_path, "csv")).message
    (tmp_path / "train.csv").write_text('dialogue,summary\n"' + "x\n" * 500 + '",y\n')
    assert "train.csv:2: invalid CSV: field larger" in failure(config(tmp_path, "csv", skip_bad=True)).message


def test_ids_that_are_missing_get_the_line(tmp_path: Path) -> None:
    lines = [row(id=None), row(id="", dialogue="A: b"), row(id=0, dialogue="A: c")]
    (tmp_path / "train.jsonl").write_bytes(b"\n".join(lines))
    assert [example.id for example in load_dataset(config(tmp_path))["train"]] == ["train_1", "train_2", "0"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "missing column dialogue, summary; columns: none"),
        (b"\n", "missing column dialogue, summary; columns: none"),
        (b"dialogue,summary,dialogue\na,b,c\n", "two columns are named 'dialogue'"),
        (b"id,id,dialogue,summary\na,b,c,d\n", "two columns are named 'id'"),
        (b'dialogue,summary\n"a,b\nc,d\n', "train.csv:2: invalid CSV: unexpected end of data"),
        (b'dialogue,summary\n"a"x,"b\nc",d\n', "train.csv:2: invalid CSV: ',' expected after '\"'"),
        (b'"dialogue"x,summary\na,b\n', "train.csv:1: invalid CSV"),
        (b"d\xefalogue,summary\na,b\n", "train.csv:1: wrong encoding: byte 0xef is not UTF-8"),
        (b"dia\0logue,summary\na,b\n", "missing column dialogue"),
    ],
    ids=range(9),
)
def test_damaged_csv_files_are_errors_also_with_skip_bad(tmp_path: Path, text: bytes, reason: str) -> None:
    (tmp_path / "train.csv").write_bytes(text)
    for skip_bad in (False, True):
        assert reason in failure(config(tmp_path, "csv", skip_bad=skip_bad)).message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'"a"x,"b"', "',' expected after '\"'"),
        (b"a", "1 cells under 2 columns"),
        (b"a,b,c", "3 cells under 2 columns"),
        (b"caf\xe9,b", "byte 0xe9 is not UTF-8"),
        (b",b", "'dialogue' is empty"),
        (b"a\0,b", "NUL"),
    ],
)
def test_bad_csv_rows_can_be_skipped(tmp_path: Path, line: bytes, reason: str) -> None:
    (tmp_path / "train.csv").write_bytes(b'dialogue,summary\n"A: 1\nB: 2",x\n' + line + b"\nA: 3,z\n")
    message = failure(config(tmp_path, "csv")).message
    assert "train.csv:4: " in message
    assert reason in message
    dataset = load_dataset(config(tmp_path, "csv", skip_bad=True))
    assert [example.dialogue for example in dataset["train"]] == ["A: 1\nB: 2", "A: 3"]


def test_the_delimiter_that_a_csv_file_states(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("sep=;\ndialogue;summary\nA: x, y;z\nA: v\n")
    assert "train.csv:4: ragged row" in failure(config(tmp_path, "csv")).message
    assert load_dataset(config(tmp_path, "csv", skip_bad=True))["train"][0].dialogue == "A: x, y"


@pytest.mark.parametrize(("mark", "shown"), [(";", "';'"), ("|", "'|'"), ("\t", r"'\t'")])
def test_a_hint_names_the_delimiter_of_the_first_line(tmp_path: Path, mark: str, shown: str) -> None:
    (tmp_path / "train.csv").write_text(f"dialogue{mark}summary\nA: x{mark}y\n")
    assert str(failure(config(tmp_path, "csv")).hint).startswith(f"set data.delimiter={shown}, ")
    data = load_recipe("tiny", ["data.source=csv", f"data.path={tmp_path}", f"data.delimiter={shown[1:-1]}"]).data
    assert load_dataset(data)["train"][0].dialogue == "A: x"


def test_an_empty_json_file_is_an_error(tmp_path: Path) -> None:
    for text in ("", "[]", " [ ]\n"):
        (tmp_path / "train.json").write_text(text)
        assert "train.json" in failure(config(tmp_path, "samsum")).message


def test_ids_that_are_whole_numbers(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(row(id=3.0))
    assert load_dataset(config(tmp_path))["train"][0].id == "3"


def test_csv_with_numbered_summaries(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("dialogue,summary1,summary2\nA: x,one,two\n")
    assert load_dataset(config(tmp_path, "csv"))["test"][0].references == ("one", "two")


@pytest.mark.parametrize(
    "text", [b"[", b"[{]", b"[" * 100_000, b'[{"a": 1, "a": 2}]', b"[" + b"9" * 5000 + b"]", b'{"data": 1}', b"\xff["]
)
def test_damaged_json_arrays_are_errors(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "train.json").write_bytes(text)
    assert "train.json" in failure(config(tmp_path, "samsum")).message


def test_json_may_be_an_array_or_lines(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("\n [" + json.dumps(GOOD) + ', 1, {"id": "bad"}]')
    (tmp_path / "test.json").write_text("\n" + json.dumps({**GOOD, "dialogue": "A: other"}) + "\n")
    dataset = load_dataset(config(tmp_path, skip_bad=True))
    assert [len(dataset[split]) for split in ("train", "test")] == [1, 1]
    assert dataset.skipped == {"invalid JSON": 1, "missing column": 1}


def test_a_split_that_loses_every_row_is_said(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD))
    (tmp_path / "dev.jsonl").write_text("{}\n{}\n")
    (tmp_path / "test.jsonl").touch()
    notes = load_dataset(config(tmp_path, skip_bad=True)).notes()
    assert "warning: validation has no example left" in notes
    assert "warning: test has no example left" in notes


def test_special_files_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.jsonl")
    assert "is not a regular file" in failure(config(tmp_path)).message
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.jsonl").symlink_to(tmp_path / "nowhere")
    assert "No such file" in failure(config(tmp_path)).message


@pytest.mark.parametrize("encoding", ["rot13", "hex", "idna", "punycode", "undefined", "a\0b", "", "utf-8-nothing"])
def test_encodings_that_cannot_be_used(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD))
    with pytest.raises(NeuronSumError):
        load_dataset(config(tmp_path, encoding=encoding))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200)
    | st.text(st.sampled_from('{}[]",:\\\n\r\0 ab1u'), max_size=80).map(str.encode)
    | st.sampled_from([line for line, _ in BAD_LINES]).map(lambda line: line[:300]),
    name=st.sampled_from(["train.jsonl", "dev.json", "test.csv", "train.tsv"]),
    encoding=st.sampled_from(["utf-8", "utf-16", "latin-1", "gb18030", "utf-7", "ascii"]),
    skip_bad=st.booleans(),
)
def test_any_content_is_read_or_an_error_of_the_data(
    tmp_path: Path, content: bytes, name: str, encoding: str, skip_bad: bool
) -> None:
    (tmp_path / name).write_bytes(content)
    source = {"json": "samsum", "csv": "csv", "tsv": "csv", "jsonl": "jsonl"}[name.rpartition(".")[2]]
    files = SplitFiles(train=name)
    try:
        load_dataset(config(tmp_path, source, files=files, encoding=encoding, skip_bad=skip_bad))
    except DataError as error:
        error.message.encode()
        assert error.hint
