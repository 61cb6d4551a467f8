"""Rollback of a refused or failed start, and deletion of the leftovers of an earlier one."""

import re
from collections.abc import Collection

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws import errors
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import PREFIX, Run, last_attempt
from sagemaker_jobs.cleanup.down import delete
from sagemaker_jobs.cleanup.inventory import Inventory, look
from sagemaker_jobs.cleanup.kinds import KINDS, Resource
from sagemaker_jobs.launch.start import Launch

LEFT = ("scaling-target", "endpoint", "endpoint-config", "model", "schedule")
"""Kinds of resources that can be left of an endpoint or a transform job. AWS may have deleted the endpoint itself."""


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


def clear_leftovers(account: Account, run: Run, parts: Collection[str], kept: int = 0) -> int:
    """Delete the leftovers of earlier starts of a run, so that a new start does not use them.

    A create request whose name is taken counts as done, which would keep an old model or an old expiry. AWS deletes
    asynchronously, so that the name of a resource may still be taken after its deletion: a new start needs new names.

    Args:
        account: The account and region.
        run: The run that owns the resources.
        parts: The parts of their names after the run id, such as config; billed resources are kept.
        kept: The number of the last attempt whose resources are kept.

    Returns:
        The number of a new attempt, whose names were not used before.

    Raises:
        AwsError: If AWS refuses, or cannot be reached.
    """
    ours = re.compile(rf"(endpoint/)?{PREFIX}-{run.id}-({'|'.join(parts)})(-\d+)?(/.*)?")
    inventory = look(account, run.id, LEFT)
    if inventory.refused:
        raise inventory.refused[0]
    found = [pair for pair in inventory.found if ours.fullmatch(pair[1].name)]
    left = [pair for pair in found if not pair[0].paid and last_attempt([pair[1].name]) > kept]
    delete(account, Inventory(tuple(left)))
    recorded = [entry.name for entry in account.ledger.entries() if ours.fullmatch(entry.name)]
    return max(kept, last_attempt([*recorded, *(thing.name for _, thing in found)])) + 1
