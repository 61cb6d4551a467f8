"""model.tar.gz: its bytes, its contents, and the settings that can be changed."""

import ast
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from neuron_sum.artifact import Artifact, open_artifact
from neuron_sum.errors import ArtifactError
from serving import archive as archives
from serving import package

CommandLine = Callable[..., subprocess.CompletedProcess[str]]


def test_an_archive_has_the_same_bytes_every_time(
    lora_artifact: Artifact, tmp_path: Path, neuron_sum: CommandLine
) -> None:
    for name in ("one", "two"):
        done = neuron_sum("package", str(lora_artifact.path), "--output", str(tmp_path / f"{name}.tar.gz"))
        assert done.returncode == 0, done.stderr
        (lora_artifact.path / "manifest.json").touch()  # modification times are ignored
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
    (tmp_path / "out").mkdir()
    package.unpack(tmp_path / "one.tar.gz", tmp_path / "out")
    assert open_artifact(tmp_path / "out" / "artifact").manifest == lora_artifact.manifest
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "serving.properties",
        "artifact",
        "neuron_sum",
        "serving",
    }
    # the vendored code runs without this package being installed
    code = "import serving.service, neuron_sum; print(neuron_sum.__file__)"
    alone = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "out")},
    )
    assert alone.stdout.startswith(str(tmp_path / "out"))


def test_the_handler_is_packaged_with_its_imports() -> None:
    source = Path(package.__file__).parent
    for name in package.HANDLER:
        for node in ast.walk(ast.parse((source / name).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "serving":
                needed = {f"{alias.name}.py" for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("serving."):
                needed = {f"{(node.module or '').removeprefix('serving.')}.py"}
            else:
                continue
            assert needed <= set(package.HANDLER), f"{name} needs {needed}"


def test_only_endpoint_settings_can_be_changed(
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
    assert packed.returncode == 3 and "which contains its settings" in packed.stderr
    nothing = neuron_sum("serve", str(tmp_path / "nothing"))
    assert nothing.returncode == 9 and "neither an artifact nor" in nothing.stderr


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A small archive written by pack(), with a long name and with incompressible bytes."""
    contents = {
        "artifact/manifest.json": b"{}",
        "artifact/weights": random.Random(0).randbytes(900),
        f"artifact/{'long' * 40}": b"text " * 100,
    }
    for name, content in contents.items():
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes(content)
    package.pack(
        tmp_path / "m.tar.gz",
        {"serving.properties": "option=1\n"},
        [(name, tmp_path / "from" / name) for name in contents],
    )
    return tmp_path / "m.tar.gz"


@pytest.fixture
def into(tmp_path: Path) -> Path:
    """An empty folder with nothing next to it."""
    (tmp_path / "place" / "into").mkdir(parents=True)
    return tmp_path / "place" / "into"


def unpack(archive: Path, into: Path) -> None:
    """Unpacks without checks of the content."""
    with archives.unpacked(archive, into):
        pass


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive: Path, into: Path) -> bool:
    """Whether the archive is rejected with the expected error; then nothing may be left."""
    try:
        unpack(archive, into)
    except ArtifactError as error:
        assert str(archive) in error.message and error.hint
        assert [path for path in into.parent.rglob("*")] == [into], "something was left"
        return True
    return False


def test_a_changed_byte_is_detected_anywhere(packed: Path, into: Path) -> None:
    whole = packed.read_bytes()
    unpack(packed, into)
    content = content_of(into)
    assert len(content) == 4
    harmless = 0
    for place in range(len(whole)):
        shutil.rmtree(into)
        into.mkdir()
        packed.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        if not refused(packed, into):  # some bits of gzip's header and code tables have no effect
            assert content_of(into) == content
            harmless += 1
    assert harmless < len(whole) / 20


def test_a_truncated_archive_is_not_unpacked(packed: Path, into: Path) -> None:
    whole = packed.read_bytes()
    for length in range(0, len(whole), 7):
        packed.write_bytes(whole[:length])
        assert refused(packed, into), length


def test_data_after_the_archive_is_detected(packed: Path, into: Path) -> None:
    packed.write_bytes(packed.read_bytes() + b"more")
    assert refused(packed, into)


@pytest.mark.parametrize(
    ("name", "kind", "headers"),
    [
        ("../outside", tarfile.REGTYPE, {}),
        ("artifact/../../outside", tarfile.REGTYPE, {}),
        ("/outside", tarfile.REGTYPE, {}),
        ("", tarfile.REGTYPE, {}),
        ("serving.properties", tarfile.REGTYPE, {}),
        ("serving.properties/below", tarfile.REGTYPE, {}),
        ("link", tarfile.SYMTYPE, {}),
        ("link", tarfile.LNKTYPE, {}),
        ("device", tarfile.CHRTYPE, {}),
        ("pipe", tarfile.FIFOTYPE, {}),
        ("../folder", tarfile.DIRTYPE, {}),
        ("/folder", tarfile.DIRTYPE, {}),
        ("sparse", tarfile.GNUTYPE_SPARSE, {}),
        ("name", tarfile.REGTYPE, {"path": "a\0b"}),
        ("name", tarfile.REGTYPE, {"GNU.sparse.map": "a,b"}),
    ],
)
def test_only_files_inside_the_folder_are_unpacked(
    tmp_path: Path, into: Path, name: str, kind: bytes, headers: dict[str, str]
) -> None:
    archive = tmp_path / "bad.tar.gz"
    with tarfile.open(archive, "w:gz", format=tarfile.PAX_FORMAT) as bad:
        bad.addfile(tarfile.TarInfo("serving.properties"))
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.pax_headers = kind, "serving.properties", headers
        bad.addfile(member)
    assert refused(archive, into)


def test_a_job_archive_of_sagemaker_is_unpacked(packed: Path, tmp_path: Path, into: Path) -> None:
    """The archive also contains the folders themselves."""
    unpack(packed, into)
    content = content_of(into)
    with tarfile.open(tmp_path / "again.tar.gz", "w:gz") as again:
        again.add(into, ".")
    shutil.rmtree(into)
    into.mkdir()
    unpack(tmp_path / "again.tar.gz", into)
    assert content_of(into) == content


def test_another_archive_is_rejected(tmp_path: Path, into: Path, neuron_sum: CommandLine) -> None:
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as other:
        other.addfile(tarfile.TarInfo("notes.txt"))
    with pytest.raises(ArtifactError, match=r"holds no serving\.properties"):
        package.unpack(tmp_path / "other.tar.gz", into)
    (tmp_path / "text.tar.gz").write_text("no archive")
    assert refused(tmp_path / "text.tar.gz", into)
    assert refused(tmp_path / "missing.tar.gz", into)
    told = neuron_sum("serve", "text.tar.gz")
    assert (told.returncode, told.stderr.count("\n")) == (9, 2)


def test_read_permissions_of_the_folder_are_kept(packed: Path, into: Path) -> None:
    into.chmod(0o700)
    unpack(packed, into)
    assert stat.S_IMODE(into.stat().st_mode) == 0o700


def test_leftovers_of_a_killed_package_are_removed_after_a_day(tmp_path: Path) -> None:
    left, fresh = tmp_path / ".m.tar.gz.tmp-1", tmp_path / ".m.tar.gz.tmp-2"
    for path in (left, fresh):
        path.write_bytes(b"x")
    os.utime(left, (0, 0))
    package.pack(tmp_path / "m.tar.gz", {"serving.properties": "option=1\n"}, [])
    assert not left.exists() and fresh.exists()
