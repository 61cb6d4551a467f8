"""The command line in the test's own process: starting one takes longer than most commands."""

from functools import cache

from typer.testing import CliRunner, Result

from neuron_sum.cli import build

command_line = cache(build)
"""Built once: click does not take the same command into a group twice."""


def neuron_sum(*words: str) -> Result:
    return CliRunner().invoke(command_line(), list(words))
