"""What the commands say, and where: results on standard output, everything else on standard error.

And what they are told there: a dialogue, in a file or on standard input.

On a terminal, rich tables and a live progress bar; off a terminal, plain lines and one progress line now and then; with
`--json`, exactly one JSON document on standard output.
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
from neuron_sum.errors import DataError

PLAIN_PROGRESS_INTERVAL_S = 10.0
PLAIN_WIDTH = 120
ERRORS = "NEURON_SUM_ERRORS"
"""The variable that names the folder of `errors_go_to`."""


@dataclass
class Settings:
    """How this process talks; set once, by the options that every command has."""

    json: bool = False
    debug: bool = False


settings = Settings()


def is_main_process() -> bool:
    """Whether this is the process that speaks: the only one, or rank 0 under torchrun."""
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
    """Prints a command's result: `result` as JSON under --json, else what people read."""
    if not is_main_process():
        return
    if settings.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    console = _console(stderr=False)
    for renderable in renderables:
        console.print(renderable, markup=False)


def note(text: str) -> None:
    """Tells the person something on the way; never part of the result."""
    _console(stderr=True).print(text, markup=False)


def note_table(shown: Table) -> None:
    """A table of what is about to happen; never part of the result."""
    _console(stderr=True).print(shown)


def warn(text: str) -> None:
    """Tells the person something they may want to act on."""
    _console(stderr=True).print(f"warning: {text}", markup=False, style="yellow")


@contextmanager
def errors_go_to(folder: Path) -> Iterator[None]:
    """Processes that are started in this block leave their errors there, for one of several to be printed.

    Args:
        folder: It gets RANK.json for each that fails, with the arguments of `fail`.
    """
    os.environ[ERRORS] = str(folder)
    try:
        yield
    finally:
        del os.environ[ERRORS]


def fail(message: str, hint: str | None, exit_code: int) -> None:
    """Prints an error as one line and a hint, or as one JSON object on standard error."""
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


def read_dialogue(file: Path) -> str:
    """One dialogue.

    Args:
        file: Its text; - is standard input.

    Raises:
        DataError: If it cannot be read, or holds none.
    """
    from_stdin = str(file) == "-"
    name = "standard input" if from_stdin else str(file)
    if from_stdin and sys.stdin.isatty():
        note("reading a dialogue from standard input; end it with Ctrl-D")
    try:
        dialogue = (sys.stdin.read() if from_stdin else file.read_text(encoding="utf-8")).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name} cannot be read: {error}", "UTF-8 text, one turn a line") from error
    if not dialogue:
        raise DataError(f"{name} holds no dialogue", "one turn a line")
    return dialogue


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table: the first column left-aligned, the others right-aligned numbers."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
    return made


class ProgressBar:
    """A bar on a terminal, a line every ten seconds elsewhere.

    Args:
        description: What is being done.
        total: How many steps there are.
        done: How many of them were done before (a resumed run).
        quiet: Whether to show nothing.
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
        """Moves to `done` steps and shows `detail` (a loss, a rate) beside them."""
        self._done = done
        if self._rich is not None:
            self._rich.update(self._task, completed=done, detail=detail)
            return
        now = time.monotonic()
        if now - self._last_line >= PLAIN_PROGRESS_INTERVAL_S or done == self._total:
            self._last_line = now
            per_step_s = (now - self._started) / max(done - self._first, 1)
            left = duration(per_step_s * (self._total - done))
            self._console.print(f"{self._description} {done}/{self._total} {detail} left {left}", markup=False)

    def advance(self, steps: int = 1, detail: str = "") -> None:
        """Moves on by `steps`."""
        self.update(self._done + steps, detail)

    def close(self) -> None:
        """Takes the bar down; safe to call twice."""
        if self._rich is not None:
            self._rich.stop()


@contextmanager
def progress(description: str, total: int, done: int = 0, *, quiet: bool = False) -> Iterator[ProgressBar]:
    """A `ProgressBar` that is taken down at the end, whatever happens."""
    bar = ProgressBar(description, total, done, quiet)
    try:
        yield bar
    finally:
        bar.close()


def duration(seconds: float) -> str:
    """12 -> '12 s', 200 -> '3 min 20 s', 7300 -> '2 h 2 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(num_bytes: float) -> str:
    """Bytes in decimal units, as disks and hubs count them: 14_000_000 -> '14.0 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
