"""`neuron-sum demo`: the stages one after another on this machine, run as the commands a person would type."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import NeuronSumError

BASE_RECIPE, ADAPTER_RECIPES = "tiny", ("tiny-lora", "tiny-prompt-tuning")


def demo(
    output: Annotated[Path, typer.Option(help="Where the runs and the report go.")] = Path("runs/demo"),
) -> None:
    """Train a tiny model in full, with LoRA and with prompt tuning; compare them; write the report. A few minutes."""
    runs = [output / name for name in ("full", "lora", "prompt-tuning")]
    steps = [
        ["train", "tiny", "--output", str(runs[0])],
        ["train", "tiny-lora", "--output", str(runs[1])],
        ["train", "tiny-prompt-tuning", "--output", str(runs[2])],
        ["compare", "untuned", *map(str, runs), "lead-3", "human", "--output", str(output / "comparison")],
    ]
    for step in steps:
        _run(step)
    console.emit({"runs": [str(run) for run in runs], "report": str(output / "comparison" / "report.html")})


def _run(arguments: list[str]) -> None:
    """One command, printed before it is run; its output goes where ours goes."""
    console.note(f"\n$ neuron-sum {shlex.join(arguments)}")
    code = subprocess.run([sys.executable, "-m", "neuron_sum", *arguments], check=False).returncode
    if code:
        raise NeuronSumError(f"the demo's step ended with exit code {code}", f"neuron-sum {shlex.join(arguments)}")
