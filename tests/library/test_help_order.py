"""`neuron-sum --help` lists the commands in pipeline order."""

import re
import subprocess
from collections.abc import Callable

CommandLine = Callable[..., subprocess.CompletedProcess[str]]


def test_help_lists_commands_in_pipeline_order(neuron_sum: CommandLine) -> None:
    shown = neuron_sum("--help").stdout
    listed = re.findall(r"^[│|] ([a-z]+)  ", shown.partition("Commands")[2], re.MULTILINE)
    pipeline = "demo doctor recipes data train evaluate compare summarize merge preflight compile package serve request"
    assert listed == [*pipeline.split(), "dockerfile", "aws", "explain"]
