"""Output is safe on a terminal whatever it contains, and a stream that fails is not a defect."""

import ast
import errno
import io
import json
import re
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from in_process import neuron_sum
from micro_models import ROOT
from rich.console import Group
from rich.table import Table
from rich.text import Text

from neuron_sum import console
from neuron_sum.cli import ORDER
from neuron_sum.errors import DataError, Interrupted
from neuron_sum.recipes import loading
from neuron_sum.runs.folder import RunFolder

HOSTILE = (
    "\x1b]0;title\x07\x1b[2J\x1b[31m\x9b31m\x9d0;x\x9c\x00\x08\r\x7f\u202e\u2066\u2069\u200b\u200e\u200d\ufeff\u2028\u2029"
    "\x85\xad\u061c\u180e\u2060\ufff9\ud800_\udfff\U000e0041[red]x[/red][link=http://example.com]y[/link][/] :smile:"
)
OWN = re.compile(r"\x1b\[[0-9;?]*[mhlAGK]")
"""The sequences with which rich colors text and redraws a progress bar."""


def unsafe(text: str) -> list[str]:
    return [
        c
        for c in text
        if c not in "\n\t\u200c\u200d\u00ad" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    ]


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def printed_by(show: Callable[[], None], stream: io.StringIO) -> str:
    with redirect_stdout(stream), redirect_stderr(stream):
        show()
    return stream.getvalue()


def a_table() -> Table:
    made = console.table(HOSTILE, HOSTILE, title=HOSTILE)
    made.add_row(HOSTILE, Text(HOSTILE))
    return made


def show_progress() -> None:
    with console.progress(HOSTILE, 2) as bar:
        bar.update(1, HOSTILE)
        bar.update(2, HOSTILE)


@pytest.mark.parametrize(
    "show",
    [
        lambda: console.emit({}, HOSTILE, Text(HOSTILE), a_table(), Group(HOSTILE, Text(HOSTILE))),
        lambda: console.note(HOSTILE),
        lambda: console.note_table(a_table()),
        lambda: console.warn(HOSTILE),
        lambda: console.fail(HOSTILE, HOSTILE, 3),
        show_progress,
    ],
    ids=["emit", "note", "note_table", "warn", "fail", "progress"],
)
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_no_text_controls_the_terminal(
    stream: type[io.StringIO], show: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "400")
    printed = OWN.sub("", printed_by(show, stream())).replace("\r\n", "\n").replace("\r", "")
    assert not unsafe(printed)
    flat = re.sub(r"\s", "", printed)
    for piece in (r"\x1b]0;title", r"\u009b31m", r"\x00", r"\u202e", r"\ud800", "[red]x[/red]", ":smile:"):
        assert piece in flat


@pytest.mark.parametrize(
    "text", ["Grüße, 你好 \U0001f600", "a\tb\nc", "1\xa0000", "नमस्ते", r"C:\x1b", "می\u200cخواهم क्\u200dष co\u00adop"]
)
def test_ordinary_text_is_not_changed(text: str) -> None:
    assert console.clean(text) == text


def test_a_printed_recipe_reads_back_equal(tmp_path: Path) -> None:
    description = r'"می\u200cخواهم \u202e\u200e co\u00adop \U0001f468\u200d\U0001f469"'
    (tmp_path / "a.yaml").write_text(f"extends: tiny\ndescription: {description}\n")
    shown = neuron_sum("recipes", "show", str(tmp_path / "a.yaml"))
    assert not unsafe(shown.stdout)
    (tmp_path / "b.yaml").write_text(shown.stdout)
    assert loading.load_recipe(str(tmp_path / "b.yaml")) == loading.load_recipe(str(tmp_path / "a.yaml"))


def test_every_control_character_is_escaped_once() -> None:
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x200B, 0x202E, 0xD800, 0xFEFF, 0xE0001):
        cleaned = console.clean(chr(code))
        assert chr(code) in "\n\t" or (cleaned.isascii() and cleaned.isprintable()), hex(code)
        assert console.clean(cleaned) == cleaned


@pytest.mark.parametrize("show", [lambda: console.emit({"x": HOSTILE}), lambda: console.fail(HOSTILE, None, 3)])
def test_json_escapes_what_a_terminal_would_act_on(show: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "settings", replace(console.settings, json=True))
    printed = printed_by(show, io.StringIO())
    assert not unsafe(printed)
    value: Any = json.loads(printed)
    assert (value["x"] if "x" in value else value["error"]["message"]) == HOSTILE


