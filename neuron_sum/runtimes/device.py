"""The instance family, and the NeuronCores of this process, before a Neuron runtime loads an artifact.

By default the Neuron runtime reserves all cores of the machine for the first process that uses one, and other processes
get none until it has ended (AWS Neuron documentation, "Neuron Runtime configuration" and "NeuronCore Allocation and
Model Placement"). Therefore each process claims as many free cores as its artifact needs, and makes only these visible
to the runtime, which numbers them from 0.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from neuron_sum.artifact import Manifest
from neuron_sum.errors import ArtifactError, PlatformError
from neuron_sum.platform.machine import instance_type, neuron_devices
from neuron_sum.platform.matrix import CORES_PER_CHIP

VISIBLE, COUNT = "NEURON_RT_VISIBLE_CORES", "NEURON_RT_NUM_CORES"
"""Environment variables with the NeuronCores of this process, or their number."""
FAMILIES = ("inf2", "trn1")

LOCKS_VARIABLE = "NEURON_SUM_CORE_LOCKS"
"""The folder of the lock files; containers that share a device can share it."""
LOCKS = Path("/tmp")
"""Default folder of the lock files: not that of TMPDIR, because all processes of a machine must use the same files."""
WAIT_S = 20.0
"""Seconds to wait for a core: a process that was killed keeps its cores until the system has removed it."""
MAX_CORE = 1023
"""Highest core that an environment variable may contain; the largest instances have 128 cores."""

_claimed: range | None = None
"""The cores that this process claimed, and locks until it ends."""


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


def workers(needed: int, environment: Mapping[str, str]) -> int:
    """The number of processes that can run an artifact at the same time on the cores that this process may use.

    Args:
        needed: The number of cores of the artifact.
        environment: The environment variables of the processes.

    Returns:
        The number; at least 1, so that the first worker reports that the cores are too few.

    Raises:
        PlatformError: If an environment variable of the Neuron runtime is invalid.
    """
    cores, limit = _usable(environment)
    return max(min(len(_groups(cores, needed)), limit // needed), 1)


def take_cores(needed: int) -> None:
    """Claim free NeuronCores for this process, until it ends. Must run before torch_neuronx is imported.

    Args:
        needed: The number of consecutive cores.

    Raises:
        ArtifactError: If fewer cores are visible, or if this process has claimed fewer for another artifact.
        PlatformError: If all of them are in use, or an environment variable of the Neuron runtime is invalid.
    """
    global _claimed
    if _claimed is not None:
        if needed > len(_claimed):
            raise ArtifactError(
                f"compiled for {needed} NeuronCores, but this process has claimed {_range(_claimed)} for another "
                "artifact",
                "use one process per artifact",
            )
        return
    cores, limit = _usable(os.environ)
    groups = _groups(cores, needed)
    if limit < needed or not groups:
        found = f"{min(limit, len(cores))} NeuronCores" if min(limit, len(cores)) < needed else "no consecutive ones"
        raise ArtifactError(
            f"compilation.tensor_parallel_size: compiled for {needed} NeuronCores, but this process has {found}",
            f"set {VISIBLE}={_range(range(needed))}, or compile again with compile.neuron.tensor_parallel_size=1",
        )
    end = time.monotonic() + WAIT_S
    while (claimed := next((group for group in groups if _lock(group)), None)) is None:
        if time.monotonic() > end:
            raise PlatformError(
                f"all NeuronCores that this process may use are in use by other processes of neuron-sum: "
                f"{', '.join(map(_range, groups))}",
                f"end one of them (`fuser -v {_file(0).with_name('neuron-sum-core-*.lock')}` shows them), or set "
                f"{VISIBLE} to other cores",
            )
        time.sleep(0.1)
    os.environ[VISIBLE] = _range(claimed)
    _claimed = claimed


def _usable(environment: Mapping[str, str]) -> tuple[list[int], int]:
    """The cores that a process with these variables may use, and how many of them.

    Raises:
        PlatformError: If an environment variable of the Neuron runtime is invalid.
    """
    machine = CORES_PER_CHIP * neuron_devices()
    listed, counted = environment.get(VISIBLE) or "", environment.get(COUNT) or "0"
    parts = [re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part.strip()) for part in listed.split(",")]
    ends = [(int(part[1]), int(part[2] or part[1])) for part in parts if part is not None]
    cores = sorted({core for first, last in ends for core in range(first, last + 1)})
    highest = machine - 1 if machine else MAX_CORE
    if listed and (None in parts or any(first > last for first, last in ends) or cores[-1] > highest):
        fault = f"this machine has {machine} NeuronCores" if machine else "these are not NeuronCores"
        raise PlatformError(f"{VISIBLE}={listed[:80]}: {fault}", f"use {VISIBLE}=0, 0-1 or 0,2")
    if not re.fullmatch(r"[0-9]{1,4}", counted.strip()):
        raise PlatformError(f"{COUNT}={counted[:80]}: not a number of NeuronCores", f"use {COUNT}=1")
    if listed:  # the runtime then ignores the number
        return cores, len(cores)
    number = int(counted)  # 0 means all cores
    cores = list(range(machine or max(CORES_PER_CHIP, number)))
    return cores, min(number or len(cores), len(cores))


def _groups(cores: Iterable[int], needed: int) -> list[range]:
    """Groups of consecutive cores; the runtime accepts no others."""
    groups: list[range] = []
    start = end = -1
    for core in cores:
        start = start if core == end else core
        end = core + 1
        if end - start == needed:
            groups.append(range(start, end))
            start = end
    return groups


def _lock(cores: range) -> bool:
    """Lock cores if all of them are free. The locks end with this process, however it ends.

    Raises:
        PlatformError: If a lock file cannot be opened or locked.
    """
    descriptors: list[int] = []
    try:
        for core in cores:
            descriptors.append(_open(_file(core)))
            fcntl.flock(descriptors[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        for descriptor in descriptors:
            os.close(descriptor)
        return False
    except OSError as error:
        raise PlatformError(
            f"{_file(cores[0])} cannot be locked: {error.strerror}", f"set {LOCKS_VARIABLE} to a writable folder"
        ) from error
    return True


def _file(core: int) -> Path:
    return Path(os.environ.get(LOCKS_VARIABLE) or LOCKS) / f"neuron-sum-core-{core}.lock"


def _open(file: Path) -> int:
    """Open a lock file, which another user may own: it is only locked and never written."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    while True:
        with suppress(FileNotFoundError):
            return os.open(file, flags)
        with suppress(FileExistsError):  # another process has just created it
            descriptor = os.open(file, flags | os.O_CREAT | os.O_EXCL)
            os.fchmod(descriptor, 0o644)  # whatever the umask is
            return descriptor


def _range(cores: range) -> str:
    """The cores in the syntax of the Neuron runtime; optimum-neuron does not support lists with commas."""
    return str(cores[0]) if len(cores) == 1 else f"{cores[0]}-{cores[-1]}"
