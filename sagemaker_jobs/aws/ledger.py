"""Ledger of the resources created in an account, which survives a kill: intent before each create, outcome after it.

The file is in JSON Lines, one event per line, and append-only. A resource with an intent and no end may exist, so
`aws down` looks for it. Each account and region has one file in NEURON_SUM_STATE, else XDG_STATE_HOME/neuron-sum, else
~/.local/state/neuron-sum.
"""

import json
import os
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

from neuron_sum import console, files
from neuron_sum.errors import ResourceError
from sagemaker_jobs.aws.names import AwsContext

STATE = "NEURON_SUM_STATE"
Event = Literal["intent", "made", "refused", "gone", "begun"]
"""intent: about to be created. made: confirmed by AWS. refused: rejected by AWS. gone: deleted, or found missing.
begun: start of a receipt, whose later commands need this ledger."""
LABELS: ContextVar[Mapping[str, Any]] = ContextVar("labels", default={})  # noqa: B039 - never changed in place
"""Details of every intent in this context, such as the step of `aws receipt` that creates the resource."""


@dataclass(frozen=True)
class Entry:
    """State of one resource.

    Attributes:
        kind: The kind, such as training-job.
        name: The resource's name in AWS.
        run: The id of the run that owns the resource.
        event: The last event.
        time: The time of that event (UTC).
        details: The labels of the intent.
    """

    kind: str
    name: str
    run: str
    event: Event
    time: str
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Whether the resource may exist."""
        return self.event in ("intent", "made")


class Ledger:
    """Ledger of an account in a region.

    Args:
        site: The account and region.
        folder: The folder of the file; None for the user's state folder.
    """

    def __init__(self, site: AwsContext, folder: Path | None = None) -> None:
        self.path = (folder or state_folder()) / "aws" / f"{site.account}-{site.region}.jsonl"
        self._damaged: set[int] = set()

    def note(self, event: Event, kind: str, name: str, run: str) -> None:
        """Append an event, and return once it is on disk.

        Raises:
            ResourceError: If the ledger cannot be written.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": now, "event": event, "run": run, "kind": kind, "name": name}
        if event == "intent" and (labels := LABELS.get()):
            line["details"] = dict(labels)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files.append_line(self.path, json.dumps(line, ensure_ascii=False))
        except OSError as error:
            raise ResourceError(
                f"the ledger {self.path} cannot be written: {error.strerror}", f"set {STATE} to a writable folder"
            ) from error

    def entries(self) -> list[Entry]:
        """All resources ever recorded, in the order of their first intents; skips damaged lines with one warning."""
        known: dict[tuple[str, str], Entry] = {}
        *lines, last = self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]
        if _entry(last) is not None:  # only its newline is missing
            lines.append(last)
        for number, content in enumerate(lines, 1):
            if (entry := _entry(content)) is None:
                if number not in self._damaged:
                    self._damaged.add(number)
                    console.warn(
                        f"{self.path}:{number} is damaged; a resource that only this line records is not found"
                    )
            else:
                earlier = known.get((entry.kind, entry.name))
                details = entry.details or (earlier.details if earlier else {})
                known[entry.kind, entry.name] = replace(entry, details=details)
        return list(known.values())

    def open(self, run: str | None = None) -> list[Entry]:
        """Return the resources that may exist.

        Args:
            run: The id of the only run to include; None for all runs.
        """
        return [entry for entry in self.entries() if entry.open and run in (None, entry.run)]


def _entry(content: bytes) -> Entry | None:
    """A line of the ledger; None if it is not one."""
    try:
        line = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    texts = [line.get(name) for name in ("kind", "name", "run", "event", "time")]
    if not all(isinstance(text, str) and text for text in texts) or line["event"] not in get_args(Event):
        return None
    details = line.get("details", {})
    if not isinstance(details, dict):
        return None
    return Entry(line["kind"], line["name"], line["run"], line["event"], line["time"], details)


def state_folder() -> Path:
    """Return NEURON_SUM_STATE, else XDG_STATE_HOME/neuron-sum, else ~/.local/state/neuron-sum."""
    if folder := os.environ.get(STATE):
        return Path(folder)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "neuron-sum"
