"""Helpers for training runs: start one, kill and resume it, compare the weights and the log that it writes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from neuron_sum import files

LONG = ("train.max_steps=80", "train.save_steps=10", "train.logging_steps=10")
"""For the micro recipe: ten epochs of eight steps; checkpoints fall within epochs."""
TORCHRUN = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--nproc_per_node",
    "2",
    "--rdzv_backend",
    "c10d",
    "--rdzv_endpoint",
    "127.0.0.1:0",
)
"""Instead of the interpreter: two processes, on a free port."""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "neuron_sum", "train", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.002)


def assert_a_kill_changes_nothing(folder: Path, *arguments: str) -> None:
    """Kills a LONG run, resumes it in folder/killed, and compares its weights with an uninterrupted run's.

    Args:
        folder: The folder for both runs.
        *arguments: Arguments of `neuron-sum train` other than LONG and --output.
    """
    process = start(folder, *arguments, *LONG, "--output", "killed")
    wait_for(folder / "killed" / "checkpoints" / "checkpoint-20" / "complete", process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "killed" / "all_results.json").exists()
    resumed = start(folder, *arguments, *LONG, "--output", "killed", "--resume")
    whole = start(folder, *arguments, *LONG, "--output", "whole")
    message = resumed.communicate(timeout=300)[1]
    assert resumed.returncode == 0, message
    assert "continuing from checkpoint-" in message
    assert whole.communicate(timeout=300) and whole.returncode == 0
    assert_same_weights(folder / "killed", folder / "whole")


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = [run / "checkpoint" / "model.safetensors", run / "adapter" / "adapter_model.safetensors"]
    return load_file(next(path for path in found if path.exists()))


def assert_same_weights(one: Path, other: Path) -> None:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def log(run: Path, *keys: str) -> list[list[Any]]:
    """The given figures of every log line that has a training loss."""
    entries = [entry for entry in files.read_jsonl(run / "log.jsonl") if "loss" in entry]
    return [[entry[key] for key in keys] for entry in entries]
