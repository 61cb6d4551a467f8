"""Rollback of a refused or failed start, and deletion of the leftovers of an earlier one."""

import time
from collections.abc import Mapping

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws import errors
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import Run
from sagemaker_jobs.cleanup.kinds import KINDS
from sagemaker_jobs.launch.start import Launch


def undo(account: Account, launch: Launch, error: AwsError, *, every_s: float) -> bool:
    """Roll a launch back after an error, and add the result to the error's hint.

    Args:
        account: The account and region.
        launch: The launch, of which all or some calls were sent.
        error: The error that ends the command.
        every_s: Seconds between two checks whether a billed resource is gone.

    Returns:
        Whether nothing is left.
    """
    console.note(f"{error.message}: rolling back")
    ledger = Ledger(launch.stack.site)
    try:
        roll_back(account, ledger, launch, every_s=every_s)
    except AwsError as failure:
        error.hint = f"{error.hint}; the rollback also failed: {failure.message}"
        errors.add_cleanup_hint(error, launch.run.id, launch.stack.site.region)
        return False
    error.hint = f"{error.hint} (everything was rolled back)"
    return True


def roll_back(account: Account, ledger: Ledger, launch: Launch, *, every_s: float) -> None:
    """Delete the resources of a launch in the order of `down`, a schedule only after the resource that it deletes.

    Other resources of the run are kept: a batch transform, limited by its schedule, may run next to a failed endpoint.

    Args:
        account: The account and region.
        ledger: The account's ledger, which contains the created resources.
        launch: The launch, of which all or some calls were sent.
        every_s: Seconds between two checks whether a billed resource is gone.

    Raises:
        AwsError: If AWS refuses, or cannot be reached.
    """
    planned = {(call.kind, call.name) for call in (*launch.calls, *launch.later)}
    created = [entry for entry in ledger.open(launch.run.id) if (entry.kind, entry.name) in planned]
    for kind in KINDS.values():
        for entry in [entry for entry in created if entry.kind == kind.name]:
            console.note(f"removing {kind.name} {entry.name}")
            kind.delete(account, entry.name)
            while kind.describe(account, entry.name, launch.run.id) is not None:
                time.sleep(every_s)
                kind.delete(account, entry.name)
            ledger.note("gone", kind.name, entry.name, launch.run.id)


def clear_leftovers(account: Account, ledger: Ledger, run: Run, names: Mapping[str, str]) -> None:
    """Delete the leftovers of an earlier start of a run, so that a new start does not use them.

    A create request whose name is taken counts as done, which would keep an old model or an old expiry.

    Args:
        account: The account and region.
        ledger: The account's ledger.
        run: The run that owns the resources.
        names: The resources' names by kind, without billed resources.

    Raises:
        AwsError: If AWS refuses, or cannot be reached.
    """
    for kind in KINDS.values():
        name = names.get(kind.name)
        if name is not None and kind.describe(account, name, run.id) is not None:
            console.note(f"removing {kind.name} {name}, left by an earlier start of the run")
            kind.delete(account, name)
            ledger.note("gone", kind.name, name, run.id)
