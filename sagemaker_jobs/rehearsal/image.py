"""What stands in for a job's image on this machine: a throw-away Python over this one's packages, and variables.

The job's wheelhouse is installed into it. This Python's own environment is read, and never written to.
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
from sagemaker_jobs.rehearsal import namespace

KEPT_VARIABLES = ("OMP_NUM_THREADS",)
"""Of this process: what an image sets for its machine."""


@dataclass(frozen=True)
class LocalImage:
    """What a container runs in.

    Attributes:
        folder: For what it writes outside /opt/ml; its home is there.
        environment: The image's variables.
        unshare: What stands before a command in namespaces; None: folders of the same shape.
        why_folders: Why there are none.
    """

    folder: Path
    environment: Mapping[str, str]
    unshare: tuple[str, ...] | None
    why_folders: str = ""

    @property
    def isolated(self) -> bool:
        """Whether it has a real /opt/ml, and no network."""
        return self.unshare is not None


def make(folder: Path, *, namespaces: bool = True, checkout: bool = False) -> LocalImage:
    """Makes the Python, and finds out what is allowed here.

    Args:
        folder: For all of it.
        namespaces: Whether to use them where they are allowed.
        checkout: Whether neuron-sum comes from where this one is, and not from a wheelhouse alone.
    """
    own = folder / "python"
    venv.EnvBuilder(clear=True, symlinks=True, with_pip=False).create(own)
    python = own / "bin" / "python3"
    beside = Path(sysconfig.get_path("purelib", vars={"base": str(own), "platbase": str(own)}))
    # Paths in a .pth are searched after the folder that it is in, so a wheel in there comes first; and the .pth files
    # in those (an editable install of the project is one) are not read.
    seen = [*_packages(), *([str(Path(sagemaker_jobs.__file__).parent.parent)] if checkout else [])]
    files.write_text(beside / "beside.pth", "".join(f"{path}\n" for path in seen))
    home = folder / "home"
    temporary = folder / "tmp"
    for made in (home, temporary):
        made.mkdir(exist_ok=True)
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    environment = {
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "LANG": "C.UTF-8",
        # A graph that this machine has compiled before is not compiled again: found by its content.
        "NEURON_SUM_CACHE": str(files.cache_folder()),
        # What this machine has of a hub is there; there is no way to the hub itself.
        "HF_HUB_OFFLINE": "1",
        **({"HF_HOME": str(hub)} if hub.is_dir() else {}),
        # The same version may be among this Python's packages, and pip would leave it at that.
        "PIP_FORCE_REINSTALL": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        **{name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ},
    }
    found = namespace.allowed(folder, python) if namespaces else "not asked for"
    if isinstance(found, str):
        return LocalImage(folder, environment, None, found)
    return LocalImage(folder, environment, found)


def _packages() -> list[str]:
    """Where this Python's packages are."""
    found = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        found.append(site.getusersitepackages())
    # Such as those of an environment below this one, which its .pth names.
    found += [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return [path for path in dict.fromkeys(found) if Path(path).is_dir()]
