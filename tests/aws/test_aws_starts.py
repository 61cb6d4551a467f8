"""Two processes that start the same stage of a run: one is refused, and names the other."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aws_faults import hasten
from aws_inputs import CPU, RUN, add_images, compiled, told
from aws_server import AwsServer
from in_process import neuron_sum
from micro_models import ROOT

from sagemaker_jobs.commands import session
from sagemaker_jobs.jobs import follow

JOB = ("--wheelhouse", "wheels")
WORDS = {
    "train": ("train", "tiny", "--resume", RUN.id, *JOB),
    "compile": ("compile", RUN.id, "--target", "cpu", *JOB),
    "endpoint": ("deploy", RUN.id),
    "batch": ("batch", RUN.id, "texts.jsonl", "--output", "answers"),
}


@pytest.fixture
def aws(aws: AwsServer, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """conftest's account with a run that was trained and compiled."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(wheels.parent)
    add_images(aws)
    with monkeypatch.context() as patch:
        patch.setattr("sagemaker_jobs.aws.names.new_run", lambda recipe: RUN)
        told(neuron_sum("aws", "train", "tiny", *JOB, *CPU, "--json"))
    compiled(aws, RUN, "cpu")
    Path("texts.jsonl").write_text('{"inputs": "A: hi"}\n')
    aws.script.looks = aws.script.endpoint_looks = 1
    uses = ("Training", "Hosting", "Batch Transform")
    aws.script.prices = {(name, use): [0.5] for name in ("ml.c7i.4xlarge", "ml.m5.xlarge") for use in uses}
    return aws


def locks() -> list[Path]:
    return list(Path("state", "aws").glob("*.lock"))


@pytest.mark.parametrize("stage", WORDS)
def test_a_second_process_is_refused_while_the_first_starts(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    words = ["aws", *WORDS[stage], *CPU, "--json"]
    seconds = []
    send = session.send

    def send_after_the_second(*arguments: Any) -> None:
        [lock] = locks()
        command = [sys.executable, "-m", "neuron_sum", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        sent = len(aws.calls)
        seconds.append(subprocess.run(command, capture_output=True, text=True, env=environment, check=False))
        assert lock.exists() and not [call for call in aws.calls[sent:] if "Create" in call or "Delete" in call]
        send(*arguments)

    monkeypatch.setattr(session, "send", send_after_the_second)
    told(neuron_sum(*words))
    [second] = seconds
    error = json.loads(second.stderr.splitlines()[-1])["error"]
    assert (second.returncode, error["exit_code"]) == (14, 14), second.stderr
    assert error["message"] == f"the start of {RUN.name(stage)} is in use by process {os.getpid()}"
    assert "end that command with Ctrl-C" in error["hint"]
    assert not locks()


@pytest.mark.parametrize(("instances", "held"), [("ml.c7i.4xlarge", 0), ("ml.c7i.4xlarge,ml.m5.xlarge", 1)])
def test_a_start_is_exclusive_until_no_attempt_can_follow(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch, instances: str, held: int
) -> None:
    """A job that runs does not prevent the next one, unless it may be tried again on another type."""
    seen = []
    following = follow.follow

    def observed(*arguments: Any, **options: Any) -> Any:
        seen.append(len(locks()))
        return following(*arguments, **options)

    monkeypatch.setattr(follow, "follow", observed)
    told(neuron_sum("aws", *WORDS["batch"], "--instance", instances, "--every", "0.01", "--json"))
    assert seen == [held] and not locks()
