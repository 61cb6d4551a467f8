"""Checks of the instance family and the NeuronCores, before a Neuron runtime loads an artifact.

By default the Neuron runtime reserves all cores of the machine for the first process that uses one, and other processes
get none until it has ended (AWS Neuron documentation, "Neuron Runtime configuration" and "NeuronCore Allocation and
Model Placement"). Therefore a process takes only the cores of its artifact, unless its environment sets them.
"""

import os

from neuron_sum.artifact import Manifest
from neuron_sum.errors import ArtifactError, PlatformError
from neuron_sum.platform.machine import instance_type, neuron_devices
from neuron_sum.platform.matrix import CORES_PER_CHIP

VISIBLE, COUNT = "NEURON_RT_VISIBLE_CORES", "NEURON_RT_NUM_CORES"
"""Environment variables with the NeuronCores of this process, or their number."""
FAMILIES = ("inf2", "trn1")

_taken: range | None = None
"""The cores that `take_cores` took for this process."""


def check_family(manifest: Manifest) -> None:
    """Reject another instance family, known to this package or not; accept a machine that reports no instance type.

    inf2 and trn1 have the same cores, but an artifact was tested, and its memory estimated, for its target only.

    Raises:
        ArtifactError: If this machine is of another family.
    """
    here = instance_type()
    if here is None or (family := here.split(".")[0]) == manifest.target:
        return
    other = f"compile again with --target {family}" if family in FAMILIES else f"{family} is not a valid --target"
    raise ArtifactError(
        f"target: compiled for {manifest.target}, this machine is {here}", f"run it on {manifest.target}; {other}"
    )


def visible_cores() -> int | None:
    """The number of NeuronCores that this process may use; None if unknown.

    Raises:
        PlatformError: If an environment variable of the Neuron runtime is invalid.
    """
    try:
        if listed := os.environ.get(VISIBLE):
            ends = [[int(end) for end in part.split("-")] for part in listed.split(",")]
            return sum(max(part) - min(part) + 1 for part in ends)
        if count := int(os.environ.get(COUNT) or 0):  # 0 means all cores
            return count
    except ValueError as error:
        raise PlatformError(
            f"{VISIBLE}={os.environ.get(VISIBLE)}, {COUNT}={os.environ.get(COUNT)}: {error}",
            f"use {VISIBLE}=0, 0-1 or 0,2, or {COUNT}=1",
        ) from error
    return CORES_PER_CHIP * neuron_devices() or None


def take_cores(first: int, count: int) -> int:
    """Take NeuronCores for this process, unless its environment sets them. Must run before torch_neuronx is imported.

    Args:
        first: The index of the first core, from 0 among the visible cores.
        count: The number of consecutive cores, which must be visible (`visible_cores`).

    Returns:
        The new index of the first core, because the runtime numbers the cores of a process from 0.

    Raises:
        ArtifactError: If this process took other cores before.
    """
    global _taken
    cores = range(first, first + count)
    if _taken is not None:
        if cores[0] in _taken and cores[-1] in _taken:
            return first - _taken.start
        raise ArtifactError(
            f"compiled for NeuronCore {_range(cores)}, but this process took {_range(_taken)} for another artifact",
            f"use one process per artifact, or set {VISIBLE} to the cores of both before the process starts",
        )
    if os.environ.get(VISIBLE) or os.environ.get(COUNT):
        return first
    os.environ[VISIBLE] = _range(cores)
    _taken = cores
    return 0


def check_cores(first: int, count: int, field: str, remedy: str) -> None:
    """Reject an artifact that requires cores that are not visible to this process.

    Args:
        first: The index of the first required core.
        count: The number of required cores.
        field: The field of the manifest with its value, for the message.
        remedy: The hint of the error.

    Raises:
        ArtifactError: If fewer cores are visible.
    """
    if _taken is None and (cores := visible_cores()) is not None and first + count > cores:
        raise ArtifactError(f"{field}, but this process has {cores} NeuronCores", remedy)


def _range(cores: range) -> str:
    """The cores in the syntax of the Neuron runtime; optimum-neuron does not support lists with commas."""
    return str(cores[0]) if len(cores) == 1 else f"{cores[0]}-{cores[-1]}"
