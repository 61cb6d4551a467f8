"""Output of the commands: results on standard output, everything else on standard error.

On a terminal, the output has rich tables and a live progress
bar; otherwise, plain lines and an occasional progress line. With `--json`, standard output is exactly one document.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from neuron_sum import files

PLAIN_PROGRESS_INTERVAL_S = 10.0
PLAIN_WIDTH = 120
ERRORS = "NEURON_SUM_ERRORS"
"""The environment variable with the folder of `collect_errors`."""


@dataclass
class Settings:
    """Output settings of this process; set once, by the options that every command has."""

    json: bool = False
    debug: bool = False


settings = Settings()


def is_main_process() -> bool:
    """Whether this process prints output: it is the only one, or rank 0 under torchrun."""
    return os.environ.get("RANK", "0") == "0"


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(
        stderr=stderr,
        width=width,
        highlight=False,
        emoji=False,
        soft_wrap=not stream.isatty(),
        quiet=not is_main_process(),
    )


def emit(result: Mapping[str, Any], *renderables: RenderableType) -> None:
    """Prints a command's result: with --json, `result` as JSON, otherwise `renderables`."""
    if not is_main_process():
        return
    if settings.json:
        print(files.to_json(result, indent=2))
        return
    console = _console(stderr=False)
    for renderable in renderables:
        console.print(renderable, markup=False)


def note(text: str) -> None:
    """Prints a progress message, which is never part of the result."""
    _console(stderr=True).print(text, markup=False)


def note_table(content: Table) -> None:
    """Prints a table of planned steps, which is never part of the result."""
    _console(stderr=True).print(content)


def warn(text: str) -> None:
    """Prints a warning."""
    _console(stderr=True).print(f"warning: {text}", markup=False, style="yellow")


@contextmanager
def collect_errors(folder: Path) -> Iterator[None]:
    """Processes started in this block write their errors to a folder, so that only one of several is printed.

    Args:
        folder: The folder for RANK.json of each process that fails, with the arguments of `fail`.
    """
    os.environ[ERRORS] = str(folder)
    try:
        yield
    finally:
        del os.environ[ERRORS]


def fail(message: str, hint: str | None, exit_code: int) -> None:
    """Prints an error to standard error: one line and a hint, or with --json one JSON object."""
    if folder := os.environ.get(ERRORS):
        error = {"message": message, "hint": hint, "exit_code": exit_code}
        files.write_json(Path(folder) / f"{os.environ['RANK']}.json", error)
        return
    if settings.json:
        print(json.dumps({"error": {"message": message, "hint": hint, "exit_code": exit_code}}), file=sys.stderr)
        return
    console = _console(stderr=True)
    console.print(f"error: {message}", markup=False, style="red")
    if hint:
        console.print(f"hint: {hint}", markup=False)


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table: the first column left-aligned, the others right-aligned for numbers."""
    empty = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        empty.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
    return empty


class ProgressBar:
    """A progress bar on a terminal; otherwise a line every ten seconds.

    Args:
        description: The label of the bar.
        total: The number of steps.
        done: The number of steps completed before (in a resumed run).
        quiet: Whether to print nothing.
    """

    def __init__(self, description: str, total: int, done: int = 0, quiet: bool = False) -> None:
        self._description, self._total, self._done, self._first = description, total, done, done
        self._started = self._last_line = time.monotonic()
        self._console = _console(stderr=True)
        self._console.quiet |= quiet
        self._rich: Progress | None = None
        if self._console.is_terminal and not self._console.quiet:
            self._rich = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._rich.add_task(description, total=total, completed=done, detail="")
            self._rich.start()

    def update(self, done: int, detail: str = "") -> None:
        """Sets the number of completed steps, and shows `detail` (a loss, a rate) next to it."""
        self._done = done
        if self._rich is not None:
            self._rich.update(self._task, completed=done, detail=detail)
            return
        now = time.monotonic()
        if now - self._last_line >= PLAIN_PROGRESS_INTERVAL_S or done == self._total:
            self._last_line = now
            per_step_s = (now - self._started) / max(done - self._first, 1)
            remaining = duration(per_step_s * (self._total - done))
            self._console.print(f"{self._description} {done}/{self._total} {detail} left {remaining}", markup=False)

    def advance(self, steps: int = 1, detail: str = "") -> None:
        """Adds `steps` to the number of completed steps."""
        self.update(self._done + steps, detail)

    def close(self) -> None:
        """Removes the bar; safe to call twice."""
        if self._rich is not None:
            self._rich.stop()


@contextmanager
def progress(description: str, total: int, done: int = 0, *, quiet: bool = False) -> Iterator[ProgressBar]:
    """A `ProgressBar` that is always removed at the end of the block."""
    bar = ProgressBar(description, total, done, quiet)
    try:
        yield bar
    finally:
        bar.close()


def duration(seconds: float) -> str:
    """Formats a duration: 12 -> '12 s', 200 -> '3 min 20 s', 7300 -> '2 h 2 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(num_bytes: float) -> str:
    """Formats bytes in the decimal units of disks and hubs: 14_000_000 -> '14.0 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
