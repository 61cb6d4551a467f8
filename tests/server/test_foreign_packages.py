"""Artifacts and packages that somebody else made or changed: rejected by name, and nothing is left."""

import gzip
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from in_process import neuron_sum
from micro_models import ROOT
from paper_artifacts import paper_artifact, rewrite_manifest

from neuron_sum import files
from neuron_sum.artifact import hash_files, open_artifact
from neuron_sum.errors import ArtifactError
from neuron_sum.recipes.schema import ServeConfig
from sagemaker_jobs.endpoint.sources import inspect
from serving import archive as archives
from serving import package, signing

NEW_ARCHIVE = "neuron-sum package"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paper_artifact(tmp_path_factory.mktemp("paper") / "artifact").path


@pytest.fixture
def artifact(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "artifact"))


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "place" / "into").mkdir(parents=True)
    return tmp_path / "place" / "into"


def packed(artifact: Path, target: Path, key: Ed25519PrivateKey | None = None) -> Path:
    package.write_archive(open_artifact(artifact), ServeConfig(), target, key)
    return target


def repacked(archive: Path, changes: dict[str, bytes | None]) -> None:
    """Replaces, adds or (None) removes files of an archive."""
    with tarfile.open(archive) as old:
        content = {member.name: old.extractfile(member).read() for member in old}  # type: ignore[union-attr]
    content = {name: data for name, data in {**content, **changes}.items() if data is not None}
    with tarfile.open(archive, "w:gz", compresslevel=1) as new:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))


def refusal(archive: Path, into: Path, key: Path | None = None) -> str:
    public = signing.read_public_key(key) if key is not None else None
    with pytest.raises(ArtifactError) as caught:
        package.unpack(archive, into, public)
    assert caught.value.hint and str(archive) in caught.value.message, caught.value.message
    assert ".tmp-" not in caught.value.message
    assert list(into.parent.rglob("*")) == [into], "something was left"
    return caught.value.message


