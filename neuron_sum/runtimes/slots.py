"""Adapters as data in slots: load, replace and remove them while requests run."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from neuron_sum.artifact import ADAPTERS, AdapterSpec, Artifact
from neuron_sum.errors import ModelError
from neuron_sum.models.adapter_files import read_adapter

VECTORS, MASK = "soft_prompts.vectors", "soft_prompts.mask"
"""Names of the soft prompt stacks: the buffers of SoftPrompts (compile/graphs/layers.py) in a model."""

HEAD = "lm_head"
"""The output layer of every family in transformers."""


class SlotsInUseError(ModelError):
    """No slot became free in time, because batches use them: a later attempt can succeed."""


class AdapterSlots:
    """The adapter stacks that all graphs of an artifact read, and the adapter in each slot.

    A slot in use by a batch is never written: an adapter is loaded into a free slot, then its name is mapped to that
    slot. Its previous slot is free when the last batch that leased it has finished.

    Args:
        spec: The rank, number of slots and target modules.
        stacks: Tensors by name, shared with the graphs: (slots, rank, in), (slots, out, rank), soft prompts.
        targets: The prefix of the stacks by module name of the transformers model.
    """

    def __init__(self, spec: AdapterSpec, stacks: Mapping[str, Tensor], targets: Mapping[str, str]) -> None:
        self._spec, self._stacks, self._targets = spec, stacks, targets
        self._slots: dict[str, int] = {}
        self._leases = [0] * spec.slots
        self.version = 0
        """Number of loads, by which owners of copies of the stacks detect outdated copies."""
        self._changed = threading.Condition()

    @staticmethod
    def stack_names(targets: Mapping[str, str], soft_prompt_tokens: int) -> list[str]:
        """The names of all stacks of graphs with these targets."""
        names = [f"{prefix}_{half}" for prefix in targets.values() for half in "ab"]
        return names + ([VECTORS, MASK] if soft_prompt_tokens else [])

    @property
    def stacks(self) -> Mapping[str, Tensor]:
        """The stacks by name."""
        return self._stacks

    @property
    def names(self) -> list[str]:
        """The names of the loaded adapters."""
        with self._changed:
            return sorted(self._slots)

    def load(self, name: str, folder: Path, timeout_s: float = 60.0) -> None:
        """Load an adapter, or replace the adapter of the same name, without compiling.

        Args:
            name: The name for requests.
            folder: A LoRA or prompt tuning adapter in PEFT layout, with safetensors only.
            timeout_s: Seconds to wait for a slot that is in use by running batches.

        Raises:
            SlotsInUseError: If running batches use every slot that is available to it.
            ModelError: If the adapter does not fit the slots, or other adapters have all of them.
        """
        contents = self._read(folder)
        with self._changed:
            slot = self._free_slot(name, time.monotonic() + timeout_s)
            for key, stack in self._stacks.items():
                stack[slot] = contents.get(key, torch.zeros(())).to(stack.dtype)
            self.version += 1
            self._slots[name] = slot

    def unload(self, name: str) -> None:
        """Remove an adapter; running batches that use it are not affected.

        Raises:
            ModelError: If no adapter has that name.
        """
        with self._changed:
            if name not in self._slots:
                raise self._unknown(name)
            del self._slots[name]
            self._changed.notify_all()

    @contextmanager
    def lease(self, names: Sequence[str | None]) -> Iterator[list[int]]:
        """Reserve the slots of a batch's adapters, unchanged until the block ends; None means no adapter.

        Raises:
            ModelError: If a name is not loaded; lists the loaded ones.
        """
        with self._changed:
            if unknown := next((name for name in names if name is not None and name not in self._slots), None):
                raise self._unknown(unknown)
            slots = [0 if name is None else self._slots[name] for name in names]
            for slot in slots:
                self._leases[slot] += 1
        try:
            yield slots
        finally:
            with self._changed:
                for slot in slots:
                    self._leases[slot] -= 1
                self._changed.notify_all()

    def _free_slot(self, name: str, deadline_s: float) -> int:
        """Find a slot without adapter and lease; wait for batches that use the slot of a removed adapter."""
        while True:
            taken = {slot for other, slot in self._slots.items() if other != name}
            candidates = [slot for slot in range(1, self._spec.slots) if slot not in taken]
            if not candidates:
                raise ModelError(
                    f"all {self._spec.slots - 1} adapter slots are taken: {', '.join(sorted(self._slots))}",
                    "unload one, or compile with more compile.adapters.slots",
                )
            for slot in candidates:
                if not self._leases[slot] and slot != self._slots.get(name):
                    return slot
            if name in self._slots and not self._leases[self._slots[name]]:
                return self._slots[name]
            if not self._changed.wait(deadline_s - time.monotonic()):
                raise SlotsInUseError(
                    f"adapter {name!r} was not loaded: all slots available to it are in use",
                    "compile with one more of compile.adapters.slots than adapters, to replace adapters under load",
                )

    def _unknown(self, name: str) -> ModelError:
        loaded = ", ".join(sorted(self._slots)) or "none"
        return ModelError(f"no adapter {name!r}", f"loaded: {loaded}")

    def check(self, folder: Path) -> None:
        """Check that an adapter fits the slots; only the shapes of the stacks are used.

        Raises:
            ModelError: If it does not fit.
        """
        self._read(folder)

    def _read(self, folder: Path) -> dict[str, Tensor]:
        """The contents of one slot by stack name, in float32, padded to the compiled rank, with the scale in B."""
        adapter = read_adapter(folder)
        if adapter.vectors is not None:
            return self._soft_prompt(folder, adapter.vectors)
        if adapter.saved:
            raise ModelError(
                f"{folder} contains {next(iter(adapter.saved))}, but slots hold only LoRA and soft prompts",
                "compile the adapter into the model: without compile.adapters",
            )
        if unknown := sorted(adapter.lora.keys() - self._targets.keys()):
            raise ModelError(
                f"{folder} adapts {unknown[0]}, but the graphs have no slot for it",
                f"compiled for {', '.join(self._spec.target_modules)}; see compile.adapters.target_modules",
            )
        adapter.check_modules(self._targets, HEAD)
        contents: dict[str, Tensor] = {}
        for module, lora in adapter.lora.items():
            rank = len(lora.a)
            if rank > self._spec.rank:
                raise ModelError(
                    f"{folder} has rank {rank}, the graphs are compiled for {self._spec.rank}",
                    f"compile with compile.adapters.rank={rank}",
                )
            for half, tensor in (("a", lora.a), ("b", lora.b * lora.scale)):
                name = f"{self._targets[module]}_{half}"
                padded = torch.zeros(self._stacks[name].shape[1:])
                used = padded[:rank] if half == "a" else padded[:, :rank]
                if used.shape != tensor.shape:
                    raise ModelError(
                        f"{folder} does not fit this base model: lora_{half.upper()} of {module} is "
                        f"{tuple(tensor.shape)}, not {tuple(used.shape)}"
                    )
                used.copy_(tensor)
                contents[name] = padded
        return contents

    def _soft_prompt(self, folder: Path, vectors: Tensor) -> dict[str, Tensor]:
        room, width = self._stacks[VECTORS].shape[1:] if VECTORS in self._stacks else (0, vectors.shape[1])
        if vectors.shape[1] != width:
            raise ModelError(f"{folder} does not fit this base model: vectors of {vectors.shape[1]}, not {width}")
        if len(vectors) > room:
            raise ModelError(
                f"{folder} is a soft prompt of {len(vectors)} tokens, the graphs accept at most {room}",
                f"compile with compile.adapters.soft_prompt_tokens={len(vectors)}",
            )
        padded, mask = torch.zeros(self._stacks[VECTORS].shape[1:]), torch.zeros(room, dtype=torch.int64)
        padded[room - len(vectors) :], mask[room - len(vectors) :] = vectors.float(), 1
        return {VECTORS: padded, MASK: mask}


def load_slots(artifact: Artifact) -> tuple[AdapterSlots | None, dict[str, Tensor]]:
    """Load the adapters of an artifact into slots. Returns the slots and their stacks; None and {} without slots.

    Raises:
        ModelError: If an adapter in the artifact does not fit its slots.
    """
    manifest = artifact.manifest
    if manifest.adapters is None:
        return None, {}
    dtype = torch.float32 if manifest.dtype == "fp32" else torch.bfloat16
    stacks = {
        name: torch.zeros(shape, dtype=torch.int64 if name == MASK else dtype)
        for name, shape in manifest.adapter_stacks.items()
    }
    slots = AdapterSlots(manifest.adapters, stacks, manifest.adapter_targets)
    for name in manifest.adapter_names:
        slots.load(name, artifact.path / ADAPTERS / name)
    return slots, stacks
