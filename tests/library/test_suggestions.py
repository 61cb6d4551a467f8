"""Commands that messages suggest: built in one place, with the options that make them refer to the same thing."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from in_process import neuron_sum

from neuron_sum.cli import build
from neuron_sum.console import command

ROOT = Path(__file__).parents[2]
NAMES = "|".join(typer.main.get_command(build()).commands)  # type: ignore[attr-defined]
BEFORE_A_VALUE = re.compile(rf"neuron-sum ({NAMES})( [\w-]+)* $")
SUGGESTED = re.compile(r"\b([Rr]un|next:) `?neuron-sum aws\b")


def texts(package: str) -> Iterator[tuple[str, str, bool]]:
    """The file, the content, and whether a value follows, of every text in the code of a package."""
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented)}
        where = str(path.relative_to(ROOT))
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                for part, following in zip(node.values, [*node.values[1:], None], strict=True):
                    if isinstance(part, ast.Constant):
                        yield where, str(part.value), isinstance(following, ast.FormattedValue)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docstrings:
                yield where, node.value, False


def test_a_command_is_built_from_words_and_options() -> None:
    words = ("train", Path("a b.yaml"), "train.report_to=[]")
    built = command(*words, output=None, resume=True, force=False, max_hours=0.5, set=["a=1", "b=2 3"], processes=2)
    assert built == (
        "neuron-sum train 'a b.yaml' 'train.report_to=[]' --resume --max-hours 0.5 --set a=1 --set 'b=2 3' "
        "--processes 2"
    )

    assert command("train", max_usd=12345.67, min_improvement=2.0) == (
        "neuron-sum train --max-usd 12345.67 --min-improvement 2"
    )


@pytest.mark.parametrize("package", ["neuron_sum", "compile", "serving", "sagemaker_jobs"])
def test_values_get_into_commands_only_by_the_builder(package: str) -> None:
    found = [(where, text) for where, text, has_value in texts(package) if has_value and BEFORE_A_VALUE.search(text)]
    assert not found


def test_commands_of_aws_are_suggested_only_by_the_builder_which_adds_the_region() -> None:
    assert not [(where, text) for where, text, _ in texts("sagemaker_jobs") if SUGGESTED.search(text)]


def next_of(*words: str, code: int = 0) -> list[str]:
    """The words of the command that another one suggests, after neuron-sum."""
    made = neuron_sum(*words)
    assert made.exit_code == code, made.output
    text = made.stdout if code == 0 else made.stderr
    found = re.findall(r"(?:next: |`)(neuron-sum [^`\n]*)", text)
    return shlex.split(found[-1])[1:]


CHANGES = ("train.max_steps=7", "--set", "data.max_examples=9")
CHANGED = ["train.max_steps=7", "data.max_examples=9"]


def test_the_plan_suggests_the_training_that_it_priced() -> None:
    options = ("--instance", "ml.trn1.32xlarge", "--instances", "2", "--max-hours", "0.5", "--max-usd", "500")
    words = next_of("aws", "plan", "tiny", *CHANGES, *options, "--region", "us-east-1", "--offline")
    assert words == ["aws", "train", "tiny", *CHANGED, *options, "--region", "us-east-1"]
    assert neuron_sum(*words, "--dry-run", "--offline", "train.report_to=[]").exit_code == 0


def test_the_plan_suggests_the_preflight_of_its_recipe(tmp_path: Path) -> None:
    report = tmp_path / "preflight.json"
    made = neuron_sum("aws", "plan", "tiny", *CHANGES, "--projection", str(report), "--offline")
    assert made.exit_code == 14
    assert f"neuron-sum preflight tiny {' '.join(CHANGED)} --json > {report}" in " ".join(made.stderr.split())


@pytest.mark.parametrize("refused", [["train.report_to=[mlflow]"], ["train.backend=neuron", "train.shapes.plan=fixed"]])
def test_a_refused_rehearsal_suggests_one_with_the_same_changes(refused: list[str], wheels: Path) -> None:
    options = ("--instance", "ml.c5.xlarge", "--wheelhouse", str(wheels), "--dry-run")
    words = next_of("aws", "rehearse", "tiny", *CHANGES, *refused, *options, code=14)
    assert words[:3] == ["aws", "rehearse", "tiny"] and set(CHANGED) < set(words) and set(options) < set(words)
    assert neuron_sum(*words).exit_code == 0
