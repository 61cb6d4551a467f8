"""The adapters that were registered while a model is served, which all its workers share.

One worker receives each change. It holds a lock, copies the files of the adapter, loads the copy and replaces the
record; the others read the record before each request. Therefore every worker has a change that was answered, and all
load the same bytes, also after a restart and if the folder of the adapter has changed. A worker that dies before it has
replaced the record has changed nothing.

    adapters.json    name -> its folder, and the copy that is served
    COPY/            the files of one adapter
    lock
"""

import asyncio
import logging
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

from neuron_sum import files
from neuron_sum.artifact import ADAPTER_NAME
from neuron_sum.errors import ModelError, NeuronSumError
from neuron_sum.models.adapter_config import CONFIG
from neuron_sum.models.adapter_files import WEIGHTS
from neuron_sum.runtimes.slots import AdapterSlots, SlotsInUseError
from serving.schema import RETRY, ServiceError
from serving.worker import locked

BASE = "base"
"""The adapter name that requests no adapter, even if the model has a default adapter."""

RESERVED = (BASE, ".", "..")
"""Names that no adapter may have."""

RECORD = "adapters.json"
RETRY_AFTER_S = 1
CHANGE_TIMEOUT_S = 30.0
"""Seconds that a change waits for a slot that running batches use; the plugin waits a minute for the answer."""
LOAD_TIMEOUT_S = 1.0
"""Seconds to wait for a slot that running batches use, while requests for other adapters wait too."""

LOG = logging.getLogger("neuron_sum")


class Entry(TypedDict):
    """A registered adapter: the folder that the caller named, and the name of the copy."""

    source: str
    copy: str


