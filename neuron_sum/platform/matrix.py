"""The platform matrix as data: compatible versions, their images and instance types.

support.py has the supported methods and retirements by AWS. Versions are defined only here and in the constraints
files, which a test compares with this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from neuron_sum.errors import PlatformError
from neuron_sum.platform.drivers import Drivers
from neuron_sum.platform.successors import newer_instance

GIB = 2**30
OPTIMUM = "optimum-neuron"
NEURON_INDEX = "https://pip.repos.neuron.amazonaws.com"
"""The AWS Neuron package index, the only one with the compiler and the runtime's Python packages."""


@dataclass(frozen=True)
class Image:
    """A base image of the serving container.

    Attributes:
        name: The name for `docker pull`.
        python: Its Python version.
        source: The source of the name.
        checked: The date on which the source was read.
        torch_index: The package index for torch; None if the image includes torch.
    """

    name: str
    python: str
    source: str
    checked: str
    torch_index: str | None = None


@dataclass(frozen=True)
class RegistryImage:
    """An image in the private AWS registries, from which SageMaker pulls.

    Attributes:
        repository: The name of the repository, the same in every region.
        tag: The tag, the same in every region.
        stage: The stage that uses it: train or serve.
        versions: The installed versions by distribution or product name.
        source: The sources of the name and the versions.
        checked: The date on which the sources were read.
    """

    repository: str
    tag: str
    stage: str
    versions: dict[str, str]
    source: str
    checked: str

    def uri(self, region: str) -> str:
        """The full name in a region, for CreateTrainingJob and CreateModel.

        Raises:
            PlatformError: If no registry is known in the region.
        """
        if region not in REGISTRY_ACCOUNTS:
            raise PlatformError(
                f"no registry of AWS images is known in region {region!r}",
                f"use one of {', '.join(sorted(REGISTRY_ACCOUNTS))}",
            )
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        return f"{REGISTRY_ACCOUNTS[region]}.dkr.ecr.{region}.{domain}/{self.repository}:{self.tag}"


@dataclass(frozen=True)
class Instance:
    """An instance type by its SageMaker name; the EC2 name is the same without `ml.`.

    Attributes:
        name: The name for CreateTrainingJob and CreateEndpointConfig.
        family: trn1 for training, inf2 for serving; both have the same cores (NeuronCore-v2).
        chips: The number of Trainium or Inferentia2 chips, with two NeuronCores each.
        vcpus: The number of virtual CPUs of the host.
        host_gib: The memory of the host in GiB, shared by the compiler and all processes.
    """

    name: str
    family: str
    chips: int
    vcpus: int
    host_gib: int

    @property
    def neuron_cores(self) -> int:
        """The total number of NeuronCores; training starts a process on each."""
        return CORES_PER_CHIP * self.chips

    @property
    def core_memory(self) -> float:
        """Bytes of device memory of one NeuronCore."""
        return CORE_MEMORY

    @property
    def host_memory(self) -> float:
        """Bytes of host memory."""
        return float(self.host_gib * GIB)


