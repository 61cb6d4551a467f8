"""Removing what was made, until nothing is left that runs; artifacts (artifacts.py) only if asked.

What is there is found anew each time, by ledger, name and tag, so it can be run again after anything, and from a
machine that made none of it.
"""

import time
from collections.abc import Callable

from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused, Unreached
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.cleanup.artifacts import stored
from sagemaker_jobs.cleanup.inventory import look
from sagemaker_jobs.cleanup.kinds import Resource, ResourceKind

RUNS_NAMED = 10
"""At most, in an error's one line: the newest."""


def left(account: Account, ledger: Ledger, run: str | None) -> list[Resource]:
    """What `remove` would remove: empty if nothing of ours is left but artifacts.

    Args:
        account: Where.
        ledger: Of it.
        run: Of this run alone.

    Raises:
        AwsError: If AWS cannot be asked, or does not let us look everywhere.
    """
    there = look(account, ledger, run)
    if there.refused:
        raise there.refused[0]
    return there.things


def check_known(account: Account, ledger: Ledger, bucket: str, run: str) -> None:
    """That there is, or was, such a run: what is left of a mistyped one is nothing, and that would be no news.

    Args:
        account: Where.
        ledger: Of it; a run that it has, even if all of it is gone, is known.
        bucket: Where artifacts are.
        run: Its id.

    Raises:
        AwsError: If neither the ledger has it, nor AWS anything of it; or AWS cannot be asked.
    """
    noted = {entry.run: entry.time for entry in ledger.entries() if entry.run != "all"}
    if run in noted:
        return
    there = look(account, ledger)
    found = {thing.run for thing in there.things if thing.run is not None}
    if run in found or stored(account, bucket, run):
        return
    if there.refused:  # it may be where we may not look
        raise there.refused[0]
    runs = [*sorted(found - set(noted)), *sorted(noted, key=lambda each: noted[each], reverse=True)]
    more = f" and {len(runs) - RUNS_NAMED} more" if len(runs) > RUNS_NAMED else ""
    raise AwsError(
        f"no run {run!r} is known in {account.region}",
        f"the runs are {', '.join(runs[:RUNS_NAMED])}{more}" if runs else "there is none here; another --region?",
    )


def remove(
    account: Account, ledger: Ledger, run: str | None, say: Callable[[str], None], *, every_s: float
) -> list[Resource]:
    """Ends what is paid by the hour, waits until it is gone (until then it is paid), and deletes the rest.

    What AWS refuses for one thing, or a service that does not answer, does not keep the others from being removed; but
    what a thing needs that may still run stays, above all the schedule that ends it, and that schedule's role.

    Args:
        account: Where.
        ledger: Of it; what is gone is noted.
        run: Of this run alone.
        say: Is told each step.
        every_s: How often to look whether something has ended.

    Returns:
        What was removed.

    Raises:
        AwsError: If AWS refused something, or did not answer, once everything else is removed. Run it again.
    """
    there = look(account, ledger, run)
    refused = list(there.refused)
    running = [(kind, owner) for kind, owner in there.hidden if kind.paid]
    removed: list[Resource] = []
    states: dict[str, str] = {}

    def ended(kind: ResourceKind, thing: Resource) -> bool:
        try:
            kind.end(account, thing.name)
            now = kind.seen(account, thing.name, thing.run or "")
        except (Refused, Unreached) as no:
            refused.append(no)
            if kind.paid:
                running.append((kind, thing.run))
            return True
        if now is None:
            ledger.note("gone", kind.name, thing.name, thing.run or "")
            removed.append(thing)
        elif states.get(thing.name) != now.state:
            states[thing.name] = now.state
            say(f"{kind.name} {thing.name}: {now.state}")
        return now is None

    # An endpoint's autoscaling goes before it.
    first = [(kind, thing) for kind, thing in there.found if kind.name == "scaling-target"]
    waiting = [(kind, thing) for kind, thing in there.found if kind.paid]
    rest = [pair for pair in there.found if pair not in first and pair not in waiting]
    for kind, thing in [*first, *waiting]:
        say(f"ending {kind.name} {thing.name}")
    waiting = [pair for pair in [*first, *waiting] if not ended(*pair)]
    while waiting:
        time.sleep(every_s)
        waiting = [pair for pair in waiting if not ended(*pair)]
    kept: list[Resource] = []
    for kind, thing in rest:
        if any(needs(paid, owner, thing) for paid, owner in running):
            kept.append(thing)
            continue
        say(f"deleting {kind.name} {thing.name}")
        ended(kind, thing)
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        needed = ", ".join(f"{thing.kind} {thing.name}" for thing in kept)
        stays = f"; kept for what may still run: {needed}" if kept else ""
        raise AwsError(f"not all could be removed: {refused[0].message}{more}{stays}", refused[0].hint)
    return removed


def needs(paid: ResourceKind, owner: str | None, thing: Resource) -> bool:
    """Whether something that may still run needs it.

    Args:
        paid: Of which kind that is.
        owner: Whose; None: AWS did not say what there is of the kind.
        thing: What may be needed.
    """
    return thing.kind in paid.needs and (
        thing.run == owner if owner is not None else (thing.run or "").startswith(paid.of)
    )
