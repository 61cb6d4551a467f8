"""Memory of NeuronCores and their host: the needs of a run, and rejections with a size that fits.

test_training.py tests a CPU's memory, and test_doctor.py the estimate for an instance before it is paid for.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from micro_models import NEURON

from neuron_sum.errors import ResourceError
from neuron_sum.platform import cpu
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.training.neuron.backend import NeuronBackend
from neuron_sum.training.neuron.memory import available_to_processes
from neuron_sum.training.train import prepare


@pytest.fixture
def trainium(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this machine appear to have this much free memory and this many processes started by torchrun."""

    def pretend(free: float, processes: int = 2, hosts: int = 1, instance: str | None = "ml.trn1.2xlarge") -> None:
        monkeypatch.setattr(NeuronBackend, "check", staticmethod(lambda config, processes: None))
        monkeypatch.setattr(cpu, "available_memory", lambda: free)
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes // hosts))
        monkeypatch.delenv("SM_CURRENT_INSTANCE_TYPE", raising=False)
        if instance is not None:
            monkeypatch.setenv("SM_CURRENT_INSTANCE_TYPE", instance)

    return pretend


@pytest.mark.parametrize("instance", ["ml.trn1.2xlarge", "ml.trn9.2xlarge", None])
def test_a_batch_too_large_for_a_core_is_rejected_even_if_the_host_has_room(
    micro: Path, tmp_path: Path, trainium: Callable[..., None], instance: str | None
) -> None:
    trainium(free=1e12, instance=instance)
    large = [*NEURON, "train.per_device_train_batch_size=20000"]
    with pytest.raises(ResourceError, match=r"(?m)of memory, each NeuronCore has 17\.2 GB$") as raised:
        prepare(load_recipe(str(micro), large), tmp_path / "run")
    verb, _, hint = str(raised.value.hint).partition(" ")
    remedy, _, force = hint.partition(";")
    assert (verb, force) == ("use", " or --force to start anyway")
    smaller = prepare(load_recipe(str(micro), [*NEURON, *remedy.split()]), tmp_path / "run")
    assert smaller.estimate.memory.fits
    assert "on each NeuronCore (weights" in str(smaller.estimate)
    told = smaller.estimate.as_dict()
    assert (told["available"], told["processes"]) == (16 * 2**30, 2)
    assert {"steps", "disk", "host", "host_available", "weights", "memory"} <= told.keys()


def test_more_processes_than_the_host_has_memory_for_are_rejected(
    micro: Path, tmp_path: Path, trainium: Callable[..., None]
) -> None:
    recipe = load_recipe(str(micro), NEURON)
    trainium(free=8e9, processes=32)
    with pytest.raises(ResourceError, match=r"about 35\.\d GB of main memory for 32 processes, the host has") as raised:
        prepare(recipe, tmp_path / "run")
    assert "fewer processes" in str(raised.value.hint)
    prepare(recipe, tmp_path / "run", force=True)
    trainium(free=8e9, processes=32, hosts=16)
    assert prepare(recipe, tmp_path / "run").estimate.as_dict()["processes"] == 2
    trainium(free=1e6, processes=32)
    large = load_recipe(str(micro), [*NEURON, "train.per_device_train_batch_size=20000"])
    with pytest.raises(ResourceError, match=r"each NeuronCore has .*; and about .* for 32 processes"):
        prepare(large, tmp_path / "run")


def test_a_sharded_llama_is_counted_per_core(micro_llama: Path, tmp_path: Path, trainium: Callable[..., None]) -> None:
    trainium(free=1e12, processes=8)

    def core(*layout: str) -> dict[str, Any]:
        recipe = load_recipe(str(micro_llama), [*NEURON, *layout])
        return prepare(recipe, tmp_path / "run").estimate.as_dict()

    whole, parts, zero_1 = core(), core("train.neuron.tensor_parallel_size=2"), core("train.neuron.zero_1=true")
    assert parts["weights"] == whole["weights"] / 2
    assert zero_1["optimizer"] == whole["optimizer"] / 8
    assert zero_1["weights"] == whole["weights"]


def test_memory_used_by_the_processes_of_a_run_counts_as_available(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun's children, one of which is this process, have loaded the model; their memory counts as needed."""
    monkeypatch.setattr(cpu, "available_memory", lambda: 0.0)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    alone = available_to_processes()
    assert alone > 1e8
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    command = (
        "from neuron_sum.platform import cpu\n"
        "from neuron_sum.training.neuron.memory import available_to_processes\n"
        "cpu.available_memory = lambda: 0.0\n"
        "print(available_to_processes(), flush=True); input()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen([sys.executable, "-c", command], **pipes)
    one = float(first.stdout.readline())
    second = subprocess.Popen([sys.executable, "-c", command], **pipes)
    two = float(second.stdout.readline())
    for process in (first, second):
        process.communicate("\n")
    assert two > one + 1e8