class Adapters:
    """The adapters of one worker.

    Args:
        slots: The slots of the generator; None if the artifact has none.
        compiled: The names of the adapters in the artifact.
        folder: The folder with the record, which all workers of the model share.
    """

    def __init__(self, slots: AdapterSlots | None, compiled: list[str], folder: Path) -> None:
        self._slots, self._compiled, self._folder = slots, compiled, folder
        self._seen: bytes | None = b""
        self._copies: dict[str, str] = {}
        self._faults: dict[str, str] = {}
        self._turn = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The names of the loaded adapters."""
        return self._slots.names if self._slots is not None else []

    async def follow(self) -> None:
        """Load and remove what other workers have changed since the last request."""
        if self._slots is not None and self._content() != self._seen:
            await asyncio.to_thread(self.load)

    def load(self) -> None:
        """`follow` in this thread, also at the start of a worker."""
        if self._slots is not None:
            with locked(self._folder / "lock", exclusive=False):
                self._load()

    def check(self, name: str) -> None:
        """Check that requests may use an adapter.

        Raises:
            ServiceError: 404 for an unknown adapter; 503 if only this worker could not load it.
        """
        if (fault := self._faults.get(name)) is not None:
            self._seen = None  # the next request tries again
            raise ServiceError(503, f"adapter {name!r} cannot be loaded: {fault}", "parameters.adapter", RETRY_AFTER_S)
        if name not in self.names:
            raise self._unknown(name)

    async def list(self) -> Mapping[str, str]:
        """The folders of the registered adapters by name.

        Raises:
            ServiceError: 400 without slots.
        """
        self._require_slots()
        return {name: entry["source"] for name, entry in self._entries().items()}

    async def register(self, name: str, folder: str, *, known: bool) -> None:
        """Load an adapter into a slot of each worker, or replace one, while requests continue.

        Args:
            name: The name that requests use.
            folder: A folder on this machine in PEFT's layout; empty for the known adapter's folder.
            known: Whether the adapter must exist already (update) or must not exist (registration).

        Raises:
            ServiceError: 400, 404, 409 or 422 with the reason; 503 if batches use all slots, or the change cannot be
                stored.
        """
        if name in RESERVED or not ADAPTER_NAME.fullmatch(name):
            raise ServiceError(
                400,
                f"{name[:80]!r} is not a valid adapter name; it must match {ADAPTER_NAME.pattern} and must not be "
                f"{', '.join(RESERVED)}",
                "name",
            )

        if not known and not folder:
            raise ServiceError(400, "src is empty; it must be the adapter's folder", "src")

        def change(slots: AdapterSlots, entries: dict[str, Entry]) -> None:
            if known:
                self._require_registered(name, entries)
            elif name in slots.names or name in entries:
                raise ServiceError(409, f"adapter {name!r} is already registered; update it instead", "name")
            source = Path(folder or entries[name]["source"])
            copy = uuid.uuid4().hex
            try:
                slots.check(source)
                for file in (CONFIG, WEIGHTS):
                    (self._folder / copy).mkdir(exist_ok=True)
                    shutil.copyfile(source / file, self._folder / copy / file)
                slots.load(name, self._folder / copy, CHANGE_TIMEOUT_S)
            except SlotsInUseError as error:
                raise ServiceError(503, f"{error.message}; {RETRY}, or {error.hint}", None, RETRY_AFTER_S) from error
            except ModelError as error:
                raise ServiceError(422, f"{error.message}; {error.hint or ''}".rstrip("; "), "src") from error
            self._copies[name] = copy
            entries[name] = Entry(source=str(source), copy=copy)

        await asyncio.to_thread(self._change, change)

    async def unregister(self, name: str) -> None:
        """Free an adapter's slot in each worker without affecting the batches that use it.

        Raises:
            ServiceError: 404 if the adapter does not exist, 409 if it is part of the artifact; 503 as `register`.
        """

        def change(slots: AdapterSlots, entries: dict[str, Entry]) -> None:
            self._require_registered(name, entries)
            del entries[name]

        await asyncio.to_thread(self._change, change)

    def _change(self, change: Callable[[AdapterSlots, dict[str, Entry]], None]) -> None:
        """Change the record while no other worker reads it, then this worker's slots if `change` has not."""
        slots = self._require_slots()
        try:
            with locked(self._folder / "lock"):
                self._load()
                entries = self._entries()
                try:
                    change(slots, entries)
                    files.write_json(self._folder / RECORD, entries)
                finally:
                    self._load()  # also takes back what could not be stored
                    self._remove_old_copies()
        except (OSError, NeuronSumError) as error:
            raise ServiceError(503, f"the adapters cannot be stored: {error}", None, RETRY_AFTER_S) from error

    def _load(self) -> None:
        """Make the slots equal to the record. The lock must be held, so that no copy disappears.

        `_seen` changes last, so that a request that finds it equal to the record can rely on the slots.
        """
        slots = self._require_slots()
        with self._turn:
            content, entries = self._content(), self._entries()
            for name in self._copies.keys() - entries.keys():
                self._unload(name)
            faults: dict[str, str] = {}
            for name, entry in entries.items():
                if self._copies.get(name) == entry["copy"]:
                    continue
                try:
                    slots.load(name, self._folder / entry["copy"], LOAD_TIMEOUT_S)
                    self._copies[name] = entry["copy"]
                except Exception as error:  # noqa: BLE001  any fault of one adapter must not affect the others
                    fault = error.message if isinstance(error, NeuronSumError) else repr(error)
                    LOG.warning("registered adapter %r cannot be loaded: %s", name, fault)
                    self._unload(name)
                    faults[name] = fault
            self._faults, self._seen = faults, content

    def _unload(self, name: str) -> None:
        self._copies.pop(name, None)
        with suppress(ModelError):  # it was not loaded
            self._require_slots().unload(name)

    def _content(self) -> bytes:
        with suppress(FileNotFoundError):
            return (self._folder / RECORD).read_bytes()
        return b""

    def _entries(self) -> dict[str, Entry]:
        return files.read_json(self._folder / RECORD) if (self._folder / RECORD).is_file() else {}

    def _remove_old_copies(self) -> None:
        kept = {entry["copy"] for entry in self._entries().values()}
        for path in self._folder.iterdir():
            if path.is_dir() and path.name not in kept:
                files.remove(path)

    def _require_slots(self) -> AdapterSlots:
        if self._slots is None:
            raise ServiceError(
                400, "this model has no adapter slots; compile with compile.adapters", "parameters.adapter"
            )
        return self._slots

    def _require_registered(self, name: str, entries: Mapping[str, Entry]) -> None:
        if name in self._compiled:
            raise ServiceError(
                409, f"adapter {name!r} is part of the artifact and cannot be updated or removed", "name"
            )
        if name not in entries:
            raise self._unknown(name)

    def _unknown(self, name: str) -> ServiceError:
        existing = ", ".join(self.names) or "none"
        return ServiceError(404, f"no adapter {name!r}; existing: {existing}", "parameters.adapter")
