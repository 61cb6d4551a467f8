"""The `neuron-sum` application, built from the entry points neuron_sum.commands; commands are next to their stages.

A command is imported when it is used. Neither this module nor the modules of the commands import anything heavy, so
that --help, which describes all commands, responds immediately.
"""

import functools
import inspect
import os
import signal
import sys
import traceback
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperGroup

from neuron_sum import __version__, console
from neuron_sum.command_group import CommandGroup
from neuron_sum.errors import Interrupted, PlatformError, known_cause, redacted
from neuron_sum.platform import threads

COMMAND_GROUP = "neuron_sum.commands"
ORDER = (
    "demo",
    "doctor",
    "recipes",
    "data",
    "train",
    "evaluate",
    "compare",
    "rate",
    "summarize",
    "results",
    "merge",
    "preflight",
    "compile",
    "receipt",
    "package",
    "serve",
    "request",
    "dockerfile",
    "aws",
    "watch",
    "explain",
)
"""The commands in pipeline order; commands of other packages follow, sorted by name."""

LARGEST = 10**12
"""The largest number of an option; nan and inf would pass or break the checks of commands."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")]


class Commands(UserDict[str, Any]):
    """Commands of click by name, in the order of `--help`: functions that load them once."""

    def __init__(self, points: Iterable[EntryPoint]) -> None:
        super().__init__((point.name, functools.cache(functools.partial(_load, point))) for point in points)

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name)()


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are used."""

    default: str | None = None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Inserts the default command if the first argument is not the name of another one."""
        if self.default is not None and args and args[0] not in (*self.commands, "--help"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)


class PipelineGroup(TyperGroup):
    """The group of all commands, in the order of `ORDER`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        points = sorted(entry_points(group=COMMAND_GROUP), key=lambda point: point.name)
        points.sort(key=lambda point: ORDER.index(point.name) if point.name in ORDER else len(ORDER))
        self.commands = Commands(points)

    def main(self, args: Sequence[str] | None = None, *arguments: Any, **options: Any) -> Any:
        """Runs a command line and exits with its code; usage errors are printed as all other errors."""
        words = list(sys.argv[1:] if args is None else args)
        console.settings.json = "--json" in words

        def run() -> Any:
            for word in words:
                if not word.isascii() and any("\ud800" <= character <= "\udfff" for character in word):
                    raise typer.BadParameter(f"{word!r} is not valid UTF-8; rename the file or change the value")
            return super(PipelineGroup, self).main(words, *arguments, **{**options, "standalone_mode": False})

        sys.exit(_guarded(run))


def main() -> None:
    """The console script."""
    before = threads.usage()
    console.prepare()
    console.silence_libraries()

    def run() -> None:
        application = build()
        threads.choose(os.environ, before, serves=sys.argv[1:2] == ["serve"])
        application()

    code: object = None
    try:
        code = _guarded(run)
    except SystemExit as end:
        code = end.code
        raise
    finally:
        # The interpreter ends now, and may wait for threads. KeyboardInterrupt would be printed as a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:  # as one of several training processes leaves it
            is_stopped = code == Interrupted.exit_code
            signal.signal(signal.SIGTERM, signal.SIG_DFL if is_stopped else _ignore_once)
    sys.exit(code)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    """Keeps the exit code of a command that has ended; another signal ends the process at once."""
    signal.signal(number, signal.SIG_DFL)


def build() -> typer.Typer:
    """The application with every installed command."""
    app = typer.Typer(
        cls=PipelineGroup,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="From a recipe to a compared, compiled and served dialogue-summarization model.",
    )
    app.callback()(_root)
    return app


def _load(point: EntryPoint) -> Any:
    """The command, or group of commands, of an entry point."""
    loaded = point.load()
    if isinstance(loaded, CommandGroup):
        group = LazyGroup(name=point.name, help=loaded.help, no_args_is_help=True)
        group.default = loaded.default
        group.commands = Commands(EntryPoint(name, value, point.group) for name, value in loaded.commands.items())
        return group
    if not inspect.isfunction(loaded):
        distribution = f" or uninstall {point.dist.name}" if point.dist else ""
        raise PlatformError(
            f"the command {point.name} is neither a function nor a CommandGroup: {point.value}",
            f"correct the entry point{distribution}",
        )
    app = typer.Typer(add_completion=False)
    app.command(name=point.name)(_command(loaded))
    return typer.main.get_command(app)


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Adds --json and --debug to a function, and turns its errors into one line and an exit code."""

    @functools.wraps(function)
    def command(*args: Any, json: bool, debug: bool, **options: Any) -> None:
        console.settings.json, console.settings.debug = json, debug
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up after a scheduler's stop as after Ctrl-C

        def run() -> None:
            for name, value in options.items():
                if isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:  # not true of nan
                    shown = f"{value!s:.30}"
                    raise typer.BadParameter(
                        f"{shown} is not a usable number", param_hint=f"--{name.replace('_', '-')}"
                    )
            for path in _paths(options.values()):
                try:
                    path.lstat()
                except (FileNotFoundError, NotADirectoryError, PermissionError):
                    pass  # the command reports these itself, or creates the path
                except (OSError, ValueError) as error:
                    reason = error.strerror if isinstance(error, OSError) else error
                    raise typer.BadParameter(f"{str(path)[:100]!r} is not usable as a path: {reason}") from error
            function(*args, **options)

        if code := _guarded(run):
            raise typer.Exit(code)

    signature = inspect.signature(function, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("json", JsonOption), ("debug", DebugOption))
    ]
    command.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    command.__annotations__ = {**function.__annotations__, "json": JsonOption, "debug": DebugOption}
    return command


def _paths(values: Iterable[Any]) -> Iterator[Path]:
    for value in values:
        if isinstance(value, Path):
            yield value
        elif isinstance(value, list | tuple):
            yield from _paths(value)


def _guarded(run: Callable[[], Any]) -> int:
    """Runs a command and returns its exit code; prints what it raises, without a traceback unless --debug is set."""
    try:
        code = run()
        console.finish()
        return code if isinstance(code, int) else 0
    except (typer.Exit, SystemExit):
        raise
    except (KeyboardInterrupt, typer.Abort) as error:
        stop = error if isinstance(error, Interrupted) else Interrupted("interrupted")
        console.fail(stop.message, stop.hint, stop.exit_code)
        return stop.exit_code
    except BaseException as error:  # noqa: BLE001 - the last boundary
        if console.settings.debug:
            console.note(redacted(traceback.format_exc()))
        return _report(error)


def _report(error: BaseException) -> int:
    """Prints an exception as one line and a hint."""
    if hasattr(error, "format_message"):  # an error of the command line's syntax, whose class typer does not export
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "neuron-sum"
        if text := " ".join(str(error.format_message()).split()):  # empty if the help was printed instead
            console.fail(text[:1000], f"run `{path} --help`", 2)
        return 2
    if known := known_cause(error):
        console.fail(known.message, known.hint, known.exit_code)
        return known.exit_code
    message = " ".join(str(error).split())
    hint = "this is a defect of neuron-sum; use --debug and report the traceback"
    console.fail(f"{type(error).__name__}: {message:.300}", hint, 1)
    return 1


def _print_version(requested: bool) -> None:
    if requested:
        console.emit({"version": __version__}, f"neuron-sum {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
