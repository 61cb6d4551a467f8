"""Every call of every command that creates a resource fails once; `aws down` then leaves nothing.

The failure mode rotates from call to call; with NEURON_SUM_ALL_FAULTS=1 every call fails in every mode. The end of
pytest's report (conftest.py) lists the number of points and of leftovers.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from aws_faults import every_point, hasten, modes_of
from aws_inputs import BUCKET, archive, write_context
from aws_server import AwsServer, Fault
from in_process import neuron_sum

from sagemaker_jobs.aws.names import Run

BEFORE = "tiny-261121-2000-abcd"
TRAIN = ["aws", "train", "tiny", "--instance", "ml.c7i.4xlarge", "--every", "0.01"]


@pytest.fixture
def aws(aws: AwsServer, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """conftest's account without pauses; the folder `wheels` has wheels."""
    hasten(aws, monkeypatch)
    monkeypatch.setenv("TMPDIR", str(wheels.parent))  # a killed process leaves its temporary files
    monkeypatch.chdir(wheels.parent)
    return aws


def one_look(aws: AwsServer) -> None:
    """A job is described once while it runs."""
    aws.script.looks, aws.script.log = 1, ("a line",)


@dataclass(frozen=True)
class Command:
    """A command, and the calls that fail in it.

    Attributes:
        words: Its command line, in a folder with wheels.
        at_least: The minimum number of its calls, so that the test does not pass without any.
        among: Some of them.
        ready: Prepares the account for the command.
        only: The calls that fail, because no other command makes them; empty: all calls fail.
        without: Calls that it can do without, or whose lost reply it does not need: it may exit with 0.
    """

    words: tuple[str, ...]
    at_least: int
    among: frozenset[str]
    ready: Callable[[AwsServer], None] = one_look
    only: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()


IMAGE = ("--image", "another.registry/image:1")
CPU = ("--instance", "ml.c7i.4xlarge", *IMAGE, "--every", "0.01")


def endpoint_ready(aws: AwsServer) -> None:
    """An endpoint is described once while it is being created; there are two archives to deploy."""
    aws.script.endpoint_looks, aws.script.log = 1, ("a line",)
    for name in ("one", "other"):
        archive(Path(f"{name}.tar.gz"))


def image_ready(aws: AwsServer) -> None:
    """A build is described once while it runs."""
    one_look(aws)
    write_context(Path("context"))


SHADOWED = frozenset({"sagemaker.CreateModel", "sagemaker.CreateEndpointConfig"})
COPIES = frozenset({"s3.HEAD Object", "s3.PUT Object", "sagemaker.CreateModel"})
ENDPOINT = frozenset(
    {
        "scheduler.POST /schedules",
        "sagemaker.CreateModel",
        "sagemaker.CreateEndpointConfig",
        "sagemaker.CreateEndpoint",
        "application-autoscaling.RegisterScalableTarget",
        "application-autoscaling.PutScalingPolicy",
    }
)


ROLLED_BACK = frozenset(
    {
        "sagemaker.DeleteEndpoint",
        "sagemaker.DeleteEndpointConfig",
        "sagemaker.DeleteModel",
        "scheduler.DELETE /schedules",
        "scheduler.POST /schedules",
        "sagemaker.CreateEndpoint",
    }
)


def no_capacity(aws: AwsServer) -> None:
    """AWS has no capacity for the first instance type."""
    endpoint_ready(aws)
    archive(Path("one.tar.gz"), "inf2")
    aws.script.shortages = {"ml.inf2.xlarge": 1}


