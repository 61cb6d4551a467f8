"""Data: every source, every kind of bad row with its place and remedy."""

import json
from pathlib import Path

import pytest

from neuron_sum.data.examples import Example, evenly_spaced
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import DataError
from neuron_sum.recipes.schema import Columns, DataConfig, SplitFiles

GOOD = {"id": "a", "dialogue": "#Person1#: Hi.\n#Person2#: Hello.", "summary": "They greet."}


def jsonl(folder: Path, rows: list[dict[str, object] | str], name: str = "train.jsonl") -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n")


def config(folder: Path, source: str = "jsonl", **options: object) -> DataConfig:
    return DataConfig(source=source, path=str(folder), columns=Columns(id="id"), **options)


def failure(data: DataConfig) -> str:
    with pytest.raises(DataError) as raised:
        load_dataset(data)
    assert raised.value.hint
    return raised.value.message


def test_the_bundled_sample() -> None:
    dataset = load_dataset(DataConfig())
    assert {split: len(examples) for split, examples in dataset.splits.items()} == {
        "train": 504,
        "validation": 48,
        "test": 48,
    }
    assert all(len(example.references) == 3 for example in dataset["test"])
    assert dataset.near_overlap == 0
    assert dataset.license == "Apache-2.0"


def test_real_dialogsum(shared_data: Path) -> None:
    dataset = load_dataset(DataConfig(source="dialogsum", path=str(shared_data / "dialogsum")))
    assert [len(dataset[split]) for split in ("train", "validation", "test")] == [12_460, 500, 500]
    assert sum(len(example.references) for example in dataset["test"]) == 1_500
    assert dataset.license == "CC BY-NC-SA 4.0"
    assert dataset.near_overlap == 52
    few = load_dataset(
        DataConfig(
            source="dialogsum",
            path=str(shared_data / "dialogsum"),
            max_examples=125,
            max_validation_examples=5,
            max_test_examples=15,
        )
    )
    assert [len(few[split]) for split in ("train", "validation", "test")] == [125, 5, 15]
    assert few.near_overlap == 0


def test_each_split_has_its_limit_and_only_used_examples_count_as_overlap(tmp_path: Path) -> None:
    for split, offset in (("train", 0), ("validation", 100), ("test", 200)):
        jsonl(tmp_path, [{**GOOD, "id": str(i), "dialogue": f"a: {i + offset}"} for i in range(10)], f"{split}.jsonl")
    with (tmp_path / "test.jsonl").open("a") as file:  # like the training example 5, in capitals
        file.write(json.dumps({**GOOD, "id": "x", "dialogue": "A:  5"}) + "\n")
    limits = {"max_examples": 5, "max_validation_examples": 2, "max_test_examples": 3}
    few = load_dataset(config(tmp_path, **limits))
    assert [len(few[split]) for split in ("train", "validation", "test")] == [5, 2, 3]
    assert few.notes()[0].endswith("5 of 10 train, 2 of 10 validation, 3 of 11 test")
    assert (load_dataset(config(tmp_path)).near_overlap, few.near_overlap) == (1, 0)
    assert load_dataset(config(tmp_path, max_examples=2)).near_overlap == 1
    assert load_dataset(config(tmp_path, max_test_examples=10)).near_overlap == 0
    assert [len(load_dataset(config(tmp_path, max_test_examples=1))[split]) for split in ("validation", "test")] == [
        10,
        1,
    ]


def test_real_mts_dialog_has_an_overlap_that_skip_bad_skips(shared_data: Path) -> None:
    from neuron_sum.recipes.loading import load_recipe

    data = load_recipe("mts-dialog", [f"data.path={shared_data / 'mts-dialog'}"]).data
    dataset = load_dataset(data)
    assert [len(dataset[split]) for split in ("train", "validation", "test")] == [1_199, 100, 200]
    assert dataset.skipped == {"overlap between splits": 2}
    message = failure(data.model_copy(update={"skip_bad": False}))
    assert "MTS-Dialog-TrainingSet.csv:538: overlap between splits" in message
    assert "MTS-Dialog-ValidationSet.csv:503" in message


