"""Names of splits: files, folders and shards of public data sets."""

import json
from pathlib import Path

import pytest

from neuron_sum.data.sources import load_dataset
from neuron_sum.data.splits import split_of
from neuron_sum.errors import DataError
from neuron_sum.recipes.schema import DataConfig, SplitFiles

HEADER = "dialogue,summary\n"


def write(folder: Path, name: str, text: str = "") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        path.write_text(HEADER + (text or f"A: {name},It is {name}.\n"))
    else:
        row = {"dialogue": f"A: {name}", "summary": f"It is {name}."}
        path.write_text(text or json.dumps(row) + "\n")


def config(folder: Path, source: str = "csv", **options: object) -> DataConfig:
    return DataConfig(source=source, path=str(folder), **options)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *((name, "train") for name in ("train", "TRAIN", "training", "Train", "dialogsum.train", "train_v2")),
        *((name, "train") for name in ("MTS-Dialog-TrainingSet", "trainset", "TrainData", "train-00000-of-00002")),
        *((name, "validation") for name in ("valid", "val", "dev", "eval", "validation", "VAL", "Dev", "devset")),
        *((name, "validation") for name in ("dialogsum.dev", "MTS-Dialog-ValidationSet", "my_eval_data", "evalSplit")),
        *((name, "test") for name in ("test", "testing", "Test", "MTS-Dialog-TestSet-1-MEDIQA-Chat-2023", "test1")),
        *((name, None) for name in ("pretrain", "latest", "contest", "data", "train_test", "value", "device", "")),
        *((name, None) for name in ("retrained", "evaluate-train-test", "prevalidation", "developer")),
    ],
)
def test_the_split_of_a_name(name: str, split: str | None) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize("name", ["valid", "val", "dev", "eval", "validation", "Valid", "clinic.dev", "VALID-set"])
def test_the_usual_names_of_the_validation_split(tmp_path: Path, name: str) -> None:
    for stem in ("train", name, "test"):
        write(tmp_path, f"{stem}.csv")
    dataset = load_dataset(config(tmp_path))
    assert {split: len(examples) for split, examples in dataset.splits.items()} == {
        "train": 1,
        "validation": 1,
        "test": 1,
    }
    assert dataset["validation"][0].dialogue == f"A: {name}.csv"
    assert not dataset.unused


def test_two_files_of_one_split_are_an_error_that_names_both(tmp_path: Path) -> None:
    for name in ("train.csv", "dev.csv", "valid.csv"):
        write(tmp_path, name)
    with pytest.raises(DataError, match=r"dev\.csv and valid\.csv in .* are both the validation split") as raised:
        load_dataset(config(tmp_path))
    assert raised.value.hint == "choose one: data.files.validation=dev.csv"
    dataset = load_dataset(config(tmp_path, files=SplitFiles(validation="valid.csv")))
    assert dataset["validation"][0].dialogue == "A: valid.csv"
    assert dataset.unused == ("dev.csv",)
    assert "not used: dev.csv" in dataset.notes()


def test_folders_and_shards(tmp_path: Path) -> None:
    write(tmp_path, "train/a.jsonl")
    write(tmp_path, "train/b.jsonl")
    write(tmp_path, "Val/data.json")
    write(tmp_path, "test-00000-of-00002.jsonl")
    write(tmp_path, "test-00001-of-00002.jsonl")
    for name in ("notes.txt", "README.md", "LICENSE", ".hidden"):
        (tmp_path / name).touch()
    dataset = load_dataset(config(tmp_path, "jsonl"))
    assert [example.dialogue for example in dataset["train"]] == ["A: train/a.jsonl", "A: train/b.jsonl"]
    assert [len(dataset[split]) for split in ("validation", "test")] == [1, 2]
    assert dataset.unused == ("notes.txt",)
    (tmp_path / "test-00001-of-00002.jsonl").unlink()
    with pytest.raises(DataError, match="1 of 2 shards are missing: 00001-of-00002"):
        load_dataset(config(tmp_path, "jsonl"))


