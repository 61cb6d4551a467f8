"""Training: a killed run ends like an uninterrupted one, and impossible runs are rejected.

test_processes.py tests several processes.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from micro_models import NEURON
from safetensors.torch import load_file
from training_runs import (
    LONG,
    assert_a_kill_changes_nothing,
    assert_same_weights,
    log,
    start,
    wait_for,
    weights,
)
from transformers import T5Config, T5ForConditionalGeneration, TrainerControl, TrainerState
from transformers.trainer_pt_utils import LabelSmoother

from neuron_sum import files
from neuron_sum.errors import DataError, ResourceError, RunError
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.runs.folder import RunFolder, describe_damage, open_run, start_run
from neuron_sum.training import loss as loss_module
from neuron_sum.training import slices
from neuron_sum.training.callbacks import MarkComplete
from neuron_sum.training.estimate import memory
from neuron_sum.training.estimate.memory import DeviceMemory
from neuron_sum.training.loss import TokenLoss
from neuron_sum.training.train import prepare, train

CommandLine = Callable[..., subprocess.CompletedProcess[str]]


def test_a_run_writes_hugging_face_files_and_no_pickle(micro_run: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    for name in (
        "recipe.yaml",
        "all_results.json",
        "log.jsonl",
        "checkpoint/model.safetensors",
        "checkpoint/README.md",
    ):
        assert (micro_run / name).is_file(), name
    assert not [path for path in micro_run.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not (micro_run / "checkpoints").exists()
    model = AutoModelForSeq2SeqLM.from_pretrained(micro_run / "checkpoint")
    assert len(AutoTokenizer.from_pretrained(micro_run / "checkpoint")) <= model.config.vocab_size
    results = json.loads((micro_run / "all_results.json").read_text())
    assert results["global_step"] == 12
    assert results["trainable_parameters"] == results["all_parameters"] == sum(p.numel() for p in model.parameters())
    log = files.read_jsonl(micro_run / "log.jsonl")
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, 13))
    assert any("eval_loss" in entry for entry in log)
    assert log[-2]["loss"] < log[0]["loss"]


def test_a_random_base_is_kept_and_depends_on_the_seed(micro_run: Path, micro_lora_run: Path) -> None:
    full, lora = (load_file(run / "base" / "model.safetensors") for run in (micro_run, micro_lora_run))
    assert all(torch.equal(full[name], lora[name]) for name in full)
    assert any(not torch.equal(full[name], value) for name, value in weights(micro_run).items())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora", "prompt_tuning"])
def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(tmp_path: Path, micro: Path, method: str) -> None:
    assert_a_kill_changes_nothing(tmp_path, str(micro), f"method={method}", "train.gradient_accumulation_steps=2")
    assert log(tmp_path / "killed", "step") == [[step] for step in (1, *range(10, 81, 10))]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.thorough)])
def test_ctrl_c_saves_and_prints_the_resume_command(tmp_path: Path, micro_llama: Path, number: int) -> None:
    arguments = (str(micro_llama), *LONG)
    process = start(tmp_path, *arguments, "--output", "stopped")
    wait_for(tmp_path / "stopped" / "checkpoints" / "checkpoint-10" / "complete", process)
    process.send_signal(number)
    message = process.communicate(timeout=120)[1]
    assert process.returncode == 130, message
    assert "everything so far is saved" in message
    assert "hint: neuron-sum train stopped/recipe.yaml --output stopped --resume" in message

    resumed = start(tmp_path, "stopped/recipe.yaml", "--output", "stopped", "--resume")  # the command in the hint
    message = resumed.communicate(timeout=300)[1]
    assert resumed.returncode == 0, message
    counts = re.search(r"(\d+) of (\d+) optimizer steps.*continuing from checkpoint-(\d+)", message, re.DOTALL)
    assert counts, message
    left, all_steps, done = map(int, counts.groups())
    assert done >= 10 and left == all_steps - done
    whole = start(tmp_path, *arguments, "--output", "whole")
    assert whole.communicate(timeout=300) and whole.returncode == 0
    assert_same_weights(tmp_path / "stopped", tmp_path / "whole")


def test_a_checkpoint_cut_by_a_kill_is_skipped(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, load_recipe("tiny"))
    for step in (90, 100):
        (run.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        (run.checkpoints / f"checkpoint-{step}" / "complete").write_text("{}")
    (run.checkpoints / "checkpoint-110").mkdir()
    assert run.last_checkpoint() == run.checkpoints / "checkpoint-100"


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda folder: os.truncate(folder / "part" / "model.safetensors", 3), "model.safetensors has 3 of 8 bytes"),
        (lambda folder: (folder / "complete").write_text('{"optimizer.pt": 5, '), "its mark cannot be read"),
        (lambda folder: (folder / "complete").write_text(""), "its mark cannot be read"),
    ],
)
def test_a_marked_checkpoint_with_missing_files_is_skipped(
    tmp_path: Path, harm: Callable[[Path], object], told: str
) -> None:
    """SageMaker copies a checkpoint to S3 file by file, and after an interruption restores the files copied by then."""
    run = RunFolder(tmp_path, load_recipe("tiny"))
    for step in (90, 100):
        folder = run.checkpoints / f"checkpoint-{step}"
        (folder / "part").mkdir(parents=True)
        (folder / "optimizer.pt").write_bytes(b"state")
        (folder / "part" / "model.safetensors").write_bytes(b"8 weight")
        state = TrainerState(global_step=step, is_world_process_zero=True)
        MarkComplete().on_save(SimpleNamespace(output_dir=str(run.checkpoints)), state, TrainerControl())
    assert run.last_checkpoint() == run.checkpoints / "checkpoint-100"
    (run.checkpoints / "checkpoint-100" / "log-of-another-program").touch()  # additional files are accepted
    assert run.last_checkpoint() == run.checkpoints / "checkpoint-100"
    harm(run.checkpoints / "checkpoint-100")
    assert run.last_checkpoint() == run.checkpoints / "checkpoint-90"
    assert told in (describe_damage(run.checkpoints / "checkpoint-100") or "")


def test_an_existing_folder_is_never_overwritten_silently(tmp_path: Path, micro_run: Path) -> None:
    recipe = open_run(micro_run).recipe
    with pytest.raises(RunError, match="finished run") as raised:
        start_run(micro_run, recipe, processes=1, resume=False, overwrite=False)
    assert "--overwrite" in str(raised.value.hint)
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"learning_rate": 0.5})})
    with pytest.raises(RunError, match=r"train\.learning_rate: 0\.002 in the run, 0\.5 now"):
        start_run(micro_run, other, processes=1, resume=True, overwrite=False)
    start_run(
        micro_run, recipe.model_copy(update={"description": "new words"}), processes=1, resume=True, overwrite=False
    )
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(RunError, match="photos is not empty and not a run"):
        start_run(tmp_path / "photos", recipe, processes=1, resume=False, overwrite=True)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(micro_run, unfinished)
    (unfinished / "all_results.json").unlink()
    with pytest.raises(RunError, match=r"the run in .* is unfinished"):
        open_run(unfinished)


@pytest.mark.parametrize("backend", [(), NEURON], ids=["torch", "neuron"])
def test_a_run_resumes_only_with_its_number_of_processes(tmp_path: Path, backend: tuple[str, ...]) -> None:
    recipe = load_recipe("tiny", backend)
    run = RunFolder(tmp_path, recipe)
    files.write_text(run.recipe_path, recipe.to_yaml())
    run.write_record({})
    run.record_processes(2, 1)
    start_run(tmp_path, recipe, processes=1, resume=True, overwrite=False)  # no checkpoint exists yet
    (run.checkpoints / "checkpoint-2").mkdir()
    (run.checkpoints / "checkpoint-2" / "complete").write_text("{}")
    start_run(tmp_path, recipe, processes=2, resume=True, overwrite=False)
    start_run(tmp_path, recipe, processes=1, resume=False, overwrite=True)
    with pytest.raises(RunError, match="started with 2 processes, but this command uses one process") as raised:
        start_run(tmp_path, recipe, processes=1, resume=True, overwrite=False)
    command = f"neuron-sum train {tmp_path}/recipe.yaml --output {tmp_path} --resume"
    assert raised.value.hint == f"run `{command} --processes 2`"
    with pytest.raises(RunError, match=r"the run in .* is unfinished") as raised:
        open_run(tmp_path)
    assert raised.value.hint == f"run `{command} --processes 2` to finish it"
    run.record_processes(1, 1)
    with pytest.raises(RunError, match="started with one process, but this command uses 2 processes") as raised:
        start_run(tmp_path, recipe, processes=2, resume=True, overwrite=False)
    assert raised.value.hint == f"run `{command}`"


def test_overwrite_replaces_the_run_and_nothing_else(tmp_path: Path, micro: Path) -> None:
    recipe = load_recipe(str(micro), ["train.max_steps=2"])
    train(recipe, tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = weights(tmp_path / "run")
    with pytest.raises(DataError):  # found before anything of the old run is deleted
        train(load_recipe(str(micro), ["data.source=jsonl", f"data.path={tmp_path}"]), tmp_path / "run", overwrite=True)
    assert weights(tmp_path / "run").keys() == before.keys()
    train(load_recipe(str(micro), ["train.max_steps=2", "train.seed=1"]), tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert any(not torch.equal(value, before[name]) for name, value in weights(tmp_path / "run").items())
    with pytest.raises(RunError, match="--resume and --overwrite cannot be combined"):
        start_run(tmp_path / "run", recipe, processes=1, resume=True, overwrite=True)


def test_resume_repairs_a_run_killed_between_weights_and_results(tmp_path: Path, micro: Path) -> None:
    recipe = load_recipe(str(micro), ["train.max_steps=3"])
    train(recipe, tmp_path / "run")
    before = weights(tmp_path / "run")
    (tmp_path / "run" / "all_results.json").unlink()
    train(recipe, tmp_path / "run", resume=True)
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path / "run").items())
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("overrides", [["train.num_train_epochs=3"], ["train.num_train_epochs=1.5"]])
def test_the_estimated_number_of_steps_is_trained(tmp_path: Path, micro: Path, overrides: list[str]) -> None:
    common = ["train.max_steps=null", "data.max_examples=20", "train.gradient_accumulation_steps=2", *overrides]
    recipe = load_recipe(str(micro), common)
    promised = prepare(recipe, tmp_path / "run").estimate.steps
    assert train(recipe, tmp_path / "run").read_results()["global_step"] == promised


def test_resuming_a_finished_run_changes_nothing(micro_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in micro_run.rglob("*")}
    train(open_run(micro_run).recipe, micro_run, resume=True)
    assert {path: path.stat().st_mtime_ns for path in micro_run.rglob("*")} == before


def test_dry_run_estimates_and_writes_nothing(tmp_path: Path, micro: Path, neuron_sum: CommandLine) -> None:
    made = neuron_sum("train", str(micro), "--dry-run", "--json")
    assert made.returncode == 0, made.stderr
    estimate = json.loads(made.stdout)["estimate"]
    assert estimate["steps"] == 12
    assert estimate["seconds"] > 0
    assert "this will take about" in made.stderr
    assert not (tmp_path / "runs").exists()


def test_rows_that_do_not_fit_are_rejected_with_a_batch_that_does(
    tmp_path: Path, micro: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 rows of at most 199 positions are computed five at a time, and there is room for two."""
    monkeypatch.setattr(slices, "VALUES", 1000 * 32)
    options = ["train.per_device_train_batch_size=100", "train.gradient_accumulation_steps=2", "train.max_steps=1"]
    recipe = load_recipe(str(micro), options)
    needed = prepare(recipe, tmp_path / "run").estimate.memory
    assert isinstance(needed, DeviceMemory)
    assert needed.rows == pytest.approx(1000 / 199, rel=0.05)
    free = needed.memory - 0.6 * needed.activations * memory.MEMORY_MARGIN + 1
    monkeypatch.setattr(memory, "available_memory", lambda: (free, "this machine's CPU"))
    with pytest.raises(ResourceError, match="of memory") as raised:
        train(recipe, tmp_path / "run")
    change = "train.per_device_train_batch_size=2 train.gradient_accumulation_steps=100"
    assert change in str(raised.value.hint)
    assert not (tmp_path / "run").exists()
    assert prepare(load_recipe(str(micro), [*options, *change.split()]), tmp_path / "run").estimate.memory.fits


