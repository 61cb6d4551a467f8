"""How training on Neuron starts: environment, precompiling, and the steps of an extraction of graphs.

test_processes.py tests several running processes.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from micro_models import NEURON

from neuron_sum import console
from neuron_sum.data.layouts import Row, Shape
from neuron_sum.errors import PlatformError, RecipeError
from neuron_sum.recipes.schema import TrainConfig
from neuron_sum.training import command, launch
from neuron_sum.training.neuron.extraction import MIN_STEPS, extraction_rows, save_step

EPOCH = ["train.max_steps=null", "train.num_train_epochs=1"]
"""64 examples in batches of 8."""


def test_environment_variables_of_the_caller_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NEURON_FUSE_SOFTMAX", "MALLOC_ARENA_MAX", "NEURON_COMPILE_CACHE_URL", "USE_TORCH_XLA"):
        monkeypatch.setenv(name, "theirs")
        if name != "NEURON_FUSE_SOFTMAX":
            monkeypatch.delenv(name)
    for name in launch.NEURON_ENVIRONMENT:
        monkeypatch.setenv(name, os.environ.get(name, launch.NEURON_ENVIRONMENT[name]))
    neuron = {"cache_url": "s3://bucket/cache"}
    launch.set_environment(TrainConfig(backend="neuron", shapes={"plan": "fixed"}, neuron=neuron))
    assert os.environ["NEURON_FUSE_SOFTMAX"] == "theirs"
    assert os.environ["NEURON_COMPILE_CACHE_URL"] == "s3://bucket/cache"
    assert "USE_TORCH_XLA" not in os.environ
    launch.set_environment(TrainConfig())
    assert os.environ["USE_TORCH_XLA"] == "0"


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this machine appear to have the Neuron SDK."""
    monkeypatch.setattr("neuron_sum.training.neuron.backend.REQUIRED_MODULES", {})
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    for name, value in launch.NEURON_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("family", "split", "processes", "reckoned"),
    [("micro", 1, None, 1), ("micro", 1, 4, 4), ("micro_llama", 2, None, 2), ("micro_llama", 2, 4, 4)],
)
def test_a_dry_run_estimates_for_processes_without_starting_them(
    sdk: None,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    family: str,
    split: int,
    processes: int | None,
    reckoned: int,
) -> None:
    recipe, run = str(request.getfixturevalue(family)), tmp_path / "run"
    overrides = [*NEURON, f"train.neuron.tensor_parallel_size={split}", *EPOCH]
    monkeypatch.setattr(console.settings, "json", True)
    command.train(recipe, overrides, output=run, dry_run=True, processes=processes)
    said = capsys.readouterr()
    estimate = json.loads(said.out)["estimate"]
    assert estimate["processes"] == reckoned
    assert estimate["steps"] == 8 * split // reckoned  # each copy of the model takes a batch
    assert ("--processes is not set" in said.err) == (processes is None)
    assert not run.exists()
    with pytest.raises(PlatformError, match="one process for each NeuronCore"):
        command.train(recipe, overrides, output=run)


def test_a_dry_run_of_the_torch_backend_estimates_for_its_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], micro: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(console.settings, "json", True)
    monkeypatch.setenv("USE_TORCH_XLA", "0")  # the command sets it, and monkeypatch restores it afterwards
    command.train(str(micro), EPOCH, output=tmp_path / "run", dry_run=True, processes=2)
    told = json.loads(capsys.readouterr().out)["estimate"]
    assert (told["steps"], told["seconds"]) == (4, None)


def test_precompile_reports_missing_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(backend="neuron", shapes={"plan": "fixed"})
    with pytest.raises(RecipeError, match="compiles nothing in advance"):
        launch.check_options(TrainConfig(), 2, precompile=True)
    with pytest.raises(RecipeError, match="requires --processes N"):
        launch.check_options(config, None, precompile=True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(RecipeError, match="cannot be used in a process that torchrun started"):
        launch.check_options(config, 2, precompile=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(PlatformError, match="neuron_parallel_compile, which is not on the PATH"):
        launch.start(["tiny"], 2, precompile=True)


def test_precompile_runs_the_command_and_leaves_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / launch.EXTRACTOR
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$(dirname "$0")/arguments"\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert launch.start(["trn1", "train.seed=1"], 2, precompile=True) == 3
    arguments = (tmp_path / "arguments").read_text().split("\n")
    assert arguments[:4] == [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    assert arguments[5:10] == ["-m", "neuron_sum", "train", "trn1", "train.seed=1"]
    assert not Path(arguments[11]).parent.exists()


@given(
    chunks=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    chunk=st.integers(1, 4),
    accumulation=st.integers(1, 3),
)
def test_an_extraction_starts_like_the_run_and_has_three_steps_of_each_shape(
    chunks: list[int], chunk: int, accumulation: int
) -> None:
    rows = [Row((index,), Shape(8 * (1 + size), 8)) for index, size in enumerate(chunks) for _ in range(chunk)]
    step_rows = chunk * accumulation
    made = extraction_rows(rows, step_rows)
    assert len(made) % step_rows == 0
    steps = [made[at : at + step_rows] for at in range(0, len(made), step_rows)]
    assert made[: 3 * step_rows][: len(rows)] == rows[: 3 * step_rows]
    for shape in {row.shape for row in rows}:
        assert sum({row.shape for row in step} == {shape} for step in steps) >= 3
    assert MIN_STEPS <= len(steps) <= max(MIN_STEPS + 3, 3 + 3 * len(set(chunks)))
    assert 3 < save_step(len(steps)) <= len(steps) - 2 and save_step(len(steps)) % 2 == 1
