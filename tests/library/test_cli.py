"""The command line from a user's view: wrong commands, exit codes, output, and the commands of the docs."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest
from docs_commands import commands_of
from in_process import neuron_sum as in_process
from micro_models import ROOT

from neuron_sum import console, errors
from neuron_sum.recipes.loading import load_recipe, shipped_recipes

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize(("words", "code"), [(["recipes", "list"], 0), (["explain", "nothing"], 4)])
def test_a_stop_while_the_interpreter_ends_keeps_the_exit_code(words: list[str], code: int) -> None:
    """Once a training process has failed, its launcher sends SIGTERM to the others, some of which are ending too."""
    stop = "import atexit, signal; atexit.register(signal.raise_signal, signal.SIGTERM)"
    run = f"{stop}; import sys; sys.argv[1:] = {words}; from neuron_sum.cli import main; main()"
    made = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, cwd=ROOT, check=False)
    assert made.returncode == code, made.stderr
    assert "KeyboardInterrupt" not in made.stderr


WAITING = """
import os, signal, sys, threading, time
import neuron_sum.recipes.loading as loading
from neuron_sum.cli import main

def send(number):
    while threading.main_thread().is_alive():  # until the interpreter waits for this thread
        time.sleep(0.01)
    for remaining in reversed(range({count})):
        os.kill(os.getpid(), number)
        while remaining and signal.getsignal(number) is not signal.SIG_DFL:
            time.sleep(0.01)
    time.sleep(60)

def stop(name):
    signal.raise_signal({first})

if {first}:
    loading.load_recipe = stop
