"""Compare this machine with the platform matrix, with a remedy for each difference. Nothing is changed or fetched.

recipe_check.py checks a recipe on an instance type.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from neuron_sum.console import size
from neuron_sum.errors import PlatformError
from neuron_sum.platform.machine import Machine
from neuron_sum.platform.matrix import INSTANCES, NEURON_INDEX, PLATFORMS, Platform
from neuron_sum.platform.successors import newer_instance
from neuron_sum.platform.support import RETIREMENTS

Verdict = Literal["ok", "note", "differs", "blocks"]
DISK_NEEDED = 20 * 10**9
"""Bytes for torch's CUDA libraries, a base model and two checkpoints of it."""
NEURON_FAMILIES = ("trn", "inf")
"""Prefixes of the names of instance types with Neuron chips, including those that are not in the table."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: The subject of the check.
        verdict: ok; note: worth knowing; differs: from the platform's row, may work; blocks: will not work.
        found: The finding.
        remedy: The command to run or the setting to change; None if nothing is required.
        source: The source of the information, unless it is this machine.
    """

    name: str
    verdict: Verdict
    found: str
    remedy: str | None = None
    source: str | None = None


def raise_if_blocked(checks: Iterable[Check]) -> None:
    """Raise if something will not work.

    Raises:
        PlatformError: If a check blocks; names all that do.
    """
    blocking = [check for check in checks if check.verdict == "blocks"]
    if blocking:
        names = ", ".join(check.name for check in blocking)
        remedies = "; ".join(check.remedy for check in blocking if check.remedy)
        raise PlatformError(f"{len(blocking)} failed checks: {names}", remedies or None)


def distributions() -> list[str]:
    """All packages with a version in the matrix."""
    names = ["neuron-sum", "optimum-neuron", "torch-xla"]
    for platform in PLATFORMS:
        names += [*platform.pins, *platform.vendor_pins]
    return list(dict.fromkeys(names))


def nearest_platform(machine: Machine) -> Platform:
    """The row that agrees with most of the installed packages; the newest of several such rows."""
    return max(PLATFORMS, key=lambda platform: len(platform.pins) - len(_differences(machine, platform.pins)))


def instance_of(machine: Machine) -> str | None:
    """The Neuron instance type of this machine, the default for checking a recipe; None without Neuron chips.

    Raises:
        PlatformError: If it has Neuron chips, but its type is not in the table.
    """
    if machine.instance is not None and f"ml.{machine.instance}" in INSTANCES:
        return machine.instance
    if machine.neuron_devices or (machine.instance or "").startswith(NEURON_FAMILIES):
        name = machine.instance or f"a machine with {machine.neuron_devices} Neuron chips"
        newer = newer_instance(name)
        found = newer.unsupported if newer else f"{name} is not in the table"
        raise PlatformError(found, f"use --instance with one of {', '.join(INSTANCES)}")
    return None


def check_machine(machine: Machine, platform: Platform) -> list[Check]:
    """Compare this machine with a row of the matrix."""
    return [
        Check("memory", "ok", f"{size(machine.free_memory)} free of {size(machine.memory)}"),
        *check_basics(machine, platform),
        *_check_neuron(machine, platform),
        _check_server(machine, platform),
        _check_compiler(machine),
        *retirements(platform.retirements),
    ]


def describe(machine: Machine) -> dict[str, Any]:
    """A machine, the nearest row of the matrix and their differences, as values for JSON."""
    platform = nearest_platform(machine)
    checks = tuple(asdict(check) for check in check_machine(machine, platform))
    return {"machine": asdict(machine), "platform": platform.name, "checks": checks}


def check_basics(machine: Machine, platform: Platform) -> list[Check]:
    """The checks that concern every command on this machine: disk, Python and packages."""
    return [
        Check("machine", "ok", f"{machine.instance or 'not an EC2 instance'}: {machine.cores} cores, {machine.cpu}"),
        _check_disk(machine),
        _check_python(machine, platform),
        _check_packages(machine, platform),
    ]


def _check_disk(machine: Machine) -> Check:
    if machine.free_disk >= DISK_NEEDED:
        return Check("disk", "ok", f"{size(machine.free_disk)} free here")
    return Check("disk", "note", f"{size(machine.free_disk)} free here", f"free {size(DISK_NEEDED)}, or store less")


def _check_python(machine: Machine, platform: Platform) -> Check:
    minor = ".".join(machine.python.split(".")[:2])
    if minor in platform.python:
        return Check("python", "ok", machine.python)
    supported = " or ".join(platform.python)
    return Check(
        "python", "blocks", f"{machine.python}; supported: {supported}", f"python{platform.python[-1]} -m venv .venv"
    )