def test_a_full_disk_and_an_unwritable_folder_are_reported_first(
    tmp_path: Path, micro: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be written"):
        train(load_recipe(str(micro)), tmp_path / "file" / "run")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ResourceError, match="free, this run needs"):
        train(load_recipe(str(micro)), tmp_path / "run")


def test_tensorboard_gets_the_losses(tmp_path: Path, micro: Path) -> None:
    train(load_recipe(str(micro), ["train.report_to=[tensorboard]"]), tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("method", ["full", "prompt_tuning"])
def test_training_and_validation_compute_logits_only_at_labels(
    tmp_path: Path, micro_llama: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    rows: dict[bool, list[tuple[int, int]]] = {True: [], False: []}

    def record(logits: torch.Tensor, labels: torch.Tensor, **options: object) -> torch.Tensor:
        rows[torch.is_grad_enabled()].append((len(logits), int((labels != -100).sum())))
        return torch.nn.functional.cross_entropy(logits, labels, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loss_module, "cross_entropy", record)
    train(load_recipe(str(micro_llama), [f"method={method}", "train.max_steps=2"]), tmp_path / "run")
    for figures in rows.values():
        positions, labels = map(sum, zip(*figures, strict=True))
        assert labels < positions < 6 * labels  # prompts have none


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_equals_that_of_transformers(smoothing: float) -> None:
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ).eval()
    labels = torch.randint(2, 50, (3, 7))
    labels[1, 4:] = -100
    outputs = model(input_ids=torch.randint(2, 50, (3, 9)), labels=labels)
    expected = LabelSmoother(smoothing)({"logits": outputs.logits}, labels) if smoothing else outputs.loss
    loss = TokenLoss(shifted=False, label_smoothing=smoothing)
    assert torch.allclose(loss({"logits": outputs.logits}, labels), expected)
    whole = loss({"logits": outputs.logits}, labels, num_items_in_batch=int((labels != -100).sum()))
    assert torch.allclose(whole, expected)
