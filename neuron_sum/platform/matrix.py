"""The platform matrix as data: which versions belong together, in which images, on which instances.

What works on it, and what AWS is retiring, is in support.py. Versions live here and in the constraints files, which a
test holds against this table; nowhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from neuron_sum.errors import PlatformError

GIB = 2**30
OPTIMUM = "optimum-neuron"
NEURON_INDEX = "https://pip.repos.neuron.amazonaws.com"
"""AWS's own package index, the only one with the compiler and the runtime's Python packages."""


@dataclass(frozen=True)
class Image:
    """A container image that ours is built on.

    Attributes:
        name: As `docker pull` takes it.
        python: The Python in it.
        source: Who names it.
        checked: The day that was read.
        torch_index: Where its torch comes from; None where it brings one.
    """

    name: str
    python: str
    source: str
    checked: str
    torch_index: str | None = None


@dataclass(frozen=True)
class RegistryImage:
    """An image in AWS's private registries, which is where SageMaker pulls from.

    Attributes:
        repository: The repository's name, the same in every region.
        tag: The tag, the same in every region.
        stage: What it is for: train or serve.
        versions: What is in it, by distribution or product name.
        source: Who names it, and where the versions come from.
        checked: The day that was read.
    """

    repository: str
    tag: str
    stage: str
    versions: dict[str, str]
    source: str
    checked: str

    def uri(self, region: str) -> str:
        """The full name in a region, as CreateTrainingJob and CreateModel take it.

        Raises:
            PlatformError: If AWS publishes no registry there.
        """
        if region not in REGISTRY_ACCOUNTS:
            raise PlatformError(
                f"no registry of AWS's images is known in region {region!r}",
                f"regions: {', '.join(sorted(REGISTRY_ACCOUNTS))}",
            )
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        return f"{REGISTRY_ACCOUNTS[region]}.dkr.ecr.{region}.{domain}/{self.repository}:{self.tag}"


@dataclass(frozen=True)
class Instance:
    """An instance type, by SageMaker's name; the EC2 type has the same without `ml.`.

    Attributes:
        name: As CreateTrainingJob and CreateEndpointConfig take it.
        family: trn1 trains, inf2 serves; their cores are of one kind (NeuronCore-v2).
        chips: Trainium or Inferentia2 chips, two NeuronCores each.
        vcpus: Virtual CPUs of the host.
        host_gib: The host's memory, which the compiler shares with every process.
    """

    name: str
    family: str
    chips: int
    vcpus: int
    host_gib: int

    @property
    def neuron_cores(self) -> int:
        """NeuronCores in all; training starts a process on each."""
        return CORES_PER_CHIP * self.chips

    @property
    def core_memory(self) -> float:
        """Bytes of device memory that one NeuronCore has."""
        return CORE_MEMORY

    @property
    def host_memory(self) -> float:
        """Bytes of the host's memory."""
        return float(self.host_gib * GIB)


@dataclass(frozen=True)
class EndedContainer:
    """A container of AWS's that is pulled as it is, and that nobody maintains any more.

    Attributes:
        name: Repository and tag; the registry's account differs by region.
        versions: What is in it, by name.
        ended: The day on which support for what serves in it ended.
        ended_source: Who says so, and what else was found.
        source: Where the versions come from.
        checked: The day all of this was read.
    """

    name: str
    versions: dict[str, str]
    ended: str
    ended_source: str
    source: str
    checked: str


@dataclass(frozen=True)
class Platform:
    """One row: versions that were released to work together.

    Attributes:
        name: The constraints file's name.
        neuron_sdk: AWS Neuron SDK release.
        python: Python versions it supports.
        pins: Exact versions by distribution name, as the constraints file has them.
        vendor_pins: What only AWS's own index has; a Neuron image brings them.
        system_packages: The driver, the runtime and the tools of the release, by Debian package.
        optimum_neuron: The release whose pins these are.
        java: The release that DJL Serving is built with and runs on.
        serving_images: What the serving image is built on, by target; the first also builds DJL Serving.
        registry_images: What a SageMaker job starts from; of two for a stage, the one nearer to the row first.
        retirements: What AWS says of these versions, by name in support.RETIREMENTS.
        source: Where the row comes from.
        checked: The day it was read.
    """

    name: str
    neuron_sdk: str
    python: tuple[str, ...]
    pins: dict[str, str]
    vendor_pins: dict[str, str]
    system_packages: dict[str, str]
    optimum_neuron: str
    java: str
    serving_images: dict[str, Image]
    source: str
    checked: str
    registry_images: tuple[RegistryImage, ...] = ()
    retirements: tuple[str, ...] = ()


