"""Packaging of an artifact with its handler: as a folder, or as a model.tar.gz that SageMaker unpacks to /opt/ml/model.

    serving.properties    rendered from the artifact's manifest and the recipe's `serve` section
    signature.json        with `package --sign` (signing.py)
    artifact/             the compiled artifact
    neuron_sum/ serving/  this package, so that the image needs only its dependencies

neuronx_container.py and vllm_container.py pack other layouts in the same way.
"""

import gzip
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from neuron_sum import files
from neuron_sum.artifact import MANIFEST, Artifact, Manifest, open_artifact
from neuron_sum.contents import list_files
from neuron_sum.errors import ArtifactError, NeuronSumError, ResourceError
from neuron_sum.recipes.schema import ServeConfig
from serving import properties, signing
from serving.archive import REMEDY, unpacked

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

HANDLER = (
    "__init__.py",
    "adapters.py",
    "batching.py",
    "limits.py",
    "metrics.py",
    "model.py",
    "other_formats.py",
    "parsing.py",
    "properties.py",
    "schema.py",
    "service.py",
    "worker.py",
)
"""The modules of this package that run in the worker."""

COMPRESSION_LEVEL = 1
"""The lowest level, because weights hardly shrink and a higher level only takes longer."""


@dataclass(frozen=True)
class Package:
    """What an unpacked package contains.

    Attributes:
        manifest: The manifest of its artifact.
        limits: The limits in its settings.
    """

    manifest: Manifest
    limits: ServeConfig


def write_folder(artifact: Artifact, limits: ServeConfig, folder: Path) -> None:
    """Write the layout as a folder, with links to the artifact and the handler instead of copies.

    Args:
        artifact: The artifact to serve.
        limits: The limits of the endpoint.
        folder: An empty folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / properties.ARTIFACT).symlink_to(artifact.path.resolve())
    _link_handler(folder)
    (folder / properties.FILE).write_text(properties.render(artifact, limits), encoding="utf-8")


def write_archive(
    artifact: Artifact, limits: ServeConfig, target: Path, key: "Ed25519PrivateKey | None" = None
) -> None:
    """Write the layout as model.tar.gz: the same bytes for the same artifact, limits, package and key.

    Args:
        artifact: The artifact to pack.
        limits: The limits of the endpoint.
        target: The archive; replaced atomically when it is complete.
        key: The private key to sign with; None for no signature.
    """
    files.check_writable(target.parent, files.folder_size(artifact.path))
    texts, contents = {properties.FILE: properties.render(artifact, limits)}, list(_contents(artifact))
    if key is not None:
        hashes = {name: files.sha256(path) for name, path in contents}
        settings = hashlib.sha256(texts[properties.FILE].encode()).hexdigest()
        texts[signing.FILE] = signing.sign({properties.FILE: settings, **hashes}, key)
    pack(target, texts, contents)


def pack(target: Path, texts: Mapping[str, str], contents: Iterable[tuple[str, Path]]) -> None:
    """Write a model.tar.gz without times and owners.

    Args:
        target: The archive; replaced atomically when it is complete.
        texts: Name and content of the files that come first.
        contents: Name in the archive and path of every other file.
    """
    files.sweep(target.parent, f".{target.name}.tmp-")
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        with (
            temporary.open("wb") as raw,
            gzip.GzipFile("", "wb", COMPRESSION_LEVEL, raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.GNU_FORMAT) as archive,
        ):
            for name, text in texts.items():
                _add(archive, name, io.BytesIO(text.encode()), len(text.encode()))
            for name, path in contents:
                with path.open("rb") as content:
                    _add(archive, name, content, path.stat().st_size)
        temporary.replace(target)
    except OSError as error:
        raise ResourceError(f"{target} cannot be written: {error.strerror}", "choose another --output") from error
    finally:
        with suppress(OSError):  # a name that is too long
            temporary.unlink()


def unpack(archive: Path, folder: Path, key: "Ed25519PublicKey | None" = None) -> Package:
    """Unpack a model.tar.gz of neuron-sum, if it contains only what `write_archive` writes.

    Its settings are written anew from their values, and its handler is replaced by that of this installation.
    Therefore nothing but the artifact's compiled graphs can contain foreign code.

    Args:
        archive: The archive.
        folder: An empty folder, which stays empty unless the whole archive is valid.
        key: The public key that must have signed the package; None to accept any package.

    Raises:
        ArtifactError: If the archive is damaged, was not signed with the key, or is not a package.
        ResourceError: If its content does not fit on the disk.
    """
    with unpacked(archive, folder) as temporary:
        if key is not None:
            signing.verify(temporary, key, archive)
        _remove_handler(archive, temporary)
        try:
            artifact = open_artifact(temporary / properties.ARTIFACT)
        except NeuronSumError as error:
            message = error.message.replace(str(temporary), str(archive))
            message = message if str(archive) in message else f"{archive}: {message}"
            raise ArtifactError(message, error.hint) from error
        limits = properties.check(temporary / properties.FILE, artifact, archive)
        (temporary / properties.FILE).write_text(properties.render(artifact, limits), encoding="utf-8")
        _link_handler(temporary)
        return Package(artifact.manifest, limits)


def _remove_handler(archive: Path, folder: Path) -> None:
    """Remove the handler of the version that packed the archive.

    Raises:
        ArtifactError: If the archive has no settings, or files of other kinds outside the artifact.
    """
    packages = {name.partition("/")[0] for name, _ in _handler()}
    names = {name for name in list_files(folder, ArtifactError) if not name.startswith(f"{properties.ARTIFACT}/")}
    if properties.FILE not in names:
        raise ArtifactError(f"{archive} holds no {properties.FILE}", REMEDY)
    for name in sorted(names - {properties.FILE, signing.FILE}):
        if name.partition("/")[0] not in packages or not name.endswith(".py"):
            raise ArtifactError(f"{archive} contains {name[:200]!r}, which is not a file of a package", REMEDY)
    for name in packages:
        shutil.rmtree(folder / name, ignore_errors=True)


def _link_handler(folder: Path) -> None:
    """Link the files of this package that run in the worker into a model's folder."""
    for name, source in _handler():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.resolve())


def _contents(artifact: Artifact) -> Iterator[tuple[str, Path]]:
    """Name in the archive and path of every file except serving.properties, always in the same order."""
    for name in sorted([MANIFEST, *artifact.manifest.files]):
        yield f"{properties.ARTIFACT}/{name}", artifact.path / name
    yield from _handler()


def _handler() -> Iterator[tuple[str, Path]]:
    """Name in the archive and path of every file of this package that runs in the worker."""
    package = Path(properties.__file__).parent
    library = Path(files.__file__).parent
    for path in sorted(library.rglob("*.py")):
        yield f"{library.name}/{path.relative_to(library).as_posix()}", path
    for name in HANDLER:
        yield f"{package.name}/{name}", package / name


def _add(archive: tarfile.TarFile, name: str, content: BinaryIO, size: int) -> None:
    """Add a file without owner and time."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    archive.addfile(info, content)
