"""What this machine is, as far as it tells without a package of AWS's: hardware, Neuron, Python, packages, tools."""

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

from neuron_sum.platform import cpu

TOOLS = ("java", "mvn", "git", "g++")
"""What the server is built with and run by, and what graphs for this CPU are compiled with."""

JAVA_LIMIT_S = 20


@dataclass(frozen=True)
class Machine:
    """One machine.

    Attributes:
        python: The interpreter's version.
        cpu: The processor's name.
        cores: Processors that this process may use.
        memory: Bytes of main memory.
        free_memory: Bytes of it that are free; a container's limit counts.
        free_disk: Bytes that are free in the current folder.
        neuron_devices: Trainium or Inferentia chips that the driver shows.
        driver: The Neuron driver's version; None where it is not loaded.
        instance: The EC2 type, such as trn1.2xlarge; None elsewhere.
        packages: Versions of installed distributions, None for those that are not installed.
        java: Java's release, such as 17; None without it.
        tools: Programs that were found.
    """

    python: str
    cpu: str
    cores: int
    memory: int
    free_memory: int
    free_disk: int
    neuron_devices: int
    driver: str | None
    instance: str | None
    packages: dict[str, str | None]
    java: str | None
    tools: tuple[str, ...]


def look(distributions: Iterable[str], root: Path = Path("/")) -> Machine:
    """This machine, now.

    Args:
        distributions: Whose versions are wanted.
        root: Where /dev, /proc and /sys are.
    """
    tools = tuple(tool for tool in TOOLS if shutil.which(tool))
    return Machine(
        python=platform.python_version(),
        cpu=cpu.name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=total_memory(),
        free_memory=int(cpu.available_memory()),
        free_disk=shutil.disk_usage(Path.cwd()).free,
        neuron_devices=neuron_devices(root),
        driver=_text(root / "sys/module/neuron/version"),
        instance=instance_type(root),
        packages={name: package_version(name) for name in distributions},
        java=_java() if "java" in tools else None,
        tools=tools,
    )


def total_memory() -> int:
    """Bytes of main memory."""
    return int(psutil.virtual_memory().total)


def neuron_devices(root: Path = Path("/")) -> int:
    """Trainium or Inferentia chips that the driver shows.

    Args:
        root: Where /dev is.
    """
    return sum(1 for device in (root / "dev").glob("neuron*") if re.fullmatch(r"neuron\d+", device.name))


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def instance_type(root: Path = Path("/")) -> str | None:
    """The EC2 type, such as trn1.2xlarge: SageMaker tells it in a variable, EC2's firmware as the product's name.

    Args:
        root: Where /sys is.

    Returns:
        None where this is no EC2 instance, or does not say so.
    """
    told = os.environ.get("SM_CURRENT_INSTANCE_TYPE")
    if told:
        return told.removeprefix("ml.")
    product = _text(root / "sys/devices/virtual/dmi/id/product_name") or ""
    return product if re.fullmatch(r"[a-z][a-z0-9-]*\.\d*[a-z]+", product) else None


def package_version(name: str) -> str | None:
    """Of an installed distribution; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _java() -> str | None:
    """The release, from a line such as: openjdk version "17.0.9" 2023-10-17."""
    try:
        said = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=JAVA_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', said.stderr + said.stdout)
    return found[1] if found else None
