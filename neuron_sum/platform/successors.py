"""What AWS develops instead of the platform here: newer instance types and libraries, none of which neuron-sum uses."""

from dataclasses import dataclass

READ = "2026-11-29"


@dataclass(frozen=True)
class NewerInstance:
    """An instance type with newer chips.

    Attributes:
        name: The name for CreateTrainingJob and CreateEndpointConfig.
        chips: The number and the name of its chips.
        neuron_cores: The number of NeuronCores that the runtime shows by default.
        vcpus: The number of virtual CPUs of the host.
        host_gib: The memory of the host in GiB.
        source: The source of the figures.
        checked: The date on which the source was read.
    """

    name: str
    chips: str
    neuron_cores: int
    vcpus: int
    host_gib: int
    source: str
    checked: str = READ

    @property
    def unsupported(self) -> str:
        """The reason why neuron-sum does not support it."""
        return (
            f"{self.name} has {self.chips} chips; neuron-sum's platform is for Trainium (trn1) and Inferentia2 (inf2)"
        )


NEWER_INSTANCES = {
    "ml.trn2.48xlarge": NewerInstance(
        name="ml.trn2.48xlarge",
        chips="16 Trainium2",
        neuron_cores=64,
        vcpus=192,
        host_gib=2048,
        source="aws-neuron/aws-neuron-sdk 81ce03ae, about-neuron/arch/neuron-hardware/trn2-arch.rst; 4 logical cores a "
        "chip (NeuronCore-v3, LNC=2): about-neuron/arch/neuron-features/logical-neuroncore-config.rst; for training "
        "jobs and endpoints: SageMaker's API (botocore 1.44.5), which has no other trn2 and no trn3",
    ),
}


def newer_instance(name: str) -> NewerInstance | None:
    """The newer instance type with this name, with or without `ml.`."""
    return NEWER_INSTANCES.get(name) or NEWER_INSTANCES.get(f"ml.{name}")


@dataclass(frozen=True)
class Successor:
    """A library that AWS develops.

    Attributes:
        what: The library, and what it replaces.
        version: The newest version.
        status: beta, or a release.
        chips: The chips that it supports.
        source: The source.
        checked: The date on which the source was read.
    """

    what: str
    version: str
    status: str
    chips: str
    source: str
    checked: str = READ


_COMPONENTS = "AWS Neuron documentation of SDK 2.33.0 (2026-10-19), release-notes/components/index"
SUCCESSORS = (
    Successor("TorchNeuron, for PyTorch/XLA", "2.14.3.0 and 2.13.3.0", "beta", "Trn2, Trn3", _COMPONENTS),
    Successor(
        "vLLM Neuron, for NxD Inference", "0.29.0.1.2.0", "beta", "Trn2, Trn3", f"{_COMPONENTS}; vllm-neuron/docs/index"
    ),
)
