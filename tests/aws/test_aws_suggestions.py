"""Suggested commands of `neuron-sum aws` refer to the same region: they work in a shell without one."""

import re
import shlex
from pathlib import Path

import pytest
from aws_faults import hasten
from aws_inputs import RUN, add_images, compiled
from aws_script import REGION
from aws_server import AwsServer
from in_process import neuron_sum

from sagemaker_jobs.commands.group import aws as group

WAIT = ("--every", "0.01")
NAMES = set(group.commands)


@pytest.fixture
def aws(aws: AwsServer, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """conftest's account with images, in an environment without a region."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(wheels.parent)
    add_images(aws)
    aws.script.looks = 1
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    return aws


def suggestions(text: str) -> list[list[str]]:
    """The commands of `neuron-sum aws` in an output, without neuron-sum."""
    return [shlex.split(each)[1:] for each in re.findall(r"neuron-sum aws (?=[a-z])[^`;,\n]*", text)]


def run(*words: str, code: int = 0) -> list[list[str]]:
    """Run a command, and return what it suggests."""
    made = neuron_sum(*words)
    assert made.exit_code == code, made.output
    found = suggestions(made.stdout if code == 0 else made.stderr.splitlines()[-1])
    assert found and {each[1] for each in found} <= NAMES
    for each in found:
        assert "--region" in each and each[each.index("--region") + 1] == REGION, each
    return found


def test_a_suggested_command_works_in_a_shell_without_a_region(aws: AwsServer) -> None:
    here = ("--region", REGION)
    [compile_run] = run("aws", "train", "tiny", "--instance", "ml.c7i.4xlarge", "--wheelhouse", "wheels", *WAIT, *here)
    assert compile_run[:2] == ["aws", "compile"]
    [deploy] = run(*compile_run, "--target", "cpu", "--wheelhouse", "wheels", *WAIT)
    assert deploy[3:5] == ["--instance", "ml.c7i.4xlarge"]
    invoke, extend, down = run(*deploy, *WAIT)
    assert neuron_sum(*invoke, "--dry-run").exit_code == 0
    assert neuron_sum(*extend).exit_code == 0
    run(*deploy, *WAIT, code=14)  # it exists already: extend or delete it
    assert neuron_sum(*down, *WAIT).exit_code == 0
    assert aws.everything() == []


@pytest.mark.parametrize(
    "words",
    [
        ("status", "--follow"),
        ("status", "tiny-261121-2000-abcd", "--follow"),
        ("down",),
        ("invoke", "tiny-261121-2000-abcd"),
        ("deploy", "tiny-261121-2000-abcd"),
        ("train", "tiny", "--resume", "tiny-261121-2000-abcd", "--wheelhouse", "wheels"),
        ("down", "no-run"),
    ],
)
def test_the_hint_of_an_error_has_the_region(aws: AwsServer, words: tuple[str, ...]) -> None:
    run("aws", *words, "--region", REGION, code=14)


def test_an_unfit_instance_suggests_a_compilation_in_the_region_of_the_run(aws: AwsServer) -> None:
    compiled(aws, RUN, "cpu")
    [again] = run("aws", "deploy", RUN.id, "--region", REGION, code=14)
    assert again == ["aws", "compile", RUN.id, "--target", "inf2", "--region", REGION]


def test_a_stopped_job_suggests_to_resume_the_same_run(aws: AwsServer) -> None:
    aws.script.end = "Stopped"
    words = ("--instance", "ml.c7i.4xlarge", "--wheelhouse", "wheels", *WAIT)
    again, _ = run("aws", "train", "tiny", *words, "--region", REGION, code=14)
    assert again[:4] == ["aws", "train", "RECIPE", "--resume"]
    aws.script.end = "Completed"
    assert neuron_sum(*[word if word != "RECIPE" else "tiny" for word in again], *words).exit_code == 0
