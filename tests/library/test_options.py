"""The command line as users know it: adding, removing or changing a command or an option is a decision.

After that decision, with a line in CHANGELOG.md, run:

    PYTHONPATH=tests/support python tests/library/test_options.py > tests/options.txt
"""

import json
from collections.abc import Iterator
from typing import Any

import typer.main
from in_process import neuron_sum
from micro_models import ROOT

from neuron_sum.cli import build

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
    found = "\n".join(spelled(typer.main.get_command(build()))) + "\n"
    assert found == FROZEN.read_text(encoding="utf-8"), __doc__


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that can be run, by its words."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from commands(inner, (*words, name))
    else:
        yield " ".join(words), command


def test_every_command_that_reads_a_recipe_takes_set() -> None:
    readers = {
        words: {option for parameter in command.params for option in parameter.opts}
        for words, command in commands(typer.main.get_command(build()))
        if any(parameter.name in ("recipe", "overrides") for parameter in command.params)
    }
    assert len(readers) >= 15
    assert [words for words, options in readers.items() if not {"--set", "-s"} <= options] == []


def test_changes_count_wherever_they_are_given() -> None:
    shown = neuron_sum(
        "recipes", "show", "tiny", "train.seed=7", "-s", "train.max_steps=3", "--set", "data.max_examples=9", "--json"
    )
    assert shown.exit_code == 0, shown.stderr
    recipe = json.loads(shown.stdout)
    assert (recipe["train"]["seed"], recipe["train"]["max_steps"], recipe["data"]["max_examples"]) == (7, 3, 9)


if __name__ == "__main__":
    print("\n".join(spelled(typer.main.get_command(build()))))
