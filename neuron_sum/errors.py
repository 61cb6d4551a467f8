"""The exceptions of neuron-sum and their exit codes.

    NeuronSumError           1
    ├── RecipeError          3   a recipe or an override is invalid
    ├── DataError            4   the data cannot be read or does not match the recipe
    ├── ModelError           5   a model, tokenizer or adapter cannot be loaded, or fails a check
    ├── ResourceError        6   this machine has too little memory or disk, or a folder cannot be written
    ├── MissingExtraError    7   an optional dependency is not installed
    ├── RunError             8   a run folder is missing, unfinished, or belongs to another recipe
    ├── ArtifactError        9   an artifact is damaged, or compiled for another stack, machine or request
    ├── CompileError        10   a compiler is missing or failed; its log is kept
    ├── ServerError         11   DJL Serving is not available, or does not start
    ├── RequestError        12   an endpoint rejected a request, or cannot be reached
    ├── PlatformError       13   this machine or an instance lacks a required feature, or the instance is unknown
    ├── AwsError            14   AWS rejected a request or is unreachable, a job did not complete, a plan costs too much
    ├── DivergedError       15   a loss, a gradient or a weight of a training run is not a finite number
    ├── ScoreError          16   a model has a lower score than requested
    └── DriftError          17   requests or answers differ from the training data or the evaluation
    KeyboardInterrupt
    └── Interrupted        130   stopped on request (Ctrl-C, SIGTERM) after saving

The number is the exit code of the command line; it is part of the interface and does not change. Usage errors exit
with 2 (click's convention), and defects of neuron-sum with 1.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
UNUSABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
    *(errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV),
)
"""Errors of a path, a disk or a limit of this machine, which are not defects of neuron-sum."""
FULL_DISK_WORDS = re.compile("no space left on device|disk quota exceeded|file write failed", re.IGNORECASE)
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc", "Cannot allocate memory")
"""Words in the errors of libraries that fill the disk, or run out of memory, without an error number or MemoryError."""


PERSON = re.compile(r"(:sts::\d*:(?:assumed-role/[^/\s]+|federated-user)|:iam::\d*:user)/[^\s\"']+")
"""The ARN of a caller in a message of AWS. The name of a session is often an e-mail address."""
TOKEN = re.compile(r"(x-amz-security-token[\"']?\s*[:=]\s*[\"']?)[^\s\"'&]+", re.IGNORECASE)
"""A session token in a message about a wrong signature, or in a signed URL."""
ACCESS_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")


def redacted(text: str) -> str:
    """A message of AWS with NAME, TOKEN and KEY instead of names of users and sessions, session tokens and key ids."""
    return ACCESS_KEY.sub("KEY", TOKEN.sub(r"\1TOKEN", PERSON.sub(r"\1/NAME", text)))


class _WithHint(BaseException):
    """An exception with a hint.

    Args:
        message: The failure, the value and the valid values, in one line if possible.
        hint: A command or change that fixes the error, or continues after it.
    """

    exit_code: ClassVar[int]

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.__notes__ = [f"hint: {hint}"]  # printed below a traceback, from Python 3.11 on


class NeuronSumError(_WithHint, Exception):
    """An error with a hint how to fix it."""

    exit_code = 1


class RecipeError(NeuronSumError):
    """A recipe or an override is invalid; the message lists all errors."""

    exit_code = 3


class DataError(NeuronSumError):
    """The data cannot be read, or does not match the recipe."""

    exit_code = 4


class ModelError(NeuronSumError):
    """A model, tokenizer or adapter cannot be loaded, or fails a check such as merged == adapter."""

    exit_code = 5


class ResourceError(NeuronSumError):
    """Too little memory or disk, or a folder that cannot be written; raised before long work starts."""

    exit_code = 6


class MissingExtraError(NeuronSumError):
    """An optional dependency is not installed.

    Args:
        module: The module that cannot be imported.
        extra: The extra of this package that installs the module.
    """

    exit_code = 7

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"the required package {module} is not installed", f"run `pip install 'neuron-sum[{extra}]'`")


class RunError(NeuronSumError):
    """A run folder is missing, unfinished, or belongs to another recipe."""

    exit_code = 8


class ArtifactError(NeuronSumError):
    """An artifact is damaged, or compiled for another stack, machine or request."""

    exit_code = 9


class CompileError(NeuronSumError):
    """A compiler is missing or failed."""

    exit_code = 10


class ServerError(NeuronSumError):
    """DJL Serving is not available on this machine, or does not start."""

    exit_code = 11


class RequestError(NeuronSumError):
    """An endpoint rejected a request, or cannot be reached."""

    exit_code = 12


class PlatformError(NeuronSumError):
    """This machine or the requested instance lacks a required feature, or is missing in the platform table."""

    exit_code = 13


class AwsError(NeuronSumError):
    """AWS rejected a request or is unreachable, a job did not complete, or a plan exceeds its cost limit."""

    exit_code = 14


class DivergedError(NeuronSumError):
    """Training stopped because a loss, a gradient or a weight is not a finite number; good checkpoints are kept."""

    exit_code = 15


class ScoreError(NeuronSumError):
    """A model has a lower score than requested; the comparison is written."""

    exit_code = 16


class DriftError(NeuronSumError):
    """The requests or answers of an endpoint differ from those before; the comparison is printed."""

    exit_code = 17


class Interrupted(_WithHint, KeyboardInterrupt):
    """The user or the scheduler stopped the command; the progress is saved. `except Exception` does not catch it."""

    exit_code = 130


@contextmanager
def reading(source: Path | str, error: type[NeuronSumError], hint: str | None = None) -> Iterator[None]:
    """Converts what a library raises while it reads `source` into one error that names the source.

    Only for blocks that do nothing but read foreign input: every exception counts as a fault of that input, since
    libraries raise all kinds for a damaged file (tokenizers even panics, which is not an Exception).

    Raises:
        ResourceError: If the disk is full or the memory is not sufficient.
        NeuronSumError: `error`, if anything else goes wrong.
    """
    try:
        yield
    except (NeuronSumError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as caught:
        if isinstance(caught, MemoryError):
            raise ResourceError(f"{source} does not fit into memory", "use a smaller file") from caught
        if isinstance(caught, OSError) and caught.errno in FULL_DISK:
            raise ResourceError(f"the disk is full: {caught.filename or source}", "free some space") from caught
        reason = caught.strerror if isinstance(caught, OSError) and caught.strerror else str(caught).split("\n")[0]
        raise error(f"{source} cannot be read: {reason or type(caught).__name__}", hint) from caught


def known_cause(error: BaseException) -> NeuronSumError | None:
    """An exception as an error of neuron-sum, if its cause is known to be outside of neuron-sum.

    Args:
        error: Any exception.
    """
    if isinstance(error, NeuronSumError):
        return error
    chain: BaseException | None = error
    while chain is not None:  # libraries wrap the error of a full disk or lack of memory into others
        if getattr(chain, "errno", None) in FULL_DISK or FULL_DISK_WORDS.search(str(chain)):
            place = getattr(chain, "filename", None)
            return ResourceError(f"the disk is full{f': {place}' if place else ''}", "free some space, and start again")
        if isinstance(chain, MemoryError) or any(words in str(chain) for words in OUT_OF_MEMORY):
            return ResourceError(
                "the memory of this machine is not sufficient", "use smaller batches or a smaller input"
            )
        chain = chain.__cause__ or chain.__context__
    if isinstance(error, OSError) and error.errno in UNUSABLE:
        place = f"{error.filename}: " if error.filename is not None else ""
        hint = "raise the limit of open files (ulimit -n)" if error.errno in (errno.EMFILE, errno.ENFILE) else None
        return ResourceError(f"{place}{error.strerror}", hint or "use another path, or change its permissions")
    return None