def test_json_has_no_numbers_that_json_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "settings", replace(console.settings, json=True))
    values = {"a": [float("nan"), (float("inf"), 1.5)], "b": {"c": -float("inf"), "d": True}}
    printed = printed_by(lambda: console.emit(values), io.StringIO())
    assert json.loads(printed, parse_constant=pytest.fail) == {"a": [None, [None, 1.5]], "b": {"c": None, "d": True}}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["\x1b]0;x\x07"], 2),
        (["recipes", "\x9b31m"], 2),
        (["recipes", "check", "a\x1b[2J\u202e"], 3),
        (["recipes", "check", "tiny", "\x1b[2J"], 3),
        (["recipes", "check", "tiny", "train.\x1b[2J=\u202e"], 3),
        (["recipes", "check", "tiny", "description=\x1b[2J"], 3),
        (["recipes", "check", "tiny", "--\x1b[2J"], 2),
        (["train", "tiny", "--processes", "\x1b[2J"], 2),
        (["explain", "\x1b[2J"], 4),
        (["evaluate", "\udc80"], 2),
        (["train", "tiny", "--output", "\udc80"], 2),
        (["train", "tiny", "--output", "a" * 300], 2),
        (["recipes", "check", "a" * 5000], 3),
        (["aws", "train", "tiny", "--max-usd", "nan"], 2),
        (["aws", "train", "tiny", "--max-hours", "inf"], 2),
        (["aws", "extend", "x", "--hours", "1e9", "--offline"], 2),
        (["request", "http://127.0.0.1:9", "x.txt", "--max-new-tokens", "9" * 400], 2),
    ],
)
def test_errors_that_repeat_the_input_are_clean(words: list[str], code: int) -> None:
    for json_option in ([], ["--json"]):
        made = neuron_sum(*words, *json_option)
        assert made.exit_code == code, made.output
        assert not unsafe(made.output)
        assert made.stderr.startswith('{"error"' if json_option else "error: ")
        assert len(made.stderr) < 7000


def test_suggested_commands_are_quoted() -> None:
    odd = "a b;$(touch x)'`"
    assert shlex.split(f"neuron-sum evaluate {console.quote(Path(odd))} --set x=1") == [
        *("neuron-sum", "evaluate", odd, "--set", "x=1")
    ]
    run = RunFolder(Path(odd), loading.load_recipe("tiny"))
    assert shlex.split(run.resume_command)[2:] == [f"{odd}/recipe.yaml", "--output", odd, "--resume"]


PLAIN = r"""
    (\w+\.)*(target_)?run\.id | needed | (next_)?command | target | stage | argument | suggestion | several | arn
    | ended | log\.(group|prefix) | job\.name | job\.kind\.log_group | option | [A-Z_.]+
    | registry\.ENDED | container | max_hours | offers | cached | package | extra | packages | pins | words\[0\]
    | platform\.neuron_sdk | account\.region | bucket | run\.resume_command | quote\(.*\) | console\.quote\(.*\)
    | shlex\.join\(.*\)
"""
"""Expressions that a shell reads as one word, because neuron-sum makes their values, and quoted expressions."""


