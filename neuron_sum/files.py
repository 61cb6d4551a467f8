"""Atomic writes of files and folders (a temporary sibling first, then a rename), checked reads, and locks."""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from neuron_sum.errors import FULL_DISK, NeuronSumError, ResourceError, RunError, reading

STALE_AFTER_S = 24 * 3600.0
MAX_JSON_BYTES = 64 << 20
"""The maximum size of a JSON file; tokenizers of 250,000 words have about 35 MB."""

LOCK = ".neuron-sum.lock"
"""Name of the file in a folder that the process using the folder locks; it contains the process id."""

WAIT = "wait until it ends, or choose another folder with --output"

UNLOCKABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of a lock in a place where nothing can be written, or whose file system has no locks."""

FULL = (*FULL_DISK, errno.EFBIG)
FREE_SPACE = "free some space, or choose another folder with --output"
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EBUSY, errno.EXDEV)
CHECK_FOLDER = "check the folder and its permissions, or choose another one with --output"
WRITE_FAILURE = re.compile(
    r"no space left on device|disk quota exceeded|file too large|file write failed", re.IGNORECASE
)
"""Text of a failed write in exceptions of safetensors, tokenizers and torch, which have no error number."""

_locks: set[Path] = set()


@contextmanager
def writing(path: Path, hint: str = FREE_SPACE) -> Iterator[None]:
    """Converts a failed write into one error that names the path; other exceptions stay as they are.

    Args:
        path: The file or folder that the block writes.
        hint: The remedy for a full disk.

    Raises:
        ResourceError: If the disk is full, or if the folder or a file in it has vanished or cannot be written.
    """
    try:
        yield
    except NeuronSumError:
        raise
    except Exception as error:
        for each in _causes(error):  # torch fails again while it closes the file that it cannot write
            found = WRITE_FAILURE.search(str(each))
            if found or (isinstance(each, OSError) and each.errno in FULL):
                reason = each.strerror if isinstance(each, OSError) and each.strerror else str(found and found[0])
                raise ResourceError(f"{path} cannot be written: {reason}", hint) from error
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            name = str(error.filename)
            if name.startswith((str(path), f"{path.parent}/.{path.name}")):
                raise ResourceError(f"{name} cannot be written: {error.strerror}", CHECK_FOLDER) from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def write_text(path: Path, text: str) -> None:
    """Replaces a file's content atomically.

    Raises:
        ResourceError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        hint = FREE_SPACE if error.errno in FULL else CHECK_FOLDER
        raise ResourceError(f"{path} cannot be written: {error.strerror}", hint) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file's content atomically.

    Raises:
        ResourceError: If it cannot be written.
    """
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


def read_json(
    path: Path, error: type[NeuronSumError] = RunError, hint: str | None = None, *, nan: bool = True
) -> dict[str, Any]:
    """Reads a JSON file with one object.

    Args:
        path: The file.
        error: The class of the error.
        hint: The remedy.
        nan: Whether NaN and Infinity are read, which are not JSON.

    Raises:
        NeuronSumError: `error`, if the file does not exist, is too large, is not JSON (see `parse_json`), or contains
            another value than an object.
    """
    with reading(path, error, hint):
        with path.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
        if len(content) > MAX_JSON_BYTES:
            raise error(f"{path} has more than {MAX_JSON_BYTES:,} bytes", hint)
        return _object(content.decode(), nan=nan)


def read_jsonl(path: Path, error: type[NeuronSumError] = RunError, hint: str | None = None) -> list[dict[str, Any]]:
    """Reads a JSON Lines file; skips a last line that a kill has cut.

    Args:
        path: The file; one that does not exist has no lines.
        error: The class of the error.
        hint: The remedy.

    Raises:
        NeuronSumError: `error`, if a line is not a JSON object.
    """
    with reading(path, error, hint):
        *lines, last = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    if _is_whole(last):
        lines.append(last)
    values = []
    for number, line in enumerate(lines, 1):
        with reading(f"{path}:{number}", error, hint):
            values.append(_object(line))
    return values


def parse_json(text: str, *, nan: bool = True) -> Any:
    """Parses JSON.

    Args:
        text: The text.
        nan: Whether NaN and Infinity are read, which are not JSON.

    Raises:
        ValueError: If it is invalid, nested too deeply, repeats a key, or has a number with thousands of digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=float if nan else _reject)
    except json.JSONDecodeError as caught:
        line = f"line {caught.lineno}, " if caught.lineno > 1 else ""
        raise ValueError(f"{caught.msg} at {line}column {caught.colno}") from caught
    except RecursionError as caught:
        raise ValueError("nested too deeply") from caught
    except ValueError as caught:
        raise ValueError("an integer has too many digits" if "digits" in str(caught) else str(caught)) from caught


