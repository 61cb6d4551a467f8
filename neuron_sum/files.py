"""Atomic writes of files and folders: a temporary sibling first, then a rename."""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from neuron_sum.errors import ResourceError

STALE_AFTER_S = 24 * 3600.0


def write_text(path: Path, text: str) -> None:
    """Replaces a file's content atomically."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file's content atomically."""
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """JSON text; a number that is not finite becomes null, because JSON has no NaN."""
    return json.dumps(_without_nan(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list | tuple) else value


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Reads the complete lines of a JSON Lines file; a last line without a newline was cut by a kill and is skipped."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that replaces `path` if its block succeeds, and is removed if it fails."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    sweep(path.parent, f".{path.name}.tmp-")
    if not path.exists():  # a kill between the two renames below leaves only the old folder
        for old in path.parent.glob(f".{path.name}.old-*"):
            old.replace(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        old = path.with_name(f".{path.name}.old-{os.getpid()}")
        if path.exists():
            path.replace(old)
        temporary.replace(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path, prefix: str = ".") -> None:
    """Removes temporary files with this prefix that a killed process left at least a day ago."""
    for path in folder.glob(f"{prefix}*"):
        with suppress(OSError):  # another process moved it in the meantime, or it belongs to another user
            if (prefix != "." or ".tmp-" in path.name) and time.time() - path.stat().st_mtime > STALE_AFTER_S:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def cache_folder() -> Path:
    """The cache folder: NEURON_SUM_CACHE, else XDG_CACHE_HOME/neuron-sum, else ~/.cache/neuron-sum."""
    if configured := os.environ.get("NEURON_SUM_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neuron-sum"


def sha256(path: Path) -> str:
    """The SHA-256 of a file, which is read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while piece := content.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def folder_size(path: Path) -> int:
    """Total size of all files in a folder, in bytes."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def check_writable(folder: Path, needed_bytes: int) -> None:
    """Checks that a folder can be written and that its disk has enough space, before long work starts.

    Raises:
        ResourceError: If the folder cannot be written, or the disk has too little space.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be written: {error.strerror}", "choose another folder with --output"
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ResourceError(
            f"{folder} has {free / 1e9:.1f} GB free, this run needs {needed_bytes / 1e9:.1f} GB",
            "free some space, choose another disk with --output, or lower train.save_total_limit",
        )
