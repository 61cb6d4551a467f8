"""The files of the project, in a checkout or installed from a wheel: images and jobs are built from them."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from neuron_sum.errors import ResourceError

PROJECT_FILES = ("pyproject.toml", "README.md", "LICENSE")
PACKAGES = ("neuron_sum", "compile", "serving", "sagemaker_jobs")
REQUIREMENTS = Path("constraints", "images")
"""Requirements files with hashes; tools/pin_hashes.py writes them."""

SOURCES = Path(__file__).parents[2]
"""The folder that contains the packages."""


def project_root() -> Path:
    """The folder that contains PROJECT_FILES and REQUIREMENTS: the checkout, or the wheel's share/neuron-sum.

    Raises:
        ResourceError: If the package was neither installed nor is in a checkout.
    """
    roots = [SOURCES]
    try:
        files = distribution("neuron-sum").files or []
        roots += [Path(str(file.locate())).resolve().parent for file in files if file.name == PROJECT_FILES[0]]
    except PackageNotFoundError:
        pass
    for root in roots:
        if (root / REQUIREMENTS).is_dir() and all((root / name).is_file() for name in PROJECT_FILES):
            return root
    raise ResourceError(
        f"{SOURCES} lacks {', '.join(PROJECT_FILES)} or {REQUIREMENTS}, from which images and jobs build neuron-sum",
        "install neuron-sum with pip, or run this command in a checkout of the project",
    )
