"""The command line in the test's own process: starting one takes longer than most commands."""

from dataclasses import replace
from functools import cache
from unittest.mock import patch

from typer.testing import CliRunner, Result

from neuron_sum import console
from neuron_sum.cli import build

command_line = cache(build)
"""Built once: click does not take the same command into a group twice."""


def neuron_sum(*words: str) -> Result:
    """As a process of its own would run them: how they talk, such as --json, ends with them."""
    with patch.object(console, "settings", replace(console.settings)):
        return CliRunner().invoke(command_line(), list(words))