def _check_packages(machine: Machine, platform: Platform) -> Check:
    differing = _differences(machine, platform.pins)
    matching = f"{len(platform.pins) - len(differing)} of {len(platform.pins)} as in {platform.name}"
    if not differing:
        return Check("packages", "ok", matching)
    missing = any(machine.packages.get(name) is None for name in differing)
    return Check(
        "packages", "blocks" if missing else "differs", f"{matching}; {_versions(machine, differing)}", _pip(differing)
    )


def _check_neuron(machine: Machine, platform: Platform) -> list[Check]:
    """Devices, driver, Neuron packages and optimum-neuron; all are required if there is a device, none otherwise."""
    expected = {**platform.vendor_pins, "optimum-neuron": platform.optimum_neuron}
    installed = [name for name in platform.vendor_pins if machine.packages.get(name) is not None]
    differing = _differences(machine, expected)
    checks = []
    if machine.neuron_devices == 0:
        checks.append(
            Check(
                "neuron",
                "note",
                "no Neuron device: everything runs on this machine's CPU",
                "run `neuron-sum doctor RECIPE --instance ml.trn1.2xlarge` to check a recipe for an instance with "
                "devices",
            )
        )
        if machine.packages.get("torch-xla") is not None:
            checks.append(Check("torch-xla", "note", f"{machine.packages['torch-xla']}, without a device"))
        if not installed:
            return checks
    else:
        checks.append(Check("neuron", "ok", f"{machine.neuron_devices} chips"))
        checks.append(_check_driver(machine, platform))
    if differing:
        verdict: Verdict = "blocks" if machine.neuron_devices else "differs"
        remedy = _pip(differing, f"--extra-index-url={NEURON_INDEX} ")
        checks.append(Check("neuron packages", verdict, _versions(machine, differing), remedy, platform.source))
    else:
        checks.append(Check("neuron packages", "ok", f"as in {platform.name}"))
    return checks


def _check_driver(machine: Machine, platform: Platform) -> Check:
    """Compare the driver with those that the runtime works with; in a job of SageMaker, nothing can be changed."""
    drivers = platform.drivers
    verdict: Verdict = "differs" if machine.managed else "blocks"
    remedy = f"sudo apt-get install --allow-downgrades aws-neuronx-dkms={drivers.tested}"
    if machine.managed:
        remedy = "if the job fails with NRT_INVALID or an error of nrt_init, report this version to AWS Support"
    if machine.driver is None:
        found = "devices are present, but the driver's version is unknown"
        return Check("driver", verdict, found, remedy, drivers.source)
    if _numbers(machine.driver) >= _numbers(drivers.below):
        runtime = platform.system_packages["aws-neuronx-runtime-lib"]
        found = f"{machine.driver}; runtime {runtime} needs one before {drivers.below}"
        return Check("driver", verdict, found, remedy, drivers.source)
    if _numbers(machine.driver) < _numbers(drivers.tested):
        found = f"{machine.driver}, older than {drivers.tested}, which was tested; older ones may work"
        return Check("driver", "differs", found, remedy, drivers.source)
    return Check("driver", "ok", f"{machine.driver}; valid: from {drivers.tested}, before {drivers.below}")


def _check_server(machine: Machine, platform: Platform) -> Check:
    missing = [tool for tool in ("java", "mvn", "git") if tool not in machine.tools]
    install = f"apt-get install openjdk-{platform.java}-jdk-headless maven git"
    if missing:
        return Check("server", "note", f"missing {', '.join(missing)}, which `neuron-sum serve` is built with", install)
    if machine.java != platform.java:
        return Check("server", "differs", f"Java {machine.java}; the platform has {platform.java}", install)
    return Check("server", "ok", f"Java {machine.java}, Maven, git")


def _check_compiler(machine: Machine) -> Check:
    if "g++" in machine.tools:
        return Check("c++ compiler", "ok", "g++")
    return Check("c++ compiler", "note", "none; `neuron-sum compile` requires one", "apt-get install g++")


def _differences(machine: Machine, expected: Mapping[str, str]) -> dict[str, str]:
    """The expected versions that are not installed; a local version part such as +cpu is ignored."""
    return {
        name: version
        for name, version in expected.items()
        if (machine.packages.get(name) or "").split("+")[0] != version
    }


def _versions(machine: Machine, differing: Mapping[str, str]) -> str:
    return ", ".join(
        f"{name} {machine.packages.get(name) or 'missing'} ({expected})" for name, expected in differing.items()
    )


def _pip(differing: Mapping[str, str], options: str = "") -> str:
    return f"pip install {options}" + " ".join(f"'{name}=={version}'" for name, version in differing.items())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())


def retirements(names: Iterable[str]) -> list[Check]:
    """Notes on retirements, by name in support.RETIREMENTS."""
    checks = []
    for name in names:
        retirement = RETIREMENTS[name]
        since = f"{retirement.status} since {retirement.since} (SDK {retirement.release})"
        found = f"{retirement.what}: {since}; {retirement.means}"
        checks.append(Check(name, "note", found, None, retirement.source))
    return checks
