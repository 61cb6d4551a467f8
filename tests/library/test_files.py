"""Leftovers of a killed process: removed when old, kept while in use, restored if complete. JSON without NaN."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from compile import cache
from neuron_sum import console, files
from neuron_sum.errors import CompileError


def aged(path: Path) -> Path:
    then = time.time() - files.STALE_AFTER_S - 60
    os.utime(path, (then, then))
    return path


def test_only_old_temporary_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".a.pt2.tmp-1").write_text("x")
    (tmp_path / ".b.pt2.tmp-2").write_text("x")
    (tmp_path / ".mine").write_text("x")
    (tmp_path / ".c.tmp-3").mkdir()
    for name in (".a.pt2.tmp-1", ".mine", ".c.tmp-3"):
        aged(tmp_path / name)
    files.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.pt2.tmp-2", ".mine"]


def test_a_folder_replaced_halfway_by_a_killed_process_is_restored(tmp_path: Path) -> None:
    (tmp_path / ".artifact.old-7").mkdir()
    (tmp_path / ".artifact.old-7" / "kept").write_text("x")
    with pytest.raises(ZeroDivisionError), files.new_folder(tmp_path / "artifact"):
        raise ZeroDivisionError
    assert (tmp_path / "artifact" / "kept").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_json_has_no_number_that_is_not_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"a": [float("nan"), 1.5, ("x", float("inf"))], "b": {"c": np.float64("-inf"), "d": None, "e": 2}}
    expected = {"a": [None, 1.5, ["x", None]], "b": {"c": None, "d": None, "e": 2}}
    files.write_json(tmp_path / "a.json", value)
    monkeypatch.setattr(console.settings, "json", True)
    console.emit(value)
    for text in ((tmp_path / "a.json").read_text(), capsys.readouterr().out, files.to_json(value)):
        assert json.loads(text, parse_constant=pytest.fail) == expected


def test_a_damaged_graph_in_the_cache_is_reported(tmp_path: Path) -> None:
    (tmp_path / "graph.pt2").write_bytes(b"half a package")
    with pytest.raises(CompileError, match=r"graph\.pt2 is damaged") as error:
        cache.copy(tmp_path / "graph.pt2", tmp_path / "copy.pt2")
    assert "compile it again" in str(error.value.hint)
