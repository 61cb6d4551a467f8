"""What of ours is in an account: by the ledger, by name and by tag; and what runs there that is not ours."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from neuron_sum.errors import PlatformError
from neuron_sum.prices import find_price
from sagemaker_jobs.account import Account, Refused
from sagemaker_jobs.following import describe
from sagemaker_jobs.ledger import Ledger
from sagemaker_jobs.names import PREFIX, RUN_TAG, role_path

RUNNING = ("InProgress", "Stopping")


@dataclass(frozen=True)
class Found:
    """One thing in the account.

    Attributes:
        kind: training-job, role, bucket; notebook-instance, studio-app.
        name: AWS's name for it.
        run: Whose it is; None for what is not ours, and for what all runs share.
        state: As AWS says.
        hours: Since it was made.
        instance: What it runs on; None for what costs nothing while it lies there.
        instances: How many.
    """

    kind: str
    name: str
    run: str | None
    state: str
    hours: float
    instance: str | None = None
    instances: int = 1

    @property
    def usd_per_hour(self) -> float | None:
        """By the shipped table; None where it has no price, 0 for what costs nothing."""
        if self.instance is None:
            return 0.0
        try:
            return find_price(self.instance).cost(1, self.instances)
        except PlatformError:
            return None

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "usd_per_hour": self.usd_per_hour}


def running_jobs(account: Account, ledger: Ledger, run: str | None = None) -> list[Found]:
    """Training jobs of ours that run: those AWS lists by name and tag, and those the ledger has.

    Args:
        account: Where.
        ledger: Of it; a job of its that has ended or never came is noted there.
        run: Of this run alone.

    Raises:
        AwsError: If AWS cannot be asked.
    """
    names: dict[str, str] = {}
    for status in RUNNING:
        listing = account.pages(
            "sagemaker", "list_training_jobs", "TrainingJobSummaries", NameContains=_begins(run), StatusEquals=status
        )
        for job in listing:
            found = account.call("sagemaker", "list_tags", ResourceArn=job["TrainingJobArn"])["Tags"]
            owner = next((tag["Value"] for tag in found if tag["Key"] == RUN_TAG), None)
            if owner is not None and run in (None, owner):
                names[job["TrainingJobName"]] = owner
    for entry in ledger.open(run):
        if entry.kind == "training-job":
            names.setdefault(entry.name, entry.run)
    return list(_described(account, ledger, names))


def _described(account: Account, ledger: Ledger, names: dict[str, str]) -> Iterator[Found]:
    for name, owner in names.items():
        try:
            job = describe(account, name)
        except Refused as refused:
            if not refused.missing:
                raise
            ledger.note("gone", "training-job", name, owner)
            continue
        if job.ended:  # a record, which costs nothing
            ledger.note("gone", "training-job", name, owner)
            continue
        resources = job.described["ResourceConfig"]
        yield Found(
            "training-job", name, owner, job.stage, job.seconds / 3600, resources["InstanceType"],
            resources["InstanceCount"],
        )  # fmt: skip


def roles(account: Account, ledger: Ledger, run: str | None = None) -> list[Found]:
    """Roles of ours: those below our path, and those the ledger has.

    Raises:
        AwsError: If AWS cannot be asked.
    """
    found = {}
    for role in account.pages("iam", "list_roles", "Roles", PathPrefix=role_path(account.region)):
        # Roles are the account's, in all regions, and one run's name tells it from another's.
        owner = role["RoleName"].removeprefix(f"{PREFIX}-").removesuffix("-role")
        if run in (None, owner):
            found[role["RoleName"]] = Found("role", role["RoleName"], owner, "there", _hours(role["CreateDate"]))
    for entry in ledger.open(run):
        if entry.kind == "role" and entry.name not in found:
            ledger.note("gone", "role", entry.name, entry.run)
    return list(found.values())


def not_ours(account: Account) -> list[Found]:
    """What runs by the hour and is not ours: notebook instances and Studio apps.

    Raises:
        AwsError: If AWS cannot be asked.
    """
    notebooks = [
        Found(
            "notebook-instance", item["NotebookInstanceName"], None, item["NotebookInstanceStatus"],
            _hours(item["LastModifiedTime"]), item["InstanceType"],
        )
        for item in account.pages(
            "sagemaker", "list_notebook_instances", "NotebookInstances", StatusEquals="InService"
        )
    ]  # fmt: skip
    apps = [
        Found(
            "studio-app", f"{item.get('UserProfileName') or item.get('SpaceName') or '?'}/{item['AppName']}", None,
            item["Status"], _hours(item["CreationTime"]), (item.get("ResourceSpec") or {}).get("InstanceType"),
        )
        for item in account.pages("sagemaker", "list_apps", "Apps")
        if item["Status"] in ("InService", "Pending")
        and (item.get("ResourceSpec") or {}).get("InstanceType") != "system"  # which costs nothing
    ]  # fmt: skip
    return notebooks + apps


def _begins(run: str | None) -> str:
    return f"{PREFIX}-{run}-" if run else f"{PREFIX}-"


def _hours(since: datetime) -> float:
    return max((datetime.now(timezone.utc) - since).total_seconds(), 0.0) / 3600
