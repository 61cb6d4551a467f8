"""Commands that end together with the process that starts them."""

import shutil
import sys
from collections.abc import Sequence
from typing import Literal


def ending_with_parent(command: Sequence[str], signal: Literal["TERM", "KILL"] = "TERM") -> list[str]:
    """The command, changed so that Linux sends it a signal when the thread that starts it ends, also after SIGKILL.

    Args:
        command: The program and its arguments. Without util-linux's `setpriv`, as on macOS, it is returned unchanged.
        signal: KILL for programs that may not react to SIGTERM, or not soon.
    """
    return [*(["setpriv", "--pdeathsig", signal] if shutil.which("setpriv") else []), *command]


def cli_command(*arguments: str) -> list[str]:
    """A command of `neuron-sum` as a subprocess that ends with this process."""
    return ending_with_parent([sys.executable, "-m", "neuron_sum", *arguments])