def make_symbolic(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def make_linked_folder(path: Path) -> None:
    path.symlink_to(path.parent / "tokenizer")


def make_hard(path: Path) -> None:
    outside = path.parents[2] / f"outside-{path.name}"
    outside.write_text("x")
    path.hardlink_to(outside)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_symbolic, "is a symbolic link"),
        (make_linked_folder, "is a symbolic link"),
        (make_hard, "is a hard link"),
        (os.mkfifo, "is a device, a pipe or a socket"),
        (make_socket, "is a device, a pipe or a socket"),
    ],
)
@pytest.mark.parametrize(
    "place", ["tokenizer/extra", "adapters/other", "extra.so", "weights.safetensors", "manifest.json"]
)
def test_links_and_devices_in_an_artifact_are_rejected(
    artifact: Path, make: Callable[[Path], None], reason: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(artifact)  # a socket's path is short
    path = artifact / place
    path.unlink(missing_ok=True)
    make(Path(place) if make is make_socket else path)
    with pytest.raises(ArtifactError) as caught:
        open_artifact(artifact)
    if place != "manifest.json":
        assert f"'{place}' {reason}" in caught.value.message
    for command in ("package", "serve"):
        if place != "manifest.json":  # without a plain manifest, a folder is not an artifact
            done = neuron_sum(command, str(artifact))
            assert done.exit_code == 9 and reason in done.stderr


def test_the_artifact_itself_may_be_a_link(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(artifact)
    assert open_artifact(tmp_path / "link").manifest == open_artifact(artifact).manifest


def test_an_artifact_from_before_graphs_had_several_steps_is_read(artifact: Path) -> None:
    manifest = open_artifact(artifact).manifest
    rewrite_manifest(artifact, {"graphs|0|steps": KeyError, "graphs|1|steps": KeyError})
    assert open_artifact(artifact).manifest == manifest
    assert manifest.greedy_steps == 1


def test_an_adapter_that_the_manifest_does_not_list_is_rejected(artifact: Path) -> None:
    (artifact / "adapters" / "evil").mkdir()
    (artifact / "adapters" / "evil" / "adapter_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"contains adapters/evil/adapter_config\.json, not listed"):
        open_artifact(artifact)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files|../x": "0" * 64}, r"files: '\.\./x' is not a relative path inside the folder"),
        ({"files|/etc/passwd": "0" * 64}, "files: '/etc/passwd' is not a relative path"),
        ({"files|a/./b": "0" * 64}, "is not a relative path"),
        ({"files|a//b": "0" * 64}, "is not a relative path"),
        ({"files|a\0b": "0" * 64}, "contains a control character"),
        ({"files|a\\b": "0" * 64}, "a backslash"),
        ({f"files|{'a/' * 20}b": "0" * 64}, "has 21 levels"),
        ({f"files|{'a' * 300}": "0" * 64}, "is too long"),
        ({"files|adapters/evil": "0" * 64}, "adapters/evil is not a file of adapters/NAME"),
        ({"files|adapters/a b/x": "0" * 64}, "adapters/a b/x is not a file of adapters/NAME"),
        ({"files|graphs/step_pt2": "soon"}, "is not a SHA-256"),
        ({"files|graphs/step_pt2": 3}, r"files\.graphs/step_pt2: Input should be a valid string"),
        ({"files": []}, "files: Input should be a"),
        ({"files": KeyError}, "files: Field required"),
        ({"graphs|0|file": "/evil.so"}, "graphs: '/evil.so' is not listed in files"),
        ({"graphs|0|file": "../evil.so"}, "is not listed in files"),
        ({"graphs": []}, "graphs: bucket 1x64x12 lacks a graph"),
        ({"num_beams": [1, 4]}, "lacks a graph"),
        ({"graphs|1|steps": 4}, "lacks a graph"),
        ({"graphs|0|steps": 4}, "lacks a graph"),
        ({"graphs|0|steps": 0}, r"graphs\.0\.steps: Input should be greater"),
        ({"buckets": []}, "buckets or num_beams is empty"),
        ({"buckets|0|batch": 10**12}, r"buckets\.0\.batch: Input should be less than"),
        ({"buckets|0|batch": 10**5000}, "buckets|cannot be read"),
        ({"buckets|0|batch": "1"}, r"buckets\.0\.batch: Input should be a valid integer"),
        ({"buckets|0|batch": -1}, r"buckets\.0\.batch: Input should be greater"),
        ({"tokens|pad": -1}, r"tokens\.pad"),
        ({"adapter_stacks|q_a": [1 << 24, 1 << 24]}, "adapter_stacks: more than"),
        ({"state|head_dim": 1 << 24, "state|heads": 1 << 24}, "state: more than"),
        ({"state": None}, "state is null"),
        ({"default_adapter": "other"}, "default_adapter: 'other' has no folder"),
        ({"runtime": "os.system"}, "runtime: Input should be"),
        ({"extra": 1}, "extra: Extra inputs are not permitted"),
        ({"neuron_sum": KeyError}, "neuron_sum: Field required"),
        ({"prompt|template": "\ud800"}, "manifest.json"),
        ({"format_version": 1}, "format_version is 1, this neuron-sum reads 2"),
        ({"format_version": KeyError}, "format_version is null"),
    ],
)
def test_a_foreign_manifest_is_rejected_with_its_key(artifact: Path, change: dict[str, Any], message: str) -> None:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    rewrite_manifest(artifact, change)
    sys.set_int_max_str_digits(limit)
    with pytest.raises(ArtifactError, match=message) as caught:
        open_artifact(artifact)
    assert "manifest.json" in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff\xfe{", "cannot be read"),
        (b"[]", "a JSON list instead of an object"),
        (b"null", "a JSON NoneType instead of an object"),
        (b'{"format_version": NaN}', "NaN is not JSON"),
        (b'{"files": {"a": "1", "a": "2"}}', "duplicate key 'a'"),
        (b'{"a":' * 100_000, "cannot be read"),
        (b"[" * 100_000 + b"]" * 100_000, "cannot be read"),
        (b'{"format_version": ' + b"9" * 5000 + b"}", "cannot be read"),
        (b" " * (files.MAX_JSON_BYTES + 1), f"has more than {files.MAX_JSON_BYTES:,} bytes"),
        (b'{"format_version": 2}', "digest"),
        (b'{"format_version": 2, "digest": []}', "digest"),
    ],
)
def test_a_damaged_manifest_is_an_error_of_the_artifact(artifact: Path, content: bytes, message: str) -> None:
    (artifact / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=message) as caught:
        open_artifact(artifact)
    assert str(artifact / "manifest.json") in caught.value.message and caught.value.hint


def test_a_package_is_unpacked_as_it_was_packed(artifact: Path, tmp_path: Path, into: Path) -> None:
    unpacked = package.unpack(packed(artifact, tmp_path / "m.tar.gz"), into)
    assert unpacked.manifest == open_artifact(artifact).manifest == open_artifact(into / "artifact").manifest
    assert unpacked.limits == ServeConfig()
    (tmp_path / "folder").mkdir()
    package.write_folder(open_artifact(artifact), ServeConfig(), tmp_path / "folder")
    assert (into / "serving.properties").read_text() == (tmp_path / "folder" / "serving.properties").read_text()


