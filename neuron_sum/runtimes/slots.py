"""Adapters as data in slots: load, replace and remove them while requests run."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from neuron_sum import files
from neuron_sum.artifact import ADAPTERS, AdapterSpec, Artifact
from neuron_sum.errors import ModelError, RunError

VECTORS, MASK = "soft_prompts.vectors", "soft_prompts.mask"
"""Names of the soft prompt stacks: the buffers of SoftPrompts (compile/graphs/layers.py) in a model."""


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
            ModelError: If the adapter does not fit the slots, or no slot is free.
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
                raise ModelError(
                    f"adapter {name!r} was not loaded: all slots available to it are in use",
                    "compile with one more of compile.adapters.slots than adapters, to replace adapters under load",
                )

    def _unknown(self, name: str) -> ModelError:
        loaded = ", ".join(sorted(self._slots)) or "none"
        return ModelError(f"no adapter {name!r}", f"loaded: {loaded}")

    def _read(self, folder: Path) -> dict[str, Tensor]:
        """The contents of one slot by stack name, in float32, padded to the compiled rank, with the scale in B."""
        config_file, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        try:
            # Opening a pipe or a device would block this thread.
            if missing := next((path for path in (config_file, weights) if not path.is_file()), None):
                raise FileNotFoundError(f"{missing.name} is not a file")
            config = files.read_json(config_file)
            return self._contents(folder, config, load_file(weights))
        except (RunError, OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelError(
                f"{folder} is not an adapter: {error}",
                "use a folder in PEFT layout, such as adapter/ of a training run",
            ) from error

    def _contents(self, folder: Path, config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if config["peft_type"] == "PROMPT_TUNING":
            # By default, PEFT stores a second, unused half for the decoder of T5.
            return self._soft_prompt(folder, tensors["prompt_embeddings"][: int(str(config["num_virtual_tokens"]))])
        if config["peft_type"] != "LORA" or config.get("use_dora") or config.get("modules_to_save"):
            raise ModelError(
                f"{folder}: {config['peft_type']} is not supported",
                "use LoRA (without DoRA and modules_to_save) or a soft prompt",
            )
        contents: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            module, _, half = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
            if half not in ("A", "B") or module not in self._targets:
                raise ModelError(
                    f"{folder} adapts {module or key}, but the graphs have no slot for it",
                    f"compiled for {', '.join(self._spec.target_modules)}; see compile.adapters.target_modules",
                )
            rank = tensor.shape[0 if half == "A" else 1]
            if rank > self._spec.rank:
                raise ModelError(
                    f"{folder} has rank {rank}, the graphs are compiled for {self._spec.rank}",
                    f"compile with compile.adapters.rank={rank}",
                )
            name = f"{self._targets[module]}_{half.lower()}"
            padded = torch.zeros(self._stacks[name].shape[1:])
            used = padded[:rank] if half == "A" else padded[:, :rank]
            if used.shape != tensor.shape:
                raise ModelError(
                    f"{folder} does not fit this base model: {key} is {tuple(tensor.shape)}, not {tuple(used.shape)}"
                )
            used.copy_(tensor.float() * (_scale(config, module, rank) if half == "B" else 1.0))
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
    for folder in sorted((artifact.path / ADAPTERS).glob("*")):
        slots.load(folder.name, folder)
    return slots, stacks


def _scale(config: Mapping[str, object], module: str, rank: int) -> float:
    """lora_alpha / r, or / sqrt(r) for rsLoRA (Kalajdzievski 2023, arXiv:2312.03732)."""
    if config.get("alpha_pattern"):
        raise ModelError(f"alpha_pattern is not supported (for {module})", "use one lora_alpha for all modules")
    alpha = float(str(config["lora_alpha"]))
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
