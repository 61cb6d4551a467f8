"""The folder of a training run: paths of its files, and checks for completeness."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuron_sum import files
from neuron_sum.console import command
from neuron_sum.errors import RecipeError, RunError, reading
from neuron_sum.models.gguf import folder_of
from neuron_sum.recipes.loading import differences, load_resolved
from neuron_sum.recipes.schema import FullMethod, Recipe
from neuron_sum.runs.contents import DAMAGED, MARK, RunRecord, RunResults, is_run, recover, replace, validate

CHECKPOINT_MARK = "complete"
"""The last file of a training checkpoint, with the sizes of the others. It is missing if writing was killed.

If checkpoints are copied file by file while they are written, as SageMaker does to S3, the mark of a copy may arrive
before its files, or without them.
"""

PROCESSES = "processes.json"
"""Name of a file in the folder of the training checkpoints, removed with them."""

MAY_CHANGE_ON_RESUME = (
    "name",
    "description",
    "data.path",
    "data.files.",
    "prompt.rendered",
    "model.name_or_path",
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
"""Settings without effect on the final weights of a resumed run; the fingerprint compares the content of paths."""


@dataclass(frozen=True)
class RunFolder:
    """One training run on disk.

    Attributes:
        path: The folder of the run.
        recipe: The resolved recipe of the run.
    """

    path: Path
    recipe: Recipe

    @property
    def recipe_path(self) -> Path:
        """Path of the resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def resume_command(self) -> str:
        """The command that resumes the run with the original number of processes."""
        several = count if (count := self.processes or 1) > 1 else None
        return command("train", self.recipe_path, output=self.path, resume=True, processes=several)

    @property
    def processes(self) -> int | None:
        """Number of training processes; None before the start and after the end of training."""
        return self._recorded("processes")

    @property
    def threads(self) -> int | None:
        """Number of threads of each training process, on which the last bits of the weights depend; None as above."""
        return self._recorded("threads")

    def _recorded(self, name: str) -> int | None:
        path = self.checkpoints / PROCESSES
        if not path.exists():
            return None
        content = files.read_json(path, hint=DAMAGED)
        if name == "threads" and name not in content:  # an older version wrote it
            return None
        count = content.get(name)
        if not isinstance(count, int) or count < 1:
            raise RunError(f"{path} cannot be read: {name} is {count!r}", DAMAGED)
        return count

    def record_processes(self, count: int, threads: int) -> None:
        """Records the numbers of training processes and threads, which must be the same when the run is resumed.

        Args:
            count: The number of processes.
            threads: The number of threads of each process.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        files.write_json(self.checkpoints / PROCESSES, {"processes": count, "threads": threads})

    @property
    def weights(self) -> Path:
        """The folder of the trained weights: checkpoint/ (full) or adapter/, in Hugging Face's layout."""
        return self.path / ("checkpoint" if isinstance(self.recipe.method, FullMethod) else "adapter")

    @property
    def base(self) -> Path:
        """The folder of the base model, if it has random weights and therefore exists only here."""
        return self.path / "base"

    @property
    def checkpoints(self) -> Path:
        """The folder of the training checkpoints, which exists until the run is complete."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """The training log as JSON Lines: step, loss, eval_loss, learning_rate, tokens_per_s."""
        return self.path / "log.jsonl"

    @property
    def results(self) -> Path:
        """The file with parameters, sizes, times and versions; it exists only if the run is complete."""
        return self.path / "all_results.json"

    @property
    def is_complete(self) -> bool:
        """Whether training has ended."""
        return self.results.is_file()

    def read_results(self) -> dict[str, Any]:
        """The contents of `results`.

        Raises:
            RunError: If the file is damaged.
        """
        results: dict[str, Any] = files.read_json(self.results, hint=DAMAGED)
        validate(RunResults, results, self.results)
        return results

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of `log`.

        Raises:
            RunError: If a line is damaged.
        """
        entries = files.read_jsonl(self.log, hint=DAMAGED)
        for number, entry in enumerate(entries, 1):
            for key in ("step", *({"loss", "eval_loss"} & entry.keys())):
                if not isinstance(entry.get(key), int | float):
                    raise RunError(f"{self.log}:{number} cannot be read: {key} is {entry.get(key)!r:.60}", DAMAGED)
        return entries

    def read_record(self) -> RunRecord:
        """The contents of MARK.

        Raises:
            RunError: If the folder has no mark, or the mark is damaged.
        """
        mark = self.path / MARK
        if not mark.is_file():
            raise RunError(
                f"{self.path} lacks {MARK}, which records what a run depends on (older versions did not write it)",
                f"train again: {command('train', self.recipe_path, output='FOLDER')}",
            )
        return validate(RunRecord, files.read_json(mark, hint=DAMAGED), mark)

    def write_record(self, fingerprint: Mapping[str, str]) -> None:
        """Writes MARK.

        Args:
            fingerprint: The hash of each part that the run depends on.
        """
        files.write_json(self.path / MARK, RunRecord(fingerprint=dict(fingerprint)).model_dump())

    def create(self, write: Callable[["RunFolder"], None]) -> None:
        """Replaces the files of a run, and no other files in the folder; after a failure it has its old files.

        Args:
            write: Writes the initial files of the run, `MARK` included, into another, empty folder.
        """
        replace(self.path, lambda folder: write(RunFolder(folder, self.recipe)))

    def marked_checkpoints(self) -> list[Path]:
        """The training checkpoints that have a completion mark, newest first."""
        marked = [mark.parent for mark in self.checkpoints.glob(f"checkpoint-*/{CHECKPOINT_MARK}")]
        return sorted(marked, key=step_of, reverse=True)

    def last_checkpoint(self) -> Path | None:
        """The newest complete training checkpoint: all its files exist with their recorded sizes."""
        return next((folder for folder in self.marked_checkpoints() if describe_damage(folder) is None), None)

    def model_source(self) -> str:
        """The source of the base model: base/ of the run, a folder, or a hub id."""
        return str(self.base) if self.base.is_dir() else folder_of(str(self.recipe.model.name_or_path))


