"""`neuron-sum results`: a published experiment is trained, compared and printed next to the published scores."""

import json
import os
import shutil
from pathlib import Path

import pytest
from in_process import neuron_sum
from typer.testing import Result

from neuron_sum.evaluation.published import find_experiment, published_experiments
from neuron_sum.evaluation.rouge import ROUGE_TYPES
from neuron_sum.recipes.loading import load_recipe, shipped_recipes

FLAN_T5 = "NEURON_SUM_FLAN_T5"
"""The environment variable with a folder of google/flan-t5-base."""
SMALL = (
    "data.source=sample",
    "data.max_examples=16",
    "data.max_source_length=192",
    "data.max_target_length=48",
    "data.max_test_examples=4",
    "train.max_steps=2",
    "generate.max_new_tokens=6",
)


@pytest.fixture
def base(tmp_path: Path, micro_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(micro_run / "base", tmp_path / "flan"))


def results(*overrides: str, options: tuple[str, ...] = ()) -> Result:
    changes = [word for override in overrides for word in ("--set", override)]
    return neuron_sum("results", "flan-t5-base", *changes, *options)


def test_the_experiment_is_repeated_and_finished_runs_are_used_again(base: Path, tmp_path: Path) -> None:
    small = (*SMALL, f"model.name_or_path={base}")
    made = results(*small, options=("--json",))
    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)
    assert [row["system"] for row in told["systems"]] == ["untuned", "full", "lora", "lead-3"]
    assert [row["published"] and row["published"]["ROUGE-1"] for row in told["systems"]] == [23.34, 42.16, 40.81, None]
    assert all({"value", "low", "high"} == set(row["measured"]["ROUGE-1"]) for row in told["systems"])
    assert {"data.max_test_examples=4", "train.max_steps = 2"} <= set(told["changed"]), "not the published settings"
    assert not any("model.name_or_path" in change for change in told["changed"])
    assert any(change.startswith("another model than google/flan-t5-base: ") for change in told["changed"])
    assert "data = sample" in told["changed"]
    assert json.loads((tmp_path / "runs" / "results-flan-t5-base" / "results.json").read_text()) == told
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/all_results.json")}
    assert len(stamps) == 2

    (tmp_path / "runs" / "flan-t5-base-lora" / "all_results.json").unlink()  # as after a kill
    again = results(*small)
    assert again.exit_code == 0, again.output
    assert "flan-t5-base-full is already a finished run" in again.stderr
    new = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/all_results.json")}
    assert [path.parent.name for path in new if new[path] != stamps[path]] == ["flan-t5-base-lora"]
    assert "42.16" in again.stdout
    assert "Generative AI with LLMs" in again.stdout
    assert "not the published experiment: " in again.stderr

    small = (*SMALL, f"model.name_or_path={base.rename(tmp_path / 'moved')}")
    moved = results(*small)
    assert moved.exit_code == 0, moved.output
    assert "flan-t5-base-lora is already a finished run" in moved.stderr

    other = results(*small, "train.learning_rate=0.5")
    assert other.exit_code == 8
    assert "train.learning_rate: 1e-05 in the run, 0.5 now" in other.stderr
    assert "--output FOLDER" in other.stderr
    weights = tmp_path / "moved" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    replaced = results(*small)
    assert replaced.exit_code == 8
    assert "weights of the base model" in replaced.stderr


@pytest.mark.parametrize("harm", ["hub", "no folder", "empty folder", "no weights", "random"])
def test_missing_weights_are_reported_before_anything_is_trained(base: Path, tmp_path: Path, harm: str) -> None:
    if harm == "no weights":
        (base / "model.safetensors").unlink()
    if harm == "empty folder":
        shutil.rmtree(base)
        base.mkdir()
    source = {
        "hub": (),
        "no folder": ("model.name_or_path=./none",),
        "random": ("model.config={model_type: t5}", "model.tokenizer.vocab_size=400"),
    }.get(harm, (f"model.name_or_path={base}",))
    made = results(*SMALL, *source)
    assert made.exit_code == (3 if harm == "random" else 5), made.output
    kept = " ".join(f"--set {change}" for change in SMALL)
    command = f"neuron-sum results flan-t5-base {kept} --set model.name_or_path=FOLDER --output runs"
    assert command in " ".join(made.stderr.split())
    assert not (tmp_path / "runs").exists()


def test_an_unknown_experiment_is_rejected_with_the_known_ones() -> None:
    made = neuron_sum("results", "flan-t5-bse")
    assert made.exit_code == 3
    assert "unknown experiment 'flan-t5-bse'; valid: flan-t5-base" in made.stderr


@pytest.mark.parametrize("name", published_experiments())
def test_published_experiments_name_shipped_recipes_of_one_model(name: str) -> None:
    experiment = find_experiment(name)
    assert set(experiment.runs.values()) <= set(shipped_recipes())
    assert len({load_recipe(recipe).model.name_or_path for recipe in experiment.runs.values()}) == 1
    assert set(experiment.scores) == {"untuned", *experiment.runs}
    assert all(set(scores) < set(ROUGE_TYPES.values()) for scores in experiment.scores.values())


@pytest.mark.slow
@pytest.mark.skipif(FLAN_T5 not in os.environ, reason=f"no weights of FLAN-T5-base (set {FLAN_T5}=FOLDER)")
def test_flan_t5_base_has_its_published_score_and_compiles_exactly(tmp_path: Path, shared_data: Path) -> None:
    """The folder is used as it is; takes some minutes."""
    from compile.exporters.own import build, make_plan
    from compile.source import open_source
    from compile.verify import verify

    folder, dialogsum = os.environ[FLAN_T5], shared_data / "dialogsum"
    data = ["data.source=dialogsum", f"data.path={dialogsum}"]
    shapes = ["compile.batch_sizes=[4]", "compile.source_lens=[512]"]
    source = open_source(Path(folder), "flan-t5-base-full", [*data, *shapes])
    artifact = build(source, make_plan(source), tmp_path / "artifact", overwrite=False, jobs=None)
    record = verify(artifact, None, 12, 0.0).record
    assert [check.identical for check in record.checks] == [12]

    settings = [*data, f"model.name_or_path={folder}", "data.max_test_examples=100"]
    changes = [word for change in settings for word in ("--set", change)]
    output = tmp_path / "untuned"
    made = neuron_sum(
        "evaluate", "untuned", "--recipe", "flan-t5-base-full", *changes, "--output", str(output), "--json"
    )
    assert made.exit_code == 0, made.output
    [system] = json.loads(made.stdout)["systems"]
    published = find_experiment("flan-t5-base").scores["untuned"]
    for kind, value in published.items():  # 100 of the 500 dialogues
        assert abs(system["scores"][kind]["value"] - value) < 4, kind
