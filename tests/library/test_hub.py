"""Data sets in the layout of a hub: Parquet, configurations, save_to_disk, scripts, and damaged files."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import DataError
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import DataConfig, SplitFiles

SPLITS = ("train", "validation", "test")


def rows(*names: str) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"dialogue": f"A: {name}", "summary": f"It is {name}."} for name in names])


def parquet(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows(*names).to_parquet(path)


def config(folder: Path, **options: Any) -> DataConfig:
    return DataConfig(source="hub", path=str(folder), **options)


def counts(data: DataConfig) -> dict[str, int]:
    return {split: len(examples) for split, examples in load_dataset(data).splits.items()}


def failure(data: DataConfig) -> DataError:
    with pytest.raises(DataError) as raised:
        load_dataset(data)
    assert raised.value.hint
    assert "\n" not in raised.value.message
    return raised.value


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


@pytest.mark.parametrize(
    "card", [None, "", "# no front matter", "---\nlicense: [mit, cc0-1.0]\n---\n", "---\n: [\n---\n"]
)
def test_parquet_with_and_without_a_card(tmp_path: Path, card: str | None) -> None:
    for split in SPLITS:
        parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", split)
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    if card is not None and ": [" in card and "license" not in card:
        assert "README.md" in str(failure(config(tmp_path)).hint)
        return
    assert counts(config(tmp_path)) == dict.fromkeys(SPLITS, 1)
    assert load_dataset(config(tmp_path)).license == ("mit, cc0-1.0" if card and "license" in card else None)


def test_shards_are_complete(tmp_path: Path) -> None:
    for shard in (0, 1):
        parquet(tmp_path / f"train-{shard:05}-of-00002.parquet", f"a{shard}")
        (tmp_path / f"test-{shard:05}-of-00002.jsonl").write_text(json.dumps(rows(f"t{shard}")[0]) + "\n")
    (tmp_path / "test-00000-of-00002.jsonl").rename(tmp_path / "test-00000-of-00003.jsonl")
    assert "shards are missing" in failure(config(tmp_path)).message


@pytest.fixture
def two(tmp_path: Path) -> Path:
    for language in ("en", "de"):
        parquet(tmp_path / language / "train.parquet", f"{language} train")
        parquet(tmp_path / language / "dev.parquet", f"{language} dev")
    entries = [
        {
            "config_name": language,
            "data_files": [
                {"split": "train", "path": f"{language}/train.parquet"},
                {"split": "dev", "path": f"{language}/dev.parquet"},
                {"split": "extra", "path": f"{language}/dev.parquet"},
            ],
        }
        for language in ("en", "de")
    ]
    (tmp_path / "README.md").write_text(f"---\n{json.dumps({'configs': entries})}\n---\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("null", "train.json:1: null is not a row"),
        ('{"dialogue": "null [", "summary": "b"}\nnull\n', "train.json:2: null is not a row"),
        ("NaN", "train.json:1: NaN is not a row"),
        ('[{"dialogue": "a", "summary": "b"}, {"\udcff": 1}]', "train.json:1 is not UTF-8"),
        ('{"a":' * 30_000 + "1" + "}" * 30_000, "train.json:1: nested more than 500 times"),
        ('{"a":' + "[" * 30_000 + "]" * 30_000 + "}", "train.json:1: nested more than 500 times"),
    ],
)
def test_json_that_crashes_the_reader_is_rejected(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "train.json").write_bytes(text.encode(errors="surrogateescape"))
    assert fault in failure(config(tmp_path)).message


def test_a_configuration_is_selected_by_name(two: Path) -> None:
    error = failure(config(two))
    assert "has several configurations: en, de" in error.message
    assert error.hint == "choose one: data.config=en"
    error = failure(config(two, config="fr"))
    assert "data.config = 'fr' is not one of en, de" in error.message
    dataset = load_dataset(config(two, config="de"))
    assert dataset["validation"][0].dialogue == "A: de dev"
    assert dataset.unused == ("split extra",)


def test_config_is_a_key_of_the_hub_only(two: Path) -> None:
    overrides = ["data.source=hub", f"data.path={two}", "data.revision=abc", "data.config=en"]
    data = load_recipe("tiny", overrides).data
    assert (data.config, data.revision) == ("en", "abc")
    with pytest.raises(Exception, match="config requires source 'hub'"):
        load_recipe("tiny", ["data.source=jsonl", f"data.path={two}", "data.config=en"])


def test_a_configuration_keeps_the_revision_of_the_base_recipe(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: tiny\ndata: {source: hub, path: a/b, revision: abc}\n")
    (tmp_path / "child.yaml").write_text("extends: base.yaml\ndata: {config: en}\n")
    data = load_recipe(str(tmp_path / "child.yaml")).data
    assert (data.config, data.revision) == ("en", "abc")


def test_save_to_disk(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": rows("a", "b"), "dev": rows("c"), "extra": rows("d")}).save_to_disk(tmp_path / "all")
    assert counts(config(tmp_path / "all")) == {"train": 2, "validation": 1}
    assert load_dataset(config(tmp_path / "all")).unused == ("split extra",)
    assert failure(config(tmp_path / "all", config="en")).hint == "omit data.config"
    rows("a").save_to_disk(tmp_path / "one")
    assert counts(config(tmp_path / "one")) == {"train": 1}
    rows("t").save_to_disk(tmp_path / "my-test")
    assert counts(config(tmp_path / "my-test")) == {"test": 1}
    (tmp_path / "one" / "data-00000-of-00001.arrow").write_bytes(b"x")
    assert "cannot be read" in failure(config(tmp_path / "one")).message


def test_two_splits_of_one_kind(tmp_path: Path) -> None:
    datasets.DatasetDict({"val": rows("a"), "dev": rows("b")}).save_to_disk(tmp_path / "all")
    error = failure(config(tmp_path / "all"))
    assert "val and dev in data.path" in error.message
    assert error.hint == "choose one: data.files.validation=val"
    chosen = load_dataset(config(tmp_path / "all", files=SplitFiles(validation="dev", train="val")))
    assert [chosen[split][0].dialogue for split in ("train", "validation")] == ["A: a", "A: b"]
    assert "use one of its splits: val, dev" in str(failure(config(tmp_path / "all", files=SplitFiles(test="x"))).hint)
    parquet(tmp_path / "files" / "train.parquet", "a")
    parquet(tmp_path / "files" / "old" / "train.parquet", "b")
    message = failure(config(tmp_path / "files")).message
    assert "old/train.parquet and train.parquet" in message
    datasets.DatasetDict({"extra": rows("a")}).save_to_disk(tmp_path / "none")
    assert "no train, validation or test split; splits: extra" in failure(config(tmp_path / "none")).message


def test_a_loading_script_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "samsum"
    folder.mkdir()
    (folder / "samsum.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    error = failure(config(folder))
    assert "is read by a script, which is not run: samsum.py" in error.message
    assert "hf download ID --repo-type dataset --revision refs/convert/parquet" in str(error.hint)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.parquet", b"PAR1 PAR1"),
        ("train.parquet", b""),
        ("train.jsonl", b'{"dialogue": "a", "summary": "b"}\n{"dialogue"'),
        ("train.jsonl", b"\xff\xfe\x00\xff"),
        ("train.arrow", b"junk"),
        ("README.md", b"---\nconfigs: 5\n---\n"),
        ("dataset_dict.json", b"{"),
        ("dataset_dict.json", b'{"splits": ["train"]}'),
    ],
)
def test_a_damaged_folder_is_an_error_of_the_data(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path) in failure(config(tmp_path)).message


def test_columns_of_another_type(tmp_path: Path) -> None:
    rows_of_lists = [{"dialogue": ["A: a", "B: b"], "summary": "s"}, {"dialogue": [], "summary": "s"}]
    datasets.Dataset.from_list(rows_of_lists).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="join the turns to one string") as raised:
        load_dataset(config(tmp_path))
    assert "/train:2: not text: 'dialogue' is []" in raised.value.message


def test_a_hub_id_that_no_hub_can_have(tmp_path: Path) -> None:
    for path in ("a/b/c/d", "x" * 5000, "with space/set", ""):
        failure(DataConfig(source="hub", path=path))


def test_files_with_numbers_are_joined_in_order(tmp_path: Path) -> None:
    for name in ("train_0", "train_1", ".cache/train"):
        parquet(tmp_path / f"{name}.parquet", name)
    assert [example.dialogue for example in load_dataset(config(tmp_path))["train"]] == ["A: train_0", "A: train_1"]
