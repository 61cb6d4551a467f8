"""`neuron-sum demo`, and the commands of the README on its output."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from docs_commands import commands_of
from micro_models import ROOT

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