CORES_PER_CHIP = 2
CHIP_GIB = 32
CORE_MEMORY = float(CHIP_GIB * GIB / CORES_PER_CHIP)
CORE_BANDWIDTH = 820 * GIB / CORES_PER_CHIP
"""Bytes a second between a NeuronCore and its device memory, published: a chip's, halved."""
CORE_FLOPS = {"fp32": 47.5e12 / CORES_PER_CHIP, "bf16": 190e12 / CORES_PER_CHIP}
"""Operations a second of a NeuronCore, published: a chip's, halved. Trainium and Inferentia2 are alike in both."""
INSTANCES = {
    instance.name: instance
    for instance in (
        Instance("ml.trn1.2xlarge", "trn1", chips=1, vcpus=8, host_gib=32),
        Instance("ml.trn1.32xlarge", "trn1", chips=16, vcpus=128, host_gib=512),
        Instance("ml.inf2.xlarge", "inf2", chips=1, vcpus=4, host_gib=16),
        Instance("ml.inf2.8xlarge", "inf2", chips=1, vcpus=32, host_gib=128),
        Instance("ml.inf2.24xlarge", "inf2", chips=6, vcpus=96, host_gib=384),
        Instance("ml.inf2.48xlarge", "inf2", chips=12, vcpus=192, host_gib=768),
    )
}
INSTANCES_SOURCE = (
    "AWS Neuron documentation (aws-neuron/aws-neuron-sdk 81ce03ae, 2026-08-21), about-neuron/arch/neuron-hardware: "
    "trn1-arch.rst, inf2-arch.rst, trainium.rst, inferentia2.rst; read 2026-11-21"
)


def find_instance(name: str) -> Instance:
    """The instance of a name, with or without `ml.`.

    Raises:
        PlatformError: If it is not in the table.
    """
    known = INSTANCES.get(name) or INSTANCES.get(f"ml.{name}")
    if known is None:
        raise PlatformError(f"no instance {name!r} in the table", f"there are {', '.join(INSTANCES)}")
    return known


REGISTRY_ACCOUNTS = {
    **dict.fromkeys(
        (
            "ap-northeast-1", "ap-northeast-2", "ap-south-1", "ap-southeast-1", "ap-southeast-2", "ca-central-1",
            "eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3", "sa-east-1",
            "us-east-1", "us-east-2", "us-west-1", "us-west-2",
        ),
        "763104351884",
    ),
    "af-south-1": "626614931356",
    "ap-east-1": "871362719292",
    "ap-east-2": "975050140332",
    "ap-northeast-3": "364406365360",
    "ap-south-2": "772153158452",
    "ap-southeast-3": "907027046896",
    "ap-southeast-4": "457447274322",
    "ap-southeast-5": "550225433462",
    "ap-southeast-6": "633930458069",
    "ap-southeast-7": "590183813437",
    "ca-west-1": "204538143572",
    "cn-north-1": "727897471807",
    "cn-northwest-1": "727897471807",
    "eu-central-2": "380420809688",
    "eu-south-1": "692866216735",
    "eu-south-2": "503227376785",
    "il-central-1": "780543022126",
    "me-central-1": "914824155844",
    "me-south-1": "217643126080",
    "mx-central-1": "637423239942",
}  # fmt: skip
REGISTRY_ACCOUNTS_SOURCE = (
    "aws/deep-learning-containers e0ecedea6a (2026-08-21), docs/reference/region_availability.md; read 2026-11-21. An "
    "account in the list says neither that every image is there nor that the region has Trainium or Inferentia2"
)