@dataclass(frozen=True)
class EndedContainer:
    """An AWS container that is used unchanged and is no longer maintained.

    Attributes:
        name: The repository and tag; the registry account differs by region.
        versions: The installed versions by name.
        ended: The date on which support for its serving library ended.
        ended_source: The source of that date, and related findings.
        source: The source of the versions.
        checked: The date on which the sources were read.
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
        name: The name of the constraints file.
        neuron_sdk: The AWS Neuron SDK release.
        python: The supported Python versions.
        pins: Exact versions by distribution name, the same as in the constraints file.
        vendor_pins: Exact versions of packages that only the AWS Neuron index has; a Neuron image includes them.
        system_packages: The versions of the runtime and the tools, by Debian package.
        drivers: The versions of the driver that the runtime works with.
        optimum_neuron: The optimum-neuron release that these pins are from.
        java: The Java release that DJL Serving is built with and runs on.
        serving_images: The base images of the serving container by target; the first also builds DJL Serving.
        registry_images: The base images of SageMaker jobs; of two for a stage, the closer one to the row is first.
        retirements: The retirements of these versions, by name in support.RETIREMENTS.
        source: The source of the row.
        checked: The date on which the source was read.
    """

    name: str
    neuron_sdk: str
    python: tuple[str, ...]
    pins: dict[str, str]
    vendor_pins: dict[str, str]
    system_packages: dict[str, str]
    drivers: Drivers
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
"""Bytes per second between a NeuronCore and its device memory: half of the published value of a chip."""
CORE_FLOPS = {"fp32": 47.5e12 / CORES_PER_CHIP, "bf16": 190e12 / CORES_PER_CHIP}
"""Operations per second of a NeuronCore: half of the published value of a chip. Both values are the same for Trainium
and Inferentia2."""
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
    """Find an instance type by name, with or without `ml.`.

    Raises:
        PlatformError: If it is not in the table.
    """
    known = INSTANCES.get(name) or INSTANCES.get(f"ml.{name}")
    if known is None:
        newer = newer_instance(name)
        found = newer.unsupported if newer else f"unknown instance type {name!r}"
        raise PlatformError(found, f"use one of {', '.join(INSTANCES)}")
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
    "account in the list means neither that every image exists there nor that the region has Trainium or Inferentia2"
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
            "aws-neuronx-runtime-lib": "2.28.23.0",
            "aws-neuronx-collectives": "2.28.27.0",
            "aws-neuronx-tools": "2.26.14.0",
        },
        drivers=Drivers(
            tested="2.24.7.0",
            below="2.29",
            source="AWS Neuron documentation (aws-neuron/aws-neuron-sdk 81ce03ae, 2026-08-21): "
            "src/helperscripts/n2-manifest.json, release 2.26.1; release-notes/components/runtime.rst, driver 2.29: it "
            "requires runtime 2.33, and this row's is 2.28; neuron-runtime/nrt-troubleshoot.rst: other drivers support "
            "older runtimes",
            checked="2026-11-29",
        ),
        optimum_neuron="0.4.5",
        java="17",
        serving_images={
            "cpu": Image(
                # Debian 12, because Debian 13 has no Java 17.
                name="public.ecr.aws/docker/library/python:3.11-slim-bookworm"
                "@sha256:0bee7276f83efd4a1ee05bbbf4281d95ed28e079220a9457f25a93e3f1e3c31b",
                python="3.11",
                source="the official Docker images, from their copy at AWS, because Docker Hub limits pulls per IP "
                "address; digest from docker-library/repo-info, repos/python/remote/3.11-slim-bookworm.md, image of "
                "2026-08-25",
                checked="2026-11-28",
                torch_index="https://download.pytorch.org/whl/cpu",
            ),
            "inf2": Image(
                name="public.ecr.aws/neuron/pytorch-inference-neuronx:2.8.0-neuronx-py311-sdk2.26.1-ubuntu22.04",
                python="3.11",
                source="aws-neuron/deep-learning-containers, README.md; its Dockerfile of tag 2.26.1 (2025-10-29) "
                "installs this row's neuronx-cc, torch-neuronx and neuronx-distributed. AWS publishes no digest of it",
                checked="2026-11-28",
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
                "pytorch/training/2.8.0/Dockerfile.neuronx. optimum-neuron is not included and is installed on top",
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
                source="optimum-neuron 213224e6 (2026-08-19), docs/source/containers.mdx, the newest one for training; "
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
        retirements=("training-image", "inference-image", "torch-2.8", "python-3.10"),
        source="optimum-neuron 0.4.5, extras [training] and [neuronx] of its pyproject.toml; driver, runtime and tools "
        "from aws-neuron/aws-neuron-sdk 81ce03ae, src/helperscripts/n2-manifest.json, release 2.26.1",
        checked="2026-11-21",
    ),
)
"""The newest row first; the first is the default of every command and of the Makefile."""


def platform_row(versions: Mapping[str, str | None]) -> str | None:
    """The name of the row with these versions of the AWS packages and optimum-neuron; None if there is no such row.

    Args:
        versions: The version of each distribution; a distribution that no row lists matches no row.
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
        "that day. No date was found for the image itself: deepjavalibrary/djl-serving#2939 (2025-11-03) calls it "
        "discontinued and no longer published for several months, a request for a newer one "
        "(aws/deep-learning-containers#5355, 2025-10-09) is closed as inactive, and the AWS list of images of "
        "2026-08-21 (aws/deep-learning-containers e0ecedea6a, docs/src/data) does not contain it",
        source="deepjavalibrary/djl-serving, branch 0.30.0-dlc at fefd40ec, serving/docker/pytorch-inf2.Dockerfile",
        checked="2026-11-21",
    ),
}
"""Keyed by the value of `neuron-sum package --container`."""
