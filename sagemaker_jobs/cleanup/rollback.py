"""Rollback of a refused or failed start, and deletion of the leftovers of an earlier one."""

from collections.abc import Collection

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws import errors
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import Run
from sagemaker_jobs.cleanup.down import delete
from sagemaker_jobs.cleanup.inventory import Inventory
from sagemaker_jobs.cleanup.kinds import KINDS, Resource
from sagemaker_jobs.launch.start import Launch


def undo(account: Account, launch: Launch, error: AwsError) -> bool:
    """Roll a launch back after an error, and add the result to the error's hint.

    Args:
        account: The account and region.
        launch: The launch, of which all or some calls were sent.
        error: The error that ends the command.

    Returns:
        Whether nothing is left.
    """
    console.note(f"{error.message}: rolling back")
    try:
        roll_back(account, launch)
    except AwsError as failure:
        error.hint = f"{error.hint}; the rollback also failed: {failure.message}"
        errors.add_cleanup_hint(error, launch.run.id, launch.stack.site.region)
        return False
    error.hint = f"{error.hint} (everything was rolled back)"
    return True


def roll_back(account: Account, launch: Launch) -> None:
    """Delete the resources of a launch that the ledger contains, in the order of `down`.

    Other resources of the run are kept: a batch transform, limited by its schedule, may run next to a failed endpoint.

    Args:
        account: The account and region.
        launch: The launch, of which all or some calls were sent.

    Raises:
        AwsError: If AWS refuses, or cannot be reached.
    """
    planned = {(call.kind, call.name) for call in launch.all_calls}
    created = [entry for entry in account.ledger.open(launch.run.id) if (entry.kind, entry.name) in planned]
    found = [
        (kind, Resource(kind.name, entry.name, entry.run, entry.event, 0.0))
        for kind in KINDS.values()
        for entry in created
        if entry.kind == kind.name
    ]
    delete(account, Inventory(tuple(found)))


def clear_leftovers(account: Account, run: Run, names: Collection[tuple[str, str]]) -> None:
    """Delete the leftovers of an earlier start of a run, so that a new start does not use them.

    A create request whose name is taken counts as done, which would keep an old model or an old expiry.

    Args:
        account: The account and region.
        run: The run that owns the resources.
        names: The kinds and names of the resources, without billed ones.

    Raises:
        AwsError: If AWS refuses, or cannot be reached.
    """
    left = (
        (kind, kind.describe(account, name, run.id))
        for kind in KINDS.values()
        for of_kind, name in names
        if of_kind == kind.name
    )
    found = tuple((kind, thing) for kind, thing in left if thing is not None)
    delete(account, Inventory(found))