def test_serve_names_what_is_trusted(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.local.LocalServer", lambda *arguments, **options: pytest.exit)
    archive = packed(artifact, tmp_path / "m.tar.gz")
    done = neuron_sum("serve", str(archive))
    assert "contains native code, which runs with your rights" in " ".join(done.stderr.split())
    assert "runs/micro" in done.stderr and "--verify" in done.stderr


SETTINGS = [
    ("option.entryPoint=evil", "option.entryPoint"),
    ("option.entryPoint:evil", "option.entryPoint:evil"),
    ("option.entryPoint evil", "option.entryPoint evil"),
    ("option.model_id=s3://bucket/model", "option.model_id"),
    ("translatorFactory=evil.Factory", "translatorFactory"),
    ("engine=PyTorch", "engine"),
    ("option.serve_deadline_s=soon", "option.serve_deadline_s"),
    ("option.serve_unknown=1", "option.serve_unknown"),
    ("maxWorkers=99", "maxWorkers"),
    ("# a comment", "# a comment"),
    ("option.entry\\u0050oint=evil", "option.entry"),
    ("option.enable_lora=false", "option.enable_lora"),
]


@pytest.mark.parametrize(("line", "named"), SETTINGS)
@pytest.mark.parametrize("only", [True, False])
def test_foreign_settings_are_rejected_by_name(
    artifact: Path, tmp_path: Path, into: Path, line: str, named: str, only: bool
) -> None:
    archive = packed(artifact, tmp_path / "m.tar.gz")
    with tarfile.open(archive) as old:
        own = old.extractfile("serving.properties").read().decode()  # type: ignore[union-attr]
    key = line.split("=")[0]
    kept = "" if only else "".join(f"{each}\n" for each in own.splitlines() if not each.startswith(f"{key}="))
    repacked(archive, {"serving.properties": f"{kept}{line}\n".encode()})
    assert "serving.properties: " in refusal(archive, into)
    if not only:
        assert named in refusal(archive, into)


def test_settings_are_written_anew(artifact: Path, tmp_path: Path, into: Path) -> None:
    archive = packed(artifact, tmp_path / "m.tar.gz")
    with tarfile.open(archive) as old:
        own = old.extractfile("serving.properties").read()  # type: ignore[union-attr]
    repacked(archive, {"serving.properties": own.replace(b"serve_deadline_s=30.0", b"serve_deadline_s=9")})
    assert package.unpack(archive, into).limits.deadline_s == 9
    assert b"option.serve_deadline_s=9.0\n" in (into / "serving.properties").read_bytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evil.py", b"raise SystemExit"),
        ("sitecustomize.py", b"raise SystemExit"),
        ("serving/evil.so", b"\x7fELF"),
        ("torch/__init__.py", b"raise SystemExit"),
        ("artifact/evil.py", b"raise SystemExit"),
        ("artifact/graphs/evil.so", b"\x7fELF"),
        ("artifact/adapters/evil/adapter_config.json", b"{}"),
        ("artifact/recipe.yaml", b"name: x\n"),
        ("artifact/graphs/step.pt2", b"evil"),
        ("artifact/manifest.json", b"{}"),
        ("requirements.txt", b"evil"),
        ("artifact/tokenizer/config.json", None),
    ],
)
def test_a_changed_package_is_rejected_by_name(
    artifact: Path, tmp_path: Path, into: Path, name: str, content: bytes | None
) -> None:
    archive = packed(artifact, tmp_path / "m.tar.gz")
    repacked(archive, {name: content})
    assert name.removeprefix("artifact/") in refusal(archive, into)
    done = neuron_sum("serve", str(archive))
    assert done.exit_code == 9 and name.removeprefix("artifact/") in "".join(done.stderr.split())


