"""The ledger loses nothing that was recorded, wherever its last line was cut."""

import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_sum.errors import ResourceError
from sagemaker_jobs.aws.ledger import Ledger, state_folder
from sagemaker_jobs.aws.names import AwsContext


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(AwsContext("123456789012", "us-east-1"), tmp_path)


def test_an_intent_is_open_until_an_outcome_is_recorded(ledger: Ledger) -> None:
    ledger.note("intent", "role", "a", "run-1")
    assert [entry.event for entry in ledger.open()] == ["intent"]
    ledger.note("made", "role", "a", "run-1")
    ledger.note("intent", "training-job", "b", "run-2")  # the reply was lost
    assert [(entry.kind, entry.event) for entry in ledger.open()] == [("role", "made"), ("training-job", "intent")]
    assert [entry.name for entry in ledger.open("run-2")] == ["b"]
    ledger.note("refused", "training-job", "b", "run-2")
    ledger.note("gone", "role", "a", "run-1")
    assert ledger.open() == []
    assert len(ledger.entries()) == 2


@given(st.integers(0, 400))
def test_a_line_cut_anywhere_loses_nothing_before_it(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    ledger = Ledger(AwsContext("1", "r"), tmp_path_factory.mktemp("ledger"))
    for name in "abc":
        ledger.note("intent", "role", name, "run")
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"}")
    assert [entry.name for entry in ledger.open()] == list("abc")[:kept]
    ledger.note("intent", "role", "d", "run")
    assert [entry.name for entry in ledger.open()] == [*"abc"[:kept], "d"]
    assert all(json.loads(line) for line in ledger.path.read_text().splitlines())


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"x",
        b"[]",
        b"5",
        b"\xff\xfe",
        b'\xef\xbb\xbf{"kind": "role"}',
        b'{"kind": "role", "name": "x"}',
        b'{"time": "t", "event": "made", "run": "r", "kind": [], "name": "x"}',
        b'{"time": "t", "event": "lost", "run": "r", "kind": "role", "name": "x"}',
        b'{"kind": ' + b"[" * 100_000,
        b'{"kind": ' + b"1" * 5000 + b"}",
    ],
)
def test_a_damaged_line_is_skipped_with_a_warning(
    ledger: Ledger, damaged: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.note("intent", "role", "a", "run")
    ledger.path.write_bytes(ledger.path.read_bytes() + damaged + b"\n")
    ledger.note("intent", "role", "b", "run")
    assert [entry.name for entry in ledger.open()] == ["a", "b"]
    assert f"{ledger.path}:2 is damaged" in capsys.readouterr().err


def _write(folder: str, mark: int) -> None:
    for number in range(40):
        Ledger(AwsContext("1", "r"), Path(folder)).note("intent", "role", f"{mark}-{number}", "run")


def test_several_processes_write_whole_lines(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write, args=(str(tmp_path), mark)) for mark in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(Ledger(AwsContext("1", "r"), tmp_path).open()) == 120


def test_an_unwritable_ledger_is_reported_before_anything_is_created(tmp_path: Path) -> None:
    (tmp_path / "aws").write_text("a file where the folder should be")
    with pytest.raises(ResourceError, match="cannot be written") as error:
        Ledger(AwsContext("1", "r"), tmp_path).note("intent", "role", "a", "run")
    assert "NEURON_SUM_STATE" in (error.value.hint or "")


def test_the_folder_of_the_ledger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NEURON_SUM_STATE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder() == tmp_path / "neuron-sum"
    monkeypatch.setenv("NEURON_SUM_STATE", "/elsewhere")
    assert Ledger(AwsContext("123456789012", "eu-west-1")).path == Path("/elsewhere/aws/123456789012-eu-west-1.jsonl")
