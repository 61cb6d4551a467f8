"""The wheels that a job installs over AWS's image: our own, and the row's exact versions of what the image has older.

The image keeps what only it can have: torch, AWS's own packages, CUDA's.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

import sagemaker_jobs
from neuron_sum import __version__, console, files
from neuron_sum.errors import ResourceError
from neuron_sum.platform.matrix import PLATFORMS, Platform

KEPT = ("torch", "torch_xla", "triton")
NEURON_PINS = "xla.txt"
"""optimum-neuron and optimum, which AWS's plain image has not, beside the row's own constraints."""

KEPT_PREFIXES = ("nvidia-", "cuda-")
PLATFORM_TAGS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64", "any")
SOURCES_ALONE = ("rouge-score",)
"""Published without a wheel; pure Python, so one that is built here fits there."""

EPOCH = "1700000000"
"""A wheel's files are dated with it, so that the same source gives the same bytes, and is uploaded once."""


def pins(constraints: str, python: str) -> list[str]:
    """What is brought, as `name==version`.

    Args:
        constraints: The text of the constraints files.
        python: The image's, as 3.11.
    """
    found = []
    for line in constraints.splitlines():
        text = line.split("#")[0].strip()
        if not text:
            continue
        requirement = Requirement(text)
        name = requirement.name.lower()
        marked = requirement.marker is None or requirement.marker.evaluate({"python_version": python})
        if marked and name not in KEPT and not name.startswith(KEPT_PREFIXES):
            found.append(f"{requirement.name}{requirement.specifier}")
    return found


def build(folder: Path, platform: Platform = PLATFORMS[0]) -> Path:
    """Builds our wheel and downloads the others for the image's Python.

    Args:
        folder: Replaced at once when it is whole.
        platform: The row.

    Raises:
        ResourceError: If this is no checkout of the project, or pip failed.
    """
    root = Path(sagemaker_jobs.__file__).parent.parent
    constraints = root / "constraints" / f"{platform.name}.txt"
    if not constraints.is_file() or not (root / "pyproject.toml").is_file():
        raise ResourceError(
            f"a wheelhouse is built from a checkout of the project; {constraints} is not there",
            "--wheelhouse FOLDER with one that was built elsewhere",
        )
    python = next(image for image in platform.registry_images if image.stage == "train").versions["python"]
    both = [path.read_text(encoding="utf-8") for path in (constraints, constraints.with_name(NEURON_PINS))]
    wanted = pins("".join(both), python)
    console.note(f"building a wheelhouse of {len(wanted) + 1} packages for Python {python}")
    tags = [word for tag in PLATFORM_TAGS for word in ("--platform", tag)]
    with files.new_folder(folder) as temporary:
        built = [pin for pin in wanted if pin.startswith(SOURCES_ALONE)]
        _pip("wheel", "--no-deps", "--wheel-dir", str(temporary), str(root), *built)
        _pip(
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--python-version",
            python,
            *tags,
            "--dest",
            str(temporary),
            *(pin for pin in wanted if pin not in built),
        )
    return folder


def build_own(folder: Path) -> Path:
    """Builds our wheel alone, where possible without asking an index.

    Args:
        folder: For the wheel.

    Returns:
        The wheel.

    Raises:
        ResourceError: If this is no checkout of the project, or pip failed.
    """
    root = Path(sagemaker_jobs.__file__).parent.parent
    if not (root / "pyproject.toml").is_file():
        raise ResourceError(f"{root} is no checkout of the project, so there is nothing to build a wheel of")
    with tempfile.TemporaryDirectory(prefix="neuron-sum-wheel-") as scratch:
        sources = Path(scratch) / "neuron-sum"
        sources.mkdir()
        # A copy: a build leaves folders beside its sources, and takes what an earlier one left there.
        for path in root.iterdir():
            if path.is_dir() and (path / "__init__.py").is_file():
                shutil.copytree(path, sources / path.name, ignore=shutil.ignore_patterns("__pycache__"))
            elif path.is_file() and not path.name.startswith("."):
                shutil.copy(path, sources / path.name)
        offline = ["--no-index", "--no-build-isolation"] if _builds_here(root) else []
        _pip("wheel", "--no-deps", *offline, "--wheel-dir", str(folder), str(sources))
    return next(folder.glob("*.whl"))


def wheels_for(given: Path | None, image: str | None, *, dry_run: bool) -> Path | None:
    """The wheels of a job: those that were given; else built into the cache; none for an image of the caller's own.

    Raises:
        ResourceError: As `build`.
    """
    if given is not None or image is not None:
        return given
    if dry_run:
        console.note("a real start builds a wheelhouse first, and uploads it as one more channel")
        return None
    folder = files.cache_folder() / "wheelhouse" / __version__
    folder.parent.mkdir(parents=True, exist_ok=True)
    return build(folder)


def _builds_here(root: Path) -> bool:
    """Whether this environment has what pyproject.toml wants for a build; else pip gets it from its index."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^requires = \["(.+)"\]$', text, re.MULTILINE)
    if found is None:
        return False
    wanted = Requirement(found[1])
    try:
        return wanted.specifier.contains(version(wanted.name))
    except PackageNotFoundError:
        return False


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", arguments[0], "--quiet", *arguments[1:]]
    made = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH}
    )
    if made.returncode:
        lines = [line for line in made.stderr.splitlines() if line.startswith("ERROR")] or made.stderr.splitlines()[-1:]
        raise ResourceError(
            f"pip {arguments[0]} failed: {' '.join(lines)[:400]}",
            "is the package index reachable? --wheelhouse FOLDER takes one that was built elsewhere",
        )
