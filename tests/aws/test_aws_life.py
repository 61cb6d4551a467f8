"""The life of a run in an account, over HTTP: its jobs run in containers, its endpoint is a real DJL Serving."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aws_runner import Runner
from aws_script import ACCOUNT, REGION
from aws_server import AwsServer
from in_process import neuron_sum
from micro_models import SHAPE
from training_runs import LONG

from neuron_sum.recipes.schema import ServeConfig
from sagemaker_jobs.rehearsal import image as local_image
from sagemaker_jobs.rehearsal.container import running
from serving import package
from serving.local import LocalServer, Model

CPU = ("--instance", "ml.c7i.4xlarge", "--every", "0.2")
BUCKET = f"neuron-sum-{ACCOUNT}-{REGION}"
DIALOGUE = "#Person1#: The meeting is at ten, not at nine.\n#Person2#: Thank you, I will tell the others.\n"


@pytest.fixture
def runner(aws: AwsServer, tmp_path: Path) -> Iterator[Runner]:
    (tmp_path / "image").mkdir()
    made = aws.script.runner = Runner(aws.url, local_image.make(tmp_path / "image"), tmp_path / "jobs")
    yield made
    made.close()


def told(*words: str) -> dict[str, Any]:
    """The output of a command with --json."""
    made = neuron_sum("aws", *words, "--json")
    assert made.exit_code == 0, made.stderr
    found: dict[str, Any] = {"said": made.stderr, **json.loads(made.stdout)}
    return found


def has_image(aws: AwsServer) -> None:
    """An image as `aws image` leaves it: in neuron-sum's repository, tagged with its target."""
    manifest = {"schemaVersion": 2, "config": {}, "layers": []}
    aws.boto3("ecr").put_image(
        repositoryName="neuron-sum",
        imageManifest=json.dumps(manifest),
        imageTag="cpu-0123456789ab",
        imageManifestMediaType="application/vnd.docker.distribution.manifest.v2+json",
    )


def loaded(aws: AwsServer, model: str, folder: Path) -> Model:
    """Downloads and unpacks the model's data, as SageMaker does for an endpoint or a transform."""
    container = aws.boto3("sagemaker").describe_model(ModelName=model)["PrimaryContainer"]
    assert container["Image"].startswith(f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/neuron-sum@sha256:")
    bucket, _, key = container["ModelDataUrl"].removeprefix("s3://").partition("/")
    aws.boto3("s3").download_file(bucket, key, str(folder / "model.tar.gz"))
    (folder / "model").mkdir()
    package.unpack(folder / "model.tar.gz", folder / "model")
    return Model("model", folder / "model")


@pytest.mark.slow
def test_a_run_from_data_to_answers_to_nothing_left(
    aws: AwsServer,
    runner: Runner,
    djl_serving: Path,
    micro: Path,
    own_wheel: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    wheels = ("--wheelhouse", str(own_wheel))
    trained = told("train", str(micro), *SHAPE, *CPU, *wheels)
    run = trained["run"]
    assert trained["status"] == "Completed"
    # The container's lines came through CloudWatch.
    assert "$ -m neuron_sum train " in trained["said"] and "12 optimizer steps" in trained["said"]
    s3 = aws.boto3("s3")
    kept = [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert f"neuron-sum/runs/{run}/checkpoints/run/all_results.json" in kept
    assert trained["model"] == f"s3://{BUCKET}/neuron-sum/runs/{run}/output/neuron-sum-{run}-train/output/model.tar.gz"

    compiled = told("compile", run, "--target", "cpu", *CPU, *wheels)
    assert compiled["status"] == "Completed" and compiled["run"] == run

    has_image(aws)
    deployed = told("deploy", run, *CPU, "--hours", "1")
    endpoint = deployed["endpoint"]
    with LocalServer([loaded(aws, f"neuron-sum-{run}-model", tmp_path)], ServeConfig()) as server:
        aws.script.serving[endpoint] = f"{server.url}/invocations"
        (tmp_path / "dialogue.txt").write_text(DIALOGUE)
        words = ["aws", "invoke", run, "dialogue.txt", "--json"]
        asked = subprocess.run(
            [sys.executable, "-m", "neuron_sum", *words], capture_output=True, text=True, check=False
        )
        assert asked.returncode == 0, asked.stderr
        answer = json.loads(asked.stdout)
        assert answer["summary_text"] and answer["output_tokens"] <= 12

        def transformed(line: str) -> str:
            lines = {"Content-Type": "application/jsonlines", "Accept": "application/jsonlines"}
            return httpx.post(f"{server.url}/invocations", content=line, headers=lines, timeout=60).text

        aws.script.transformed = transformed
        (tmp_path / "texts.jsonl").write_text(f"{json.dumps({'inputs': DIALOGUE})}\n" * 2)
        batch = told("batch", run, "texts.jsonl", *CPU, "--output", "answers")
        [answers] = (tmp_path / "answers").iterdir()
        given = [json.loads(line)["summary_text"] for line in answers.read_text().splitlines()]
        assert given == [answer["summary_text"]] * 2, batch

    assert told("status")["ours"]
    told("down", run, "--every", "0.05")
    assert aws.everything() == []
    assert any("model.tar.gz" in item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET)["Contents"])
    told("down", "--all", "--artifacts", "--every", "0.05")
    assert aws.kept() == []
    told("down", "--check")


@pytest.mark.slow
def test_a_failed_or_stopped_job_is_reported_and_leaves_nothing(
    aws: AwsServer, runner: Runner, micro: Path, own_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wheels = ("--wheelhouse", str(own_wheel))
    failed = neuron_sum("aws", "train", str(micro), "data.max_source_length=8", *CPU, *wheels)
    assert failed.exit_code == 14
    *_, error = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert "AlgorithmError" in error and "max_source_length" in error, error

    started = told("train", str(micro), *LONG, "train.max_steps=100000", *CPU, *wheels, "--detach")
    saved = f"neuron-sum/runs/{started['run']}/checkpoints/run/checkpoints/"
    checkpoints = tmp_path / "jobs" / started["job"] / "checkpoints" / "run" / "checkpoints"
    while not list(checkpoints.glob("*/complete")):
        assert runner.ended(started["job"]) is None
        time.sleep(0.01)
    told("down", started["run"], "--every", "0.05")
    job = aws.boto3("sagemaker").describe_training_job(TrainingJobName=started["job"])
    assert job["TrainingJobStatus"] == "Stopped"
    assert running(started["job"]) == []
    kept = [item["Key"] for item in aws.boto3("s3").list_objects_v2(Bucket=BUCKET, Prefix=saved)["Contents"]]
    assert any(key.endswith("/complete") for key in kept), "what it had saved is not in S3"
    ended = runner.ended(started["job"])
    assert ended is not None and any("neuron-sum train" in line and "--resume" in line for line in ended.last_lines)
