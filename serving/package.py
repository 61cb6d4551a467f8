"""Packaging of an artifact with its handler: as a folder, or as a model.tar.gz that SageMaker unpacks to /opt/ml/model.

    serving.properties    rendered from the artifact's manifest and the recipe's `serve` section
    artifact/             the compiled artifact
    neuron_sum/ serving/  this package, so that the image needs only its dependencies

neuronx_container.py packs another layout in the same way.
"""

import gzip
import io
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from neuron_sum import files
from neuron_sum.artifact import Artifact
from neuron_sum.errors import ArtifactError, ResourceError
from neuron_sum.recipes.schema import ServeConfig
from serving import properties

HANDLER = (
    "__init__.py",
    "batching.py",
    "limits.py",
    "metrics.py",
    "model.py",
    "parsing.py",
    "properties.py",
    "schema.py",
    "service.py",
    "worker.py",
)
"""The modules of this package that run in the worker."""

COMPRESSION_LEVEL = 1
"""The lowest level, because weights hardly shrink and a higher level only takes longer."""

REMEDY = "run `neuron-sum package ARTIFACT` for a new archive"


def write_folder(artifact: Artifact, limits: ServeConfig, folder: Path) -> None:
    """Write the layout as a folder, with links to the artifact instead of copies.

    Args:
        artifact: The artifact to serve.
        limits: The limits of the endpoint.
        folder: An empty folder.
    """
    for name, source in _contents(artifact):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source.resolve())
    (folder / properties.FILE).write_text(properties.render(artifact, limits), encoding="utf-8")


def write_archive(artifact: Artifact, limits: ServeConfig, target: Path) -> None:
    """Write the layout as model.tar.gz: the same bytes for the same artifact, limits and package.

    Args:
        artifact: The artifact to pack.
        limits: The limits of the endpoint.
        target: The archive; replaced atomically when it is complete.
    """
    files.check_writable(target.parent, files.folder_size(artifact.path))
    pack(target, properties.render(artifact, limits), _contents(artifact))


def pack(target: Path, settings: str, contents: Iterable[tuple[str, Path]]) -> None:
    """Write a model.tar.gz without times and owners.

    Args:
        target: The archive; replaced atomically when it is complete.
        settings: The text of serving.properties.
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
            text = settings.encode()
            _add(archive, properties.FILE, io.BytesIO(text), len(text))
            for name, path in contents:
                with path.open("rb") as content:
                    _add(archive, name, content, path.stat().st_size)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a model.tar.gz of neuron-sum.

    Args:
        archive: The archive; only files and folders (pack() writes files, SageMaker also packs folders).
        folder: An empty folder, which stays empty unless the whole archive is valid.

    Raises:
        ArtifactError: If the archive is damaged, or is not a model.tar.gz of neuron-sum.
        ResourceError: If its content does not fit on the disk.
    """
    try:
        with files.new_folder(folder) as unpacked, gzip.open(archive) as stream:
            shutil.copymode(folder, unpacked)
            with tarfile.open(fileobj=stream, mode="r|") as packed:
                for member in packed:
                    _extract(packed, member, unpacked)
            while stream.read(1 << 20):  # the checksum is at the end
                pass
            if not (unpacked / properties.FILE).is_file():
                raise ArtifactError(f"{archive} holds no {properties.FILE}", REMEDY)
    # ValueError: a header can contain an invalid number, or a name with a NUL.
    except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError) as error:
        raise ArtifactError(f"{archive} cannot be unpacked: {error}", REMEDY) from error


def _extract(packed: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Extract one file under a new name inside the folder; folders are created with their files."""
    place = PurePosixPath(member.name)
    if member.type not in (tarfile.REGTYPE, tarfile.DIRTYPE) or place.is_absolute() or ".." in place.parts:
        raise tarfile.ExtractError(f"{member.name!r} is not a file of a model.tar.gz")
    if member.isdir():
        return
    if member.size > shutil.disk_usage(folder).free:
        raise ResourceError(
            f"{member.name} ({member.size} bytes) is larger than the free disk space in {folder.parent}",
            "free disk space, and unpack the archive again",
        )
    content = packed.extractfile(member)
    assert content is not None  # the member is a file
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    with content, (folder / place).open("xb") as target:
        shutil.copyfileobj(content, target)


def _contents(artifact: Artifact) -> Iterator[tuple[str, Path]]:
    """Name in the archive and path of every file except serving.properties, always in the same order."""
    for path in sorted(path for path in artifact.path.rglob("*") if path.is_file()):
        yield f"{properties.ARTIFACT}/{path.relative_to(artifact.path).as_posix()}", path
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
