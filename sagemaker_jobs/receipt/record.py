"""The state of a receipt, which is written after each change, so that a killed command continues."""

import secrets
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from neuron_sum import __version__, console, files
from neuron_sum.errors import RunError
from sagemaker_jobs.aws.ledger import STATE as STATE_VARIABLE
from sagemaker_jobs.aws.ledger import Entry, Ledger
from sagemaker_jobs.aws.names import AwsContext
from sagemaker_jobs.receipt.steps import ALL, Step

STATE, RECEIPT, PAGE = "state.json", "aws-receipt.json", "aws-receipt.md"
State = Literal["passed", "different", "failed", "open"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Observed(_Part):
    """The result of one cell."""

    state: State
    """different: a result other than the expected one; failed: an error; open: not observed."""
    text: str


class Attempt(_Part):
    """One start of a step, which may cost something."""

    step: str
    started: str
    """UTC, ISO 8601."""
    worst_usd: float
    usd: float | None = None
    """The cost by the times that AWS reports; None while a resource of the attempt may be running."""

    @property
    def reserved_usd(self) -> float:
        """The cost that counts against the cap."""
        return self.worst_usd if self.usd is None else self.usd


class Result(_Part):
    """The result of a step that has ended."""

    ended: str
    """UTC, ISO 8601."""
    cells: dict[str, Observed]
    facts: dict[str, Any] = Field(default_factory=dict)
    """Values that later steps use."""
    denied: str | None = None
    """The first message of AWS if it denied a call, also one without which the step went on."""

    @property
    def failed(self) -> bool:
        """Whether a cell has failed."""
        return any(each.state == "failed" for each in self.cells.values())


class Record(_Part):
    """The content of the state file."""

    format_version: Literal[1] = 1
    neuron_sum: str
    id: str
    """Marks the resources of this receipt in the ledger."""
    account: str
    region: str
    started: str
    attempts: list[Attempt] = Field(default_factory=list)
    results: dict[str, Result] = Field(default_factory=dict)

    @property
    def reserved_usd(self) -> float:
        """The cost of all attempts that counts against the cap."""
        return sum(attempt.reserved_usd for attempt in self.attempts)

    @property
    def worst_usd(self) -> float:
        """The maximum cost of all attempts."""
        return sum(attempt.worst_usd for attempt in self.attempts)

    def done(self, name: str) -> bool:
        """Whether a step has ended, and its first cell, which later steps need, has not failed."""
        return name in self.results and self.results[name].cells[ALL[name].cells[0].name].state != "failed"

    def fact(self, name: str, key: str) -> Any:
        """A value that a step has left for later ones."""
        return self.results[name].facts[key]

    def last_attempt(self, name: str) -> int | None:
        """The index of the last attempt of a step; None without one."""
        return max((number for number, each in enumerate(self.attempts) if each.step == name), default=None)

    def labels(self, number: int) -> dict[str, Any]:
        """The details that mark the resources of an attempt in the ledger.

        Args:
            number: The index of the attempt.
        """
        return {"receipt": self.id, "attempt": number}

    def created(self, ledger: Ledger, number: int | None = None) -> list[Entry]:
        """The resources of an attempt, or of all, that the ledger names, without those that AWS refused to create."""
        return [
            entry
            for entry in ledger.entries()
            if entry.details.get("receipt") == self.id
            and entry.event != "refused"
            and number in (None, entry.details.get("attempt"))
        ]

    def begin(self, ledger: Ledger) -> None:
        """Note a new receipt in the ledger.

        Raises:
            ResourceError: If the ledger cannot be written.
        """
        ledger.note("begun", "receipt", self.id, "all")

    def check_ledger(self, ledger: Ledger, folder: Path) -> None:
        """Reject another ledger than that of the receipt: what an interrupted attempt has started would not be found.

        Args:
            ledger: The ledger of the command.
            folder: The folder of the receipt.

        Raises:
            RunError: If the ledger does not have this receipt.
        """
        if not any(entry.kind == "receipt" and entry.name == self.id for entry in ledger.entries()):
            raise RunError(
                f"the ledger {ledger.path} has no receipt {self.id}: {folder} was written on another machine, or with "
                f"another {STATE_VARIABLE}",
                f"continue it where it was started, or copy the ledger from there to {console.quote(ledger.path)}",
            )

    def drop_failed(self) -> list[str]:
        """Forget the failed steps, so that they are repeated, and the steps whose running resources they need."""
        failed = [name for name, result in self.results.items() if result.failed]
        dropped = [name for name in self.results if name in failed or ALL[name].follower in failed]
        for name in dropped:
            del self.results[name]
        return dropped


class RecordFile:
    """The state file of a receipt.

    Args:
        folder: The folder of the receipt.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / STATE

    def load(self, site: AwsContext, *, resume: bool) -> Record:
        """The receipt to continue, or a new one, which is not written yet.

        Args:
            site: The account and region of the command.
            resume: Whether to continue a receipt.

        Raises:
            RunError: If there is no receipt to continue, or one without `resume`, or one of another account, or the
                file is damaged.
        """
        if resume != self.path.exists():
            if resume:
                raise RunError(f"{self.folder} has no receipt to continue", "omit --resume, or correct --output")
            raise RunError(
                f"{self.folder} already has a receipt",
                "add --resume to continue it, or use another --output",
            )
        if not resume:
            return Record(
                neuron_sum=__version__,
                id=secrets.token_hex(8),
                account=site.account,
                region=site.region,
                started=timestamp(),
            )
        content = files.read_json(self.path, RunError, f"remove {self.folder}, or use another --output")
        try:
            record = Record.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise RunError(f"{self.path} is damaged: {place}: {first['msg']}", "use another --output") from error
        if (record.account, record.region) != (site.account, site.region):
            raise RunError(
                f"{self.folder} has a receipt of account {record.account} in {record.region}, but the command uses "
                f"account {site.account} in {site.region}",
                f"use the credentials of that account with --region {console.quote(record.region)}, or another "
                "--output",
            )
        return record

    def save(self, record: Record) -> None:
        """Replace the file atomically.

        Raises:
            ResourceError: If it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_json(self.path, record.model_dump(mode="json"))


def observed(step: Step, reason: str) -> dict[str, Observed]:
    """The cells of a step of which nothing was observed, with the reason."""
    return {cell.name: Observed(state="open", text=reason) for cell in step.cells}


def failed(step: Step, message: str) -> dict[str, Observed]:
    """The cells of a step that ended with an error: the first has failed, and the others were not observed."""
    first = step.cells[0].name
    cells = observed(step, f"not observed, because {first} failed")
    return {**cells, first: Observed(state="failed", text=message)}


def timestamp() -> str:
    """The current time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
