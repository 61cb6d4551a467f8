"""What was made in an account, in a file that survives a kill: intent before each create, outcome after it.

JSON Lines, a line an event, only ever added to. What has an intent and no end may be there, whatever else is known:
`aws down` looks for it. One file an account and region, in NEURON_SUM_STATE, else XDG_STATE_HOME/neuron-sum, else
~/.local/state/neuron-sum.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO, Literal

from neuron_sum import files
from neuron_sum.errors import ResourceError
from sagemaker_jobs.aws.names import AwsContext

STATE = "NEURON_SUM_STATE"
Event = Literal["intent", "made", "refused", "gone"]
"""intent: about to be created. made: AWS said so. refused: AWS said no. gone: deleted, or seen not to be there."""


@dataclass(frozen=True)
class Entry:
    """What is known of one thing.

    Attributes:
        kind: Such as training-job.
        name: AWS's name for it.
        run: Whose it is.
        event: The last one.
        time: When that was (UTC).
        details: What was noted with its intent.
    """

    kind: str
    name: str
    run: str
    event: Event
    time: str
    details: dict[str, Any]

    @property
    def open(self) -> bool:
        """Whether it may be there."""
        return self.event in ("intent", "made")


class Ledger:
    """The ledger of an account in a region.

    Args:
        site: Whose.
        folder: Default: the user's state folder.
    """

    def __init__(self, site: AwsContext, folder: Path | None = None) -> None:
        self.path = (folder or state_folder()) / "aws" / f"{site.account}-{site.region}.jsonl"

    @contextmanager
    def creating(self, kind: str, name: str, run: str, **details: Any) -> Iterator[None]:
        """The intent before its block, the outcome after it.

        A block that raises leaves the intent standing, for the thing may be there; the caller notes a refusal.

        Raises:
            ResourceError: If the ledger cannot be written; then nothing is created.
        """
        self.note("intent", kind, name, run, **details)
        yield
        self.note("made", kind, name, run)

    def note(self, event: Event, kind: str, name: str, run: str, **details: Any) -> None:
        """Adds a line, which is on the disk when this returns.

        Raises:
            ResourceError: If it cannot be written.
        """
        line: dict[str, Any] = {"time": _now(), "event": event, "run": run, "kind": kind, "name": name}
        if details:
            line["details"] = details
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                _cut_broken_tail(file)
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            directory = os.open(self.path.parent, os.O_RDONLY)  # the name of a new file must survive, too
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise ResourceError(
                f"the ledger {self.path} cannot be written: {error.strerror}", f"{STATE}=FOLDER names another place"
            ) from error

    def entries(self) -> list[Entry]:
        """Everything that was ever noted, in the order of its first intent."""
        known: dict[tuple[str, str], Entry] = {}
        for line in files.read_jsonl(self.path):
            key = (line["kind"], line["name"])
            before = known.get(key)
            details = line.get("details") or (before.details if before else {})
            known[key] = Entry(line["kind"], line["name"], line["run"], line["event"], line["time"], details)
        return list(known.values())

    def open(self, run: str | None = None) -> list[Entry]:
        """What may be there.

        Args:
            run: Of this run alone.
        """
        return [entry for entry in self.entries() if entry.open and run in (None, entry.run)]


def state_folder() -> Path:
    """NEURON_SUM_STATE, else XDG_STATE_HOME/neuron-sum, else ~/.local/state/neuron-sum."""
    if own := os.environ.get(STATE):
        return Path(own)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "neuron-sum"


def _cut_broken_tail(file: BinaryIO) -> None:
    """A kill or a full disk cut the last line: it never counted, and the next one must not be glued to it."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