def test_every_suggested_command_quotes_paths_and_names() -> None:
    unquoted = []
    suggestion = re.compile(rf"neuron-sum (?:{'|'.join(ORDER)})\b[^`\n]*?\0|`(?:rm|mkdir|git|aws) [^`]*?\0")
    for package in ("neuron_sum", "compile", "serving", "sagemaker_jobs"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    text = "".join(
                        part.value
                        if isinstance(part, ast.Constant)
                        else "x"
                        if re.fullmatch(PLAIN, ast.unparse(part.value), re.VERBOSE)  # type: ignore[attr-defined]
                        else "\0"
                        for part in node.values
                    )
                    if suggestion.search(text):
                        unquoted.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert not unquoted


STREAMS = {
    "ascii": ("PYTHONIOENCODING=ascii LC_ALL=C {} recipes show tiny 'description=ü \u202e'", 0),
    "ascii help": ("PYTHONIOENCODING=ascii {} --help", 0),
    "closed stdout": ("{} recipes list >&-", 0),
    "closed stderr": ("{} recipes check tinny 2>&-", 3),
    "closed stdin": ("{} summarize no-run - <&-", 8),
    "all closed": ("{} recipes check tinny <&- >&- 2>&-", 3),
    "broken pipe": ("{{ {}; echo $? >&2; }} 2>code | sleep 0; grep -qx 141 code", 0),
    "broken pipe, json": ("{{ {} --json; echo $? >&2; }} 2>code | sleep 0; grep -qx 141 code", 0),
    "full stdout": ("{} recipes schema > /dev/full", 6),
    "full stderr": ("{} recipes check tinny 2> /dev/full", 3),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_cannot_be_used_is_not_a_defect(name: str, tmp_path: Path) -> None:
    template, expected = STREAMS[name]
    program = f"{shlex.quote(sys.executable)} -m neuron_sum" + (" recipes schema" if "pipe" in name else "")
    made = subprocess.run(
        ["bash", "-c", template.format(program)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    code = tmp_path / "code"
    assert made.returncode == expected, made.stderr + (code.read_text() if code.exists() else "")
    assert "Traceback" not in made.stderr and "defect" not in made.stderr and "Exception ignored" not in made.stderr
    assert not code.exists() or code.read_text() == "141\n"


def wrapped(inner: BaseException) -> BaseException:
    """What a library raises after another exception."""
    try:
        raise inner
    except BaseException:  # noqa: BLE001
        try:
            raise RuntimeError("the library failed")
        except RuntimeError as outer:
            return outer


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 6, "the disk is full: /x"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 6, "the disk is full"),
        (wrapped(OSError(errno.ENOSPC, "No space left on device")), 6, "the disk is full"),
        (RuntimeError("[enforce fail at inline_container.cc:858] . file write failed"), 6, "the disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 6, "the disk is full"),
        (OSError(errno.EMFILE, "Too many open files", "/x"), 6, "/x: Too many open files"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "aa"), 6, "aa: File name too long"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 6, "/x: Permission denied"),
        (MemoryError(), 6, "the memory of this machine is not sufficient"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 6, "the memory of this machine is not sufficient"),
        (DataError("a row\x1b[2J", "mend it"), 4, r"a row\x1b[2J"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Interrupted("stopped at step 1 of 2", "run it again"), 130, "stopped at step 1 of 2"),
        (RecursionError("too deep"), 1, "RecursionError: too deep"),
        (ZeroDivisionError("a\nb"), 1, "ZeroDivisionError: a b"),
    ],
)
def test_only_defects_are_called_defects(
    raised: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise raised

    monkeypatch.setattr(loading, "load_recipe", load)
    made = neuron_sum("recipes", "check", "tiny")
    assert made.exit_code == code
    assert made.stderr.splitlines()[0] == f"error: {message}"
    assert ("this is a defect of neuron-sum" in made.stderr) == (code == 1)
    assert "Traceback" not in made.output
    assert code == 130 or "Traceback" in neuron_sum("recipes", "check", "tiny", "--debug").stderr


WRITERS = {
    "compile/receipt/cores.py",  # standard output is the pipe to the step that measures
    "compile/receipt/steps.py",  # standard error is the log of the step
    "serving/properties.py",  # standard output is evaluated by the image's entrypoint
    "neuron_sum/console.py",  # the terminal
    "compile/preflight/xla_process.py",  # standard output is the pipe to the parent process
    "serving/metrics.py",  # standard output is the pipe to DJL Serving
    "sagemaker_jobs/jobs/entry.py",  # runs without neuron-sum in a job's container, and writes to its log
}


def test_only_the_console_writes_to_the_terminal() -> None:
    found = set()
    for package in ("neuron_sum", "compile", "serving", "sagemaker_jobs"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and re.fullmatch(
                    r"print|pprint|(\w+\.)*(stdout|stderr)(\.buffer)?\.write|(typer|click)\.(echo|secho|prompt|confirm)"
                    r"|rich\.print|(\w+\.)*Console|(rich\.progress\.)?track|traceback\.print_\w+|input|os\.write",
                    ast.unparse(node.func),
                ):
                    found.add(path.relative_to(ROOT).as_posix())
    assert found == WRITERS
