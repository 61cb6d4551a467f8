"""The way back: what a refused or failed start has made is removed, and what an earlier one has left."""

import time
from collections.abc import Callable, Mapping

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws import errors
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import Run
from sagemaker_jobs.cleanup.kinds import KINDS
from sagemaker_jobs.launch.start import Launch


def undo(account: Account, made: Launch, error: AwsError, *, keep: set[str], every_s: float) -> None:
    """Rolls a launch back after an error, to whose hint it adds how that went.

    Args:
        account: Where.
        made: What was sent, or a part of it.
        error: What the command is about to end with.
        keep: Roles that were there before.
        every_s: How often to look whether something that is paid is gone.
    """
    console.note(f"{error.message}: rolling back")
    ledger = Ledger(made.place.site)
    try:
        roll_back(account, ledger, made, console.note, keep=keep, every_s=every_s)
    except AwsError as left:
        error.hint = f"{error.hint}; the roll-back failed, too: {left.message}"
        errors.tell_down(error, made.run.id, made.place.site.region)
    else:
        error.hint = f"{error.hint} (all is rolled back)"


def roll_back(
    account: Account, ledger: Ledger, made: Launch, say: Callable[[str], None], *, keep: set[str], every_s: float
) -> None:
    """Removes what a launch has made, in the order of `down`; a schedule not before what it ends is gone.

    Nothing else of the run: a batch transform may go on beside an endpoint that failed, and its schedule bounds it.

    Args:
        account: Where.
        ledger: Tells what was made.
        made: What was sent, or a part of it.
        say: Is told each step.
        keep: Roles that were there before.
        every_s: How often to look whether something that is paid is gone.

    Raises:
        AwsError: If AWS refuses, or cannot be reached.
    """
    own = {(call.kind, call.name) for call in (*made.role_calls, *made.calls, *made.later) if call.name not in keep}
    there = [entry for entry in ledger.open(made.run.id) if (entry.kind, entry.name) in own]
    for kind in KINDS:
        for entry in [entry for entry in there if entry.kind == kind.name]:
            say(f"removing {kind.name} {entry.name}")
            kind.end(account, entry.name)
            while kind.seen(account, entry.name, made.run.id) is not None:
                time.sleep(every_s)
                kind.end(account, entry.name)
            ledger.note("gone", kind.name, entry.name, made.run.id)


def clear_leftovers(
    account: Account, ledger: Ledger, run: Run, names: Mapping[str, str], say: Callable[[str], None]
) -> None:
    """Removes what an earlier start of a run has left, before it would be taken for the new one's.

    A run's names are its own, so a create that finds its name taken counts as made: with an old model, or an old end.

    Args:
        account: Where.
        ledger: Of it.
        run: Whose.
        names: By kind; nothing that is paid.
        say: Is told each step.

    Raises:
        AwsError: If AWS refuses, or cannot be reached.
    """
    for kind in KINDS:
        name = names.get(kind.name)
        if name is not None and kind.seen(account, name, run.id) is not None:
            say(f"removing {kind.name} {name}, left by an earlier start of the run")
            kind.end(account, name)
            ledger.note("gone", kind.name, name, run.id)


def roles_there(account: Account, run: Run) -> set[str]:
    """Which of a run's roles there are: a roll-back leaves them to the run's jobs.

    Raises:
        AwsError: If AWS cannot be asked.
    """
    [role] = [kind for kind in KINDS if kind.name == "role"]
    names = (run.name("role"), run.name("expiry-role"))
    return {name for name in names if role.seen(account, name, run.id) is not None}
