"""A command that is killed leaves none of its processes running."""

import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from micro_models import ROOT

from neuron_sum import subprocesses

START_LIMIT_S = 120


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv")
@pytest.mark.parametrize(
    ("statement", "count"),
    [
        ("from neuron_sum import demo; demo._run(*words)", 1),
        ("from neuron_sum import demo; demo._run_together([words, words])", 2),
        ("from sagemaker_jobs.rehearsal import commands; commands.run(pathlib.Path.cwd(), *words)", 1),
        ("from neuron_sum.training import processes; processes.run_processes(words, 2, 0)", 2),
    ],
    ids=["demo", "demo-together", "rehearsal", "training"],
)
def test_a_killed_process_leaves_no_commands_running(tmp_path: Path, statement: str, count: int) -> None:
    """Each command waits for the answer of a server that never sends one."""
    (tmp_path / "dialogue.txt").write_text("#Person1#: Is it late?\n#Person2#: Yes.\n")
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as connections:
        server.settimeout(START_LIMIT_S)
        words = ["request", f"http://127.0.0.1:{server.getsockname()[1]}", "dialogue.txt"]
        code = f"import pathlib, sys; sys.path.insert(0, {str(ROOT)!r}); words = {words}; {statement}"
        with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
            try:
                for _ in range(count):
                    connections.enter_context(server.accept()[0])
                commands = psutil.Process(process.pid).children(recursive=True)
            finally:
                process.kill()
        assert len(commands) == count
        assert not psutil.wait_procs(commands, timeout=20)[1]


@pytest.mark.parametrize(("code", "prefixed"), [(0, True), (1, False)])
def test_an_old_setpriv_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, prefixed: bool) -> None:
    tool = tmp_path / "setpriv"
    tool.write_text(f"#!/bin/sh\nexit {code}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    subprocesses.has_option.cache_clear()
    try:
        assert (subprocesses.ending_with_parent(["true"])[0] == "setpriv") == prefixed
    finally:
        subprocesses.has_option.cache_clear()