threading.Thread(target=send, args=({number},)).start()
sys.argv[1:] = ["recipes", "list"]
main()
"""


@pytest.mark.parametrize(
    ("first", "number", "count"),
    [
        (0, signal.SIGTERM, 2),
        (signal.SIGTERM, signal.SIGTERM, 1),
        (signal.SIGTERM, signal.SIGINT, 1),
        (signal.SIGINT, signal.SIGTERM, 1),
        (signal.SIGINT, signal.SIGINT, 1),
    ],
)
def test_a_second_signal_ends_a_command_that_waits_for_threads(first: int, number: int, count: int) -> None:
    """A shell reports the end by a signal as 128 and its number: 143 and 130."""
    code = WAITING.format(first=int(first), number=int(number), count=count)
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False, timeout=50
    )
    assert made.returncode == -number, made.stderr
    assert "Traceback" not in made.stderr
    assert ("error: interrupted" in made.stderr) == bool(first)


@pytest.mark.new_interpreter
def test_no_command_and_a_wrong_command(neuron_sum: CommandLine) -> None:
    nothing = neuron_sum()
    assert "train" in nothing.stdout + nothing.stderr
    assert neuron_sum("--version").stdout.strip() == f"neuron-sum {version('neuron-sum')}"
    assert neuron_sum("trian").returncode == 2
    assert neuron_sum("train").returncode == 2


def test_every_error_class_has_a_distinct_exit_code() -> None:
    bases = (errors.NeuronSumError, errors.Interrupted)
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, bases)]
    codes = {kind.__name__: kind.exit_code for kind in kinds}
    assert len(set(codes.values())) == len(codes)
    assert codes == {
        "NeuronSumError": 1,
        "RecipeError": 3,
        "DataError": 4,
        "ModelError": 5,
        "ResourceError": 6,
        "MissingExtraError": 7,
        "RunError": 8,
        "ArtifactError": 9,
        "CompileError": 10,
        "ServerError": 11,
        "RequestError": 12,
        "PlatformError": 13,
        "AwsError": 14,
        "DivergedError": 15,
        "ScoreError": 16,
        "DriftError": 17,
        "Interrupted": 130,
    }
    for name, code in codes.items():
        assert re.search(rf"{name}\s+{code}\n?", errors.__doc__ or ""), f"{name} is not drawn"


@pytest.mark.new_interpreter
def test_errors_are_one_line_and_a_hint_or_json(neuron_sum: CommandLine) -> None:
    plain = neuron_sum("train", "tinny")
    assert plain.returncode == 3
    assert plain.stdout == ""
    assert plain.stderr.splitlines()[0].startswith("error: recipe 'tinny' not found")
    assert plain.stderr.splitlines()[1] == "hint: use tiny, the most similar name"
    machine = neuron_sum("train", "tinny", "--json")
    assert json.loads(machine.stderr)["error"]["exit_code"] == 3
    trace = neuron_sum("train", "tinny", "--debug")
    assert "Traceback" in trace.stderr


@pytest.mark.parametrize("debug", [False, True])
def test_an_unexpected_exception_is_one_line_without_debug(debug: bool) -> None:
    code = (
        "import sys\n"
        "from neuron_sum import cli\n"
        "from neuron_sum.recipes import loading as recipe_loading\n"
        "recipe_loading.load_recipe = None  # what nobody foresaw\n"
        f"sys.argv = ['neuron-sum', 'recipes', 'check', 'tiny'{', ' + repr('--debug') if debug else ''}]\n"
        "cli.main()\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert made.returncode == 1
    assert ("Traceback" in made.stderr) == debug
    if not debug:
        assert made.stderr.startswith(
            "error: TypeError: 'NoneType' object is not callable\nhint: this is a defect of neuron-sum"
        )


def test_output_without_a_terminal_is_plain(neuron_sum: CommandLine, micro: Path) -> None:
    made = neuron_sum("train", str(micro), "--output", "run")
    assert made.returncode == 0, made.stderr
    assert "\x1b" not in made.stdout + made.stderr
    assert re.search(r"^training 12/12 loss \d", made.stderr, re.MULTILINE)
    assert made.stdout.splitlines()[-1] == "next: neuron-sum evaluate run"


def test_json_is_one_document_on_standard_output(neuron_sum: CommandLine, micro: Path) -> None:
    made = neuron_sum("train", str(micro), "--output", "run", "--json")
    result = json.loads(made.stdout)
    assert result["run"] == "run"
    assert result["method"] == "full"
    again = neuron_sum("train", str(micro), "--output", "run", "--json")
    assert again.returncode == 8
    assert again.stdout == ""


def test_a_wrong_entry_point_of_another_package_is_named(tmp_path: Path) -> None:
    package = tmp_path / "plug-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[neuron_sum.commands]\ntools = typer:Typer\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "neuron_sum", "tools"]
    made = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert made.returncode == 13
    assert "tools is neither a function nor a CommandGroup: typer:Typer" in made.stderr
    assert "uninstall plug" in made.stderr


def test_entry_points_of_the_backport_are_commands() -> None:
    """MLflow imports importlib_metadata, whose classes `importlib.metadata.entry_points` then returns."""
    pytest.importorskip("importlib_metadata")
    assert in_process("recipes", "list").exit_code == 0


def test_recipe_commands(neuron_sum: CommandLine) -> None:
    assert set(json.loads(neuron_sum("recipes", "list", "--json").stdout)) == set(shipped_recipes())
    shown = neuron_sum("recipes", "show", "tiny-lora", "train.max_steps=5")
    assert "max_steps: 5" in shown.stdout
    assert "target_modules" in shown.stdout
    checked = neuron_sum("recipes", "check", "tiny", "train.max_steps=5", "--set", "train.report_to=[mlflow]")
    assert checked.stdout.endswith("\nnext: neuron-sum train tiny train.max_steps=5 'train.report_to=[mlflow]'\n")
    assert neuron_sum("recipes", "check", "tiny", "train.max_steps=0").returncode == 3
    assert json.loads(neuron_sum("recipes", "schema").stdout)["title"] == "Recipe"


def test_data_prints_the_splits_of_a_recipe(neuron_sum: CommandLine, tmp_path: Path) -> None:
    shown = neuron_sum("data", "tiny")
    assert shown.returncode == 0, shown.stderr
    assert "licence of the data: Apache-2.0" in shown.stdout
    assert "summarize: #Person" in shown.stdout
    (tmp_path / "train.jsonl").write_text('{"dialogue": "a", "summary": "b"}\n{"dialogue": "c"}\n')
    own = ("data", "tiny", "data.source=jsonl", "data.path=.")
    assert neuron_sum(*own).returncode == 4
    skipped = neuron_sum(*own, "--skip-bad", "--json")
    assert json.loads(skipped.stdout)["skipped"] == {"missing column": 1}
    unreachable = neuron_sum(*own, "prompt.preset=chat", "model.name_or_path=./none", "--skip-bad")
    assert "shapes: not counted: " in unreachable.stdout
    assert "first dialogue (train_1), without prompt:\na\n\nb\n" in unreachable.stdout
    command = "neuron-sum train tiny data.source=jsonl data.path=. prompt.preset=chat model.name_or_path=./none"
    assert unreachable.stdout.endswith(f"\nnext: {command} data.skip_bad=true\n")


def test_a_recipe_is_enough_to_train_and_evaluate_mts_dialog(
    neuron_sum: CommandLine, tmp_path: Path, shared_data: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nextends: mts-dialog\n"
        f"data: {{path: {shared_data / 'mts-dialog'}, max_examples: 200, "
        "max_validation_examples: 20, max_test_examples: 20}\n"
        "model:\n  name_or_path: null\n  tokenizer: {vocab_size: 1500}\n"
        "  config: {model_type: t5, d_model: 32, d_kv: 8, d_ff: 32, num_layers: 1, num_heads: 2}\n"
        "method: full\ntrain: {max_steps: 5, logging_steps: 1}\ngenerate: {max_new_tokens: 10}\n"
    )
    trained = neuron_sum("train", "mine.yaml")
    assert trained.returncode == 0, trained.stderr
    assert "skipped: 2 rows: overlap between splits" in trained.stderr
    assert "licence of the data: CC BY 4.0" in trained.stderr
    evaluated = neuron_sum("evaluate", "runs/mine", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["systems"][0]["examples"] == 20


def test_durations_and_sizes_are_readable() -> None:
    assert [console.duration(seconds) for seconds in (12.4, 200, 7300)] == ["12 s", "3 min 20 s", "2 h 1 min"]
    assert [console.size(count) for count in (999, 14_000_000, 990_000_000, 2.5e12)] == [
        "999 B",
        "14.0 MB",
        "990.0 MB",
        "2.5 TB",
    ]


@cache
def help_of(*words: str) -> str:
    shown = in_process(*words, "--help")
    assert shown.exit_code == 0, words
    return shown.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_on_every_page_exist(page: Path) -> None:
    """Each names an existing command and existing options."""
    for command in commands_of(page) + commands_of(page, "sh"):
        words = [word for word in shlex.split(command)[1:] if word not in ("<", "|")]
        # The --help of a group lists its commands; `compile RUN` is short for `compile run RUN`.
        grouped = words[0] in ("recipes", "aws") or words[:2] in (["compile", "verify"], ["compile", "report"])
        group = words[:2] if grouped else words[:1]
        group += ["run"] if group == ["compile"] else []
        if words[0] == "--version":
            continue
        shown = help_of(*group)
        for option in (word for word in words if word.startswith("--")):
            assert option.split("=")[0] in shown, f"{command}: no {option}"


def test_the_recipes_in_the_docs_are_valid(tmp_path: Path) -> None:
    found = 0
    for page in PAGES:
        for block in re.findall(r"```yaml\n(name: support-chats.*?)```", page.read_text(), re.DOTALL):
            (tmp_path / "recipe.yaml").write_text(block)
            recipe = load_recipe(str(tmp_path / "recipe.yaml"))
            assert recipe.prompt.template is not None
            assert recipe.data.license == "internal"
            found += 1
    assert found >= 2
