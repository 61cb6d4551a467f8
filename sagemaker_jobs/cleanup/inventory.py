"""What of ours is in an account: by the ledger, by name and by tag; and what runs there that is not ours."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused, Unreached
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.cleanup.kinds import KINDS, Resource, ResourceKind, hours_since


@dataclass(frozen=True)
class Inventory:
    """What was found.

    Attributes:
        found: Each with its kind, in the order of removal.
        refused: Why AWS did not let us look at something, or did not answer; something may be there.
        hidden: What was not seen: a kind, and whose; None where the kind could not even be listed, so anybody's.
    """

    found: tuple[tuple[ResourceKind, Resource], ...]
    refused: tuple[Refused | Unreached, ...]
    hidden: tuple[tuple[ResourceKind, str | None], ...] = ()

    @property
    def things(self) -> list[Resource]:
        """Without their kinds."""
        return [found for _, found in self.found]


def look(account: Account, ledger: Ledger, run: str | None = None) -> Inventory:
    """All of ours that is in the account and no artifact: what AWS lists, and what the ledger has.

    A service that refuses, or does not answer, does not keep the others from being looked at.

    Args:
        account: Where.
        ledger: Of it; what is not there, or has ended, is noted there as gone.
        run: Of this run alone.

    Raises:
        Unreached: If no service can be asked.
    """
    noted = ledger.open(run)
    found: list[tuple[ResourceKind, Resource]] = []
    refused: list[Refused | Unreached] = []
    hidden: list[tuple[ResourceKind, str | None]] = []

    def not_seen(error: Refused | Unreached, kind: ResourceKind, owner: str | None) -> None:
        if isinstance(error, Unreached) and not any(isinstance(one, Unreached) for one in refused):
            account.call("sts", "get_caller_identity")  # if this has no answer, either, none will
        refused.append(error)
        hidden.append((kind, owner))

    for kind in KINDS:
        names = {entry.name: entry.run for entry in noted if entry.kind == kind.name}
        known = set(names)
        try:
            names.update(kind.listed(account, run))
        except (Refused, Unreached) as no:
            not_seen(no, kind, None)
        for name, owner in names.items():
            try:
                thing = kind.seen(account, name, owner)
            except (Refused, Unreached) as no:
                not_seen(no, kind, owner)
                continue
            if thing is not None:
                found.append((kind, thing))
            elif name in known:
                ledger.note("gone", kind.name, name, owner)
    return Inventory(tuple(found), tuple(refused), tuple(hidden))


def not_ours(account: Account) -> tuple[list[Resource], list[Refused | Unreached]]:
    """What runs by the hour and is not ours, notebook instances and Studio apps; and why some could not be listed.

    Raises:
        AwsError: If the request could not be sent.
    """
    found: list[Resource] = []
    refused: list[Refused | Unreached] = []
    listings: tuple[Callable[[Account], Iterator[Resource]], ...] = (_notebooks, _apps)
    for listed in listings:
        try:
            found += listed(account)
        except (Refused, Unreached) as no:
            refused.append(no)
    return found, refused


def _notebooks(account: Account) -> Iterator[Resource]:
    listing = account.pages("sagemaker", "list_notebook_instances", "NotebookInstances", StatusEquals="InService")
    for item in listing:
        yield Resource(
            "notebook-instance",
            item["NotebookInstanceName"],
            None,
            item["NotebookInstanceStatus"],
            hours_since(item["LastModifiedTime"]),
            item["InstanceType"],
        )


def _apps(account: Account) -> Iterator[Resource]:
    for item in account.pages("sagemaker", "list_apps", "Apps"):
        instance = (item.get("ResourceSpec") or {}).get("InstanceType")
        if item["Status"] in ("InService", "Pending") and instance != "system":  # which costs nothing
            yield Resource(
                "studio-app",
                f"{item.get('UserProfileName') or item.get('SpaceName') or '?'}/{item['AppName']}",
                None,
                item["Status"],
                hours_since(item["CreationTime"]),
                instance,
            )
