"""The commands of neuron-sum in the documentation."""

import re
from pathlib import Path


def commands_of(page: Path, language: str = "bash") -> list[str]:
    """The neuron-sum commands in a page's blocks of a language: bash ends by itself, sh runs until Ctrl-C."""
    blocks = re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("neuron-sum ")]
