"""The wheels that a job installs over the AWS image: neuron-sum and the platform's exact versions of its dependencies.

pip verifies the hash of each downloaded package. What only the image can provide is not in the wheelhouse: torch, the
AWS packages and CUDA (tools/pin_hashes.py).
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

from neuron_sum import __version__, console, files
from neuron_sum.errors import ResourceError
from neuron_sum.platform.matrix import PLATFORMS
from neuron_sum.platform.project import PACKAGES, PROJECT_FILES, REQUIREMENTS, SOURCES, project_root
from neuron_sum.subprocesses import ending_with_parent

PLATFORM_TAGS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64", "any")
EPOCH = "1700000000"
"""Date of all files in a wheel, so that the same source gives the same bytes and is uploaded only once."""


def build(folder: Path, report_to: Sequence[str] = ()) -> Path:
    """Build neuron-sum's wheel and download the other wheels for the image's Python.

    Args:
        folder: The target folder, replaced only when the wheelhouse is complete.
        report_to: The values of train.report_to, whose packages are added.

    Raises:
        ResourceError: If the project's files are missing, or pip fails.
    """
    requirements = project_root() / REQUIREMENTS
    python = next(image for image in PLATFORMS[0].registry_images if image.stage == "train").versions["python"]
    console.note(f"building a wheelhouse for Python {python}")
    tags = [word for tag in PLATFORM_TAGS for word in ("--platform", tag)]
    verified = ["--no-deps", "--require-hashes"]
    with files.new_folder(folder) as temporary:
        build_own(temporary)
        source = ["--requirement", str(requirements / "source.txt")]
        _pip("wheel", *verified, *_isolation(), "--wheel-dir", str(temporary), *source)
        names = ("common", "neuron", *report_to)
        wheels = [word for name in names for word in ("--requirement", str(requirements / f"{name}.txt"))]
        binary = ["--only-binary=:all:", "--python-version", python, *tags]
        _pip("download", *verified, *binary, "--dest", str(temporary), *wheels)
    return folder


def build_own(folder: Path) -> Path:
    """Build only neuron-sum's wheel, if possible without a package index.

    Args:
        folder: The target folder.

    Returns:
        The path of the wheel.

    Raises:
        ResourceError: If the project's files are missing, or pip fails.
    """
    root = project_root()
    with tempfile.TemporaryDirectory(prefix="neuron-sum-wheel-") as scratch:
        sources = Path(scratch) / "neuron-sum"
        sources.mkdir()
        # Build from a copy, because a build writes folders next to its sources and reuses those of earlier builds.
        for name in PACKAGES:
            shutil.copytree(SOURCES / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in PROJECT_FILES:
            shutil.copy(root / name, sources / name)
        shutil.copytree(root / REQUIREMENTS, sources / REQUIREMENTS)
        _pip("wheel", "--no-deps", *_isolation(), "--wheel-dir", str(folder), str(sources))
    return next(folder.glob("*.whl"))


def wheels_for(
    folder_option: Path | None, image: str | None, *, dry_run: bool, report_to: Sequence[str] = ()
) -> Path | None:
    """The wheelhouse of a job: the one from the command line, none for a custom image, or one built into the cache.

    Args:
        folder_option: The folder from the command line.
        image: The image from the command line.
        dry_run: Whether nothing is built.
        report_to: The values of train.report_to, whose packages a job needs.

    Raises:
        ResourceError: As for `build`.
    """
    if folder_option is not None or image is not None:
        return folder_option
    if dry_run:
        console.note("an actual start first builds a wheelhouse and uploads it as another channel")
        return None
    folder = files.cache_folder() / "wheelhouse" / __version__
    folder.parent.mkdir(parents=True, exist_ok=True)
    return build(folder, report_to=report_to)


def _isolation() -> list[str]:
    """The pip options for a build with this environment's tools; none if they are too old, so that pip gets others."""
    text = (project_root() / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^requires = \["(.+)"\]$', text, re.MULTILINE)
    if found is None:
        return []
    wanted = Requirement(found[1])
    try:
        return ["--no-build-isolation"] if wanted.specifier.contains(version(wanted.name)) else []
    except PackageNotFoundError:
        return []


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", arguments[0], "--quiet", *arguments[1:]]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH}
    finished = subprocess.run(ending_with_parent(command), capture_output=True, text=True, check=False, env=environment)
    if finished.returncode:
        lines = [
            line for line in finished.stderr.splitlines() if line.startswith("ERROR")
        ] or finished.stderr.splitlines()[-1:]
        raise ResourceError(
            f"pip {arguments[0]} failed: {' '.join(lines)[:400]}",
            "Check that the package index is reachable, or use --wheelhouse FOLDER with one that was built elsewhere.",
        )