def _is_whole(line: str | bytes) -> bool:
    """Whether a last line without a newline is a JSON object, as editors leave it; a cut line never is one."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return made


def _reject(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _object(text: str, *, nan: bool = True) -> dict[str, Any]:
    value = parse_json(text, nan=nan)
    if not isinstance(value, dict):
        raise TypeError(f"it contains a JSON {type(value).__name__} instead of an object")
    if "\\u" in text:  # half of a surrogate pair can be read, but neither printed nor written
        json.dumps(value, ensure_ascii=False).encode()
    return value


def append_line(path: Path, line: str) -> None:
    """Appends a line to a file, and returns once it is on disk; other processes may append at the same time.

    Removes an incomplete last line, cut by a kill or a full disk, so that the new one does not continue it; a last line
    that lacks only its newline is kept.

    Args:
        path: The file; it is created if it does not exist.
        line: The line without its newline.

    Raises:
        OSError: If it cannot be written.
    """
    with path.open("ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if (end := file.seek(0, os.SEEK_END)) and os.pread(file.fileno(), 1, end - 1) != b"\n":
            file.seek(0)
            before = file.read()
            start = before.rfind(b"\n") + 1
            if _is_whole(before[start:]):
                line = f"\n{line}"
            else:
                end = start
                file.truncate(end)
        content = f"{line}\n".encode()
        if file.write(content) < len(content):
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(file.fileno())
    directory = os.open(path.parent, os.O_RDONLY)  # so that the name of a new file survives a crash
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that replaces `path` if its block succeeds, and is removed if it fails."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    sweep(path.parent, f".{path.name}.tmp-")
    if not path.exists():  # a kill between the two renames below leaves only the old folder
        for old in path.parent.glob(f".{path.name}.old-*"):
            old.replace(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with writing(path):
            temporary.mkdir(parents=True)
            yield temporary
            old = path.with_name(f".{path.name}.old-{os.getpid()}")
            if path.exists():
                path.replace(old)
            try:
                temporary.replace(path)
            except OSError:
                if old.exists():
                    old.replace(path)
                raise
            remove(old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove(path: Path) -> None:
    """Removes a file, a folder with its content, or a link but never its target; as much of it as possible."""
    if path.is_symlink() or not path.is_dir():
        with suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def lock(
    folder: Path | str, file: Path | None = None, error: type[NeuronSumError] = RunError, hint: str = WAIT
) -> Iterator[None]:
    """Holds a folder against other processes, until the block or the process ends.

    A folder that cannot be written is not locked, since no process can change it.

    Args:
        folder: The folder, or the name of something else that only one process may use.
        file: The locked file, if the folder does not exist yet; default: LOCK in the folder.
        error: The class of the error.
        hint: The remedy.

    Raises:
        NeuronSumError: `error`, if another process holds it; names the process.
    """
    file = file or Path(folder).resolve() / LOCK
    if file in _locks:  # this process holds it already
        yield
        return
    try:
        descriptor = _lock(file)
    except OSError as failure:
        if isinstance(failure, BlockingIOError):
            raise error(f"{folder} is in use by {failure.strerror}", hint) from None
        if failure.errno not in UNLOCKABLE:
            remedy = "remove it, or choose another folder with --output"
            raise ResourceError(f"{file} cannot be locked: {failure.strerror}", remedy) from failure
        yield
        return
    _locks.add(file)
    try:
        yield
    finally:
        _locks.discard(file)
        with suppress(OSError):
            file.unlink()  # before it is unlocked: a process that has opened it finds that it is gone
        os.close(descriptor)


@contextmanager
def lock_output(path: Path) -> Iterator[None]:
    """Holds a folder that a command is about to create or replace, through a file beside it.

    Raises:
        RunError: If another process holds it; names the process.
    """
    resolved = path.resolve()
    is_new = not resolved.parent.exists()
    with suppress(OSError):  # writing the folder will report it
        resolved.parent.mkdir(parents=True, exist_ok=True)
    try:
        with lock(path, resolved.with_name(f".{resolved.name}.lock")):
            yield
    finally:
        if is_new:
            with suppress(OSError):  # only if it is empty, because the command failed
                resolved.parent.rmdir()


def _lock(file: Path) -> int:
    """The descriptor of the locked file; BlockingIOError has the name of the process that holds it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == file.stat().st_ino:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                return descriptor
            os.close(descriptor)  # the holder has just removed it
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise BlockingIOError(error.errno, f"process {holder}" if holder.isdecimal() else holder) from None
        except FileNotFoundError:
            os.close(descriptor)
        except OSError:
            os.close(descriptor)
            raise


def sweep(folder: Path, prefix: str = ".") -> None:
    """Removes temporary files with this prefix that a killed process left at least a day ago."""
    for path in folder.glob(f"{prefix}*"):
        with suppress(OSError):  # another process moved it in the meantime, or it belongs to another user
            if (prefix != "." or ".tmp-" in path.name) and time.time() - path.stat().st_mtime > STALE_AFTER_S:
                remove(path)


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
