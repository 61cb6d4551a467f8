"""This machine beside the platform matrix: what it is, what differs, what to do. Nothing is changed or fetched.

A recipe on an instance is in recipe_check.py.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from neuron_sum.console import size
from neuron_sum.errors import PlatformError
from neuron_sum.platform.machine import Machine
from neuron_sum.platform.matrix import INSTANCES, NEURON_INDEX, PLATFORMS, Platform
from neuron_sum.platform.support import RETIREMENTS

Verdict = Literal["ok", "note", "differs", "blocks"]
DISK_NEEDED = 20 * 10**9
"""torch's CUDA libraries, a base model, two checkpoints of it."""
NEURON_FAMILIES = ("trn", "inf")
"""How the names of instances with Neuron chips begin, those too that the table does not have."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        verdict: ok; note: worth knowing; differs: from the platform's row, may work; blocks: will not work.
        found: What was found.
        remedy: What to run or change; None where there is nothing to do.
        source: Where the knowledge comes from, where it is not this machine.
    """

    name: str
    verdict: Verdict
    found: str
    remedy: str | None = None
    source: str | None = None


def raise_if_blocked(checks: Iterable[Check]) -> None:
    """Ends with an error where something will not work.

    Raises:
        PlatformError: Naming every check that blocks.
    """
    blocking = [check for check in checks if check.verdict == "blocks"]
    if blocking:
        names = ", ".join(check.name for check in blocking)
        remedies = "; ".join(check.remedy for check in blocking if check.remedy)
        raise PlatformError(f"{len(blocking)} of the checks block: {names}", remedies or None)


def distributions() -> list[str]:
    """Every package that the matrix has a version of."""
    wanted = ["neuron-sum", "optimum-neuron", "torch-xla"]
    for platform in PLATFORMS:
        wanted += [*platform.pins, *platform.vendor_pins]
    return list(dict.fromkeys(wanted))


def nearest_platform(machine: Machine) -> Platform:
    """The row that most of the installed packages agree with; of equals, the newest."""
    return max(PLATFORMS, key=lambda platform: len(platform.pins) - len(_differences(machine, platform.pins)))


def own_instance(machine: Machine) -> str:
    """The instance that a recipe is checked for where none is named: this one.

    Raises:
        PlatformError: If this is no Neuron instance, or one that is not in the table.
    """
    if machine.instance is not None and f"ml.{machine.instance}" in INSTANCES:
        return machine.instance
    if machine.neuron_devices or (machine.instance or "").startswith(NEURON_FAMILIES):
        this = machine.instance or f"a machine with {machine.neuron_devices} Neuron chips"
        raise PlatformError(
            f"{this} is not in the table", f"there are {', '.join(INSTANCES)}; --instance names the one to check for"
        )
    raise PlatformError(
        "this machine is no Trainium or Inferentia2 instance",
        "--instance ml.trn1.2xlarge names one; `neuron-sum train RECIPE --dry-run` estimates for this machine",
    )


def check_machine(machine: Machine, platform: Platform) -> list[Check]:
    """What this machine is, beside a row of the matrix."""
    return [
        Check("machine", "ok", f"{machine.instance or 'no EC2 instance'}: {machine.cores} cores, {machine.cpu}"),
        Check("memory", "ok", f"{size(machine.free_memory)} free of {size(machine.memory)}"),
        _check_disk(machine),
        _check_python(machine, platform),
        _check_packages(machine, platform),
        *_check_neuron(machine, platform),
        _check_server(machine, platform),
        _check_compiler(machine),
        *retirements(platform.retirements),
    ]


def _check_disk(machine: Machine) -> Check:
    if machine.free_disk >= DISK_NEEDED:
        return Check("disk", "ok", f"{size(machine.free_disk)} free here")
    return Check("disk", "note", f"{size(machine.free_disk)} free here", f"room for {size(DISK_NEEDED)}, or less to do")


def _check_python(machine: Machine, platform: Platform) -> Check:
    minor = ".".join(machine.python.split(".")[:2])
    if minor in platform.python:
        return Check("python", "ok", machine.python)
    wanted = " or ".join(platform.python)
    return Check(
        "python", "blocks", f"{machine.python}; the row has {wanted}", f"python{platform.python[-1]} -m venv .venv"
    )


