"""The platform matrix as data: which versions belong together, and what is known to work with them.

Versions live here and in the constraints files, which a test holds against this table; nowhere else.
"""

from dataclasses import dataclass


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
        java: The release that DJL Serving is built with and runs on.
        serving_images: What the serving image is built on, by target; the first also builds DJL Serving.
        source: Where the row comes from.
        checked: The day it was read.
    """

    name: str
    neuron_sdk: str
    python: tuple[str, ...]
    pins: dict[str, str]
    vendor_pins: dict[str, str]
    java: str
    serving_images: dict[str, Image]
    source: str
    checked: str


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
        source="optimum-neuron 0.4.5, extras [training] and [neuronx] of its pyproject.toml",
        checked="2026-09-27",
    ),
)
"""The newest row first; the first is the default of every command and of the Makefile."""

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
