"""The wheels that a job installs over AWS's image: our own, and the row's exact versions of what the image has older.

The image keeps what only it can have: torch, AWS's own packages, CUDA's.
"""

import os
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

import sagemaker_jobs
from neuron_sum import console, files
from neuron_sum.errors import ResourceError
from neuron_sum.stack import PLATFORMS, Platform

KEPT = ("torch", "triton")
KEPT_PREFIXES = ("nvidia-", "cuda-")
PLATFORM_TAGS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64", "any")
EPOCH = "1700000000"
"""A wheel's files are dated with it, so that the same source gives the same bytes, and is uploaded once."""


def pins(constraints: str, python: str, platform: Platform = PLATFORMS[0]) -> list[str]:
    """What is brought, as `name==version`.

    Args:
        constraints: The text of the row's constraints file.
        python: The image's, as 3.11.
        platform: The row, for optimum-neuron's version.
    """
    found = [f"optimum-neuron=={platform.optimum_neuron}"]
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
    wanted = pins(constraints.read_text(encoding="utf-8"), python, platform)
    console.note(f"building a wheelhouse of {len(wanted) + 1} packages for Python {python} (once)")
    tags = [word for tag in PLATFORM_TAGS for word in ("--platform", tag)]
    with files.new_folder(folder) as temporary:
        _pip("wheel", "--no-deps", "--wheel-dir", str(temporary), str(root))
        _pip("download", "--no-deps", "--only-binary=:all:", "--python-version", python, *tags,
             "--dest", str(temporary), *wanted)  # fmt: skip
    return folder


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
