"""A folder of the Neuron packages for one process: the sources of neuronx-distributed over stand-ins for closed parts.

stand_ins/neuron/torch_neuronx/__init__.py describes the stand-ins and their limits. The sources of neuronx-distributed
are not on PyPI: NEURON_SUM_NXD_SOURCE names a checkout of tag v2.26.0, of which a copy is kept in the cache.
"""

import os
import shutil
from pathlib import Path

import pytest
from micro_models import ROOT
from xla_environment import XLA_ENVIRONMENT, XLA_PYTHON

from neuron_sum import files
from neuron_sum.platform.matrix import PLATFORMS
from neuron_sum.runtimes import neuronx

VARIABLE = "NEURON_SUM_NXD_SOURCE"
TAG = "v2.26.0"
ENVIRONMENT = {name: value for name, value in XLA_ENVIRONMENT.items() if name != "PYTHONPATH"}


def source() -> Path:
    """The folder of the package neuronx_distributed; skips the test if there is none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NEURON_SUM_CACHE", raising=False)  # that of the tests is temporary
        cached = files.cache_folder() / "neuronx-distributed" / TAG
    if not cached.is_dir():
        if not (checkout := os.environ.get(VARIABLE)):
            pytest.skip(f"no sources of neuronx-distributed {TAG}: set {VARIABLE} to a checkout")
        package = Path(checkout, "src", "neuronx_distributed")
        with files.new_folder(cached) as folder:
            shutil.copytree(package, folder / package.name)
    return cached / "neuronx_distributed"


def make_packages(folder: Path) -> None:
    """Links the stand-ins, neuronx-distributed and torch_xla into a folder, with the versions of the platform row."""
    if not XLA_PYTHON.is_file():
        pytest.skip(f"no {XLA_PYTHON}: make test builds it (or set NEURON_SUM_XLA_PYTHON)")
    shutil.copytree(ROOT / "tests" / "stand_ins" / "neuron", folder, dirs_exist_ok=True)
    site = next((XLA_PYTHON.parents[1] / "lib").glob("python3.*/site-packages"))
    for path in (source(), site / "torch_xla", *site.glob("_XLAC*")):
        (folder / path.name).symlink_to(path.resolve())
    for name in neuronx.NEEDED:
        version = PLATFORMS[0].vendor_pins[name]
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
