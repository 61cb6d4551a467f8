"""Memory of a run on NeuronCores and their host, compared with the available memory.

The memory of the model itself is in training/estimate/memory.py.
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
    model_memory,
    one_of,
    refusal,
    resident_memory,
)
from neuron_sum.training.launch import is_launched


@dataclass(frozen=True)
class NeuronMemory:
    """NeuronCores, each with a separate process, and the host of these processes: see Memory.

    Attributes:
        core: The memory needed on each NeuronCore.
        core_available: Bytes of a core's device memory.
        core_remedy: The change that makes it fit there.
        host: Bytes of all processes on the host, without the compiler, whose memory is not published.
        host_available: Bytes of the host's memory.
        processes: The number of processes on this host.
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
        """Whether a core has enough memory."""
        return self.core.memory <= self.core_available

    @property
    def host_fits(self) -> bool:
        """Whether the host has enough memory."""
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
        """See Memory: the keys of any device for a core, and those of the host."""
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
        """See Memory; core and host are checked separately."""
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
    """The memory of a run on NeuronCores: data parallel over the processes, except what train.neuron shards.

    Activations are counted in full even if cores share a copy of the model, which overestimates them.

    Args:
        config: The base model's configuration.
        parameters: The parameter count of the model with its adapter.
        shape: The longest row.
        train: The train section, for batch size of one core, precision, and layout.
        processes: The number of processes on all hosts, one per NeuronCore.
        core_available: Bytes of a core's device memory.
        host_available: Bytes of a host's memory.
        hosts: The number of machines that train together.
    """
    split = train.neuron.tensor_parallel_size
    copies = max(processes // split, 1) if train.neuron.zero_1 else 1
    core = model_memory(config, parameters, shape, train, shards=split, optimizer_shards=split * copies)
    loaded = parameters.all * FP32_BYTES  # every process first loads the whole model, then moves its part to the core
    remedies = [
        *(["train.neuron.tensor_parallel_size=2"] if is_decoder_only(config) and split == 1 < processes else []),
        *([ADAPTER_HINT] if core.trains_the_base else []),
        *([] if train.gradient_checkpointing else ["train.gradient_checkpointing=true"]),
        "a smaller model",
    ]
    processes_per_host = -(-processes // hosts)
    return NeuronMemory(
        core=core,
        core_available=core_available,
        core_remedy=core.smaller_batch(core_available, train) or one_of(remedies),
        host=processes_per_host * (PROCESS_BYTES + loaded),
        host_available=host_available,
        processes=processes_per_host,
    )


def available_to_processes() -> float:
    """Bytes of main memory available to all processes of this run on this machine, within a container's limit."""
    current = psutil.Process()
    torchrun = current.parent() if is_launched() else None
    return cpu.available_memory() + resident_memory(torchrun.children() if torchrun is not None else [current])
