"""Folders and JSON files that somebody else may have written: only plain files, plain names and plain values."""

import os
import stat
from pathlib import Path

from neuron_sum.errors import NeuronSumError, reading

MAX_DEPTH = 16
"""The most parts of a relative path."""
MAX_PATH_BYTES, MAX_NAME_BYTES = 1024, 255


def path_fault(name: str) -> str | None:
    """The reason why a name is not a plain relative path with forward slashes, or None."""
    parts = name.split("/")
    if not name.isprintable() or "\\" in name:
        return "contains a control character, a backslash or an undecodable byte"
    if any(part in ("", ".", "..") for part in parts):
        return "is not a relative path inside the folder"
    if len(parts) > MAX_DEPTH:
        return f"has {len(parts)} levels; at most {MAX_DEPTH} are allowed"
    if len(name.encode()) > MAX_PATH_BYTES or max(len(part.encode()) for part in parts) > MAX_NAME_BYTES:
        return f"is too long; at most {MAX_PATH_BYTES} bytes, and {MAX_NAME_BYTES} per level, are allowed"
    return None


def list_files(folder: Path, error: type[NeuronSumError]) -> list[str]:
    """The relative names of all files in a folder, sorted. The folder itself may be a symbolic link.

    Args:
        folder: The folder.
        error: The class of the error to raise.

    Raises:
        NeuronSumError: `error`, if the folder contains a link, a device, a pipe, a socket or an odd name.
    """
    names = []
    with reading(folder, error, "check that you may read the folder"):
        for root, folders, plain in os.walk(folder, onerror=_raise):
            for name in (*folders, *plain):
                path = Path(root, name)
                relative = path.relative_to(folder).as_posix()
                fault = path_fault(relative) or kind_fault(path)
                if fault is not None:
                    raise error(
                        f"{folder}: {relative[:200]!r} {fault}",
                        "copy only plain files, such as with `cp -rL`, or remove it",
                    )
                if name in plain:
                    names.append(relative)
    return sorted(names)


def is_file(path: Path) -> bool:
    """Whether a path is a file; False for a path that cannot exist, such as one that is too long."""
    try:
        return path.is_file()
    except OSError:
        return False


def kind_fault(path: Path) -> str | None:
    """The reason why a path is neither a plain file with a single name nor a folder, or None."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if stat.S_ISREG(status.st_mode):
        return "is a hard link: its file also has another name" if status.st_nlink > 1 else None
    return None if stat.S_ISDIR(status.st_mode) else "is a device, a pipe or a socket"


def _raise(error: OSError) -> None:
    raise error
