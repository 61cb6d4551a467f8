"""Inventory of neuron-sum's resources in an account, found by ledger, name and tag, and of other billed resources."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import NOT_CREATED, Refused, Unreached
from sagemaker_jobs.cleanup.kinds import KINDS, Kind, Resource, hours_since


@dataclass(frozen=True)
class Inventory:
    """Resources that were found, and errors of the search.

    Attributes:
        found: The resources with their kinds, in the order of deletion.
        refused: The errors of calls that AWS refused or did not answer; there may be further resources.
        hidden: The kind and run of resources that could not be read; None as the run if the listing of the kind failed.
    """

    found: tuple[tuple[Kind, Resource], ...]
    refused: tuple[Refused | Unreached, ...] = ()
    hidden: tuple[tuple[Kind, str | None], ...] = ()

    @property
    def things(self) -> list[Resource]:
        """The resources without their kinds."""
        return [resource for _, resource in self.found]


def look(account: Account, run: str | None = None, kinds: Collection[str] = tuple(KINDS)) -> Inventory:
    """Return neuron-sum's resources that AWS lists or the ledger contains, without artifacts.

    A service that refuses, or does not answer, does not prevent the search in the others.

    Args:
        account: The account and region.
        run: The only run to include; None for all runs.
        kinds: The names of the only kinds to include.

    Raises:
        Unreached: If no service can be reached.
    """
    recorded = account.ledger.open(run)
    found: list[tuple[Kind, Resource]] = []
    refused: list[Refused | Unreached] = []
    hidden: list[tuple[Kind, str | None]] = []

    def record_failure(error: Refused | Unreached, kind: Kind, owner: str | None) -> None:
        if isinstance(error, Unreached) and not any(isinstance(one, Unreached) for one in refused):
            account.call("sts", "get_caller_identity")  # raises if no service can be reached
        refused.append(error)
        if getattr(error, "code", None) != NOT_CREATED:  # nothing of a run depends on what belongs to others
            hidden.append((kind, owner))

    for kind in (kind for kind in KINDS.values() if kind.name in kinds):
        known = {entry.name: entry.run for entry in recorded if entry.kind == kind.name}
        listed: dict[str, str] = {}
        try:
            listed.update(kind.list_names(account, run))
        except (Refused, Unreached) as error:
            record_failure(error, kind, None)
        for name, owner in {**known, **listed}.items():
            try:
                thing = kind.describe(account, name, owner)
                if thing is not None and name not in listed:
                    kind.check_owner(account, thing)
            except (Refused, Unreached) as error:
                record_failure(error, kind, owner)
                continue
            except (AwsError, LookupError, TypeError, ValueError) as error:  # AwsError: botocore rejects it
                odd = f"{kind.name} {name} is not as neuron-sum creates it ({type(error).__name__}: {error})"
                record_failure(Refused(odd, "delete it yourself", "Odd"), kind, owner)
                continue
            if thing is not None:
                found.append((kind, thing))
            elif name in known:
                account.ledger.note("gone", kind.name, name, owner)
    return Inventory(tuple(found), tuple(refused), tuple(hidden))


def not_ours(account: Account) -> tuple[list[Resource], list[Refused | Unreached]]:
    """Return notebook instances and Studio apps, which are billed by the hour, and the errors of their listings.

    Raises:
        AwsError: If a request could not be sent.
    """
    found: list[Resource] = []
    refused: list[Refused | Unreached] = []
    for listing in (_notebooks, _apps):
        try:
            found += listing(account)
        except (Refused, Unreached) as error:
            refused.append(error)
    return found, refused


def _notebooks(account: Account) -> Iterator[Resource]:
    for item in account.pages("sagemaker", "list_notebook_instances", "NotebookInstances", StatusEquals="InService"):
        name, hours = item["NotebookInstanceName"], hours_since(item["LastModifiedTime"])
        yield Resource("notebook-instance", name, None, item["NotebookInstanceStatus"], hours, item["InstanceType"])


def _apps(account: Account) -> Iterator[Resource]:
    for item in account.pages("sagemaker", "list_apps", "Apps"):
        instance = (item.get("ResourceSpec") or {}).get("InstanceType")
        if item["Status"] in ("InService", "Pending") and instance != "system":  # system instances are free
            name = f"{item.get('UserProfileName') or item.get('SpaceName') or '?'}/{item['AppName']}"
            yield Resource("studio-app", name, None, item["Status"], hours_since(item["CreationTime"]), instance)
