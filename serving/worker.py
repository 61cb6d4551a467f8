"""Which of its model's Python workers this one is; light, for it is asked before anything is loaded.

When DJL unloads a model in async mode it starts the worker once more, and nobody ever stops that one
(Connection.channelInactive). Our plugin leaves a mark before the model goes (Unloads.java). A worker that finds it and
has its predecessor's socket is that orphan; one with another socket is the first of a model that was loaded anew.
"""

import hashlib
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from neuron_sum import files


@dataclass
class _Record:
    """What a model's workers leave to each other.

    Attributes:
        socket: Of the last one that may live.
        unloaded: Of those that may not: their model is gone.
    """

    socket: str = ""
    unloaded: list[str] = field(default_factory=list)


class Worker:
    """This process among the workers of its model; its files lie in the server's temporary folder.

    Args:
        model: The model's folder.
        socket: What the server talks to this worker through; the same after a restart, another after a load.
        temporary: Default: the folder for temporary files.
    """

    def __init__(self, model: Path, socket: str, temporary: Path | None = None) -> None:
        folder = temporary or Path(tempfile.gettempdir())
        name = hashlib.sha256(str(model.resolve()).encode()).hexdigest()[:16]  # as Unloads.java has it
        server = psutil.Process(os.getppid())  # another server in the same folder, later, is another matter
        self._mark = folder / f"neuron-sum-unloaded-{name}"
        self._record = folder / f"neuron-sum-worker-{server.pid}-{server.create_time():.0f}-{name}.json"
        self.adapters = self._record.with_suffix(".adapters")
        """Where the adapters that were registered are remembered until the model is unloaded."""
        self._socket = socket

    def is_wanted(self) -> bool:
        """Whether the server asked for it; to be called once, at the start."""
        record = _Record(**files.read_json(self._record)) if self._record.is_file() else _Record()
        if self._mark.exists():
            record.unloaded.append(record.socket)
            self.adapters.unlink(missing_ok=True)
            self._mark.unlink(missing_ok=True)
        wanted = self._socket not in record.unloaded
        if wanted:
            record.socket = self._socket
        files.write_json(self._record, asdict(record))
        return wanted
