"""What a result depends on is recorded, compared wherever it is used again, and named where it differs."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from in_process import neuron_sum

from neuron_sum import files
from neuron_sum.data import sources
from neuron_sum.errors import RunError
from neuron_sum.evaluation.generate import PREDICTIONS, fingerprint, keep, read_kept
from neuron_sum.evaluation.predictions import Prediction, PredictionColumns
from neuron_sum.evaluation.session import Session
from neuron_sum.evaluation.systems import parse_systems
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.runs import fingerprint as fingerprints
from neuron_sum.runs.fingerprint import BASE, TRAINED, file_hash, of_base, of_model, open_trained
from neuron_sum.runs.folder import RunFolder, open_run, start_run
from neuron_sum.training.train import prepare


@pytest.fixture
def run(tmp_path: Path, micro_lora_run: Path) -> Path:
    return Path(shutil.copytree(micro_lora_run, tmp_path / "run"))


def flip(path: Path) -> None:
    """Changes one byte in the middle, and restores the time of the change."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


CHANGES = {
    "base weights": (lambda run: flip(run / "base/model.safetensors"), f"weights of {BASE}"),
    "base config": (lambda run: edit(run / "base/config.json", num_heads=4), f"configuration of {BASE}"),
    "base generation": (
        lambda run: edit(run / "base/generation_config.json", num_beams=4),
        f"generation configuration of {BASE}",
    ),
    "base generation removed": (
        lambda run: (run / "base/generation_config.json").unlink(),
        f"generation configuration of {BASE}",
    ),
    "base tokenizer": (lambda run: flip(run / "base/tokenizer.json"), f"tokenizer of {BASE}"),
    "adapter weights": (lambda run: flip(run / "adapter/adapter_model.safetensors"), f"weights of {TRAINED}"),
    "lora_alpha": (lambda run: edit(run / "adapter/adapter_config.json", lora_alpha=99), f"configuration of {TRAINED}"),
    "tokenizer": (lambda run: flip(run / "adapter/tokenizer.json"), f"tokenizer of {TRAINED}"),
    "end token": (
        lambda run: edit(run / "adapter/tokenizer_config.json", eos_token="<unk>"),
        f"tokenizer of {TRAINED}",
    ),
    "added tokens": (lambda run: (run / "adapter/added_tokens.json").write_text('{"<x>": 400}'), "tokenizer of"),
    "prompt": (
        lambda run: (run / "recipe.yaml").write_text(
            load_recipe(str(run / "recipe.yaml"), ["prompt.preset=course"]).to_yaml()
        ),
        "prompt",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_part_of_a_run_is_named(run: Path, change: str) -> None:
    open_trained(run)
    harm, part = CHANGES[change]
    harm(run)
    with pytest.raises(RunError, match=f"changed since .* was written: {part}") as raised:
        open_trained(run)
    assert "put the old files back" in str(raised.value.hint)


@pytest.mark.parametrize(
    "harmless",
    [
        lambda run: [os.utime(file) for file in run.rglob("*")],
        lambda run: (run / "base/model.fp16.safetensors").write_text("beside"),
        lambda run: (run / "adapter/README.md").write_text("another card"),
        lambda run: run.with_name("elsewhere").mkdir(),
    ],
    ids=["touched", "file beside", "model card", "nothing"],
)
def test_what_does_not_change_a_result_is_accepted(run: Path, harmless: Callable[[Path], object]) -> None:
    harmless(run)
    assert open_trained(run.rename(run.with_name("renamed"))).is_complete


@pytest.mark.parametrize(
    "words", [("merge",), ("evaluate",), ("summarize",), ("compare", "lead-3"), ("compile", "--dry-run")]
)
def test_every_command_refuses_a_replaced_base(run: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    flip(run / "base/model.safetensors")
    (tmp_path / "dialogue.txt").write_text("A: Hi.")
    dialogue = [str(tmp_path / "dialogue.txt")] if words[0] == "summarize" else []
    made = neuron_sum(*words, str(run), *dialogue)
    assert made.exit_code == 8, made.output
    assert f"weights of {BASE}" in made.stderr
    assert not (run / "merged").exists() and not (run / "evaluation").exists()


def test_a_run_of_an_older_version_is_refused_with_the_remedy(run: Path) -> None:
    (run / "run.json").unlink()
    with pytest.raises(RunError, match=r"lacks run\.json") as raised:
        open_run(run)
    assert "train again" in str(raised.value.hint)


def other_data(folder: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces one word in one line of a split of the bundled sample."""
    shutil.copytree(sources.SAMPLE, folder)
    file = folder / f"{split}.jsonl"
    file.write_text(file.read_text().replace(" the ", " THE ", 1))
    monkeypatch.setattr(sources, "SAMPLE", folder)


@pytest.mark.parametrize(("split", "part"), [("train", "training data"), ("validation", "validation data")])
def test_resuming_with_replaced_data_is_refused(
    run: Path, split: str, part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (run / "all_results.json").unlink()
    recipe = load_recipe(str(run / "recipe.yaml"))
    other_data(tmp_path / "sample", split, monkeypatch)
    with pytest.raises(RunError, match=f"changed since .* was written: {part}"):
        prepare(recipe, run, resume=True)


@pytest.mark.parametrize(
    ("harm", "part"),
    [
        (lambda run: flip(run / "base/model.safetensors"), f"weights of {BASE}"),
        (lambda run: shutil.rmtree(run / "base"), f"weights of {BASE}"),
        (lambda run: record(run, {"version of neuron-sum": "0.0.1"}), "version of neuron-sum (0.0.1, now "),
    ],
    ids=["weights", "missing", "version"],
)
def test_resuming_with_another_base_or_version_is_refused(run: Path, harm: Callable[[Path], object], part: str) -> None:
    (run / "all_results.json").unlink()
    harm(run)
    with pytest.raises(RunError) as raised:
        prepare(load_recipe(str(run / "recipe.yaml")), run, resume=True)
    assert part in raised.value.message
    assert "--overwrite" in str(raised.value.hint)


def test_a_renamed_folder_of_data_or_of_a_base_resumes(tmp_path: Path) -> None:
    """The content is compared instead of the path."""
    recipe = load_recipe("tiny", ["data.source=jsonl", "data.path=/one", "model.config=null", "model.name_or_path=/a"])
    run = RunFolder(tmp_path, recipe)
    files.write_text(run.recipe_path, recipe.to_yaml())
    run.write_record({})
    renamed = load_recipe(str(run.recipe_path), ["data.path=/two", "model.name_or_path=/b"])
    assert start_run(tmp_path, renamed, processes=1, resume=True, overwrite=False).recipe == renamed


def record(run: Path, changes: dict[str, str]) -> None:
    folder = RunFolder(run, load_recipe("tiny"))
    folder.write_record({**folder.read_record().fingerprint, **changes})


def test_evaluating_on_replaced_data_is_refused_unless_it_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    systems = parse_systems([str(run)])
    Session(systems, None, [], PredictionColumns())
    other_data(tmp_path / "sample", "test", monkeypatch)
    Session(systems, None, ["evaluate.split=validation"], PredictionColumns())
    Session(systems, str(run / "recipe.yaml"), [], PredictionColumns())
    with pytest.raises(RunError, match="test data") as raised:
        Session(systems, None, [], PredictionColumns())
    assert "--recipe" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("prompt.preset=course", "prompt"),
        ("generate.num_beams=3", "generation settings"),
        ("data.max_source_length=64", "data.max_source_length"),
        ("generate.batch_size=3", None),
        ("evaluate.use_stemmer=false", None),
    ],
)
def test_kept_predictions_are_reused_only_with_the_same_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, part: str | None
) -> None:
    recipe, model = load_recipe("tiny"), {f"weights of {TRAINED}": "a"}
    keep(tmp_path, fingerprint(recipe, ["1"], ["A: hi"], model), [Prediction("1", "x")], recipe.generate)
    kept = read_kept(tmp_path, fingerprint(load_recipe("tiny", [override]), ["1"], ["A: hi"], model))
    assert (kept is None) == (part is not None)
    assert (f"changed: {part}" in capsys.readouterr().err) == (part is not None)
    assert read_kept(tmp_path, fingerprint(recipe, ["1"], ["A: bye"], model)) is None
    assert read_kept(tmp_path, fingerprint(recipe, ["1"], ["A: hi"], {f"weights of {TRAINED}": "b"})) is None


@pytest.mark.parametrize("harm", [flip, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_kept_predictions_are_not_reused_if_their_file_changed(
    tmp_path: Path, harm: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {f"weights of {TRAINED}": "a"}
    keep(tmp_path, parts, [Prediction("1", "x"), Prediction("2", "y")], load_recipe("tiny").generate)
    assert read_kept(tmp_path, parts) == [Prediction("1", "x"), Prediction("2", "y")]
    harm(tmp_path / PREDICTIONS)
    assert read_kept(tmp_path, parts) is None
    assert f"changed: {PREDICTIONS}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "same"),
    [
        ("config", "other", False),
        ("skip_bad", True, False),
        ("encoding", "latin-1", False),
        ("delimiter", "\t", False),
        ("max_test_examples", 3, False),
        ("max_validation_examples", 3, True),
        ("max_examples", 3, True),
        ("license", "mit", True),
        ("max_source_length", 100, True),
        ("max_target_length", 100, True),
    ],
)
def test_runs_are_compared_only_on_the_same_dialogues(run: Path, name: str, value: object, same: bool) -> None:
    other = Path(shutil.copytree(run, run.with_name("other")))
    recipe = yaml.safe_load((other / "recipe.yaml").read_text())
    recipe["data"] |= {name: value} | ({"source": "hub", "path": "a/b"} if name == "config" else {})
    if name == "config":
        first = yaml.safe_load((run / "recipe.yaml").read_text())
        first["data"] |= {"source": "hub", "path": "a/b", "config": "one"}
        (run / "recipe.yaml").write_text(yaml.safe_dump(first))
    (other / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    if same:
        Session(parse_systems([str(run), str(other)], None), None, [], PredictionColumns())
        return
    with pytest.raises(RunError, match="other was trained on different data than run"):
        Session(parse_systems([str(run), str(other)], None), None, [], PredictionColumns())


def test_a_tokenizer_of_random_weights_is_identified_by_its_content(run: Path) -> None:
    folder = run / "base"
    recipe = load_recipe("tiny", [f"model.tokenizer={folder}"])
    before = of_base(recipe)
    moved = Path(shutil.copytree(folder, run.with_name("moved")))
    assert of_base(load_recipe("tiny", [f"model.tokenizer={moved}"])) == before
    flip(folder / "tokenizer.json")
    assert [part for part, value in of_base(recipe).items() if value != before[part]] == [f"tokenizer of {BASE}"]


@pytest.mark.parametrize("system", ["untuned", "folder"])
def test_summaries_of_a_folder_are_not_reused_after_its_weights_change(
    run: Path, system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (run / "base").rename("folder")
    settings = [
        "model.name_or_path=folder",
        "model.config=null",
        "data.max_test_examples=2",
        "generate.max_new_tokens=4",
    ]
    words = ["evaluate", system, "--recipe", "tiny", *(word for each in settings for word in ("--set", each))]
    predictions = tmp_path / "evaluation" / system / PREDICTIONS
    stamps = []
    for harm in (lambda: None, lambda: None, lambda: flip(tmp_path / "folder" / "model.safetensors")):
        harm()
        made = neuron_sum(*words)
        assert made.exit_code == 0, made.output
        stamps.append(predictions.stat().st_mtime_ns)
    assert stamps[0] == stamps[1] != stamps[2]
    assert f"not reused; changed: weights of {BASE if system == 'untuned' else TRAINED}" in made.stderr


@pytest.mark.parametrize("override", ["model.seed=1", "model.config.d_ff=64", "model.tokenizer.vocab_size=401"])
def test_random_weights_are_identified_by_configuration_and_seed(override: str) -> None:
    assert of_base(load_recipe("tiny")) == of_base(load_recipe("tiny", ["train.seed=9"]))
    assert of_base(load_recipe("tiny")) != of_base(load_recipe("tiny", [override]))


def test_the_shards_in_the_index_count_and_other_files_do_not(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("model-1.safetensors", "model-2.safetensors", "model-3.safetensors", "config.json"):
        (tmp_path / name).write_text(name)
    before = of_model(str(tmp_path), BASE)
    (tmp_path / "model-3.safetensors").write_text("not in the index")
    assert of_model(str(tmp_path), BASE) == before
    (tmp_path / "model-2.safetensors").write_text("another")
    assert [part for part, value in of_model(str(tmp_path), BASE).items() if value != before[part]] == [
        f"weights of {BASE}"
    ]


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Path]]:
    """A file that is hashed through the cache, and the files that were read; times settle at once."""
    reads: list[Path] = []
    real = files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: reads.append(path) or real(path))
    monkeypatch.setenv("NEURON_SUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "SETTLED_AFTER_S", 0.0)
    path = tmp_path / "large"
    path.write_bytes(bytes(fingerprints.CACHED_FROM_BYTES))
    time.sleep(0.01)
    return path, reads


def test_a_large_file_is_read_once(large: tuple[Path, list[Path]]) -> None:
    path, reads = large
    first = file_hash(path)
    assert file_hash(path) == first and len(reads) == 1
    flip(path)
    time.sleep(0.01)
    assert file_hash(path) != first, "the time of the change was set back"
    assert len(reads) == 2


@pytest.mark.parametrize("damage", [b"", b"0" * 64, b"\xff\xfe", b"{}", ("0" * 64 + " " + "1" * 64).encode()])
def test_a_damaged_cache_is_ignored(large: tuple[Path, list[Path]], damage: bytes, tmp_path: Path) -> None:
    path, reads = large
    first = file_hash(path)
    (entry,) = (tmp_path / "cache" / "hashes").iterdir()
    entry.write_bytes(damage)
    assert file_hash(path) == first and len(reads) == 2


def test_a_file_changed_just_now_is_not_cached(large: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = large
    monkeypatch.setattr(fingerprints, "SETTLED_AFTER_S", 2.0)
    file_hash(path)
    file_hash(path)
    assert len(reads) == 2


def test_hashing_works_without_a_cache(large: tuple[Path, list[Path]], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert file_hash(large[0]) == file_hash(large[0])
