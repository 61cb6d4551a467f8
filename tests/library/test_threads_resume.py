"""A resumed run uses the number of threads that it was started with."""

import json
from pathlib import Path

import pytest
import torch

from neuron_sum.errors import RunError
from neuron_sum.platform import threads
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.runs.folder import PROCESSES, RunFolder


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setenv(threads.COUNT, "2")
    monkeypatch.setenv(threads.CHOSEN, threads.COUNT)
    yield  # type: ignore[misc]
    torch.set_num_threads(before)


def test_the_number_is_recorded_and_restored(
    tmp_path: Path, two_threads: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path, load_recipe("tiny"))
    assert run.threads is None
    run.record_processes(1, 1)
    assert (run.processes, run.threads) == (1, 1)
    threads.restore(1)
    assert torch.get_num_threads() == 1
    assert "using 1 thread instead of 2, as before the interruption" in capsys.readouterr().err
    (run.checkpoints / PROCESSES).write_text(json.dumps({"processes": 1, "threads": 0}))
    with pytest.raises(RunError, match="threads is 0"):
        assert run.threads


def test_a_number_that_the_user_sets_has_priority(
    two_threads: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(threads.CHOSEN)
    threads.restore(1)
    assert torch.get_num_threads() == 2
    assert "the run was started with 1 threads, this process has OMP_NUM_THREADS=2" in capsys.readouterr().err
