"""`neuron-sum --help` lists the commands in pipeline order."""

import re
import subprocess
from collections.abc import Callable

CommandLine = Callable[..., subprocess.CompletedProcess[str]]


def listed(shown: str) -> list[str]:
    """The commands of a help text, in its order."""
    return re.findall(r"^[│|] ([a-z]+)  ", shown.partition("Commands")[2], re.MULTILINE)


def test_help_lists_commands_in_pipeline_order(neuron_sum: CommandLine) -> None:
    pipeline = "demo doctor recipes data train evaluate compare rate summarize results merge preflight compile receipt"
    assert listed(neuron_sum("--help").stdout) == [
        *pipeline.split(),
        *("package", "serve", "request", "dockerfile", "aws", "watch", "explain"),
    ]
    pipeline = (
        "setup plan rehearse receipt image train compile deploy invoke extend models captured batch register status "
        "down iam"
    )
    assert listed(neuron_sum("aws", "--help").stdout) == pipeline.split()