def trained_already(aws: AwsServer) -> None:
    """An earlier run, trained elsewhere, of which SageMaker's record and its model in S3 are left."""
    sagemaker, run = aws.boto3("sagemaker"), Run(BEFORE, "tiny")
    aws.script.looks = 0
    sagemaker.create_training_job(
        TrainingJobName=run.name("train"),
        RoleArn="arn:aws:iam::123456789012:role/gone",
        Tags=run.tags,
        AlgorithmSpecification={"TrainingImage": "image", "TrainingInputMode": "File"},
        OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/neuron-sum/runs/{run.id}/output"},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
        ResourceConfig={"InstanceType": "ml.c7i.4xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
    )
    sagemaker.describe_training_job(TrainingJobName=run.name("train"))
    aws.script.quotas = {"ml.c7i.4xlarge for training job usage": 1}
    one_look(aws)


def texts_ready(aws: AwsServer) -> None:
    """A dialogue, a model, and no answers yet."""
    archive(Path("one.tar.gz"))
    Path("texts.jsonl").write_text('{"inputs": "A: hi"}\n')
    shutil.rmtree("answers", ignore_errors=True)
    one_look(aws)


LOG = frozenset({"logs.DescribeLogStreams", "logs.GetLogEvents"})
"""The last read of a job's log after its completion: a failure only loses output."""

COMMANDS = {
    "deploy": Command(
        ("aws", "deploy", "one.tar.gz", "--max-instances", "2", "--invocations-per-instance", "60", *CPU),
        20,
        ENDPOINT,
        endpoint_ready,
    ),
    "deploy --multi-model": Command(
        ("aws", "deploy", "--multi-model", "one.tar.gz", "other.tar.gz", *CPU),
        7,
        COPIES,
        endpoint_ready,
        COPIES,
    ),
    "deploy --shadow": Command(
        ("aws", "deploy", "one.tar.gz", "--shadow", "other.tar.gz", *CPU),
        5,
        SHADOWED,
        endpoint_ready,
        SHADOWED,
    ),
    "deploy on the second type": Command(
        ("aws", "deploy", "one.tar.gz", "--instance", "ml.inf2.xlarge,ml.inf2.8xlarge", *IMAGE, "--every", "0.01"),
        8,
        ROLLED_BACK,
        no_capacity,
        ROLLED_BACK,
    ),
    "image": Command(
        ("aws", "image", "--context", "context", "--every", "0.01"),
        12,
        frozenset({"codebuild.StartBuild", "cloudformation.DescribeStacks", "codebuild.ListBuildsForProject"}),
        image_ready,
    ),
    "train": Command(
        (*TRAIN, "--wheelhouse", "wheels"),
        12,
        frozenset({"sagemaker.CreateTrainingJob", "cloudformation.DescribeStacks"}),
        without=LOG,
    ),
    "compile": Command(
        ("aws", "compile", BEFORE, "compile.batch_sizes=[1]", "--wheelhouse", "wheels", "--every", "0.01"),
        12,
        frozenset({"sagemaker.CreateTrainingJob", "service-quotas.ListServiceQuotas"}),
        trained_already,
        without=LOG,
    ),
    "batch": Command(
        ("aws", "batch", "one.tar.gz", "texts.jsonl", *CPU, "--output", "answers"),
        20,
        frozenset(
            {
                "scheduler.POST /schedules",
                "sagemaker.CreateModel",
                "sagemaker.CreateTransformJob",
                "sagemaker.DeleteModel",
                "scheduler.DELETE /schedules",
                "s3.GET Object",
            }
        ),
        texts_ready,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "modes"),
    [
        pytest.param(name, modes, id=f"{name}-{modes[0] if len(modes) == 1 else 'rotation'}")
        for name in COMMANDS
        for modes in modes_of(name)
    ],
)
def test_a_fault_at_every_call_leaves_nothing(
    aws: AwsServer, tmp_path: Path, record_property: Callable[[str, str], None], name: str, modes: tuple[Fault, ...]
) -> None:
    command = COMMANDS[name]
    found = every_point(aws, command.words, modes, tmp_path, command.ready, command.only, command.without)
    assert set(found) == set(modes), "every failure mode must occur"
    calls = [call for points in found.values() for call in points.calls]
    assert len(calls) >= command.at_least and command.among <= set(calls), " ".join(aws.calls)
    for fault, points in found.items():
        record_property("aws faults", json.dumps([name, fault, len(points.calls), points.left, dict(points.codes)]))


def test_messages_while_a_job_runs(aws: AwsServer) -> None:
    """Ctrl-C leaves the job running and prints how to follow it; then --follow does so."""
    aws.script.looks = None
    command = [sys.executable, "-m", "neuron_sum", *TRAIN, "--wheelhouse", "wheels", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while aws.calls.count("sagemaker.DescribeTrainingJob") < 3 and process.poll() is None:
            time.sleep(0.01)
        process.terminate()
        _, errors = process.communicate()
    assert process.returncode == 130, errors
    error = json.loads(errors.splitlines()[-1])["error"]
    assert "stopped waiting for" in error["message"] and "status" in error["hint"] and "down" in error["hint"]
    run = json.loads(neuron_sum("aws", "status", "--json").stdout)["ours"][0]["run"]
    aws.script.looks = 0
    followed = neuron_sum("aws", "status", run, "--follow", "--every", "0.01", "--json")
    assert followed.exit_code == 0, followed.stderr
    assert json.loads(followed.stdout)["status"] == "Completed"


GONE = ("InternalFailure", "no answer", 500)
DENIED = ("AccessDeniedException", "not authorized", 400)


def words_of(stderr: str) -> str:
    """The text without the terminal's line breaks."""
    return " ".join(stderr.split())


def answering_again(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS rejects a call until the command waits; botocore does not pause."""
    monkeypatch.setattr("sagemaker_jobs.aws.logs.PATIENCE_S", 600)
    monkeypatch.setattr("time.sleep", lambda seconds: aws.script.refusals.clear() if seconds else None)


@pytest.mark.parametrize("call", ["sagemaker.DescribeTrainingJob", "logs.DescribeLogStreams"])
def test_following_survives_a_short_network_failure(aws: AwsServer, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    one_look(aws)
    aws.script.refusals[call] = GONE
    answering_again(aws, monkeypatch)
    done = neuron_sum(*TRAIN, "--wheelhouse", "wheels")
    assert done.exit_code == 0, done.stderr
    assert words_of(done.stderr).count("no answer") == 1 and "a line" in done.stderr, done.stderr


def test_a_build_is_followed_through_network_failures_and_without_its_log(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_ready(aws)
    aws.script.refusals["codebuild.BatchGetBuilds"] = GONE
    answering_again(aws, monkeypatch)
    done = neuron_sum(*COMMANDS["image"].words)
    assert done.exit_code == 0 and words_of(done.stderr).count("no answer") == 1, done.stderr
    aws.reset()
    aws.set_up()
    image_ready(aws)
    aws.script.refusals["logs.DescribeLogStreams"] = DENIED
    monkeypatch.setattr("time.sleep", lambda _: None)
    done = neuron_sum(*COMMANDS["image"].words)
    assert done.exit_code == 0 and words_of(done.stderr).count("continuing without the log") == 1, done.stderr


@pytest.mark.parametrize("answer", [GONE, DENIED])
def test_an_unreadable_log_is_reported_once(aws: AwsServer, answer: tuple[str, str, int]) -> None:
    aws.script.looks, aws.script.log = 4, ("a line",)
    aws.script.refusals["logs.DescribeLogStreams"] = answer
    done = neuron_sum(*TRAIN, "--wheelhouse", "wheels")
    assert done.exit_code == 0, done.stderr
    assert words_of(done.stderr).count("continuing without the log") == 1, done.stderr
    asked = aws.calls.count("logs.DescribeLogStreams")
    assert asked == 1 if answer is DENIED else asked > 4, "one that is denied stays so; another may come back"


@pytest.mark.parametrize("answer", [GONE, DENIED])
def test_lost_contact_leaves_resources_running(aws: AwsServer, answer: tuple[str, str, int]) -> None:
    """The hint is to follow it again, and not to remove healthy resources."""
    aws.script.looks = None
    aws.script.refusals["sagemaker.DescribeTrainingJob"] = answer
    lost = neuron_sum(*TRAIN, "--wheelhouse", "wheels", "--json")
    hint = json.loads(lost.stderr.splitlines()[-1])["error"]["hint"]
    [job] = [item for item in aws.everything() if item.startswith("training-job")]
    run = job.split()[1].removeprefix("neuron-sum-").removesuffix("-train")
    assert lost.exit_code == 14 and f"neuron-sum aws status {run} --follow" in hint, hint
    assert (
        f"stop it with `neuron-sum aws down {run} --region us-east-1`" in hint and "removes what was made" not in hint
    )
    back = neuron_sum("aws", "status", run, "--follow", "--every", "0.01", "--json")
    assert f"status {run} --follow" in json.loads(back.stderr.splitlines()[-1])["error"]["hint"]
    texts_ready(aws)
    aws.script.refusals["sagemaker.DescribeTransformJob"] = answer
    batch = neuron_sum(*COMMANDS["batch"].words, "--json")
    hint = json.loads(batch.stderr.splitlines()[-1])["error"]["hint"]
    assert "--follow" in hint and "deletes what was created" not in hint


@pytest.mark.parametrize("status", ["InProgress", "Stopping"])
def test_two_jobs_never_write_to_the_same_checkpoints(aws: AwsServer, status: str) -> None:
    aws.script.looks = 0
    quick = ("--wheelhouse", "wheels", "--detach", "--json")
    run = json.loads(neuron_sum(*TRAIN, "--wheelhouse", "wheels", "--json").stdout)["run"]
    aws.script.looks = None
    resume, again = (*TRAIN, "--resume", run, *quick), ("aws", "compile", run, *quick)
    for words, what in ((resume, "train-2"), (again, "compile")):
        started = neuron_sum(*words)
        assert started.exit_code == 0, started.stderr  # the other stage's job writes elsewhere
        name = json.loads(started.stdout)["job"]
        assert name.endswith(what)
        if status == "Stopping":
            aws.boto3("sagemaker").stop_training_job(TrainingJobName=name)
        before = len(aws.calls)
        refused = neuron_sum(*words)
        error = json.loads(refused.stderr.splitlines()[-1])["error"]
        assert refused.exit_code == 14 and f"{name} is {status}" in error["message"], error
        assert f"status {run} --follow" in error["hint"] and f"down {run}" in error["hint"]
        assert not [call for call in aws.calls[before:] if "Create" in call or "PUT" in call or "POST" in call]
