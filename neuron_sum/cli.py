"""The `neuron-sum` application, built from the entry points neuron_sum.commands; commands are next to their stages.

Neither this module nor the modules of the commands import anything heavy, so that --help responds immediately.
"""

import functools
import inspect
import os
import signal
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from types import TracebackType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from neuron_sum import __version__, console
from neuron_sum.errors import FULL_DISK, NeuronSumError, ResourceError

COMMAND_GROUP = "neuron_sum.commands"
ORDER = (
    "demo",
    "doctor",
    "recipes",
    "data",
    "train",
    "evaluate",
    "compare",
    "summarize",
    "merge",
    "preflight",
    "compile",
    "package",
    "serve",
    "request",
    "dockerfile",
    "aws",
    "explain",
)
"""The commands in pipeline order; commands of other packages follow, sorted by name."""

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "true"}
"""Defaults that silence libraries, because neuron-sum prints the same itself; variables that are set take priority."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")]


class PipelineGroup(TyperGroup):
    """A command group listed in the order of `ORDER`; typer by default lists all groups after all plain commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands, in the order of `--help`."""
        return sorted(self.commands, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def main() -> None:
    """The console script."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    build()()


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
    for point in entry_points(group=COMMAND_GROUP):
        _add(app, point)
    return app


def _add(app: typer.Typer, point: EntryPoint) -> None:
    loaded = point.load()
    if isinstance(loaded, typer.Typer):
        for info in loaded.registered_commands:
            if info.callback is not None:
                info.callback = _command(info.callback)
        app.add_typer(loaded, name=point.name)
    else:
        app.command(name=point.name)(_command(loaded))


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Adds --json and --debug to a function, and turns its errors into one line and an exit code."""

    @functools.wraps(function)
    def command(*args: Any, json: bool, debug: bool, **options: Any) -> None:
        console.settings.json, console.settings.debug = json, debug
        sys.excepthook = _report_defect  # set here because typer sets its own when it is called
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up after a scheduler's stop as after Ctrl-C
        try:
            function(*args, **options)
        except NeuronSumError as error:
            if debug:
                traceback.print_exc()
            console.fail(error.message, error.hint, error.exit_code)
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            console.fail(
                f"the disk is full: {error.filename or error.strerror}", "free some space", ResourceError.exit_code
            )
            raise typer.Exit(ResourceError.exit_code) from error
        except KeyboardInterrupt:
            console.fail("interrupted", None, 130)
            raise typer.Exit(130) from None

    signature = inspect.signature(function, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("json", JsonOption), ("debug", DebugOption))
    ]
    command.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    command.__annotations__ = {**function.__annotations__, "json": JsonOption, "debug": DebugOption}
    return command


def _report_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Reports an unexpected exception as a defect: one line and exit code 1; with --debug, the traceback."""
    if console.settings.debug or isinstance(error, NeuronSumError):
        sys.__excepthook__(kind, error, trace)
        return
    message = " ".join(str(error).split())
    hint = "this is a defect of neuron-sum; use --debug and report the traceback"
    console.fail(f"{kind.__name__}: {message:.300}", hint, 1)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"neuron-sum {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
