"""Run `neuron-sum` commands as subprocesses, because sagemaker_jobs imports neither training stages nor serving."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from neuron_sum import console
from neuron_sum.errors import AwsError
from neuron_sum.subprocesses import cli_command, printed_document

MARK = "NEURON_SUM_STARTED_IN"
"""Environment variable of all processes started here, with the rehearsal's folder; it identifies leftover processes."""

SERVER_STOPS_S = 45
"""Seconds to wait for DJL Serving to stop; it may take 30 s to answer the requests that it has accepted."""


def run(folder: Path, *words: str, stdin: str | None = None) -> dict[str, Any]:
    """Print a command and run it.

    Args:
        folder: The working folder.
        *words: The command and its arguments, without --json.
        stdin: The text on its standard input.

    Returns:
        Its output.

    Raises:
        AwsError: If the command fails, with its error message.
    """
    console.note(f"   $ neuron-sum {shlex.join(words)}")
    done = subprocess.run(
        cli_command(*words, "--json"),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=_environment(folder),
    )
    if done.returncode:
        message, hint = error_in(done.stderr)
        raise AwsError(f"`neuron-sum {words[0]}` ended with exit code {done.returncode}: {message}", hint)
    output: dict[str, Any] = json.loads(done.stdout)
    return output


@contextlib.contextmanager
def server(model: Path, folder: Path) -> Iterator[str]:
    """Run `neuron-sum serve` during a `with` block.

    Args:
        model: A model.tar.gz.
        folder: The working folder, which gets logs/serve.log.

    Yields:
        The URL of the server.

    Raises:
        AwsError: If the server fails to start.
    """
    words = ["serve", str(model), "--port", "0", "--quiet"]
    console.note(f"   $ neuron-sum {shlex.join(words)}")
    log = folder / "logs" / "serve.log"
    log.parent.mkdir(exist_ok=True)
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            cli_command(*words, "--json"),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,
            env=_environment(folder),
        ) as process,
    ):
        try:
            assert process.stdout is not None  # stdout is a pipe
            if (document := printed_document(process.stdout)) is None:
                message, hint = error_in(log.read_text(encoding="utf-8"))
                raise AwsError(f"the server failed to start: {message}", hint)
            yield str(document["url"])
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(SERVER_STOPS_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, MARK: str(folder)}


def error_in(stderr: str) -> tuple[str, str | None]:
    """The message and hint of the error that a command printed with --json; otherwise the last line of its output."""
    lines = stderr.strip().splitlines() or ["the command printed nothing"]
    with contextlib.suppress(ValueError, KeyError, TypeError):
        error = json.loads(lines[-1])["error"]
        return error["message"], error["hint"]
    for before, line in pairwise(lines):
        if before.startswith("error: ") and line.startswith("hint: "):
            return before.removeprefix("error: "), line.removeprefix("hint: ")
    return lines[-1], None
