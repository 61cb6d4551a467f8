"""How much memory a run takes of NeuronCores and their host, beside what they have.

The model's part is in training/estimate/memory.py.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import psutil
from transformers import PretrainedConfig

from neuron_sum.console import size
from neuron_sum.data.layouts import Shape
from neuron_sum.models.base import ParameterCount, is_decoder_only
from neuron_sum.platform import cpu
from neuron_sum.recipes.schema import TrainConfig
from neuron_sum.training.estimate.memory import (
    ADAPTER_HINT,
    FP32_BYTES,
    PROCESS_BYTES,
    ModelMemory,
    held,
    model_memory,
    one_of,
    refusal,
)
from neuron_sum.training.launch import is_launched


@dataclass(frozen=True)
class NeuronMemory:
    """NeuronCores, each with a process of its own, and the host of these processes: see Memory.

    Attributes:
        core: On each NeuronCore.
        core_available: Bytes of a core's device memory.
        core_remedy: What makes it fit there.
        host: Bytes of all processes on the host; the compiler's own, of which no figure is published, come on top.
        host_available: Bytes of the host's memory.
        processes: On this host.
    """

    core: ModelMemory
    core_available: float
    core_remedy: str
    host: float
    host_available: float
    processes: int

    host_remedy: ClassVar[str] = "fewer processes, a smaller model, or a larger instance"

    @property
    def core_fits(self) -> bool:
        """Whether a core has enough."""
        return self.core.memory <= self.core_available

    @property
    def host_fits(self) -> bool:
        """Whether the host has enough."""
        return self.host <= self.host_available

    @property
    def fits(self) -> bool:
        """See Memory."""
        return self.core_fits and self.host_fits

    def __str__(self) -> str:
        return (
            f"memory about {size(self.core.memory)} of {size(self.core_available)} on each NeuronCore "
            f"({self.core.parts}); about {size(self.host)} of {size(self.host_available)} on the host for "
            f"{self.processes} processes"
        )

    def as_dict(self) -> dict[str, Any]:
        """See Memory: a core as every device, and the host."""
        return {
            **dataclasses.asdict(self.core),
            "memory": self.core.memory,
            "available": self.core_available,
            "device": "each NeuronCore",
            "host": self.host,
            "host_available": self.host_available,
            "processes": self.processes,
        }

    def check(self, train: TrainConfig) -> None:
        """See Memory; core and host each for itself."""
        faults, remedies = [], []
        if not self.core_fits:
            faults.append(f"{size(self.core.memory)} of memory, each NeuronCore has {size(self.core_available)}")
            remedies.append(self.core_remedy)
        if not self.host_fits:
            faults.append(
                f"{size(self.host)} of main memory for {self.processes} processes, the host has "
                f"{size(self.host_available)}"
            )
            remedies.append(self.host_remedy)
        if faults:
            raise refusal(faults, remedies)


def neuron_memory(
    config: PretrainedConfig,
    parameters: ParameterCount,
    shape: Shape,
    train: TrainConfig,
    *,
    processes: int,
    core_available: float,
    host_available: float,
    hosts: int = 1,
) -> NeuronMemory:
    """What a run needs on NeuronCores: data parallel over the processes, but for what train.neuron shards.

    Activations are counted whole where cores share a copy of the model, which is more than they take.

    Args:
        config: The base model's configuration.
        parameters: Of the model with its adapter.
        shape: The longest row.
        train: Batch size of one core, precision, and the layout.
        processes: One a NeuronCore, on all hosts.
        core_available: Bytes of a core's device memory.
        host_available: Bytes of a host's memory.
        hosts: Machines that train together.
    """
    split = train.neuron.tensor_parallel_size
    copies = max(processes // split, 1) if train.neuron.zero_1 else 1
    core = model_memory(config, parameters, shape, train, shards=split, optimizer_shards=split * copies)
    loaded = parameters.all * FP32_BYTES  # every process holds the whole model once, before its core has its part
    ways = [
        *(["train.neuron.tensor_parallel_size=2"] if is_decoder_only(config) and split == 1 < processes else []),
        *([ADAPTER_HINT] if core.trains_the_base else []),
        *([] if train.gradient_checkpointing else ["train.gradient_checkpointing=true"]),
        "a smaller model",
    ]
    here = -(-processes // hosts)
    return NeuronMemory(
        core=core,
        core_available=core_available,
        core_remedy=core.smaller_batch(core_available, train) or one_of(ways),
        host=here * (PROCESS_BYTES + loaded),
        host_available=host_available,
        processes=here,
    )


def available_to_processes() -> float:
    """Bytes of main memory that all processes of this run can have on this machine; a container's limit counts."""
    own = psutil.Process()
    torchrun = own.parent() if is_launched() else None
    return cpu.available_memory() + held(torchrun.children() if torchrun is not None else [own])
