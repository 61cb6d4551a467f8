"""The platform matrix as data: which versions belong together, and what is known to work with them.

Versions live here and in the constraints files, which a test holds against this table; nowhere else.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Platform:
    """One row: versions that were released to work together.

    Attributes:
        name: The constraints file's name.
        neuron_sdk: AWS Neuron SDK release.
        python: Python versions it supports.
        pins: Exact versions by distribution name, as the constraints file has them.
        vendor_pins: What only AWS's own index has; a Neuron image brings them.
        source: Where the row comes from.
        checked: The day it was read.
    """

    name: str
    neuron_sdk: str
    python: tuple[str, ...]
    pins: dict[str, str]
    vendor_pins: dict[str, str]
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
        source="optimum-neuron 0.4.5, extras [training] and [neuronx] of its pyproject.toml",
        checked="2026-09-27",
    ),
)
"""The newest row first; the first is the default of every command and of the Makefile."""
