"""The folder a training run writes: what lies where, and whether it is whole."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuron_sum import files
from neuron_sum.errors import RunError
from neuron_sum.recipes.loading import differences, load_resolved
from neuron_sum.recipes.schema import FullMethod, Recipe

CHECKPOINT_MARK = "complete"
"""Written last into a training checkpoint: the size of each of its files. One without it was cut by a kill.

Where something copies checkpoints file by file while they are written, as SageMaker does to S3, a copy's mark may come
before its files, or without them.
"""

PROCESSES = "processes.json"
"""Beside the training checkpoints, and removed with them."""

OWN_NAMES = (
    "recipe.yaml",
    "all_results.json",
    "log.jsonl",
    "base",
    "checkpoints",
    "checkpoint",
    "adapter",
    "tensorboard",
    "evaluation",
    "merged",
    "artifacts",
    ".checkpoint.tmp",
    ".adapter.tmp",
    ".shards.tmp",
)
"""Everything that a run, its evaluations, its merge and its compiles write, and what a kill leaves of it."""

MAY_CHANGE_ON_RESUME = (
    "name",
    "description",
    "train.logging_steps",
    "train.save_steps",
    "train.save_total_limit",
    "train.report_to",
    "train.neuron.cache_url",
    "generate.",
    "compile.",
    "serve.",
    "evaluate.",
)
"""What does not change the weights that a resumed run ends with."""


@dataclass(frozen=True)
class RunFolder:
    """One training run on disk.

    Attributes:
        path: The folder.
        recipe: The resolved recipe it was made by.
    """

    path: Path
    recipe: Recipe

    @property
    def recipe_path(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def resume_command(self) -> str:
        """What goes on with it, in as many processes as it began with."""
        several = f" --processes {count}" if (count := self.processes or 1) > 1 else ""
        return f"neuron-sum train {self.recipe_path} --output {self.path} --resume{several}"

    @property
    def processes(self) -> int | None:
        """How many processes train it; None where none have begun, or all is done."""
        path = self.checkpoints / PROCESSES
        return int(files.read_json(path)["processes"]) if path.exists() else None

    def note_processes(self, count: int) -> None:
        """Writes down how many processes train it, which a resumed run must have again.

        Args:
            count: So many.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        files.write_json(self.checkpoints / PROCESSES, {"processes": count})

    @property
    def weights(self) -> Path:
        """What training made: checkpoint/ (full) or adapter/, in Hugging Face's layout."""
        return self.path / ("checkpoint" if isinstance(self.recipe.method, FullMethod) else "adapter")

    @property
    def base(self) -> Path:
        """The base model, where it started from random weights and so can be had nowhere else."""
        return self.path / "base"

    @property
    def checkpoints(self) -> Path:
        """Where training checkpoints lie until the run is whole."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """JSON Lines: step, loss, eval_loss, learning_rate, tokens_per_s."""
        return self.path / "log.jsonl"

    @property
    def results(self) -> Path:
        """Parameters, sizes, times and versions; its presence means the run is whole."""
        return self.path / "all_results.json"

    @property
    def is_complete(self) -> bool:
        """Whether training has ended."""
        return self.results.is_file()

    def read_results(self) -> dict[str, Any]:
        """What `results` holds."""
        return dict(files.read_json(self.results))

    def clear(self) -> None:
        """Removes what a run writes, and nothing else that may lie in the folder."""
        for name in OWN_NAMES:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def marked_checkpoints(self) -> list[Path]:
        """The training checkpoints that say that they are whole, the newest first."""
        marked = [mark.parent for mark in self.checkpoints.glob(f"checkpoint-*/{CHECKPOINT_MARK}")]
        return sorted(marked, key=lambda folder: int(folder.name.rpartition("-")[2]), reverse=True)

    def last_checkpoint(self) -> Path | None:
        """The newest training checkpoint that is whole: all its files are there, as long as they were written."""
        return next((folder for folder in self.marked_checkpoints() if missing_of(folder) is None), None)

    def model_source(self) -> str:
        """Where the base model is loaded from: the run's own base/, or what the recipe names."""
        return str(self.base) if self.base.is_dir() else str(self.recipe.model.name_or_path)


def checkpoint_sizes(folder: Path) -> dict[str, int]:
    """What a training checkpoint's mark says: the bytes of each of its files, by its name in the folder."""
    inside = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in inside if file.name != CHECKPOINT_MARK}


def missing_of(folder: Path) -> str | None:
    """What a training checkpoint with a mark lacks; None if nothing.

    Args:
        folder: With its mark.
    """
    try:
        sizes = dict(files.read_json(folder / CHECKPOINT_MARK))
    except ValueError:
        return "its mark cannot be read"
    there = checkpoint_sizes(folder)
    for name, size in sizes.items():
        if there.get(name) != size:
            return f"{name} has {there[name]:,} of {size:,} bytes" if name in there else f"{name} is not there"
    return None


def open_run(path: Path) -> RunFolder:
    """A finished run.

    Raises:
        RunError: If there is none, or it has not ended.
    """
    if not (path / "recipe.yaml").is_file():
        raise RunError(f"{path} is not a run: it holds no recipe.yaml", "give the folder that `neuron-sum train` wrote")
    run = RunFolder(path, load_resolved(path / "recipe.yaml"))
    if not run.is_complete:
        raise RunError(f"the run in {path} has not ended", run.resume_command)
    return run


def start_run(path: Path, recipe: Recipe, *, processes: int, resume: bool, overwrite: bool) -> RunFolder:
    """The folder for a run that is about to start or to go on; changes nothing there.

    Args:
        path: Where it is.
        recipe: What it is to train.
        processes: How many will train it.
        resume: Go on with the unfinished run there.
        overwrite: Replace the run there.

    Raises:
        RunError: If something is there and neither resume nor overwrite was said, or recipe or processes there differ.
    """
    run = RunFolder(path, recipe)
    if resume and overwrite:
        raise RunError("--resume goes on with a run and --overwrite replaces it", "give one of the two")
    if not path.exists() or not any(path.iterdir()):
        return run
    if not (path / "recipe.yaml").is_file() or not any((path / name).exists() for name in OWN_NAMES[1:]):
        raise RunError(f"{path} is not empty and not a run of ours", "choose another folder with --output")
    if overwrite:
        return run
    if not resume:
        last = run.last_checkpoint()
        if run.is_complete:
            raise RunError(f"{path} holds a finished run", "--overwrite replaces it, --output FOLDER keeps both")
        what = f"saved at step {last.name.rpartition('-')[2]}" if last else "with nothing saved yet"
        raise RunError(f"{path} holds an unfinished run, {what}", "--resume goes on with it, --overwrite starts anew")
    changed = {
        key: values
        for key, values in differences(load_resolved(path / "recipe.yaml"), recipe).items()
        if not key.startswith(MAY_CHANGE_ON_RESUME)
    }
    if changed:
        listing = "\n  ".join(f"{key}: {old!r} there, {new!r} now" for key, (old, new) in changed.items())
        raise RunError(
            f"the run in {path} was started by another recipe:\n  {listing}",
            "resume with the same values, or start anew with --overwrite",
        )
    before = run.processes
    if before not in (None, processes) and run.last_checkpoint() is not None:
        # Other processes take other examples for a step, and a checkpoint has a random state for each.
        raise RunError(
            f"the run in {path} was started in {_counted(before)}, and this is {_counted(processes)}",
            run.resume_command,
        )
    return run


def _counted(processes: int | None) -> str:
    return "one process" if processes == 1 else f"{processes} processes"
