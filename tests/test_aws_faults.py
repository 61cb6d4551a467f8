"""Every call of every command that makes something fails, in every way that a call can; `aws down` leaves nothing.

The number of points is printed (pytest -s, or the report's end).
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aws_faults import every_point, hasten
from aws_server import FAULTS, AwsServer, Fault
from in_process import neuron_sum
from test_aws_endpoints import archive
from test_aws_image import write_context

from sagemaker_jobs.names import Run

BEFORE = "tiny-261121-2000-abcd"
TRAIN = ["aws", "train", "tiny", "--instance", "ml.c7i.4xlarge", "--every", "0.01"]


@pytest.fixture
def aws(aws: AwsServer, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """conftest's, quickly; with wheels in the folder of that name."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(wheels.parent)
    return aws


def one_look(aws: AwsServer) -> None:
    """A job is seen once while it runs."""
    aws.script.looks, aws.script.log = 1, ("a line",)


@dataclass(frozen=True)
class Command:
    """What is done to a command.

    Attributes:
        words: Its command line, in a folder with wheels.
        at_least: How many calls it has, or the test tests nothing.
        among: Some of them.
        ready: Makes the account what it needs.
        only: Calls that no other command has so; none: each of its calls fails.
        without: Calls that it can do without, or whose lost reply it need not have: it may end with 0.
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
    """An endpoint is seen once while it is being made; and there are two archives to deploy."""
    aws.script.endpoint_looks, aws.script.log = 1, ("a line",)
    for name in ("one", "other"):
        archive(Path(f"{name}.tar.gz"))


def image_ready(aws: AwsServer) -> None:
    """A build is seen once while it runs."""
    one_look(aws)
    write_context(Path("context"))


COPIES = frozenset({"s3.HEAD Object", "s3.PUT Object", "sagemaker.CreateModel"})
ENDPOINT = frozenset({
    "scheduler.POST /schedules", "sagemaker.CreateModel", "sagemaker.CreateEndpointConfig", "sagemaker.CreateEndpoint",
    "application-autoscaling.RegisterScalableTarget", "application-autoscaling.PutScalingPolicy",
})  # fmt: skip


def trained_already(aws: AwsServer) -> None:
    """A run of before, trained elsewhere; only SageMaker's record of it is left."""
    sagemaker, iam, s3, run = aws.boto3("sagemaker"), aws.boto3("iam"), aws.boto3("s3"), Run(BEFORE, "tiny")
    role = iam.create_role(RoleName="gone", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    s3.create_bucket(Bucket="gone")
    aws.script.looks = 0
    sagemaker.create_training_job(
        TrainingJobName=run.name("train"), RoleArn=role, Tags=run.tags,
        AlgorithmSpecification={"TrainingImage": "image", "TrainingInputMode": "File"},
        OutputDataConfig={"S3OutputPath": "s3://gone/"}, StoppingCondition={"MaxRuntimeInSeconds": 60},
        ResourceConfig={"InstanceType": "ml.c7i.4xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
    )  # fmt: skip
    sagemaker.describe_training_job(TrainingJobName=run.name("train"))
    iam.delete_role(RoleName="gone")
    s3.delete_bucket(Bucket="gone")
    aws.script.quotas = {"ml.c7i.4xlarge for training job usage": 1}
    one_look(aws)


def texts_ready(aws: AwsServer) -> None:
    """A dialogue, a model that is asked, and no answers yet."""
    archive(Path("one.tar.gz"), "inf2")
    Path("texts.jsonl").write_text('{"inputs": "A: hi"}\n')
    shutil.rmtree("answers", ignore_errors=True)
    one_look(aws)


COMMANDS = {
    "deploy": Command(
        ("aws", "deploy", "one.tar.gz", "--max-instances", "2", "--invocations-per-instance", "60", *CPU),
        25,
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
    "image": Command(
        ("aws", "image", "--context", "context", "--every", "0.01"),
        25,
        frozenset(
            {
                "ecr.CreateRepository",
                "codebuild.CreateProject",
                "codebuild.StartBuild",
                "iam.CreateRole",
                "codebuild.DeleteProject",
            }
        ),
        image_ready,
    ),
    "train": Command(
        (*TRAIN, "--wheelhouse", "wheels"), 20, frozenset({"sagemaker.CreateTrainingJob", "iam.CreateRole"})
    ),
    "compile": Command(
        ("aws", "compile", BEFORE, "compile.batch_sizes=[1]", "--wheelhouse", "wheels", "--every", "0.01"),
        20,
        frozenset({"sagemaker.CreateTrainingJob", "iam.CreateRole", "service-quotas.ListServiceQuotas"}),
        trained_already,
    ),
    "batch": Command(
        ("aws", "batch", "one.tar.gz", "texts.jsonl", *IMAGE, "--output", "answers", "--every", "0.01"),
        28,
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
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_fault_at_every_call_leaves_nothing(
    aws: AwsServer, tmp_path: Path, capsys: Any, name: str, fault: Fault
) -> None:
    command = COMMANDS[name]
    points = every_point(aws, command.words, fault, tmp_path, command.ready, command.only, command.without)
    assert len(points.calls) >= command.at_least and command.among <= set(points.calls), " ".join(aws.calls)
    with capsys.disabled():
        print(f"\n{fault}: {len(points.calls)} calls of `aws {name}`, exit codes {dict(points.codes)}, 0 left over")


def test_the_words_of_a_job_under_way(aws: AwsServer) -> None:
    """Ctrl-C leaves the job, says how to come back; then --follow comes back."""
    aws.script.looks = None
    command = [sys.executable, "-m", "neuron_sum", *TRAIN, "--wheelhouse", "wheels", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while aws.calls.count("sagemaker.DescribeTrainingJob") < 3 and process.poll() is None:
            time.sleep(0.01)
        process.terminate()
        _, errors = process.communicate()
    assert process.returncode == 130, errors
    error = json.loads(errors.splitlines()[-1])["error"]
    assert "as it is" in error["message"] and "status" in error["hint"] and "down" in error["hint"]
    run = json.loads(neuron_sum("aws", "status", "--json").stdout)["ours"][0]["run"]
    aws.script.looks = 0
    followed = neuron_sum("aws", "status", run, "--follow", "--every", "0.01", "--json")
    assert followed.exit_code == 0, followed.stderr
    assert json.loads(followed.stdout)["status"] == "Completed"


def test_a_new_role_is_waited_for(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """SageMaker cannot assume a role in the first seconds after its making."""
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    aws.script.roles_unknown = 3
    assert neuron_sum(*TRAIN, "--wheelhouse", "wheels").exit_code == 0
    assert aws.calls.count("sagemaker.CreateTrainingJob") == 4
