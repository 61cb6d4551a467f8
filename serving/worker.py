"""Files that the Python workers of a model share, and detection of orphaned workers.

Imports little, because it runs before the model is loaded.

When DJL unloads a model in async mode, it starts the worker once more and never stops it (Connection.channelInactive).
neuron-sum's plugin writes a marker file before the model is unloaded (Unloads.java). A worker that finds the marker and
has a predecessor's socket is orphaned; a worker with another socket is the first of a model that was loaded again.
"""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from neuron_sum import files


@dataclass
class _Record:
    """State that a model's workers share through a file.

    Attributes:
        sockets: Sockets of the wanted workers.
        unloaded: Sockets of unwanted workers, whose model was unloaded.
    """

    sockets: list[str] = field(default_factory=list)
    unloaded: list[str] = field(default_factory=list)


class Worker:
    """This process as a worker of its model; its files are in the server's temporary folder.

    Args:
        model: The model's folder.
        socket: The socket between the server and this worker; the same after a restart, another after a load.
        temporary: The server's temporary folder. Default: the folder for temporary files.
    """

    def __init__(self, model: Path, socket: str, temporary: Path | None = None) -> None:
        folder = temporary or Path(tempfile.gettempdir())
        name = hashlib.sha256(str(model.resolve()).encode()).hexdigest()[:16]  # the same as in Unloads.java
        server = psutil.Process(os.getppid())  # distinguishes a later server that uses the same folder
        self._marker = folder / f"neuron-sum-unloaded-{name}"
        self._record = folder / f"neuron-sum-worker-{server.pid}-{server.create_time():.0f}-{name}.json"
        self.adapters = self._record.with_suffix(".adapters")
        """The folder with the registered adapters until the model is unloaded."""
        self._socket = socket

    def is_wanted(self) -> bool:
        """Whether the worker's model is loaded; to be called once, at the start."""
        with locked(self._record.with_suffix(".lock")):
            record = _Record(**files.read_json(self._record)) if self._record.is_file() else _Record()
            if self._marker.exists():
                record.unloaded += record.sockets
                record.sockets = []
                files.remove(self.adapters)
                self._marker.unlink(missing_ok=True)
            wanted = self._socket not in record.unloaded
            if wanted and self._socket not in record.sockets:
                record.sockets.append(self._socket)
            files.write_json(self._record, asdict(record))
            return wanted


@contextmanager
def locked(file: Path, *, exclusive: bool = True) -> Iterator[None]:
    """Hold a lock, which ends with the block or the process.

    Args:
        file: The lock file.
        exclusive: Whether no other process may hold it, instead of none that changes anything.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)
