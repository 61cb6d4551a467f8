"""Commands of neuron-sum in forks of one process that has imported torch and transformers, which takes seconds.

Each command imports the modules of neuron-sum anew.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest.mock import patch

LIBRARIES = [
    "datasets",
    "evaluate",
    "peft",
    "pydantic",
    "rouge_score.rouge_scorer",
    "transformers.masking_utils",
    "transformers.modeling_utils",
    "transformers.trainer_pt_utils",
    "typer",
]
"""What most commands import."""


def context() -> ForkServerContext:
    """The process is started at first use, once per process of the tests, without the settings of that test."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(LIBRARIES)
    with patch.dict(os.environ):
        os.environ.pop("TMPDIR", None)
        forkserver.ensure_running()
    return made


def run(arguments: tuple[str, ...], cwd: Path, text: str | None, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as `subprocess.run` would."""
    paths = [cwd.parent / f"{cwd.name}.{name}" for name in ("in", "out", "err")]
    paths[0].write_text(text or "")
    process = context().Process(target=_command, args=(arguments, cwd, dict(os.environ), paths))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{arguments} did not end within {timeout} s")
    out, err = (path.read_text() for path in paths[1:])
    for path in paths:
        path.unlink()
    assert process.exitcode is not None  # it has ended
    return subprocess.CompletedProcess(["neuron-sum", *arguments], process.exitcode, out, err)


def _command(arguments: tuple[str, ...], cwd: Path, environment: dict[str, str], paths: list[Path]) -> None:
    """What `python -m neuron_sum` does, in a fork."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(paths):
        os.dup2(os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    sys.argv = ["neuron-sum", *arguments]
    try:
        from neuron_sum.cli import main

        main()
    except Exception:  # noqa: BLE001 - printed as any other command does
        sys.excepthook(*sys.exc_info())  # multiprocessing would print a traceback instead
        sys.exit(1)