@pytest.mark.parametrize("content", [b"raise SystemExit", None])
@pytest.mark.parametrize("name", ["neuron_sum/evil.py", "neuron_sum/__init__.py", "serving/model.py"])
def test_the_handler_of_an_archive_is_replaced(
    artifact: Path, tmp_path: Path, into: Path, name: str, content: bytes | None
) -> None:
    """An archive of another version can be served, and its code never runs."""
    archive = packed(artifact, tmp_path / "m.tar.gz")
    repacked(archive, {name: content})
    package.unpack(archive, into)
    handler = {path.relative_to(into).as_posix(): path for path in into.rglob("*.py")}
    assert all(path.resolve() == ROOT / name for name, path in handler.items())
    assert "serving/model.py" in handler and "neuron_sum/evil.py" not in handler


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of keys as openssl writes them, and files that are not such keys."""
    folder = tmp_path_factory.mktemp("keys")
    for name, options in (("a", ["ed25519"]), ("b", ["ed25519"]), ("x", ["x25519"])):
        make = ["openssl", "genpkey", "-algorithm", *options, "-out", f"{name}.pem"]
        subprocess.run(make, cwd=folder, check=True, capture_output=True)
        public = ["openssl", "pkey", "-in", f"{name}.pem", "-pubout", "-out", f"{name}.pub"]
        subprocess.run(public, cwd=folder, check=True)
    secret = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (folder / "locked.pem").write_bytes(secret)
    (folder / "text").write_text("no key")
    return folder


@pytest.fixture
def signed(artifact: Path, tmp_path: Path, keys: Path) -> Path:
    return packed(artifact, tmp_path / "m.tar.gz", signing.read_private_key(keys / "a.pem"))


def test_a_signed_package_is_verified(signed: Path, into: Path, keys: Path, tmp_path: Path) -> None:
    package.unpack(signed, into, signing.read_public_key(keys / "a.pub"))
    stored = json.loads((into / "signature.json").read_text())["files"]
    everything = {path.relative_to(into).as_posix() for path in into.rglob("*") if path.is_file()}
    assert stored.keys() == everything - {"signature.json"}, "the signature covers every file"
    assert {"serving.properties", "serving/model.py", "artifact/manifest.json"} < stored.keys()
    assert "artifact/adapters/default/adapter_model.safetensors" in stored


def test_a_package_without_or_with_another_signature_is_rejected(
    artifact: Path, signed: Path, into: Path, tmp_path: Path, keys: Path
) -> None:
    assert "was not made with this key" in refusal(signed, into, keys / "b.pub")
    unsigned = packed(artifact, tmp_path / "unsigned.tar.gz")
    assert "is not signed" in refusal(unsigned, into, keys / "a.pub")
    done = neuron_sum("serve", str(artifact), "--verify", str(keys / "a.pub"))
    assert done.exit_code == 9 and "is not signed: only archives contain a signature" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("serving.properties", b"engine=Python\n"),
        ("serving/model.py", b"raise SystemExit"),
        ("artifact/manifest.json", b"{}"),
        ("artifact/graphs/step.pt2", b"evil"),
        ("artifact/adapters/default/adapter_config.json", b'{"r": 1}'),
        ("artifact/tokenizer/config.json", None),
        ("evil.py", b"raise SystemExit"),
        ("artifact/evil.so", b"\x7fELF"),
    ],
)
def test_a_change_after_signing_is_detected(
    signed: Path, into: Path, keys: Path, name: str, content: bytes | None
) -> None:
    repacked(signed, {name: content})
    message = refusal(signed, into, keys / "a.pub")
    assert name in message and ("signed" in message or "is missing" in message)


def test_a_manifest_written_anew_is_not_signed(signed: Path, artifact: Path, into: Path, keys: Path) -> None:
    """Row 9: a graph is replaced, and all hashes are computed again."""
    (artifact / "graphs" / "step.pt2").write_text("evil")
    rewrite_manifest(artifact, {"files": hash_files(artifact)})
    changed = {f"artifact/{name}": (artifact / name).read_bytes() for name in ("graphs/step.pt2", "manifest.json")}
    repacked(signed, changed)
    assert "was changed after the package was signed" in refusal(signed, into, keys / "a.pub")
    package.unpack(signed, into)  # undamaged for those who trust everybody


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{}", b'{"format_version": 1, "files": {}, "signature": ""}', b'{"signature": 3}', b"[" * 99_999,
        b'{"format_version": 2, "files": {}, "signature": "AAAA"}',
        b'{"format_version": 1, "files": {}, "signature": "\xc3\xa4"}',
    ],
)  # fmt: skip
def test_a_damaged_signature_is_rejected(signed: Path, into: Path, keys: Path, content: bytes) -> None:
    repacked(signed, {"signature.json": content})
    with pytest.raises(ArtifactError, match=r"signature"):
        package.unpack(signed, into, signing.read_public_key(keys / "a.pub"))
    assert list(into.parent.rglob("*")) == [into]


@pytest.mark.parametrize("name", ["a.pub", "x.pem", "locked.pem", "text", "missing", "."])
def test_another_private_key_is_rejected(artifact: Path, keys: Path, name: str) -> None:
    done = neuron_sum("package", str(artifact), "--sign", str(keys / name))
    assert done.exit_code == 9 and "ed25519 private key" in " ".join(done.stderr.split())
    assert "openssl genpkey" in done.stderr
    assert not artifact.with_name("artifact.tar.gz").exists()


@pytest.mark.parametrize("name", ["a.pem", "x.pub", "text", "missing"])
def test_another_public_key_is_rejected(signed: Path, keys: Path, name: str) -> None:
    done = neuron_sum("serve", str(signed), "--verify", str(keys / name))
    assert done.exit_code == 9 and "ed25519 public key" in " ".join(done.stderr.split())


def test_package_signs(artifact: Path, keys: Path, tmp_path: Path, into: Path) -> None:
    target = tmp_path / "signed.tar.gz"
    done = neuron_sum("package", str(artifact), "--sign", str(keys / "a.pem"), "--output", str(target), "--json")
    assert done.exit_code == 0, done.stderr
    key = signing.read_public_key(keys / "a.pub")
    assert json.loads(done.stdout)["signed_by"] == signing.fingerprint(key)
    package.unpack(target, into, key)


def archive_of(target: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(target, "w:gz", format=tarfile.PAX_FORMAT) as written:
        for member, data in members:
            member.size = len(data) or member.size
            written.addfile(member, io.BytesIO(data))
    return target


def bomb(target: Path) -> Path:
    """100 MB of zeros in a small archive."""
    member = tarfile.TarInfo("zeros")
    member.size = 100 << 20
    with gzip.open(target, "wb", 1) as stream:
        stream.write(member.tobuf())
        for _ in range(100):
            stream.write(bytes(1 << 20))
    return target


def endless(target: Path) -> Path:
    """Zeros after the end."""
    with gzip.open(target, "wb", 1) as stream:
        for _ in range(20):
            stream.write(bytes(1 << 20))
    return target


def large_header(target: Path) -> Path:
    return archive_of(target, (named("a", comment="x" * (3 << 20)), b""))


def many_headers(target: Path) -> Path:
    """A chain of headers, each of which tarfile reads by a call inside the call before."""
    header = tarfile.TarInfo("h")
    header.type, header.size = tarfile.XHDTYPE, 0
    with gzip.open(target, "wb", 1) as stream:
        stream.write(header.tobuf() * 3000)
    return target


def negative(target: Path) -> Path:
    member = tarfile.TarInfo("a")
    member.size = -(1 << 40)
    with gzip.open(target, "wb") as stream:
        stream.write(member.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    return target


def named(name: str, **headers: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.pax_headers = headers
    return member


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (bomb, "unpacks to 104857600 bytes or more, up to 'zeros'; at most"),
        (endless, "a header of more than 1048576 bytes"),
        (large_header, "a header of more than 1048576 bytes"),
        (many_headers, "cannot be read"),
        (negative, "bytes|cannot be read"),
        (lambda target: archive_of(target, *((named(str(n)), b"") for n in range(5001))), "more than 5000 members"),
        (lambda target: archive_of(target, (named("a/" * 30 + "b"), b"x")), "has 31 levels; at most 16"),
        (lambda target: archive_of(target, (named("a" * 300), b"x")), "is too long"),
        (lambda target: archive_of(target, (named("a"), b"x"), (named("./a"), b"y")), "contains 'a' twice"),
        (lambda target: archive_of(target, (named("a"), b"x"), (named("a/b"), b"y")), "contains 'a/b' twice"),
        (lambda target: archive_of(target, (named("a/b"), b"x"), (named("a"), b"y")), "contains 'a' twice"),
        (lambda target: archive_of(target, (named("a\nb"), b"x")), "contains a control character"),
        (lambda target: archive_of(target, (named("a", path="../b"), b"x")), "is not a relative path"),
        (lambda target: archive_of(target, (named("a", path="/b"), b"x")), "is not a relative path"),
        (lambda target: archive_of(target, (named("a", size="99999999999999"), b"x")), "bytes|cannot be read"),
        (
            lambda target: archive_of(
                target, (named("a", **{"GNU.sparse.map": "0,1", "GNU.sparse.size": "999999999999"}), b"x")
            ),
            "sparse|cannot be read|unpacks",
        ),
    ],
)  # fmt: skip
def test_archives_beyond_the_limits_are_rejected(
    tmp_path: Path, into: Path, write: Callable[[Path], Path], message: str
) -> None:
    archive = write(tmp_path / "bad.tar.gz")
    with pytest.raises(ArtifactError, match=message) as caught, archives.unpacked(archive, into):
        pass
    assert caught.value.hint and NEW_ARCHIVE in caught.value.hint
    assert list(into.parent.rglob("*")) == [into], "something was left"


@pytest.mark.parametrize("manifest", [b"[]", b"{}", b"{", b"[" * 99_999, b"\xff", b'"cpu"'])
def test_deploy_reads_a_damaged_manifest_as_an_error_of_the_archive(tmp_path: Path, manifest: bytes) -> None:
    archive = archive_of(tmp_path / "m.tar.gz", (named("artifact/manifest.json"), manifest))
    with pytest.raises(ArtifactError, match=r"m\.tar\.gz cannot be read"):
        inspect(archive, str(archive))


GOOD = {"SM_ON_MODEL": "/opt/ml/model", "SM_ON_BATCH_SIZE": "4", "SM_ON_SERVED_MODEL_NAME": "llama"}


@pytest.mark.parametrize(
    ("container", "changes", "message"),
    [
        ("hf-vllm", {"SM_ON_MODEL": "evil/repo"}, "SM_ON_MODEL=evil/repo"),
        ("hf-vllm", {"SM_ON_MODEL": "/opt/ml/model/../x"}, "SM_ON_MODEL="),
        ("hf-vllm", {"SM_ON_MODEL": None}, "SM_ON_MODEL="),
        ("hf-vllm", {"SM_ON_TRUST_REMOTE_CODE": ""}, "SM_ON_TRUST_REMOTE_CODE="),
        ("hf-vllm", {"LD_PRELOAD": "/opt/ml/model/x.so"}, "LD_PRELOAD="),
        ("hf-vllm", {"SM_ON_BATCH_SIZE": "4 --trust-remote-code"}, "SM_ON_BATCH_SIZE=4 --trust"),
        ("hf-vllm", {"SM_ON_BATCH_SIZE": 4}, "SM_ON_BATCH_SIZE=4"),
        ("hf-vllm", {"SM_ON_SEQUENCE_LENGTH": "5\n"}, "SM_ON_SEQUENCE_LENGTH="),
        ("hf-vllm", {"SM_ON_SERVED_MODEL_NAME": "--trust-remote-code"}, "SM_ON_SERVED_MODEL_NAME=--trust"),
        ("hf-vllm", {"SM_ON_ALLOW_NON_CACHED_MODEL": "x"}, "SM_ON_ALLOW_NON_CACHED_MODEL=x"),
        ("djl-0.30-neuronx", {}, "for the container 'djl-0.30-neuronx'; known: hf-vllm"),
        (["hf-vllm"], {}, "cannot be read"),
    ],
)
def test_deploy_rejects_an_environment_that_package_does_not_write(
    tmp_path: Path, container: Any, changes: dict[str, Any], message: str
) -> None:
    def write(environment: dict[str, Any], container: Any) -> Path:
        record = json.dumps({"container": container, "environment": environment}).encode()
        return archive_of(tmp_path / "m.tar.gz", (named("container.json"), record))

    record = {"container": "hf-vllm", "environment": GOOD}
    assert inspect(write(GOOD, "hf-vllm"), "m.tar.gz") == ("hf-vllm", GOOD, record)
    environment = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    with pytest.raises(ArtifactError, match=re.escape(message)):
        inspect(write(environment, container), "m.tar.gz")


def test_paths_that_cannot_exist_or_be_written_are_errors(artifact: Path, tmp_path: Path) -> None:
    for command in ("serve", "package"):
        assert neuron_sum(command, "a" * 5000).exit_code == 2
    (tmp_path / "taken.tar.gz").mkdir()
    done = neuron_sum("package", str(artifact), "--output", str(tmp_path / "taken.tar.gz"))
    assert done.exit_code == 6 and "cannot be written" in done.stderr
    assert neuron_sum("package", str(artifact), "--output", str(tmp_path / ("b" * 300))).exit_code == 2
    assert not list(tmp_path.glob(".*tmp*"))


def test_an_archive_that_does_not_fit_on_the_disk_is_not_unpacked(
    artifact: Path, tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = packed(artifact, tmp_path / "m.tar.gz")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]
    done = neuron_sum("serve", str(archive))
    assert done.exit_code == 6 and "is larger than the free disk space" in done.stderr
