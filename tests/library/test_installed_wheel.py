"""neuron-sum installed from its wheel, without a checkout: images and jobs are built from the installed files."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from neuron_sum.platform.project import project_root

BUILD = """
import sys
from pathlib import Path
from sagemaker_jobs.jobs import wheelhouse
from serving.dockerfile import write_context
assert not Path(wheelhouse.__file__).is_relative_to(sys.argv[1]), wheelhouse.__file__
write_context("cpu", Path("context"))
wheelhouse.build_own(Path("wheels"))
"""


def test_an_installed_wheel_is_enough_for_images_and_jobs(own_wheel: Path, tmp_path: Path) -> None:
    [wheel] = own_wheel.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-warn-script-location"]
    subprocess.run([*pip, "--ignore-installed", "--prefix", str(tmp_path / "env"), str(wheel)], check=True)
    [packages] = (tmp_path / "env").glob("lib/python*/site-packages")
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    (tmp_path / "wheels").mkdir()
    command = [sys.executable, "-c", BUILD, str(project_root())]
    made = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert made.returncode == 0, made.stderr
    [again] = (tmp_path / "wheels").glob("*.whl")
    assert again.name == wheel.name
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert first.namelist() == second.namelist()
    context = tmp_path / "context"
    assert (context / "requirements" / "common.txt").is_file() and (context / "source" / "pyproject.toml").is_file()