PLATFORMS = (
    Platform(
        name="neuron-sdk-2.26.1",
        neuron_sdk="2.26.1",
        python=("3.10", "3.11"),
        pins={
            "torch": "2.8.0",
            "transformers": "4.57.6",
            "accelerate": "1.8.1",
            "peft": "0.17.0",
            "datasets": "4.8.5",
            "evaluate": "0.4.3",
            "huggingface-hub": "0.36.2",
            "tokenizers": "0.22.2",
            "numpy": "1.26.4",
            "pyarrow": "21.0.0",
        },
        vendor_pins={
            "neuronx-cc": "2.21.33363.0",
            "torch-neuronx": "2.8.0.2.10.16998",
            "neuronx-distributed": "0.15.22404",
            "libneuronxla": "2.2.12677.0",
        },
        system_packages={
            "aws-neuronx-dkms": "2.24.7.0",
            "aws-neuronx-runtime-lib": "2.28.23.0",
            "aws-neuronx-collectives": "2.28.27.0",
            "aws-neuronx-tools": "2.26.14.0",
        },
        optimum_neuron="0.4.5",
        java="17",
        serving_images={
            "cpu": Image(
                # Debian 12, for Debian 13 has no Java 17.
                name="python:3.11-slim-bookworm",
                python="3.11",
                source="Docker's official images",
                checked="2026-11-21",
                torch_index="https://download.pytorch.org/whl/cpu",
            ),
            "inf2": Image(
                name="public.ecr.aws/neuron/pytorch-inference-neuronx:2.8.0-neuronx-py311-sdk2.26.1-ubuntu22.04",
                python="3.11",
                source="aws-neuron/deep-learning-containers, README.md; its Dockerfile of tag 2.26.1 (2025-10-29) "
                "installs this row's neuronx-cc, torch-neuronx and neuronx-distributed",
                checked="2026-11-21",
            ),
        },
        registry_images=(
            RegistryImage(
                repository="pytorch-training-neuronx",
                tag="2.8.0-neuronx-py311-sdk2.26.1-ubuntu22.04",
                stage="train",
                versions={
                    "python": "3.11",
                    "neuron-sdk": "2.26.1",
                    "torch": "2.8.0",
                    "neuronx-cc": "2.21.33363.0",
                    "torch-neuronx": "2.8.0.2.10.16998",
                    "neuronx-distributed": "0.15.22404",
                },
                source="aws/deep-learning-containers e0ecedea6a, docs/src/data/pytorch-training-neuronx; versions from "
                "aws-neuron/deep-learning-containers, tag 2.26.1 (2025-10-29), "
                "pytorch/training/2.8.0/Dockerfile.neuronx. It has no optimum-neuron: that is installed on top",
                checked="2026-11-21",
            ),
            RegistryImage(
                repository="huggingface-pytorch-training-neuronx",
                tag="2.8.0-transformers4.55.4-neuronx-py310-sdk2.26.0-ubuntu22.04",
                stage="train",
                versions={
                    "python": "3.10",
                    "neuron-sdk": "2.26.0",
                    "torch": "2.8.0",
                    "transformers": "4.55.4",
                    "optimum-neuron": "0.4.1",
                },
                source="optimum-neuron 213224e6 (2026-08-19), docs/source/containers.mdx, the newest for training; "
                "aws/deep-learning-containers e0ecedea6a, docs/src/data/huggingface-pytorch-training-neuronx. Older "
                "than this row in optimum-neuron, transformers and the SDK's patch release",
                checked="2026-11-21",
            ),
            RegistryImage(
                repository="pytorch-inference-neuronx",
                tag="2.8.0-neuronx-py311-sdk2.26.1-ubuntu22.04",
                stage="serve",
                versions={
                    "python": "3.11",
                    "neuron-sdk": "2.26.1",
                    "torch": "2.8.0",
                    "neuronx-cc": "2.21.33363.0",
                    "torch-neuronx": "2.8.0.2.10.16998",
                    "neuronx-distributed": "0.15.22404",
                },
                source="aws/deep-learning-containers e0ecedea6a, docs/src/data/pytorch-inference-neuronx; versions "
                "from aws-neuron/deep-learning-containers, tag 2.26.1 (2025-10-29), "
                "pytorch/inference/2.8.0/Dockerfile.neuronx",
                checked="2026-11-21",
            ),
        ),
        retirements=("torch-2.8", "python-3.10"),
        source="optimum-neuron 0.4.5, extras [training] and [neuronx] of its pyproject.toml; driver, runtime and tools "
        "from aws-neuron/aws-neuron-sdk 81ce03ae, src/helperscripts/n2-manifest.json, release 2.26.1",
        checked="2026-11-21",
    ),
)
"""The newest row first; the first is the default of every command and of the Makefile."""


def platform_row(versions: Mapping[str, str | None]) -> str | None:
    """The name of the row that has these versions of AWS's packages and of optimum-neuron; None where no row has.

    Args:
        versions: By distribution; what a row does not list makes it another one.
    """
    rows = (row for row in PLATFORMS if versions.items() <= {**row.vendor_pins, OPTIMUM: row.optimum_neuron}.items())
    return next((row.name for row in rows), None)


ENDED_CONTAINERS = {
    "djl-0.30-neuronx": EndedContainer(
        name="djl-inference:0.30.0-neuronx-sdk2.20.1",
        versions={
            "djl-serving": "0.30.0",
            "neuron-sdk": "2.20.1",
            "transformers-neuronx": "0.12.313",
            "transformers": "4.45.2",
            "python": "3.10",
        },
        ended="2025-09-16",
        ended_source="AWS Neuron documentation v2.28.1, libraries/transformers-neuronx: support for the library ended "
        "that day. For the image itself no date was found: deepjavalibrary/djl-serving#2939 (2025-11-03) calls it "
        "discontinued and no longer published for several months, a request for a newer one "
        "(aws/deep-learning-containers#5355, 2025-10-09) is closed as inactive, and AWS's list of images of "
        "2026-08-21 (aws/deep-learning-containers e0ecedea6a, docs/src/data) does not have it",
        source="deepjavalibrary/djl-serving, branch 0.30.0-dlc at fefd40ec, serving/docker/pytorch-inf2.Dockerfile",
        checked="2026-11-21",
    ),
}
"""By the name that `neuron-sum package --container` takes."""
