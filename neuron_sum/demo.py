"""`neuron-sum demo`: the stages one after another on this machine, run as the commands a person would type."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import NeuronSumError

INTRODUCTION = """\
A tiny T5 takes the place of FLAN-T5, of which no weights come with the package. First its base, which sees other
scenarios than those it is then tuned and tested on; then the three methods, each from that base. The one tuned
in full is compiled ahead of time for this machine's CPU and compared like the others; then packed as for SageMaker,
and a real DJL Serving answers a request with it."""
DIALOGUE = """\
#Person1#: The meeting is at ten, not at nine.
#Person2#: Thank you, I will tell the others."""
METHODS = {"full": "tiny-full", "lora": "tiny-lora", "prompt-tuning": "tiny-prompt-tuning"}


def demo(
    output: Annotated[Path, typer.Option(help="Where the runs and the report go.")] = Path("runs/demo"),
) -> None:
    """Train a tiny model in full, with LoRA and with prompt tuning; compile, compare, serve; write the report."""
    started = time.monotonic()
    base = output / "base"
    console.note(INTRODUCTION)
    _run("train", "tiny-base", "--output", str(base), "--overwrite")
    for name, recipe in METHODS.items():
        _run(
            "train", recipe, f"model.name_or_path={base / 'checkpoint'}", "--output", str(output / name), "--overwrite"
        )
    runs = [str(output / name) for name in METHODS]
    artifact = str(Path(runs[0]) / "artifacts" / "cpu-fp32")
    _run("compile", runs[0], "--target", "cpu", "--overwrite")
    _run("compile", "verify", artifact, "--examples", "48")
    systems = ["untuned", *runs, f"compiled={artifact}", "lead-3", "human"]
    _run("compare", *systems, "--output", str(output / "comparison"))
    archive = output / "model.tar.gz"
    _run("package", artifact, "--output", str(archive))
    served = _serve(archive)
    report = output / "comparison" / "report.html"
    console.emit(
        {
            "runs": runs,
            "artifact": artifact,
            "archive": str(archive),
            "served": served,
            "report": str(report),
            "seconds": round(time.monotonic() - started, 1),
        },
        f"\ndone in {console.duration(time.monotonic() - started)}. What to try next:",
        *(f"  {command}\n      {what}" for command, what in _next(report, runs, artifact, archive).items()),
    )


def _next(report: Path, runs: list[str], artifact: str, archive: Path) -> dict[str, str]:
    """What to try, and what it shows."""
    return {
        f"open {report}": "the same in a browser, with charts and more dialogues",
        f"neuron-sum summarize {artifact} < your-dialogue.txt": "one dialogue, one summary, from compiled graphs",
        f"neuron-sum serve {archive} --playground": "the endpoint on this machine, with a page to try it in",
        f"neuron-sum compile {runs[0]} --set compile.dtype=int8": "smaller; `compile verify` says at what price",
        f"neuron-sum merge {runs[1]}": "the adapter into the weights, proven equal",
        "neuron-sum recipes list": "FLAN-T5, TinyLlama, your own CSV",
        "neuron-sum train flan-t5-base-lora --dry-run": "what a real run takes on this machine (needs a hub)",
    }


def _serve(archive: Path) -> bool:
    """A real DJL Serving that answers one request; False where none can be had."""
    console.note("\n$ python -m serving.djl")
    if subprocess.run([sys.executable, "-m", "serving.djl"], check=False, stdout=subprocess.DEVNULL).returncode:
        console.warn("the demo goes on without its last step, a request to DJL Serving")
        return False
    arguments = ["serve", str(archive), "--port", "0", "--quiet"]
    console.note(f"\n$ neuron-sum {shlex.join(arguments)}")
    command = [sys.executable, "-m", "neuron_sum", *arguments, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            shown = []
            for line in server.stdout:
                shown.append(line)
                if line == "}\n":
                    break
            else:
                raise NeuronSumError("the demo's server did not start", f"neuron-sum {shlex.join(arguments)}")
            _run("request", json.loads("".join(shown))["url"], stdin=DIALOGUE)
        finally:
            server.terminate()  # a shell's `make demo &` has its children ignore SIGINT
    return True


def _run(*arguments: str, stdin: str | None = None) -> None:
    """One command, printed before it is run; its output goes where ours goes."""
    console.note(f"\n$ neuron-sum {shlex.join(arguments)}")
    output = subprocess.DEVNULL if console.settings.json else None
    code = subprocess.run(
        [sys.executable, "-m", "neuron_sum", *arguments], check=False, stdout=output, input=stdin, text=True
    ).returncode
    if code:
        raise NeuronSumError(f"the demo's step ended with exit code {code}", f"neuron-sum {shlex.join(arguments)}")
