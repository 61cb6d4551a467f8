"""Output of the commands: results on standard output, everything else on standard error.

On a terminal, the output has rich tables and a live progress
bar; otherwise, plain lines and an occasional progress line. With `--json`, standard output is exactly one document.

Only this module writes to the terminal. Text that comes from files, models, servers or options is printed without its
control characters, and never interpreted as rich markup.
"""

import io
import os
import shlex
import sys
import time
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from neuron_sum import files

PLAIN_PROGRESS_INTERVAL_S = 10.0
PLAIN_WIDTH = 120
MAX_ERROR_LINES, MAX_ERROR_LINE = 100, 4000
"""The lines of an error, and the characters of each, that are printed: a value in it can have any length."""
ERRORS = "NEURON_SUM_ERRORS"
"""The environment variable with the folder of `collect_errors`."""
CLOSED_PIPE = 141
"""The exit code if the reader of standard output closes it: that of a program that SIGPIPE stops."""
UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories that control or deceive a terminal: controls, formats (bidi, zero width), surrogates, lines."""

LIBRARIES = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Variables that silence libraries, because neuron-sum prints the same itself, and disable reports of their usage."""
JOINERS = "\u200c\u200d\u00ad"
"""Format characters of ordinary text: Persian and Hindi words and emoji contain joiners, other texts soft hyphens."""


@dataclass
class Settings:
    """Output settings of this process, from the options that every command has.

    Attributes:
        json: Whether results are JSON.
        debug: Whether errors have a traceback.
    """

    json: bool = False
    debug: bool = False


settings = Settings()
hidden: ContextVar[bool] = ContextVar("hidden", default=False)
"""Whether messages and progress are hidden, in this thread; warnings are then Python warnings."""
_collected: ContextVar[list[Mapping[str, Any]] | None] = ContextVar("collected", default=None)
"""The results that `emit` does not print, in this thread; None: it prints them."""


def is_main_process() -> bool:
    """Whether this process prints output: it is the only one, or rank 0 under torchrun."""
    return os.environ.get("RANK", "0") == "0"


def silence_libraries() -> None:
    """Sets LIBRARIES, before the libraries are imported, unless they are set; ignores a warning of tqdm."""
    for name, value in LIBRARIES.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", "IProgress not found")  # tqdm in a notebook without ipywidgets


def clean(text: str) -> str:
    r"""Replaces characters that control or deceive a terminal by escapes, such as \x1b; keeps newlines and tabs."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character in "\n\t" or character in JOINERS or unicodedata.category(character) not in UNSAFE
        else _escape(ord(character))
        for character in text
    )


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def quote(word: object) -> str:
    """A path or name in a command to suggest, so that a shell reads it as one word."""
    return shlex.quote(str(word))


def command(*words: object, **options: object) -> str:
    """A command of neuron-sum to suggest, so that a shell reads it as these words.

    Args:
        *words: The words after neuron-sum.
        **options: The values of options by their names in Python; None and False omit an option, a list repeats it.
    """
    parts = ["neuron-sum", *map(quote, words)]
    for name, value in options.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is None or each is False:
                continue
            parts.append(f"--{name.replace('_', '-')}")
            if each is not True:
                parts.append(quote(repr(each).removesuffix(".0") if isinstance(each, float) else each))
    return " ".join(parts)


class _SafeConsole(Console):
    """A console that cleans all text, does not read it as markup, and escapes what the stream cannot encode."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(self._clean(text), **{**options, "markup": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=self._clean(segment.text))

    def _clean(self, text: str) -> str:
        return clean(text).encode(self.encoding, "backslashreplace").decode(self.encoding)

    def on_broken_pipe(self) -> None:
        discard(sys.stderr if self.stderr else sys.stdout)
        if not self.stderr:
            raise SystemExit(CLOSED_PIPE)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    notebook = type(stream).__module__.startswith("ipykernel")  # isatty() is true, but nothing is redrawn in place
    terminal = stream is not None and stream.isatty() and not notebook
    return _SafeConsole(
        stderr=stderr,
        width=None if terminal else PLAIN_WIDTH,
        highlight=False,
        emoji=False,
        soft_wrap=not terminal,
        quiet=not is_main_process() or (stderr and hidden.get()),
        force_terminal=False if notebook else None,
        force_jupyter=False,
    )


def as_text(renderable: RenderableType) -> str:
    """What `emit` prints to a file, as text."""
    stream = io.StringIO()
    plain = _SafeConsole(
        file=stream,
        width=PLAIN_WIDTH,
        highlight=False,
        emoji=False,
        soft_wrap=True,
        force_terminal=False,  # whatever FORCE_COLOR says, which notebooks set
        color_system=None,
        force_jupyter=False,
    )
    plain.print(renderable)
    return stream.getvalue().rstrip("\n")


