"""Groups of commands, such as `neuron-sum aws`, each of which is imported when it is used."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class CommandGroup:
    """Commands with a common first word.

    Attributes:
        help: The description of the group.
        commands: The function of each command as `package.module:function`, in the order of `--help`.
        default: The command that runs if the next word is not the name of one: `compile RUN` is `compile run RUN`.
    """

    help: str
    commands: Mapping[str, str]
    default: str | None = None
