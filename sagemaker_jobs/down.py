"""Removing what was made, until nothing is left that runs; artifacts (artifacts.py) only if asked.

What is there is found anew each time, by ledger, name and tag, so it can be run again after anything, and from a
machine that made none of it.
"""

import time
from collections.abc import Callable

from neuron_sum.errors import AwsError
from sagemaker_jobs.account import Account, Refused
from sagemaker_jobs.inventory import look
from sagemaker_jobs.ledger import Ledger
from sagemaker_jobs.resources import Found, Kind


def left(account: Account, ledger: Ledger, run: str | None) -> list[Found]:
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


def remove(
    account: Account, ledger: Ledger, run: str | None, say: Callable[[str], None], *, every_s: float
) -> list[Found]:  # fmt: skip
    """Ends what is paid by the hour, waits until it is gone (until then it is paid), and deletes the rest.

    What AWS refuses for one thing does not keep the others from being removed.

    Args:
        account: Where.
        ledger: Of it; what is gone is noted.
        run: Of this run alone.
        say: Is told each step.
        every_s: How often to look whether something has ended.

    Returns:
        What was removed.

    Raises:
        AwsError: If AWS refused something, once everything else is removed; or cannot be reached. Run it again.
    """
    there = look(account, ledger, run)
    refused = list(there.refused)
    removed: list[Found] = []
    states: dict[str, str] = {}

    def ended(kind: Kind, thing: Found) -> bool:
        try:
            kind.end(account, thing.name)
            now = kind.seen(account, thing.name, thing.run or "")
        except Refused as no:
            refused.append(no)
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
    for kind, thing in rest:
        say(f"deleting {kind.name} {thing.name}")
        ended(kind, thing)
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise AwsError(f"not all could be removed: {refused[0].message}{more}", refused[0].hint)
    return removed
