"""Commands that end together with the process that starts them, and what they print."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from typing import IO, Any, Literal


def ending_with_parent(command: Sequence[str], signal: Literal["TERM", "KILL"] = "TERM") -> list[str]:
    """The command, changed so that Linux sends it a signal when the thread that starts it ends, also after SIGKILL.

    Args:
        command: The program and its arguments. It is returned unchanged if util-linux's `setpriv` is missing, as on
            macOS, or too old.
        signal: KILL for programs that may not react to SIGTERM, or not soon.
    """
    return [*(["setpriv", "--pdeathsig", signal] if has_option() else []), *command]


@cache
def has_option() -> bool:
    """Whether this machine has a `setpriv` that can set the signal."""
    if shutil.which("setpriv") is None:
        return False
    return subprocess.run(["setpriv", "--pdeathsig", "TERM", "true"], capture_output=True, check=False).returncode == 0


def cli_command(*arguments: str) -> list[str]:
    """A command of `neuron-sum` as a subprocess that ends with this process."""
    return ending_with_parent([sys.executable, "-m", "neuron_sum", *arguments])


def printed_document(output: IO[str]) -> dict[str, Any] | None:
    """The JSON document of a command that goes on running, such as `serve --json`; None if it ends without one."""
    lines = []
    for line in output:
        lines.append(line)
        if line == "}\n":
            document: dict[str, Any] = json.loads("".join(lines))
            return document
    return None