def prepare() -> None:
    """Replaces closed standard streams by the null device, and makes the others print what they cannot encode.

    A closed standard input stays None; only its number is taken, so that no other file gets it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if sys.stdin is None and number == 0:
            os.open(os.devnull, os.O_RDONLY)
        elif getattr(sys, name) is None:
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)
        elif number and hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def discard(stream: Any) -> None:
    """Drops the rest of the output to a stream that cannot be written to."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def finish() -> None:
    """Writes what the standard streams still buffer."""
    with _stderr_errors():
        sys.stderr.flush()
    with _stdout_errors():
        sys.stdout.flush()


@contextmanager
def _stdout_errors() -> Iterator[None]:
    """Ends the command if standard output cannot be written."""
    try:
        yield
    except OSError as error:
        discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise SystemExit(CLOSED_PIPE) from None
        error.filename = error.filename or "standard output"
        raise


@contextmanager
def _stderr_errors() -> Iterator[None]:
    """Goes on without messages if standard error cannot be written."""
    try:
        yield
    except OSError:
        discard(sys.stderr)


def emit(result: Mapping[str, Any], *renderables: RenderableType) -> None:
    """Prints a command's result: with --json, `result` as JSON, otherwise `renderables`."""
    if not is_main_process():
        return
    if (collected := _collected.get()) is not None:
        collected.append(result)
        return
    with _stdout_errors():
        if settings.json:
            print(_as_json(result, indent=2))
            return
        console = _console(stderr=False)
        for renderable in renderables:
            console.print(renderable)


@contextmanager
def collect_results() -> Iterator[list[Mapping[str, Any]]]:
    """Collects the results of the commands that are called in the block instead of printing them."""
    results: list[Mapping[str, Any]] = []
    token = _collected.set(results)
    try:
        yield results
    finally:
        _collected.reset(token)


def emit_part(text: str) -> None:
    """Prints a part of a result at once; `emit` prints the end of its line."""
    with _stdout_errors():
        _console(stderr=False).print(text, end="", soft_wrap=True)
        sys.stdout.flush()


def note(text: str) -> None:
    """Prints a progress message, which is never part of the result."""
    _to_stderr(text)


def note_table(content: Table) -> None:
    """Prints a table of planned steps, which is never part of the result."""
    _to_stderr(content)


def warn(text: str) -> None:
    """Prints a warning, or issues a Python warning if messages are hidden."""
    if hidden.get() and is_main_process():
        # Without a registry, Python does not hide a warning that it has shown before.
        warnings.warn_explicit(clean(text), UserWarning, __file__, 1)
    _to_stderr(f"warning: {text}", "yellow")


def _to_stderr(content: RenderableType, style: str | None = None) -> None:
    with _stderr_errors():
        _console(stderr=True).print(content, style=style)


def _as_json(value: Any, indent: int | None = None) -> str:
    """JSON in ASCII, in which every control character is escaped."""
    return files.to_json(value, indent=indent, ascii_only=True).replace("\x7f", "\\u007f")


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
    message, hint = _shorten(message), hint and _shorten(hint)
    if folder := os.environ.get(ERRORS):
        error = {"message": message, "hint": hint, "exit_code": exit_code}
        files.write_json(Path(folder) / f"{os.environ['RANK']}.json", error)
        return
    if settings.json:
        with _stderr_errors():
            print(_as_json({"error": {"message": message, "hint": hint, "exit_code": exit_code}}), file=sys.stderr)
        return
    _to_stderr(f"error: {message}", "red")
    if hint:
        _to_stderr(f"hint: {hint}")


def _shorten(text: str) -> str:
    lines = [f"{line[:MAX_ERROR_LINE]}…" if len(line) > MAX_ERROR_LINE else line for line in text.split("\n")]
    return "\n".join(lines if len(lines) <= MAX_ERROR_LINES else [*lines[:MAX_ERROR_LINES], "…"])


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
        self._description, self._total, self._done, self._first = clean(description), total, done, done
        self._started = self._last_line = time.monotonic()
        self._console = _console(stderr=True)
        self._console.quiet |= quiet
        self._rich: Progress | None = None
        if self._console.is_terminal and not self._console.quiet:
            self._rich = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._rich.add_task(self._description, total=total, completed=done, detail="")
            self._rich.start()

    def update(self, done: int, detail: str = "") -> None:
        """Sets the number of completed steps, and shows `detail` (a loss, a rate) next to it."""
        self._done = done
        if self._rich is not None:
            self._rich.update(self._task, completed=done, detail=clean(detail))
            return
        now = time.monotonic()
        if now - self._last_line >= PLAIN_PROGRESS_INTERVAL_S or done == self._total:
            self._last_line = now
            per_step_s = (now - self._started) / max(done - self._first, 1)
            remaining = duration(per_step_s * (self._total - done))
            if not self._console.quiet:
                _to_stderr(f"{self._description} {done}/{self._total} {detail} left {remaining}")

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
