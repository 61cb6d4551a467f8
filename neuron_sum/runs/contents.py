"""The files of a run folder: their names, their records, and their replacement, which a kill cannot leave half done."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from neuron_sum import __version__, files
from neuron_sum.errors import RunError
from neuron_sum.recipes.schema import Section

M = TypeVar("M", bound=BaseModel)

MARK = "run.json"
"""Name of the file that marks a folder as a run of neuron-sum, with the fingerprint of everything it depends on."""

OLD, NEW = ".neuron-sum.old", ".neuron-sum.new"
"""Names of the folders in a run that hold its old and its new files while it is replaced."""

RUN_FILES = (
    "recipe.yaml",
    "all_results.json",
    "log.jsonl",
    "base",
    "checkpoints",
    "checkpoint",
    "adapter",
    "tensorboard",
    "mlflow.json",
    "mlflow.db",
    "mlflow.db-journal",
    "evaluation",
    "merged",
    "artifacts",
    ".checkpoint.tmp",
    ".adapter.tmp",
    ".shards.tmp",
    MARK,
)
"""All files and folders written by a run, its evaluations, merge and compiles, including temporaries after a kill.

The mark is the last, so that a folder without it is incomplete.
"""


DAMAGED = "put back an undamaged copy of the file, or train again with --overwrite"


class RunRecord(Section):
    """The content of MARK."""

    kind: Literal["neuron-sum run"] = "neuron-sum run"
    version: Literal[1] = 1
    neuron_sum: str = __version__
    """Version of this package."""
    fingerprint: dict[str, str]
    """The hash of each part that the run depends on, and of its trained model when it is finished."""


class RunResults(BaseModel):
    """The values of all_results.json that other commands read."""

    method: str
    train_loss: float | None
    eval_loss: float | None
    trainable_parameters: int
    all_parameters: int
    weights_bytes: int
    data: str
    data_license: str | None


def validate(model: type[M], content: Mapping[str, Any], path: Path) -> M:
    """The content of a file as a model.

    Raises:
        RunError: With the first field that is missing or invalid.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise RunError(f"{path} cannot be read: {field}: {first['msg']}", DAMAGED) from error


def is_run(path: Path) -> bool:
    """Whether a folder has the mark of a run, which only neuron-sum writes."""
    try:
        return bool(files.read_json(path / MARK).get("kind") == RunRecord.model_fields["kind"].default)
    except RunError:
        return False


def recover(path: Path) -> None:
    """Completes the replacement of a run that a kill interrupted.

    Args:
        path: The folder of the run.

    Raises:
        RunError: If another process is replacing it now.
    """
    if not (path / OLD).is_dir() and not (path / NEW).is_dir():
        return
    with files.lock(path), files.writing(path):
        if (path / OLD).is_dir() and (path / NEW / MARK).is_file():
            _move(path)
        else:
            files.remove(path / OLD)
            files.remove(path / NEW)


def replace(path: Path, write: Callable[[Path], None]) -> None:
    """Replaces the files of a run, and no other files in the folder; after a failure it has its old files.

    Links are removed, never their targets. After a kill, `recover` completes the replacement.

    Args:
        path: The folder of the run, or an empty folder.
        write: Writes the initial files of the run, `MARK` included, into another, empty folder.
    """
    new = path / NEW
    files.remove(new)
    try:
        with files.writing(path):
            new.mkdir(parents=True)
            write(new)
            (path / OLD).mkdir(exist_ok=True)
    except BaseException:
        files.remove(new)
        raise
    with files.writing(path):
        _move(path)


def _move(path: Path) -> None:
    """Moves the old files aside, moves the new ones in, and removes the old ones; undone if a file cannot be moved.

    A kill leaves the mark of the new files in NEW, and this function continues: as long as the old mark has not been
    moved, which is the last one, all files outside are old.
    """
    old, new = path / OLD, path / NEW
    moves = [(path / name, old / name) for name in RUN_FILES] if (path / MARK).exists() else []
    moves += [(new / name, path / name) for name in RUN_FILES]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            if source.is_symlink() or source.exists():
                source.rename(target)
                done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        if not any(old.iterdir()):
            files.remove(new)
            old.rmdir()
        raise
    files.remove(old)
    files.remove(new)
