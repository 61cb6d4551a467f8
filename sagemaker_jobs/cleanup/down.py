"""Deletion of resources until nothing is running; artifacts.py deletes artifacts.

Each time, resources are found by ledger, name and tag, so it can be repeated after any failure and from any machine.
"""

import time

from neuron_sum import console
from neuron_sum.errors import AwsError, ResourceError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused, Unreached
from sagemaker_jobs.cleanup.artifacts import stored
from sagemaker_jobs.cleanup.inventory import Inventory, look
from sagemaker_jobs.cleanup.kinds import Kind, Resource

RUNS_NAMED = 10
"""Maximum number of runs, the newest, in an error message."""


def remaining_resources(account: Account, run: str | None) -> list[Resource]:
    """Return the resources of a search that is complete: empty if only artifacts exist.

    Args:
        account: The account and region.
        run: The only run to include; None for all runs.

    Raises:
        AwsError: If AWS cannot be reached, or refuses a listing.
    """
    inventory = look(account, run)
    if inventory.refused:
        raise inventory.refused[0]
    return inventory.things


def check_known(account: Account, run: str) -> None:
    """Raise if the run is unknown, so that a mistyped id does not report success.

    Args:
        account: The account and region.
        run: The run id.

    Raises:
        AwsError: If neither the ledger nor AWS has resources of the run, or AWS cannot be reached.
    """
    recorded = {entry.run: entry.time for entry in account.ledger.entries() if entry.run != "all"}
    if run in recorded:
        return
    inventory = look(account)
    found = {thing.run for thing in inventory.things if thing.run is not None}
    if run in found or stored(account, run):
        return
    if inventory.refused:  # the run may have resources in a listing that was refused
        raise inventory.refused[0]
    runs = [*sorted(found - set(recorded)), *sorted(recorded, key=lambda each: recorded[each], reverse=True)]
    more = f" and {len(runs) - RUNS_NAMED} more" if len(runs) > RUNS_NAMED else ""
    raise AwsError(
        f"unknown run {run!r} in {account.region}",
        f"use one of {', '.join(runs[:RUNS_NAMED])}{more}" if runs else "no runs in this region; use another --region",
    )


def delete(account: Account, inventory: Inventory) -> list[Resource]:
    """Delete or stop the resources billed by the hour, wait until they are gone, and delete the others.

    A failed deletion, or a service that does not answer, does not stop the others. Resources that a resource needs
    that may still be running are kept, above all the schedule that deletes it.

    Args:
        account: The account and region.
        inventory: The resources, in the order of deletion.

    Returns:
        The deleted resources.

    Raises:
        AwsError: If AWS refused a call, or did not answer; everything else is deleted, and the call can be repeated.
    """
    refused = list(inventory.refused)
    running = [(kind, owner) for kind, owner in inventory.hidden if kind.paid]
    removed: list[Resource] = []
    states: dict[str, str] = {}

    def is_settled(kind: Kind, thing: Resource) -> bool:
        try:
            kind.delete(account, thing.name)
            now = kind.describe(account, thing.name, thing.run or "")
        except (Refused, Unreached) as error:
            refused.append(error)
            if kind.paid:
                running.append((kind, thing.run))
            return True
        if now is None:
            removed.append(thing)
            try:
                account.ledger.note("gone", kind.name, thing.name, thing.run or "")
            except ResourceError as error:  # a full disk must not leave the next resource running
                console.warn(f"{kind.name} {thing.name} was deleted, but this was not recorded: {error.message}")
        elif states.get(thing.name) != now.state:
            states[thing.name] = now.state
            console.note(f"{kind.name} {thing.name}: {now.state}")
        return now is None

    def end(found: list[tuple[Kind, Resource]]) -> None:
        for kind, thing in found:
            console.note(f"deleting {kind.name} {thing.name}")
        while found := [pair for pair in found if not is_settled(*pair)]:
            time.sleep(account.every_s)

    first = [pair for pair in inventory.found if pair[0].name == "scaling-target" or pair[0].paid]
    rest = [pair for pair in inventory.found if pair not in first]
    end(first)
    needed = [pair for pair in rest if any(needs(paid, owner, pair[1]) for paid, owner in running)]
    end([pair for pair in rest if pair not in needed])
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        listing = ", ".join(f"{thing.kind} {thing.name}" for _, thing in needed)
        note = f"; kept for resources that may still run: {listing}" if needed else ""
        raise AwsError(f"not everything was deleted: {refused[0].message}{more}{note}", refused[0].hint)
    return removed


def needs(paid: Kind, owner: str | None, thing: Resource) -> bool:
    """Return whether a resource is needed by another one that may still run.

    Args:
        paid: The kind of the other resource.
        owner: The run of the other resource; None if AWS did not list that kind.
        thing: The resource that may be needed.
    """
    return thing.kind in paid.needs and owner in (None, thing.run)
