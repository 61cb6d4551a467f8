"""model.tar.gz: its bytes, what is in it, and what may be changed."""

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from neuron_sum.artifact import Artifact, open_artifact
from neuron_sum.errors import ArtifactError
from serving import package

CommandLine = Callable[..., subprocess.CompletedProcess[str]]


def test_an_archive_has_the_same_bytes_every_time(
    lora_artifact: Artifact, tmp_path: Path, neuron_sum: CommandLine
) -> None:
    for name in ("one", "two"):
        done = neuron_sum("package", str(lora_artifact.path), "--output", str(tmp_path / f"{name}.tar.gz"))
        assert done.returncode == 0, done.stderr
        (lora_artifact.path / "manifest.json").touch()  # times do not count
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
    (tmp_path / "out").mkdir()
    package.unpack(tmp_path / "one.tar.gz", tmp_path / "out")
    assert open_artifact(tmp_path / "out" / "artifact").manifest == lora_artifact.manifest
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "serving.properties", "artifact", "neuron_sum", "serving",
    }  # fmt: skip
    # what is vendored runs without this package being installed
    code = "import serving.service, neuron_sum; print(neuron_sum.__file__)"
    alone = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "out")},
    )  # fmt: skip
    assert alone.stdout.startswith(str(tmp_path / "out"))


def test_settings_of_the_endpoint_alone_can_be_changed(
    lora_artifact: Artifact, tmp_path: Path, neuron_sum: CommandLine
) -> None:
    target = str(tmp_path / "m.tar.gz")
    changed = neuron_sum("package", str(lora_artifact.path), "--output", target, "--set", "serve.deadline_s=9")
    assert changed.returncode == 0, changed.stderr
    with tarfile.open(target) as archive:
        content = archive.extractfile("serving.properties")
        assert content is not None and b"option.serve_deadline_s=9.0\n" in content.read()
    refused = neuron_sum("package", str(lora_artifact.path), "--set", "generate.num_beams=2")
    assert refused.returncode == 3 and "compiled in" in refused.stderr
    packed = neuron_sum("serve", target, "--set", "serve.deadline_s=9")
    assert packed.returncode == 3 and "was packed with its settings" in packed.stderr
    nothing = neuron_sum("serve", str(tmp_path / "nothing"))
    assert nothing.returncode == 9 and "neither an artifact nor" in nothing.stderr


@pytest.mark.parametrize("name", ["../outside", "/absolute"])
def test_an_archive_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "text").write_text("x")
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "text", name)
    (tmp_path / "into").mkdir()
    with pytest.raises(ArtifactError):
        package.unpack(tmp_path / "bad.tar.gz", tmp_path / "into")
    assert not (tmp_path / "outside").exists()