def test_samsum_form(tmp_path: Path) -> None:
    rows = [{"id": "1", "dialogue": "Amanda: I baked cookies.\r\nJerry: Sure!", "summary": "Amanda baked cookies."}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (tmp_path / "val.json").write_text(json.dumps([{**rows[0], "id": "2", "dialogue": ""}]))
    message = failure(DataConfig(source="samsum", path=str(tmp_path)))
    assert "val.json:1: empty dialogue" in message
    dataset = load_dataset(DataConfig(source="samsum", path=str(tmp_path), skip_bad=True))
    assert dataset["train"] == (Example("1", "Amanda: I baked cookies.\nJerry: Sure!", ("Amanda baked cookies.",)),)
    assert dataset.skipped == {"empty dialogue": 1}


def test_a_hub_data_set_and_its_licence(tmp_path: Path) -> None:
    """The real datasets library, on a folder in a hub repository's layout; three reference rows become one example."""
    repository = tmp_path / "set"
    repository.mkdir()
    (repository / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A set\n")
    jsonl(repository, [GOOD])
    other = {**GOOD, "dialogue": "#Person1#: Bye."}
    jsonl(repository, [{**other, "id": f"t_{n}", "summary": f"Summary {n}."} for n in (1, 2, 3)], "test.jsonl")
    dataset = load_dataset(config(repository, "hub"))
    assert dataset["test"] == (Example("t_1", "#Person1#: Bye.", ("Summary 1.", "Summary 2.", "Summary 3.")),)
    assert dataset.license == "cc-by-4.0"


def test_an_unreachable_hub_is_an_error(tmp_path: Path) -> None:
    assert "no/such-set" in failure(DataConfig(source="hub", path="no/such-set"))


def test_csv_with_line_breaks_in_cells_names_the_first_line_of_a_row(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('n,talk,note\n1,"A: x\nB: y",good\n2,"A: z\nB: w",\n3,a,b,c\n')
    mapped = {"columns": Columns(id="n", dialogue="talk", summary="note")}
    message = failure(DataConfig(source="csv", path=str(tmp_path), **mapped))
    assert "train.csv:4: empty summary" in message
    assert "train.csv:6: ragged row: 4 cells under 3 columns" in message
    dataset = load_dataset(DataConfig(source="csv", path=str(tmp_path), skip_bad=True, **mapped))
    assert [example.dialogue for example in dataset["train"]] == ["A: x\nB: y"]
    assert dataset.skipped == {"empty summary": 1, "ragged row": 1}


def test_tsv_and_several_summary_columns(tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text("dialogue\ts1\ts2\nA: x\tone\ttwo\n")
    data = DataConfig(source="csv", path=str(tmp_path), columns=Columns(summary=("s1", "s2")))
    assert load_dataset(data)["test"] == (Example("test_2", "A: x", ("one", "two")),)


def test_a_csv_without_the_column_lists_its_columns(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("ID,text\n1,x\n")
    assert "train.csv:1: missing column dialogue, summary; columns: ID, text" in failure(config(tmp_path, "csv"))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"id": "a", "dialogue": "x"}], "train.jsonl:1: missing column: 'summary' is not one of id, dialogue"),
        ([GOOD, {**GOOD, "id": "b", "dialogue": "  "}], "train.jsonl:2: empty dialogue"),
        ([{**GOOD, "summary": ""}], "train.jsonl:1: empty summary"),
        ([GOOD, "{bad", {**GOOD, "id": "c", "dialogue": "z"}], "train.jsonl:2: invalid JSON: Expecting property name"),
        (["[1]"], "train.jsonl:1: invalid JSON: a list"),
        ([{**GOOD, "summary": 3}], "train.jsonl:1: not text: 'summary' is 3"),
        ([GOOD, GOOD], "train.jsonl:2: duplicate row: same id 'a' and text as train.jsonl:1"),
        ([GOOD, {**GOOD, "dialogue": "other"}], "train.jsonl:2: duplicate id: same id 'a' as train.jsonl:1"),
    ],
)
def test_bad_rows_have_a_place_and_a_remedy(tmp_path: Path, rows: list[dict[str, object] | str], expected: str) -> None:
    jsonl(tmp_path, rows)
    assert expected in failure(config(tmp_path))
    skipped = load_dataset(config(tmp_path, skip_bad=True))
    assert sum(skipped.skipped.values()) == 1
    assert len(skipped["train"]) == len(rows) - 1


def test_a_wrong_encoding_is_reported_by_row(tmp_path: Path) -> None:
    rows = b'{"id": "a", "dialogue": "A: x", "summary": "ok"}\n{"id": "b", "dialogue": "A: caf\xe9", "summary": "ok"}\n'
    (tmp_path / "train.jsonl").write_bytes(rows)
    with pytest.raises(DataError, match=r"train\.jsonl:2: wrong encoding: byte 0xe9 is not UTF-8") as raised:
        load_dataset(config(tmp_path))
    assert str(raised.value.hint).startswith(f"convert it: iconv -f cp1252 -t utf-8 {tmp_path / 'train.jsonl'} > ")
    assert load_dataset(config(tmp_path, encoding="latin-1"))["train"][1].dialogue == "A: café"
    assert "data.encoding = 'nonsense'" in failure(config(tmp_path, encoding="nonsense"))
    (tmp_path / "train.jsonl").write_text(rows[:49].decode(), encoding="utf-16")
    assert [example.id for example in load_dataset(config(tmp_path))["train"]] == ["a"]
    (tmp_path / "train.jsonl").write_bytes(rows[:49].decode().encode("utf-16-le"))
    assert "UTF-16LE without a byte order mark" in failure(config(tmp_path))


def test_overlap_between_splits(tmp_path: Path) -> None:
    jsonl(tmp_path, [GOOD, {**GOOD, "id": "b", "dialogue": "only here"}])
    jsonl(tmp_path, [{**GOOD, "id": "t"}], "test.jsonl")
    assert "train.jsonl:1: overlap between splits: same dialogue as test.jsonl:1" in failure(config(tmp_path))
    kept = load_dataset(config(tmp_path, skip_bad=True))
    assert [example.id for example in kept["train"]] == ["b"]
    assert [example.id for example in kept["test"]] == ["t"]


def test_only_the_first_twenty_problems_are_shown(tmp_path: Path) -> None:
    jsonl(tmp_path, ["{"] * 30)
    message = failure(config(tmp_path))
    assert message.startswith("30 bad rows")
    assert "… and 10 more" in message
    assert "train.jsonl:21" not in message


def test_a_missing_folder_and_one_without_splits_are_errors(tmp_path: Path) -> None:
    assert "is not a folder" in failure(config(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").touch()
    assert "contains none of train.jsonl, validation.jsonl, test.jsonl" in failure(config(tmp_path))
    assert "data.files.train = 'x.jsonl' is not in" in failure(config(tmp_path, files=SplitFiles(train="x.jsonl")))


def test_limited_examples_are_evenly_spaced_and_ordered() -> None:
    examples = [Example(str(n), "d", ("s",)) for n in range(10)]
    assert [example.id for example in evenly_spaced(examples, 4)] == ["0", "2", "5", "7"]
    assert evenly_spaced(examples, None) == evenly_spaced(examples, 99) == tuple(examples)