def test_ids_of_several_files_of_a_split_are_unique(tmp_path: Path) -> None:
    write(tmp_path, "train/a.jsonl")
    write(tmp_path, "train/b.jsonl")
    dataset = load_dataset(config(tmp_path, "jsonl"))
    assert len({example.id for example in dataset["train"]}) == 2


@pytest.mark.parametrize(
    ("names", "source", "hint"),
    [
        (["train.csv"], "jsonl", "data.source=csv"),
        (["train.jsonl"], "csv", "data.source=jsonl"),
        (["train-00000-of-00001.parquet"], "jsonl", "data.source=hub"),
        (["meeting.vtt"], "jsonl", "neuron-sum summarize RUN FILE"),
        (["a.csv", "b.csv"], "csv", "data.files.train=… to one of the files in this folder: a.csv, b.csv"),
        ([], "csv", "none"),
    ],
)
def test_a_folder_without_splits_names_what_would_work(
    tmp_path: Path, names: list[str], source: str, hint: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="contains none of") as raised:
        load_dataset(config(tmp_path, source))
    assert hint in str(raised.value.hint)


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.jsonl"])
def test_a_packed_file_names_the_command_that_unpacks_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b\x08\0")
    with pytest.raises(DataError, match="is a gzip file") as raised:
        load_dataset(config(tmp_path, "jsonl"))
    assert str(raised.value.hint).startswith("unpack it: gunzip --keep")


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(DataError, match=r"data\.files\.train = 'x\.csv' is a folder"):
        load_dataset(config(tmp_path, files=SplitFiles(train="x.csv")))
    with pytest.raises(DataError, match="File name too long"):
        load_dataset(config(tmp_path, files=SplitFiles(train="x" * 5000)))
    with pytest.raises(DataError, match="is not a folder"):
        load_dataset(config(tmp_path / ("x" * 5000)))


def test_a_file_that_states_another_split_than_its_folder(tmp_path: Path) -> None:
    write(tmp_path, "train/a.jsonl")
    write(tmp_path, "train/dev.jsonl")
    with pytest.raises(DataError, match=r"dev\.jsonl in .*/train is in a folder of the train split.* validation"):
        load_dataset(config(tmp_path, "jsonl"))


def test_files_in_folders_that_are_not_used_are_listed(tmp_path: Path) -> None:
    for name in ("train/a.jsonl", "train/._a.jsonl", "train/_b.jsonl", "train/notes.txt", "old/train.jsonl"):
        write(tmp_path, name)
    dataset = load_dataset(config(tmp_path, "jsonl"))
    assert len(dataset["train"]) == 1
    assert dataset.unused == ("old/train.jsonl", "train/notes.txt")


def test_an_exact_name_wins_over_variants(tmp_path: Path) -> None:
    for name in ("train.jsonl", "train_small.jsonl", "test.jsonl", "test_predictions.jsonl", "train.jsonl.gz"):
        write(tmp_path, name)
    dataset = load_dataset(config(tmp_path, "jsonl"))
    assert [example.dialogue for example in dataset["train"] + dataset["test"]] == ["A: train.jsonl", "A: test.jsonl"]
    assert dataset.unused == ("test_predictions.jsonl", "train.jsonl.gz", "train_small.jsonl")


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["train/a.jsonl", "train.jsonl"], "choose one: data.files.train=train.jsonl"),
        (["train/a.jsonl", "training/a.jsonl"], "move one of them to another folder"),
        (["train-00000-of-00001.jsonl", "train/a.jsonl"], "move one of them to another folder"),
        (["old/a.jsonl", "b.jsonl"], "set data.files.train=… to one of the files in this folder: b.jsonl"),
    ],
)
def test_a_hint_names_only_values_that_work(tmp_path: Path, names: list[str], hint: str) -> None:
    for name in names:
        write(tmp_path, name)
    with pytest.raises(DataError) as raised:
        load_dataset(config(tmp_path, "jsonl"))
    assert raised.value.hint == hint
