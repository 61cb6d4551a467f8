"""Our own commands, run as a person types them: sagemaker_jobs imports neither training's stages nor serving."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from neuron_sum import console
from neuron_sum.errors import AwsError

MARK = "NEURON_SUM_STARTED_IN"
"""A variable of all that is started here: the folder, by which what is left of it can be found."""

SERVER_STOPS_S = 45
"""DJL Serving answers what it has accepted first, for which it has 30 s."""


def run(folder: Path, *words: str, stdin: str | None = None) -> dict[str, Any]:
    """One command, shown before it is run.

    Args:
        folder: Where.
        *words: The command and what it is told, but for --json.
        stdin: What it reads.

    Returns:
        What it prints.

    Raises:
        AwsError: If it fails, with what it said.
    """
    console.note(f"   $ neuron-sum {shlex.join(words)}")
    command = [sys.executable, "-m", "neuron_sum", *words, "--json"]
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, cwd=folder, env=_environment(folder)
    )
    if done.returncode:
        message, hint = error_in(done.stderr)
        raise AwsError(f"`neuron-sum {words[0]}` ended with exit code {done.returncode}: {message}", hint)
    made: dict[str, Any] = json.loads(done.stdout)
    return made


@contextlib.contextmanager
def server(model: Path, folder: Path) -> Iterator[str]:
    """`neuron-sum serve` in this block.

    Args:
        model: A model.tar.gz.
        folder: Gets serve.log.

    Yields:
        Its URL.

    Raises:
        AwsError: If it does not come up.
    """
    words = ["serve", str(model), "--port", "0", "--quiet"]
    console.note(f"   $ neuron-sum {shlex.join(words)}")
    command = [sys.executable, "-m", "neuron_sum", *words, "--json"]
    log = folder / "logs" / "serve.log"
    log.parent.mkdir(exist_ok=True)
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder, env=_environment(folder)
        ) as process,
    ):
        try:
            assert process.stdout is not None  # it is a pipe
            shown = ""
            for line in process.stdout:
                shown += line
                if line == "}\n":
                    break
            else:
                message, hint = error_in(log.read_text(encoding="utf-8"))
                raise AwsError(f"the server did not come up: {message}", hint)
            yield str(json.loads(shown)["url"])
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(SERVER_STOPS_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, MARK: str(folder)}


def error_in(said: str) -> tuple[str, str | None]:
    """Message and hint of what one of our commands says on standard error under --json; else its last line."""
    lines = said.strip().splitlines() or ["it said nothing"]
    with contextlib.suppress(ValueError, KeyError, TypeError):
        error = json.loads(lines[-1])["error"]
        return error["message"], error["hint"]
    for before, line in pairwise(lines):
        if before.startswith("error: ") and line.startswith("hint: "):
            return before.removeprefix("error: "), line.removeprefix("hint: ")
    return lines[-1], None
