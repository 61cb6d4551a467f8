"""Leftovers of a killed process: removed when old, kept while in use, restored if complete. JSON without NaN."""

import json
import os
import resource
import subprocess
import sys
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


def test_lines_are_appended_by_several_processes_and_after_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"cut')
    code = "import sys\nfrom pathlib import Path\nfrom neuron_sum.files import append_line\n"
    code += "for number in range(50):\n    append_line(Path(sys.argv[1]), f'{sys.argv[2]} {number} ' + 'x' * 5000)\n"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "pq"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    first, *lines = path.read_text().splitlines()
    assert first == '{"a": 1}'
    assert sorted(lines) == sorted(f"{name} {number} {'x' * 5000}" for name in "pq" for number in range(50))


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}')  # as an editor saves it
    assert files.read_jsonl(path) == [{"a": 1}, {"a": 2}]
    files.append_line(path, '{"a": 3}')
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n{"a": 3}\n'
    for cut in ('{"a": 4', '{"a": {"b": 4}', "4", "{" * 100_000):
        path.write_text('{"a": 1}\n' + cut)
        assert files.read_jsonl(path) == [{"a": 1}]
        files.append_line(path, '{"a": 3}')
        assert path.read_text() == '{"a": 1}\n{"a": 3}\n'


def test_a_line_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("a\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large|No space left"):
            files.append_line(path, "too long")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "a\n"
