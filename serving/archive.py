"""Unpacking of an archive that somebody else may have made: plain files only, within limits, all of it or nothing."""

import gzip
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from neuron_sum import files
from neuron_sum.contents import path_fault
from neuron_sum.errors import ArtifactError, ResourceError, reading

REMEDY = "run `neuron-sum package ARTIFACT` for a new archive"
MAX_BYTES = 64 << 30
MAX_MEMBERS = 5000
MAX_RATIO, UNCOUNTED_BYTES = 20, 64 << 20
"""The most bytes per byte of the archive, counted after UNCOUNTED_BYTES. Weights shrink hardly, text up to sixfold."""

HEADER_BYTES = 1 << 20
"""The most bytes between the contents of two members: headers with long names, and padding."""


@contextmanager
def unpacked(archive: Path, folder: Path) -> Iterator[Path]:
    """The content of an archive in a temporary folder, which replaces `folder` if the block succeeds.

    Args:
        archive: A gzipped tar with files and folders only (SageMaker also packs folders).
        folder: An empty folder, which stays empty if the archive is invalid or the block fails.

    Raises:
        ArtifactError: If the archive is damaged, exceeds a limit or contains anything but plain files.
        ResourceError: If its content does not fit on the disk.
    """
    with files.new_folder(folder) as temporary:
        shutil.copymode(folder, temporary)
        with reading(archive, ArtifactError, REMEDY):
            _unpack(archive, temporary)
        yield temporary


def _unpack(archive: Path, folder: Path) -> None:
    limit = min(MAX_BYTES, UNCOUNTED_BYTES + MAX_RATIO * archive.stat().st_size)
    total = 0
    with gzip.open(archive) as stream:
        limited = _Limited(cast(BinaryIO, stream), archive)
        limited.allowed = HEADER_BYTES
        with tarfile.open(fileobj=cast(BinaryIO, limited), mode="r|") as packed:
            for number, member in enumerate(packed, start=1):
                name = _name(archive, member)
                if number > MAX_MEMBERS:
                    raise ArtifactError(f"{archive} has more than {MAX_MEMBERS} members", REMEDY)
                total += member.size
                if total > limit:
                    raise ArtifactError(
                        f"{archive} unpacks to {total} bytes or more, up to {name[:200]!r}; at most {limit} are "
                        f"allowed for its {archive.stat().st_size} bytes",
                        REMEDY,
                    )
                limited.allowed = member.size + HEADER_BYTES
                if member.isdir():
                    continue
                try:
                    _extract(packed, member, folder / name)
                except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
                    raise ArtifactError(f"{archive} contains {name[:200]!r} twice", REMEDY) from error
        limited.allowed = HEADER_BYTES
        while rest := limited.read(1 << 16):  # the checksum is at the end
            if rest.strip(b"\0"):
                raise ArtifactError(f"{archive} contains data after its end", REMEDY)


def _name(archive: Path, member: tarfile.TarInfo) -> str:
    """The normalized path of a member that may be unpacked."""
    name = member.name.removeprefix("./").removesuffix("/")
    fault = None if member.isdir() and name in ("", ".") else path_fault(name)
    if member.type not in (tarfile.REGTYPE, tarfile.DIRTYPE) or member.sparse is not None:
        fault = "is a link, a device, a pipe or a sparse file"
    elif member.size < 0:
        fault = f"has {member.size} bytes"
    if fault is not None:
        raise ArtifactError(f"{archive}: {member.name[:200]!r} {fault}", REMEDY)
    return name


def _extract(packed: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Write one file; folders are created with their files."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.size > (free := shutil.disk_usage(target.parent).free):
        raise ResourceError(
            f"{member.name} ({member.size} bytes) is larger than the free disk space ({free} bytes)",
            "free disk space, or set TMPDIR to a folder on another disk",
        )
    content = packed.extractfile(member)
    assert content is not None  # the member is a file
    with content, target.open("xb") as file:
        shutil.copyfileobj(content, file)


class _Limited:
    """A stream that ends with an error after `allowed` more bytes, so that no header fills the memory.

    Args:
        stream: The unpacked stream.
        archive: The archive, for the message.
    """

    def __init__(self, stream: BinaryIO, archive: Path) -> None:
        self._stream, self._archive = stream, archive
        self.allowed = 0

    def read(self, size: int) -> bytes:
        piece = self._stream.read(size)
        self.allowed -= len(piece)
        if self.allowed < 0:
            raise ArtifactError(f"{self._archive} contains a header of more than {HEADER_BYTES} bytes", REMEDY)
        return piece
