"""Several training processes: they train like one, stop together, and fail with one error."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from training_runs import TORCHRUN, assert_same_weights, log, start, wait_for, weights
from transformers import TrainerControl, TrainerState

from neuron_sum.errors import DataError, RunError
from neuron_sum.runs.folder import open_run
from neuron_sum.training import callbacks

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
TWO = ("train.per_device_train_batch_size=4", "--processes", "2")


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True], ids=["ddp", "fsdp"])
def test_two_processes_have_the_loss_of_one(tmp_path: Path, micro: Path, neuron_sum: CommandLine, fsdp: bool) -> None:
    """Over gloo, with the same global batch and summaries of unequal length."""
    common = ("model.config.dropout_rate=0.0", "train.max_steps=24", "train.save_steps=12", "train.learning_rate=1e-3")
    one = neuron_sum("train", str(micro), *common, "train.per_device_train_batch_size=8", "--output", "one")
    assert one.returncode == 0, one.stderr
    halves = (*common, "train.per_device_train_batch_size=4", f"train.fsdp={str(fsdp).lower()}", "--output", "two")
    two = neuron_sum("train", str(micro), *halves, launcher=TORCHRUN)
    assert two.returncode == 0, two.stderr
    losses = [[loss for (loss,) in log(tmp_path / run, "loss")] for run in ("one", "two")]
    assert len(losses[0]) == 24
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)
    for name, value in weights(tmp_path / "one").items():
        assert torch.allclose(value, weights(tmp_path / "two")[name], atol=1e-4), name


@pytest.mark.slow
def test_a_sharded_run_resumes_where_it_stopped(tmp_path: Path, micro: Path) -> None:
    arguments = (
        "-m",
        "neuron_sum",
        "train",
        str(micro),
        "train.fsdp=true",
        "train.max_steps=60",
        "train.save_steps=10",
        "train.per_device_train_batch_size=4",
    )

    def launch(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*TORCHRUN, *arguments, *more], cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    stopped = launch("--output", "stopped")
    wait_for(tmp_path / "stopped" / "checkpoints" / "checkpoint-10" / "complete", stopped)
    stopped.send_signal(signal.SIGTERM)  # torchrun passes it on to both processes
    stopped.communicate(timeout=120)
    shards = list((tmp_path / "stopped" / "checkpoints").glob("checkpoint-*/pytorch_model_fsdp.bin"))
    assert shards, "nothing was sharded"
    assert not (tmp_path / "stopped" / "all_results.json").exists()
    for more in (("--output", "stopped", "--resume"), ("--output", "whole")):
        process = launch(*more)
        message = process.communicate(timeout=300)[1]
        assert process.returncode == 0, message
        assert ("continuing from checkpoint-" in message) == ("--resume" in more)
    assert_same_weights(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
def test_the_processes_option_starts_that_number(tmp_path: Path, micro: Path, neuron_sum: CommandLine) -> None:
    result = neuron_sum("train", str(micro), "train.max_steps=3", "--processes", "2", "--output", "two")
    assert result.returncode == 0, result.stderr
    results = open_run(tmp_path / "two").read_results()
    assert (results["global_step"], results["processes"]) == (3, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.thorough)]
)
def test_a_signal_reaches_every_process_and_all_save_and_end_together(tmp_path: Path, micro: Path, number: int) -> None:
    process = start(tmp_path, str(micro), "train.max_steps=100000", "train.save_steps=10", *TWO, "--output", "run")
    wait_for(tmp_path / "run" / "checkpoints" / "checkpoint-10" / "complete", process)
    process.send_signal(number)
    message = process.communicate(timeout=120)[1]
    assert process.returncode == 130, message
    assert message.count("error:") == 1 and "Traceback" not in message and "torch.distributed" not in message, message
    stopped = re.search("stopped at step ([0-9]+) of 100000; everything so far is saved", message)
    assert stopped, message
    assert (tmp_path / "run" / "checkpoints" / f"checkpoint-{stopped[1]}" / "complete").exists()
    hint = "neuron-sum train run/recipe.yaml --output run --resume --processes 2"
    assert f"hint: {hint}\n" in message
    alone = start(tmp_path, "run/recipe.yaml", "--output", "run", "--resume")
    assert hint in alone.communicate(timeout=120)[1]
    assert alone.returncode == RunError.exit_code


@contextmanager
def slow_to_save(folder: Path, recipe: Path) -> Iterator[subprocess.Popen[str]]:
    """Two running processes whose checkpoints take longer than torchrun's 30 s, and only slightly longer."""
    (folder / "sitecustomize.py").write_text(
        "import sys, time\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'neuron_sum.training.torch.trainer':\n"
        "            from transformers import Trainer\n"
        "            save = Trainer._save_checkpoint\n"
        "            def slow(self, *args, **kwargs):\n"
        "                if self.state.global_step > 1:\n"
        "                    time.sleep(35)\n"
        "                return save(self, *args, **kwargs)\n"
        "            Trainer._save_checkpoint = slow\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "neuron_sum",
            "train",
            str(recipe),
            "train.max_steps=100000",
            *TWO,
            "train.save_steps=100000",
            "train.logging_steps=1",
            "--output",
            "run",
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for(folder / "run" / "log.jsonl", process)
            while len(log(folder / "run")) < 3:
                assert process.poll() is None
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_processes_have_enough_time_to_save(tmp_path: Path, micro: Path) -> None:
    with slow_to_save(tmp_path, micro) as process:
        process.terminate()
        message = process.communicate(timeout=120)[1]
    assert process.returncode == 130, message
    assert "everything so far is saved" in message
    assert list((tmp_path / "run" / "checkpoints").glob("checkpoint-*/complete"))


def test_a_signal_during_the_exchange_stops_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other processes do not know of it yet; it must neither stop this process alone nor be lost."""
    monkeypatch.setattr(callbacks, "_is_distributed", lambda: True)
    exchanges = []

    def all_reduce(value: torch.Tensor, **_: object) -> None:
        exchanges.append(value.item())
        if len(exchanges) == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    stop, arguments = callbacks.StopOnSignal(), SimpleNamespace(device="cpu")
    ends = []
    previous = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop.listening():
        for step in (1, 2):
            control = TrainerControl()
            stop.on_step_end(arguments, TrainerState(global_step=step, max_steps=9), control)
            ends.append((control.should_save, control.should_training_stop))
    signal.signal(signal.SIGTERM, previous[0])  # it stays ignored after a stop of several processes
    assert signal.getsignal(signal.SIGINT) == previous[1]
    assert exchanges == [0, 1] and ends == [(False, False), (True, True)]


@pytest.mark.slow
def test_a_second_ctrl_c_ends_all_processes_at_once(tmp_path: Path, micro: Path) -> None:
    with slow_to_save(tmp_path, micro) as process:
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 2
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert any("stopping" in line for line in process.stderr)  # until then
        process.send_signal(signal.SIGINT)
        message = process.communicate(timeout=20)[1]
    assert process.returncode == 130, message
    assert message.split("\n")[-2:] == ["error: interrupted", ""]
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.slow
def test_an_error_of_a_process_is_printed_once(tmp_path: Path, micro: Path, neuron_sum: CommandLine) -> None:
    result = neuron_sum("train", str(micro), "data.source=csv", "data.path=nowhere", *TWO, "--output", "run")
    assert result.returncode == DataError.exit_code == 4, result.stderr
    lines = result.stderr.strip().split("\n")
    assert lines[0].startswith("error: ") and len(lines) <= 2, result.stderr
    result = neuron_sum("train", str(micro), "data.source=csv", "data.path=nowhere", *TWO, "--output", "run", "--json")
    assert result.returncode == 4
    assert json.loads(result.stderr)["error"]["exit_code"] == 4


def test_an_existing_folder_is_rejected_before_processes_start(
    tmp_path: Path, micro: Path, neuron_sum: CommandLine
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    result = neuron_sum("train", str(micro), *TWO, "--output", "run")
    assert result.returncode == RunError.exit_code, result.stderr
    assert result.stderr.startswith("error: run is not empty and not a run: it has no valid run.json")


@pytest.mark.slow
def test_a_process_that_is_killed_is_named(tmp_path: Path, micro: Path) -> None:
    process = start(tmp_path, str(micro), "train.max_steps=100000", "train.save_steps=10", *TWO, "--output", "run")
    wait_for(tmp_path / "run" / "checkpoints" / "checkpoint-10" / "complete", process)
    psutil.Process(process.pid).children()[1].kill()
    message = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "error: process 1 of 2 was killed by SIGKILL\nhint: after a SIGKILL, run `dmesg`" in message
    assert "Traceback" not in message
