"""What of ours is in an account: by the ledger, by name and by tag; and what runs there that is not ours."""

from dataclasses import dataclass

from sagemaker_jobs.account import Account, Refused
from sagemaker_jobs.ledger import Ledger
from sagemaker_jobs.resources import KINDS, Found, Kind, hours_since


@dataclass(frozen=True)
class Inventory:
    """What was found.

    Attributes:
        found: Each with its kind, in the order of removal.
        refused: What AWS did not let us look at; something may be there.
    """

    found: tuple[tuple[Kind, Found], ...]
    refused: tuple[Refused, ...]

    @property
    def things(self) -> list[Found]:
        """Without their kinds."""
        return [found for _, found in self.found]


def look(account: Account, ledger: Ledger, run: str | None = None) -> Inventory:
    """All of ours that is in the account and no artifact: what AWS lists, and what the ledger has.

    Args:
        account: Where.
        ledger: Of it; what is not there, or has ended, is noted there as gone.
        run: Of this run alone.

    Raises:
        Unreached: If AWS cannot be asked.
    """
    noted = ledger.open(run)
    found: list[tuple[Kind, Found]] = []
    refused: list[Refused] = []
    for kind in KINDS:
        names = {entry.name: entry.run for entry in noted if entry.kind == kind.name}
        known = set(names)
        try:
            names.update(kind.listed(account, run))
        except Refused as no:
            refused.append(no)
        for name, owner in names.items():
            try:
                thing = kind.seen(account, name, owner)
            except Refused as no:
                refused.append(no)
                continue
            if thing is not None:
                found.append((kind, thing))
            elif name in known:
                ledger.note("gone", kind.name, name, owner)
    return Inventory(tuple(found), tuple(refused))


def not_ours(account: Account) -> list[Found]:
    """What runs by the hour and is not ours: notebook instances and Studio apps.

    Raises:
        AwsError: If AWS cannot be asked.
    """
    notebooks = [
        Found(
            "notebook-instance", item["NotebookInstanceName"], None, item["NotebookInstanceStatus"],
            hours_since(item["LastModifiedTime"]), item["InstanceType"],
        )
        for item in account.pages(
            "sagemaker", "list_notebook_instances", "NotebookInstances", StatusEquals="InService"
        )
    ]  # fmt: skip
    apps = [
        Found(
            "studio-app", f"{item.get('UserProfileName') or item.get('SpaceName') or '?'}/{item['AppName']}", None,
            item["Status"], hours_since(item["CreationTime"]), (item.get("ResourceSpec") or {}).get("InstanceType"),
        )
        for item in account.pages("sagemaker", "list_apps", "Apps")
        if item["Status"] in ("InService", "Pending")
        and (item.get("ResourceSpec") or {}).get("InstanceType") != "system"  # which costs nothing
    ]  # fmt: skip
    return notebooks + apps
