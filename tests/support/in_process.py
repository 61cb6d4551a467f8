"""The command line in the test's process: starting one takes longer than most commands."""

from dataclasses import replace
from unittest.mock import patch

from typer.testing import CliRunner, Result

from neuron_sum import console
from neuron_sum.cli import build


def neuron_sum(*words: str) -> Result:
    """Runs the words as a separate process would: settings of the output, such as --json, are reset afterwards."""
    with patch.object(console, "settings", replace(console.settings)):
        return CliRunner().invoke(build(), list(words))