def _check_packages(machine: Machine, platform: Platform) -> Check:
    differing = _differences(machine, platform.pins)
    same = f"{len(platform.pins) - len(differing)} of {len(platform.pins)} as in {platform.name}"
    if not differing:
        return Check("packages", "ok", same)
    missing = any(machine.packages.get(name) is None for name in differing)
    return Check(
        "packages", "blocks" if missing else "differs", f"{same}; {_told(machine, differing)}", _pip(differing)
    )


def _check_neuron(machine: Machine, platform: Platform) -> list[Check]:
    """Devices, driver, AWS's packages and optimum-neuron: all needed where there is a device, none elsewhere."""
    wanted = {**platform.vendor_pins, "optimum-neuron": platform.optimum_neuron}
    installed = [name for name in platform.vendor_pins if machine.packages.get(name) is not None]
    differing = _differences(machine, wanted)
    checks = []
    if machine.neuron_devices == 0:
        checks.append(
            Check(
                "neuron",
                "note",
                "no Neuron device: everything runs on this machine's CPU",
                "`neuron-sum doctor RECIPE --instance ml.trn1.2xlarge` checks a recipe for one that has them",
            )
        )
        if machine.packages.get("torch-xla") is not None:
            checks.append(Check("torch-xla", "note", f"{machine.packages['torch-xla']}, with no device to use"))
        if not installed:
            return checks
    else:
        checks.append(Check("neuron", "ok", f"{machine.neuron_devices} chips"))
        checks.append(_check_driver(machine, platform))
    if differing:
        verdict: Verdict = "blocks" if machine.neuron_devices else "differs"
        remedy = _pip(differing, f"--extra-index-url={NEURON_INDEX} ")
        checks.append(Check("neuron packages", verdict, _told(machine, differing), remedy, platform.source))
    else:
        checks.append(Check("neuron packages", "ok", f"as in {platform.name}"))
    return checks


def _check_driver(machine: Machine, platform: Platform) -> Check:
    """A driver works with older runtimes, a runtime not with an older driver."""
    wanted = platform.system_packages["aws-neuronx-dkms"]
    remedy = f"sudo apt-get install aws-neuronx-dkms={wanted}, or newer"
    source = "AWS Neuron documentation, neuron-runtime/nrt-troubleshoot.rst: a driver serves older runtimes"
    if machine.driver is None:
        return Check("driver", "blocks", "devices, and no driver that tells its version", remedy, source)
    if _numbers(machine.driver) < _numbers(wanted):
        return Check("driver", "blocks", f"{machine.driver}, older than the row's {wanted}", remedy, source)
    return Check("driver", "ok", f"{machine.driver}; the row's is {wanted}", None, source)


def _check_server(machine: Machine, platform: Platform) -> Check:
    missing = [tool for tool in ("java", "mvn", "git") if tool not in machine.tools]
    install = f"apt-get install openjdk-{platform.java}-jdk-headless maven git"
    if missing:
        return Check("server", "note", f"no {', '.join(missing)}: `neuron-sum serve` is built with them", install)
    if machine.java != platform.java:
        return Check("server", "differs", f"Java {machine.java}; the row has {platform.java}", install)
    return Check("server", "ok", f"Java {machine.java}, Maven, git")


def _check_compiler(machine: Machine) -> Check:
    if "g++" in machine.tools:
        return Check("c++ compiler", "ok", "g++")
    return Check("c++ compiler", "note", "none: `neuron-sum compile` needs one", "apt-get install g++")


def _differences(machine: Machine, wanted: Mapping[str, str]) -> dict[str, str]:
    """What is wanted and not there in that version; a local part such as +cpu does not count."""
    return {
        name: version for name, version in wanted.items() if (machine.packages.get(name) or "").split("+")[0] != version
    }


def _told(machine: Machine, differing: Mapping[str, str]) -> str:
    return ", ".join(
        f"{name} {machine.packages.get(name) or 'missing'} ({wanted})" for name, wanted in differing.items()
    )


def _pip(differing: Mapping[str, str], options: str = "") -> str:
    return f"pip install {options}" + " ".join(f"'{name}=={version}'" for name, version in differing.items())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())


def retirements(names: Iterable[str]) -> list[Check]:
    """What AWS says of what is used, by name in support.RETIREMENTS."""
    checks = []
    for name in names:
        retirement = RETIREMENTS[name]
        since = f"{retirement.status} since {retirement.since} (SDK {retirement.release})"
        found = f"{retirement.what}: {since}; {retirement.means}"
        checks.append(Check(name, "note", found, None, retirement.source))
    return checks