def step_of(checkpoint: Path) -> int:
    """The step after which a training checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoint_sizes(folder: Path) -> dict[str, int]:
    """The contents of a training checkpoint's mark: the size of each file in bytes, by its path in the folder."""
    inside = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in inside if file.name != CHECKPOINT_MARK}


def describe_damage(folder: Path) -> str | None:
    """Describes the damage of a training checkpoint; None if it is complete.

    Args:
        folder: A checkpoint with a mark.
    """
    try:
        sizes = files.read_json(folder / CHECKPOINT_MARK)
    except RunError:
        return "its mark cannot be read"
    actual = checkpoint_sizes(folder)
    for name, size in sizes.items():
        if actual.get(name) != size:
            return f"{name} has {actual[name]:,} of {size:,} bytes" if name in actual else f"{name} is missing"
    return None


def open_run(path: Path) -> RunFolder:
    """Opens a finished run.

    Raises:
        RunError: If the folder is not a run, or the run is unfinished or damaged.
    """
    recover(path)
    if not (path / "recipe.yaml").is_file():
        raise RunError(f"{path} is not a run: it contains no recipe.yaml", "use a folder written by `neuron-sum train`")
    run = RunFolder(path, _read_recipe(path))
    if not run.is_complete:
        raise RunError(f"the run in {path} is unfinished", f"run `{run.resume_command}` to finish it")
    run.read_record()
    return run


def _read_recipe(path: Path) -> Recipe:
    try:
        with reading(path / "recipe.yaml", RunError, DAMAGED):
            return load_resolved(path / "recipe.yaml")
    except RecipeError as error:
        raise RunError(f"the recipe of the run cannot be read: {error.message}", DAMAGED) from error


def start_run(path: Path, recipe: Recipe, *, processes: int, resume: bool, overwrite: bool) -> RunFolder:
    """The folder of a run that is about to start or resume; the folder is not changed.

    Args:
        path: The path of the folder.
        recipe: The recipe to train.
        processes: The number of training processes.
        resume: Whether to resume an unfinished run in the folder.
        overwrite: Whether to replace a run in the folder.

    Raises:
        RunError: If the folder is not empty and neither resume nor overwrite is set, or if it contains files that are
            not a run, or a run with another recipe or number of processes, or if it is a link that would be replaced.
    """
    run = RunFolder(path, recipe)
    if resume and overwrite:
        raise RunError("--resume and --overwrite cannot be combined", "use one of them")
    if not path.exists():
        return run
    if not path.is_dir():
        raise RunError(f"{path} is a file", "choose a folder with --output")
    recover(path)
    if not any(entry.name != files.LOCK for entry in path.iterdir()):
        return run
    if not is_run(path):
        raise RunError(
            f"{path} is not empty and not a run: it has no valid {MARK}, which `neuron-sum train` writes",
            "choose another folder with --output, or remove the folder if an older version of neuron-sum wrote it",
        )
    if overwrite and path.is_symlink():
        raise RunError(f"{path} is a link, which --overwrite does not follow", f"use --output {path.resolve()}")
    if overwrite:
        return run
    if not resume:
        last = run.last_checkpoint()
        if run.is_complete:
            raise RunError(
                f"{path} contains a finished run", "use --overwrite to replace it, or --output FOLDER to keep both"
            )
        progress = f"saved at step {step_of(last)}" if last else "with no saved checkpoint"
        raise RunError(
            f"{path} contains an unfinished run, {progress}", "use --resume to continue it, or --overwrite to restart"
        )
    changed = {
        key: values
        for key, values in differences(_read_recipe(path), recipe).items()
        if not key.startswith(MAY_CHANGE_ON_RESUME)
    }
    if changed:
        listing = "\n  ".join(f"{key}: {old!r} in the run, {new!r} now" for key, (old, new) in changed.items())
        raise RunError(
            f"the run in {path} was started with another recipe:\n  {listing}",
            "resume with the same values, or use --overwrite to restart",
        )
    previous = run.processes
    if previous not in (None, processes) and run.last_checkpoint() is not None:
        # With another number of processes, a step has other examples; a checkpoint has a random state per process.
        raise RunError(
            f"the run in {path} was started with {_count_processes(previous)}, "
            f"but this command uses {_count_processes(processes)}",
            f"run `{run.resume_command}`",
        )
    return run


def _count_processes(processes: int | None) -> str:
    return "one process" if processes == 1 else f"{processes} processes"
