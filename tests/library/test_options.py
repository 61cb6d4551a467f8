"""The command line as users know it: adding, removing or changing a command or an option is a decision.

After that decision, with a line in CHANGELOG.md, run:

    PYTHONPATH=tests/support python tests/library/test_options.py > tests/options.txt
"""

from collections.abc import Iterator
from typing import Any

import typer.main
from in_process import command_line
from micro_models import ROOT

FROZEN = ROOT / "tests" / "options.txt"


def spelled(command: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
    """One line per command and its parameters: arguments in capitals, options with their default."""
    if hasattr(command, "commands"):
        for name, inner in sorted(command.commands.items()):
            yield from spelled(inner, (*words, name))
        return
    taken = []
    for parameter in command.params:
        names = "/".join([*parameter.opts, *parameter.secondary_opts])
        if names == parameter.name:
            names = names.upper()
        several = "…" if getattr(parameter, "multiple", False) or parameter.nargs == -1 else ""
        default = "" if parameter.default in (None, False, (), []) else f" = {parameter.default}"
        needed = " (required)" if parameter.required else ""
        taken.append(names + several + default + needed)
    yield " ".join(words)
    yield from (f"    {each}" for each in taken)


def test_the_command_line_matches_options_txt() -> None:
    found = "\n".join(spelled(typer.main.get_command(command_line()))) + "\n"
    assert found == FROZEN.read_text(encoding="utf-8"), __doc__


if __name__ == "__main__":
    print("\n".join(spelled(typer.main.get_command(command_line()))))
