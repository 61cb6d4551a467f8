"""`neuron-sum demo`, and the commands of the README on its output."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from docs_commands import commands_of
from micro_models import ROOT

from neuron_sum import demo
from neuron_sum.errors import NeuronSumError

CommandLine = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.new_interpreter
@pytest.mark.slow
def test_the_demo_and_the_readme_commands_run(
    neuron_sum: CommandLine, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With the tiny model, in the folder of `make demo`; the README's other commands run unchanged on its output."""
    try:
        server = request.getfixturevalue("djl_serving")
    except pytest.skip.Exception:
        server = None
    made = neuron_sum("demo", "--tiny", "--output", "runs/demo")
    if server is not None:  # otherwise the demo prints that it skips the step
        [answer] = re.findall(r"request http://127.0.0.1:\d+\n", made.stderr)
        assert "skips its last step" not in made.stderr and answer
    assert made.returncode == 0, made.stderr[-3000:]
    assert "Try next:" in made.stdout
    assert (tmp_path / "runs" / "demo" / "comparison" / "report.html").is_file()
    systems = json.loads((tmp_path / "runs" / "demo" / "comparison" / "comparison.json").read_text())["systems"]
    rouge1 = {system["system"]: system["scores"]["ROUGE-1"]["value"] for system in systems}
    assert rouge1["full"] > rouge1["lora"] > rouge1["untuned"] + 20
    assert rouge1["full"] > rouge1["lead-3"] + 20
    assert rouge1["compiled"] == rouge1["lora"]

    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "dialogue.txt").write_text("#Person1#: Hi, a table for two on Friday, please.\n#Person2#: At seven?\n")
    commands = [command for command in commands_of(ROOT / "README.md") if not command.startswith("neuron-sum demo")]
    assert len(commands) >= 5
    for command in commands:
        if "flan-t5" in command:  # needs a hub: its error without one is tested elsewhere
            continue
        words, _, standard_input = command.partition(" < ")
        stdin = (tmp_path / standard_input).read_text() if standard_input else None
        made = neuron_sum(*shlex.split(words)[1:], stdin=stdin)
        assert made.returncode == 0, f"{command}\n{made.stderr}"


@pytest.mark.parametrize(("chosen", "count"), [("OMP_NUM_THREADS", "2"), ("", "8")])
def test_commands_that_run_together_share_the_threads_and_have_ended_after_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: str, count: str
) -> None:
    """A number of threads that the user has set is for each command."""
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("NEURON_SUM_CHOSE", chosen)
    code = (
        "import os, pathlib, time; threads, chosen = os.environ['OMP_NUM_THREADS'], os.environ['NEURON_SUM_CHOSE'];"
        f"pathlib.Path({str(tmp_path)!r}, str(os.getpid())).write_text(f'{{threads}} {{chosen}}'); time.sleep(60)"
    )

    def python(*arguments: str) -> list[str]:
        if arguments[0] == "fails":  # after the others have started
            return ["sh", "-c", f"until [ $(ls {tmp_path} | wc -l) = 3 ]; do sleep 0.1; done; exit 3"]
        return [sys.executable, "-c", code]

    monkeypatch.setattr(demo, "cli_command", python)
    with pytest.raises(NeuronSumError, match="exit code 3"):
        demo._run_together([("fails",), ("stops", "1"), ("stops", "2"), ("stops", "3")])
    written = list(tmp_path.iterdir())
    assert [path.read_text() for path in written] == [f"{count} "] * 3
    assert not any(psutil.pid_exists(int(path.name)) for path in written)
