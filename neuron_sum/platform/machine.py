"""Description of this machine without AWS packages: hardware, Neuron driver, Python, packages and tools."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from neuron_sum.platform import cpu, threads

TOOLS = ("java", "mvn", "git", "g++")
"""Programs that build and run the server, or compile graphs for this CPU."""

SAGEMAKER = ("TRAINING_JOB_NAME", "SM_CURRENT_INSTANCE_TYPE")
"""Variables that SageMaker, or its training toolkit, sets in the container of a job."""
JAVA_LIMIT_S = 20
"""Seconds until `java -version` is stopped."""
PREFIXES, SETTINGS = ("NEURON", "XLA_"), "NEURON_SUM_"
"""Prefixes of the environment variables that control the Neuron runtime and compiler, and of those of neuron-sum."""


@dataclass(frozen=True)
class Machine:
    """The properties of a machine.

    Attributes:
        python: The version of the interpreter.
        cpu: The name of the processor.
        cores: Processors that this process may use.
        memory: Bytes of main memory.
        free_memory: Free bytes of main memory, or of the container's limit if that is lower.
        free_disk: Free bytes of the current folder's disk.
        neuron_devices: The number of Trainium or Inferentia chips that the driver shows.
        driver: The version of the Neuron driver; None if it is not loaded.
        managed: Whether SageMaker runs this container, which cannot change the driver of its host.
        instance: The EC2 type, such as trn1.2xlarge; None if unknown or not on EC2.
        packages: The version of each distribution; None for those that are not installed.
        java: The Java release, such as 17; None if it is not installed.
        tools: The programs of TOOLS that are installed.
    """

    python: str
    cpu: str
    cores: int
    memory: int
    free_memory: int
    free_disk: int
    neuron_devices: int
    driver: str | None
    managed: bool
    instance: str | None
    packages: dict[str, str | None]
    java: str | None
    tools: tuple[str, ...]


def describe_machine(distributions: Iterable[str], root: Path = Path("/")) -> Machine:
    """Describe this machine.

    Args:
        distributions: The distributions to report the versions of.
        root: The folder with dev and sys.
    """
    tools = tuple(tool for tool in TOOLS if shutil.which(tool))
    return Machine(
        python=platform.python_version(),
        cpu=cpu.name(),
        cores=threads.cores(root),
        memory=total_memory(),
        free_memory=int(cpu.available_memory()),
        free_disk=shutil.disk_usage(Path.cwd()).free,
        neuron_devices=neuron_devices(root),
        driver=_text(root / "sys/module/neuron/version"),
        managed=any(name in os.environ for name in SAGEMAKER),
        instance=instance_type(root),
        packages={name: package_version(name) for name in distributions},
        java=_java() if "java" in tools else None,
        tools=tools,
    )


def total_memory() -> int:
    """Bytes of main memory."""
    return int(psutil.virtual_memory().total)


def neuron_devices(root: Path = Path("/")) -> int:
    """The number of Trainium or Inferentia chips that the driver shows.

    Args:
        root: The folder with dev.
    """
    return sum(1 for device in (root / "dev").glob("neuron*") if re.fullmatch(r"neuron\d+", device.name))


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def instance_type(root: Path = Path("/")) -> str | None:
    """The EC2 type, such as trn1.2xlarge, from SageMaker's environment variable or the product name in EC2's firmware.

    Args:
        root: The folder with sys.

    Returns:
        The type; None if this machine is not an EC2 instance or does not report a type.
    """
    if name := os.environ.get("SM_CURRENT_INSTANCE_TYPE"):
        return name.removeprefix("ml.")
    product = _text(root / "sys/devices/virtual/dmi/id/product_name") or ""
    return product if re.fullmatch(r"[a-z][a-z0-9-]*\.\d*[a-z]+", product) else None


def environment() -> dict[str, str]:
    """The environment variables that control the Neuron runtime and compiler."""
    names = sorted(name for name in os.environ if name.startswith(PREFIXES) and not name.startswith(SETTINGS))
    return {name: os.environ[name] for name in names}


def package_version(name: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _java() -> str | None:
    """The Java release, from a line such as: openjdk version "17.0.9" 2023-10-17."""
    try:
        java = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=JAVA_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', java.stderr + java.stdout)
    return match[1] if match else None
