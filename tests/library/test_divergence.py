"""Training stops at figures that are not finite, and keeps the last good checkpoint."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState

from neuron_sum import files
from neuron_sum.errors import DivergedError
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.runs.folder import CHECKPOINT_MARK, RunFolder
from neuron_sum.training.callbacks import StopOnDivergence
from neuron_sum.training.torch.trainer import HFTrainer
from neuron_sum.training.train import train


def diverge(recipe: Path, output: Path, overrides: Sequence[str], *, resume: bool = False) -> DivergedError:
    with pytest.raises(DivergedError) as error:
        train(load_recipe(str(recipe), [*overrides]), output, resume=resume)
    run = RunFolder(output, load_recipe(str(output / "recipe.yaml")))
    assert not run.is_complete
    assert not run.weights.exists()
    assert all(math.isfinite(value) for entry in files.read_jsonl(run.log) for value in entry.values())
    return error.value


def test_a_high_learning_rate_stops_at_once_and_keeps_the_good_checkpoint(tmp_path: Path, micro: Path) -> None:
    overrides = ["train.learning_rate=1e30", "train.save_steps=1"]
    error = diverge(micro, tmp_path / "run", overrides)
    run = RunFolder(tmp_path / "run", load_recipe(str(micro), overrides))
    assert error.exit_code == 15
    # Warm-up: the first step has learning rate 0, and the second one makes weights of 1e30, which are finite.
    assert "the norm of the gradients is not a finite number after step 2 of 12" in error.message
    assert f"the last good checkpoint is {run.checkpoints}/checkpoint-1" in error.message
    assert "lower train.learning_rate" in str(error.hint)
    assert f"`{run.resume_command}` continues from step 1" in str(error.hint)
    assert run.last_checkpoint() == run.checkpoints / "checkpoint-1"
    saved = load_file(run.checkpoints / "checkpoint-1" / "model.safetensors")
    assert all(float(weight.abs().max()) < 100 for weight in saved.values())
    again = diverge(micro, tmp_path / "run", overrides, resume=True)
    assert "after step 2 of 12" in again.message
    assert run.last_checkpoint() == run.checkpoints / "checkpoint-1"


@pytest.mark.parametrize("overrides", [["method=lora"], ["train.max_grad_norm=1e9"], ["train.save_steps=2"]])
def test_every_kind_of_run_stops(tmp_path: Path, micro: Path, overrides: list[str]) -> None:
    error = diverge(micro, tmp_path / "run", ["train.learning_rate=1e38", "train.warmup_ratio=0", *overrides])
    assert "no checkpoint was saved before" in error.message
    assert not [*(tmp_path / "run" / "checkpoints").glob(f"*/{CHECKPOINT_MARK}")]


def test_weights_are_checked_before_they_are_saved(
    tmp_path: Path, micro: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: HFTrainer, *inputs: object) -> torch.Tensor:
        loss = step(self, *inputs)
        if self.state.global_step == 7:  # the next checkpoint is that of step 8
            with torch.no_grad():
                next(self.model.parameters())[0, 0] = torch.nan
        return loss

    step = HFTrainer.training_step
    monkeypatch.setattr(HFTrainer, "training_step", spoil)
    error = diverge(micro, tmp_path / "run", ["train.max_grad_norm=1e9"])
    assert "a weight is not a finite number after step 8 of 12" in error.message
    assert "the last good checkpoint is" in error.message
    assert {path.parent.name for path in tmp_path.glob("run/checkpoints/*/model.safetensors")} == {"checkpoint-4"}


def test_a_validation_loss_that_is_not_finite_stops_too(
    tmp_path: Path, micro: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = HFTrainer.evaluation_loop

    def spoiled(self: HFTrainer, *args: object, **options: object) -> object:
        output = real(self, *args, **options)
        output.metrics["eval_loss"] = math.inf
        return output

    monkeypatch.setattr(HFTrainer, "evaluation_loop", spoiled)
    error = diverge(micro, tmp_path / "run", [])
    assert "the validation loss is not a finite number after step 8 of 12" in error.message
    assert "checkpoint-4" in error.message, "that of step 8 has the same weights"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logged_figures_are_checked_without_reading_every_step(tmp_path: Path, value: float) -> None:
    """As the Neuron backend does, whose device would wait at each step."""
    run = RunFolder(tmp_path, load_recipe("tiny"))
    for step in (5, 10, 15):
        (run.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        (run.checkpoints / f"checkpoint-{step}" / CHECKPOINT_MARK).write_text("{}")
    stop, control, args = StopOnDivergence(run, every_step=False), TrainerControl(), SimpleNamespace()
    state = TrainerState(global_step=0, max_steps=20)
    stop.on_train_begin(args, state, control)
    for step in range(1, 16):
        state.global_step = step
        stop.on_step_end(args, state, control)
        if step == 12:
            stop.on_log(args, state, control, {"loss": 1.0, "grad_norm": 2.0, "learning_rate": 0.1})
    with pytest.raises(DivergedError, match=r"after step 15 of 20 .*; the last good checkpoint is .*checkpoint-10"):
        stop.on_log(args, state, control, {"loss": value})
    assert run.last_checkpoint() == run.checkpoints / "checkpoint-10"


def test_a_base_model_with_a_loss_that_is_not_finite_is_named(tmp_path: Path) -> None:
    stop = StopOnDivergence(RunFolder(tmp_path, load_recipe("tiny")), every_step=True)
    with pytest.raises(DivergedError, match="after step 0") as error:
        stop.check(False, "the training loss", TrainerState(max_steps=20))
    assert error.value.hint == "check the weights of the base model"
