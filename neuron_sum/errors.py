"""Everything neuron-sum raises on purpose, drawn as a tree.

    NeuronSumError           1
    ├── RecipeError          3   a recipe or an override does not hold
    ├── DataError            4   the data cannot be read or is not what the recipe says
    ├── ModelError           5   a model, tokenizer or adapter cannot be loaded, or fails a check
    ├── ResourceError        6   this machine has too little memory or disk, or a folder cannot be written
    ├── MissingExtraError    7   an optional dependency is not installed
    ├── RunError             8   a run folder is missing, unfinished, or belongs to another recipe
    ├── ArtifactError        9   an artifact is damaged, made for something else, or not compiled for what is asked
    ├── CompileError        10   a compiler is missing or failed; its log is kept
    ├── ServerError         11   DJL Serving cannot be had, or does not start
    ├── RequestError        12   an endpoint refused a request, or cannot be reached
    ├── PlatformError       13   this machine or an instance lacks what is asked, or nobody knows the instance
    ├── AwsError            14   AWS refused or could not be asked, a job did not complete, or a plan costs too much
    └── Interrupted        130   stopped on request (Ctrl-C, SIGTERM) after saving

The number is the exit code of the command line; it is part of the interface and does not change. Usage errors exit
with 2 (click's convention), and a defect of ours with 1.
"""

from typing import ClassVar


class NeuronSumError(Exception):
    """An error with a remedy.

    Args:
        message: What was given and what is allowed, in one line where it fits.
        hint: What to run or change next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RecipeError(NeuronSumError):
    """A recipe or an override does not hold; the message lists every fault at once."""

    exit_code = 3


class DataError(NeuronSumError):
    """The data cannot be read, or is not what the recipe says it is."""

    exit_code = 4


class ModelError(NeuronSumError):
    """A model, tokenizer or adapter cannot be loaded, or fails a check such as merged == adapter."""

    exit_code = 5


class ResourceError(NeuronSumError):
    """Too little memory or disk, or a folder that cannot be written; found before long work starts."""

    exit_code = 6


class MissingExtraError(NeuronSumError):
    """An optional dependency is not installed.

    Args:
        module: The module that could not be imported.
        extra: The extra of this package that brings it.
    """

    exit_code = 7

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {module}, which is not installed", f"pip install 'neuron-sum[{extra}]'"
        )


class RunError(NeuronSumError):
    """A run folder is missing, unfinished, or was made by another recipe."""

    exit_code = 8


class ArtifactError(NeuronSumError):
    """An artifact is damaged, made for another stack or machine, or not compiled for what is asked of it."""

    exit_code = 9


class CompileError(NeuronSumError):
    """A compiler is missing, or failed."""

    exit_code = 10


class ServerError(NeuronSumError):
    """DJL Serving cannot be had on this machine, or does not start."""

    exit_code = 11


class RequestError(NeuronSumError):
    """An endpoint refused a request, or cannot be reached."""

    exit_code = 12


class PlatformError(NeuronSumError):
    """This machine, or the instance that is asked for, cannot do it; or the platform table does not know it."""

    exit_code = 13


class AwsError(NeuronSumError):
    """AWS refused a request or cannot be asked, a job ended otherwise than well, or a plan is above its limit."""

    exit_code = 14


class Interrupted(NeuronSumError):
    """The person or the scheduler asked to stop, and what was done so far is saved."""

    exit_code = 130
