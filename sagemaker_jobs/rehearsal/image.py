"""Substitute for a job's image: a temporary Python environment layered over this one, and environment variables.

The job's wheelhouse is installed into it. The current Python environment is read but never changed.
"""

import os
import site
import sys
import sysconfig
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import sagemaker_jobs
from neuron_sum import files
from neuron_sum.platform import threads
from sagemaker_jobs.rehearsal import namespace

KEPT_VARIABLES = (threads.COUNT, threads.POLICY, threads.CHOSEN)
"""Variables taken from this process, which an image would set for its machine."""


@dataclass(frozen=True)
class LocalImage:
    """The environment of a container.

    Attributes:
        folder: The folder for files outside /opt/ml, such as the home folder.
        environment: The environment variables of the image.
        unshare: The prefix of a command that runs in namespaces; None: folders in the same layout are used.
        why_folders: The reason for using folders.
    """

    folder: Path
    environment: Mapping[str, str]
    unshare: tuple[str, ...] | None
    why_folders: str = ""

    @property
    def isolated(self) -> bool:
        """Whether the container has a real /opt/ml and no network."""
        return self.unshare is not None


def make(folder: Path, *, namespaces: bool = True, checkout: bool = False) -> LocalImage:
    """Create the Python environment and check whether namespaces are allowed.

    Args:
        folder: The folder for all files of the image.
        namespaces: Whether to use namespaces if they are allowed.
        checkout: Whether to use neuron-sum from its current location instead of only from a wheelhouse.
    """
    environment_folder = folder / "python"
    venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(environment_folder)
    python = environment_folder / "bin" / "python3"
    packages = Path(
        sysconfig.get_path("purelib", vars={"base": str(environment_folder), "platbase": str(environment_folder)})
    )
    # Paths in a .pth file are searched after its folder, so a wheel installed there has priority. The .pth files in
    # those paths (such as that of an editable install of the project) are not read.
    paths = [*_packages(), *([str(Path(sagemaker_jobs.__file__).parent.parent)] if checkout else [])]
    files.write_text(packages / "beside.pth", "".join(f"{path}\n" for path in paths))
    home = folder / "home"
    temporary = folder / "tmp"
    for new_folder in (home, temporary):
        new_folder.mkdir(exist_ok=True)
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    environment = {
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "LANG": "C.UTF-8",
        # Graphs in this machine's cache are not compiled again; they are found by their content.
        "NEURON_SUM_CACHE": str(files.cache_folder()),
        # The hub's cache of this machine is available, but not the hub itself.
        "HF_HUB_OFFLINE": "1",
        **({"HF_HOME": str(hub)} if hub.is_dir() else {}),
        # pip would skip a wheel if this Python environment had the same version.
        "PIP_FORCE_REINSTALL": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        **{name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ},
    }
    found = namespace.allowed(folder, python) if namespaces else "--no-namespace was used"
    if isinstance(found, str):
        return LocalImage(folder, environment, None, found)
    return LocalImage(folder, environment, found)


def _packages() -> list[str]:
    """The package folders of this Python environment."""
    found = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        found.append(site.getusersitepackages())
    # Also the folders of a base environment, which a .pth file of this one names.
    found += [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return [path for path in dict.fromkeys(found) if Path(path).is_dir()]
