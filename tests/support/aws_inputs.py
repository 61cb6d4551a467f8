"""Inputs of the AWS commands: an archive of a model, a finished compile job, a build context."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from aws_script import ACCOUNT, REGION
from aws_server import AwsServer
from typer.testing import Result

from sagemaker_jobs.aws.names import Run

BUCKET = f"neuron-sum-{ACCOUNT}-{REGION}"
RUN = Run("tiny-261121-2000-abcd", "tiny")
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/neuron-sum:cpu-0123456789ab"
CPU = ("--instance", "ml.c7i.4xlarge", "--every", "0.01")


def archive(path: Path, target: str = "cpu", properties: str = "engine=Python\n") -> str:
    """An archive in the layout of `neuron-sum package`."""
    with tarfile.open(path, "w:gz") as packed:
        for name, text in (
            ("serving.properties", properties),
            ("artifact/manifest.json", json.dumps({"target": target, "name": path.stem})),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            packed.addfile(info, io.BytesIO(text.encode()))
    return str(path)


def compiled(aws: AwsServer, run: Run, target: str, attempt: int = 1, end: str = "Completed") -> None:
    """A run whose compile job is finished."""
    s3 = aws.boto3("s3")
    name, sagemaker = run.name("compile", attempt), aws.boto3("sagemaker")
    sagemaker.create_training_job(
        TrainingJobName=name,
        RoleArn=f"arn:aws:iam::{ACCOUNT}:role/neuron-sum-{REGION}-jobs",
        Tags=run.tags,
        AlgorithmSpecification={
            "TrainingImage": "image",
            "TrainingInputMode": "File",
            "ContainerArguments": ["compile", "--target", target],
        },
        OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/neuron-sum/runs/{run.id}/output"},
        ResourceConfig={"InstanceType": "ml.c5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )
    aws.script.looks, aws.script.end = 0, end
    job = sagemaker.describe_training_job(TrainingJobName=name)
    if end == "Completed":
        s3.put_object(Bucket=BUCKET, Key=job["ModelArtifacts"]["S3ModelArtifacts"].split("/", 3)[3], Body=b"packed")


def write_context(folder: Path, base: str = "python:3.11-slim-bookworm") -> None:
    (folder / "source").mkdir(parents=True, exist_ok=True)
    (folder / "Dockerfile").write_text(f"FROM {base} AS builder\nFROM builder\n", encoding="utf-8")
    (folder / "source" / ".dockerignore").write_text("x", encoding="utf-8")


def add_images(aws: AwsServer) -> None:
    """Puts neuron-sum's images into the registry."""
    ecr = aws.boto3("ecr")
    for number, tag in enumerate(("cpu-000000000000", "inf2-0123456789ab", "cpu-0123456789ab")):
        layers = [{"size": 1, "digest": f"sha256:{number:064}"}]
        manifest = {"schemaVersion": 2, "config": {"digest": f"sha256:{number:064}"}, "layers": layers}
        ecr.put_image(
            repositoryName="neuron-sum",
            imageManifest=json.dumps(manifest),
            imageTag=tag,
            imageManifestMediaType="application/vnd.docker.distribution.manifest.v2+json",
        )


def digest_of(aws: AwsServer, uri: str = IMAGE) -> str:
    """The name with a digest of an image in the account's registry."""
    name, _, tag = uri.rpartition(":")
    found = aws.boto3("ecr").describe_images(repositoryName="neuron-sum", imageIds=[{"imageTag": tag}])
    return f"{name}@{found['imageDetails'][0]['imageDigest']}"


def told(result: Result) -> dict[str, Any]:
    """The JSON that a successful command printed."""
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def failed(result: Result, code: int = 14) -> str:
    """The error and the hint of a command that failed."""
    assert result.exit_code == code, result.stderr or result.stdout
    return " ".join(result.stderr.splitlines()[-2:])


PRECOMPILED = {"SM_ON_MODEL": "/opt/ml/model", "SM_ON_BATCH_SIZE": "4", "HF_HUB_OFFLINE": "1"}
CHECKPOINT = {"SM_ON_MODEL": "/opt/ml/model", "SM_ON_ALLOW_NON_CACHED_MODEL": ""}
"""Environments of the vLLM image, for a compiled model and for one that is not."""


def vllm_archive(path: Path, environment: dict[str, str]) -> str:
    """The first file of an archive of `package --container hf-vllm`."""
    content = json.dumps({"container": "hf-vllm", "environment": environment}).encode()
    with tarfile.open(path, "w:gz") as packed:
        info = tarfile.TarInfo("container.json")
        info.size = len(content)
        packed.addfile(info, io.BytesIO(content))
    return str(path)
