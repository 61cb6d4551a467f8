"""Jobs and endpoints name their image by its digest: a tag that is moved later does not change what runs."""

import json
from pathlib import Path

import pytest
from aws_builds import published_digest
from aws_faults import hasten
from aws_inputs import CPU, IMAGE, add_images, archive, digest_of, failed, told
from aws_script import ACCOUNT, REGION
from aws_server import AwsServer
from in_process import neuron_sum

TRAIN = ("aws", "train", "tiny", "--wheelhouse", "wheels", *CPU, "--detach", "--json")


@pytest.fixture
def aws(aws: AwsServer, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """conftest's account without pauses; its registry has neuron-sum's images, and the folder `wheels` has wheels."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(wheels.parent)
    add_images(aws)
    return aws


def training_image(aws: AwsServer, *words: str) -> str:
    """The image of the training job that a command starts."""
    job = told(neuron_sum(*words))["job"]
    described = aws.boto3("sagemaker").describe_training_job(TrainingJobName=job)
    return str(described["AlgorithmSpecification"]["TrainingImage"])


def test_a_tag_that_moves_does_not_change_an_endpoint(aws: AwsServer) -> None:
    made = told(neuron_sum("aws", "deploy", archive(Path("model.tar.gz")), *CPU, "--image", IMAGE, "--json"))
    before = digest_of(aws)
    ecr = aws.boto3("ecr")
    ecr.put_image_tag_mutability(repositoryName="neuron-sum", imageTagMutability="MUTABLE")
    manifest = {"schemaVersion": 2, "config": {}, "layers": [{"digest": f"sha256:{7:064}", "size": 1}]}
    ecr.put_image(
        repositoryName="neuron-sum",
        imageManifest=json.dumps(manifest),
        imageTag=IMAGE.rpartition(":")[2],
        imageManifestMediaType="application/vnd.docker.distribution.manifest.v2+json",
    )
    [name] = [each["ModelName"] for each in aws.boto3("sagemaker").list_models()["Models"]]
    container = aws.boto3("sagemaker").describe_model(ModelName=name)["PrimaryContainer"]
    assert container["Image"] == made["pinned"] == before != digest_of(aws)


def test_jobs_name_the_digest_of_the_image_of_aws(aws: AwsServer) -> None:
    pinned = training_image(aws, *TRAIN)
    name, _, digest = pinned.partition("@")
    assert name == f"763104351884.dkr.ecr.{REGION}.amazonaws.com/pytorch-training-neuronx"
    shown = told(neuron_sum(*TRAIN, "--dry-run"))["requests"][-1]["request"]["AlgorithmSpecification"]["TrainingImage"]
    repository, _, tag = shown.partition("/")[2].partition(":")
    assert tag and digest == published_digest(f"{repository}:{tag}")
    aws.script.looks = 0
    run = told(neuron_sum(*(word for word in TRAIN if word != "--detach")))["run"]
    assert training_image(aws, "aws", "compile", run, "--target", "cpu", *TRAIN[3:]) == pinned


def test_a_transform_names_the_digest(aws: AwsServer) -> None:
    Path("texts.jsonl").write_text('{"inputs": "A: hi"}\n')
    aws.script.looks = None
    told(neuron_sum("aws", "batch", archive(Path("model.tar.gz")), "texts.jsonl", *CPU, "--detach", "--json"))
    [name] = [each["ModelName"] for each in aws.boto3("sagemaker").list_models()["Models"]]
    container = aws.boto3("sagemaker").describe_model(ModelName=name)["PrimaryContainer"]
    assert container["Image"] == digest_of(aws)


def test_a_digest_is_kept_and_an_unknown_tag_is_an_error(aws: AwsServer) -> None:
    pinned = digest_of(aws)
    assert training_image(aws, *TRAIN, "--image", pinned) == pinned
    assert f"the image {IMAGE}c was not found: Requested image not found" in failed(
        neuron_sum(*TRAIN, "--image", f"{IMAGE}c")
    )
    missing = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/neuron-sum-none:1"
    assert "was not found" in failed(neuron_sum(*TRAIN, "--image", missing))
    unknown = f"{pinned[:-8]}00000000"
    assert "not found" in failed(neuron_sum(*TRAIN, "--image", unknown)), "AWS looks for it"
    assert [line.split()[0] for line in aws.everything()] == ["training-job"]


def test_an_image_of_another_registry_is_not_pinned_and_a_warning_says_so(aws: AwsServer) -> None:
    started = neuron_sum(*TRAIN, "--image", "another.registry/image:1")
    assert started.exit_code == 0 and "another.registry/image:1 is not pinned to a digest" in started.stderr


def test_the_rights_to_resolve_a_tag_are_those_of_the_stack(aws: AwsServer) -> None:
    theirs = f"210987654321.dkr.ecr.{REGION}.amazonaws.com/theirs:1"
    error = failed(neuron_sum(*TRAIN, "--image", theirs))
    assert f"aws setup --repository arn:aws:ecr:{REGION}:210987654321:repository/theirs" in error
    policy = told(neuron_sum("aws", "iam", "--json"))
    digests = [each for part in policy.values() for each in part["Statement"] if each["Sid"] == "Digests"]
    assert digests[0]["Resource"] == [
        f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/neuron-sum*",
        f"arn:aws:ecr:{REGION}:763104351884:repository/*",
    ]
    aws.script.policies = [
        {"Statement": [each for each in part["Statement"] if each["Sid"] != "Digests"]} for part in policy.values()
    ]
    assert "`neuron-sum aws iam --region us-east-1` prints the policy" in failed(neuron_sum(*TRAIN))
    assert aws.everything() == []
