"""What both Neuron runtimes ask of a machine before they load an artifact: its family, and NeuronCores.

By default the Neuron runtime reserves every core of the machine for the first process that uses one, and no other gets
any until that has ended (AWS Neuron documentation, "Neuron Runtime configuration" and "NeuronCore Allocation and Model
Placement"). So a process takes only what its artifact needs, unless its environment already says which.
"""

import os

from neuron_sum.artifact import Manifest
from neuron_sum.errors import ArtifactError, PlatformError
from neuron_sum.platform.machine import instance_type, neuron_devices
from neuron_sum.platform.matrix import CORES_PER_CHIP

VISIBLE, COUNT = "NEURON_RT_VISIBLE_CORES", "NEURON_RT_NUM_CORES"
"""Which cores the Neuron runtime gives to this process, or how many."""
FAMILIES = ("inf2", "trn1")

_taken: range | None = None
"""What this process took itself."""


def check_family(manifest: Manifest) -> None:
    """Refuses another instance family, known to this package or not; a machine that does not say what it is passes.

    inf2 and trn1 have the same cores, but what was compiled for one was proven, and its memory counted, for that one.

    Raises:
        ArtifactError: If this machine says that it is another one.
    """
    here = instance_type()
    if here is None or (family := here.split(".")[0]) == manifest.target:
        return
    other = f"compile again with --target {family}" if family in FAMILIES else f"nothing here compiles for {family}"
    raise ArtifactError(
        f"target: compiled for {manifest.target}, this is a {here}", f"run it on {manifest.target}; {other}"
    )


def visible_cores() -> int | None:
    """How many NeuronCores this process may use; None where nothing says so.

    Raises:
        PlatformError: If a variable of the Neuron runtime makes no sense.
    """
    try:
        if listed := os.environ.get(VISIBLE):
            ends = [[int(end) for end in part.split("-")] for part in listed.split(",")]
            return sum(max(part) - min(part) + 1 for part in ends)
        if count := int(os.environ.get(COUNT) or 0):  # 0 is all of them
            return count
    except ValueError as error:
        raise PlatformError(
            f"{VISIBLE}={os.environ.get(VISIBLE)}, {COUNT}={os.environ.get(COUNT)}: {error}",
            f"{VISIBLE}=0, 0-1 or 0,2; {COUNT}=1",
        ) from error
    return CORES_PER_CHIP * neuron_devices() or None


def take_cores(first: int, count: int) -> int:
    """Takes NeuronCores for this process, where its environment names none; before torch_neuronx is imported.

    Args:
        first: The first, counted from 0 among those that the process sees.
        count: How many in a row; the process must see them (`visible_cores`).

    Returns:
        What `first` counts as from now on: the runtime numbers what it was given from 0.

    Raises:
        ArtifactError: If this process took other cores before.
    """
    global _taken
    wanted = range(first, first + count)
    if _taken is not None:
        if wanted[0] in _taken and wanted[-1] in _taken:
            return first - _taken.start
        raise ArtifactError(
            f"compiled for NeuronCore {_named(wanted)}, and this process took {_named(_taken)} for another artifact",
            f"a process for each artifact, or {VISIBLE} with the cores of both before it starts",
        )
    if os.environ.get(VISIBLE) or os.environ.get(COUNT):
        return first
    os.environ[VISIBLE] = _named(wanted)
    _taken = wanted
    return 0


def check_cores(first: int, count: int, field: str, remedy: str) -> None:
    """Refuses an artifact that wants cores which this process does not see.

    Args:
        first: The first that is wanted.
        count: How many.
        field: Of the manifest, and what it says.
        remedy: What to do, for so many cores as there are.

    Raises:
        ArtifactError: If there are fewer.
    """
    if _taken is None and (cores := visible_cores()) is not None and first + count > cores:
        raise ArtifactError(f"{field}, this process sees {cores} NeuronCores", remedy)


def _named(cores: range) -> str:
    """As the Neuron runtime reads it; optimum-neuron reads no list with commas."""
    return str(cores[0]) if len(cores) == 1 else f"{cores[0]}-{cores[-1]}"
