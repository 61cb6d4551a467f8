"""examples/retrain.yml: its commands exist, and a worse model stops it before it deploys."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from micro_models import ROOT

from neuron_sum.recipes.loading import load_recipe
from neuron_sum.training.train import train

pytestmark = pytest.mark.new_interpreter

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
STEPS: list[dict[str, Any]] = yaml.safe_load((ROOT / "examples" / "retrain.yml").read_text())["jobs"]["retrain"][
    "steps"
]


def script(name: str) -> str:
    [step] = [step for step in STEPS if step.get("name") == name]
    return str(step["run"])


def commands() -> list[list[str]]:
    """The words of every command of neuron-sum in the workflow."""
    lines = [line.strip() for step in STEPS for line in step.get("run", "").replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("neuron-sum ")]


def test_its_commands_exist(neuron_sum: CommandLine) -> None:
    found = commands()
    assert [words[:2] for words in found if words[0] == "aws"] == [
        ["aws", name] for name in ("train", "compile", "deploy")
    ]
    for words in found:
        shown = neuron_sum(*words[: 2 if words[0] == "aws" else 1], "--help").stdout
        for option in (word for word in words if word.startswith("--")):
            assert option in shown, f"{words}: no {option}"


@pytest.mark.parametrize("worse", [False, True])
def test_a_worse_model_stops_it(micro: Path, tmp_path: Path, worse: bool) -> None:
    """The step runs as in the workflow's shell. The worse model has learned nothing."""
    for folder, rate in (("old", 0.01), ("new", 1e-9 if worse else 0.01)):
        train(load_recipe(str(micro), [f"train.learning_rate={rate}"]), tmp_path / folder / "run")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    made = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script("Compare")],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "RECIPE": str(micro)},
        capture_output=True,
        text=True,
    )
    assert made.returncode == (16 if worse else 0), made.stderr
    assert ("new has ROUGE-1 " in made.stderr) == worse
    assert (tmp_path / "comparison" / "report.html").is_file()


def test_the_first_model_is_not_compared(tmp_path: Path) -> None:
    assert subprocess.run(["bash", "-e", "-c", script("Compare")], cwd=tmp_path).returncode == 0
