"""`neuron-sum aws register`: a version of a model package group, which keeps its model, image and scores."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from aws_faults import hasten
from aws_inputs import BUCKET, CPU, IMAGE, RUN, add_images, archive, compiled, digest_of, failed, told
from aws_script import ACCOUNT, REGION
from aws_server import AwsServer
from in_process import neuron_sum

from neuron_sum import files

SCORES = {"ROUGE-1": {"value": 42.1, "low": 41.0, "high": 43.2}, "ROUGE-2": {"value": 18.0, "low": 17.0, "high": 19.0}}
METRICS = {"system": "tiny", "data": "DialogSum", "split": "test", "examples": 500, "scores": SCORES}
QUICK = ("--every", "0.01")
REGISTER = ("aws", "register", "model.tar.gz", "--group", "summaries", *QUICK)
GROUP = "neuron-sum-summaries"


@pytest.fixture
def aws(aws: AwsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AwsServer:
    """conftest's account without pauses; it has images, and the folder a model and scores."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(tmp_path)
    add_images(aws)
    archive(Path("model.tar.gz"))
    Path("metrics.json").write_text(json.dumps(METRICS))
    return aws


def described(aws: AwsServer, made: dict[str, Any]) -> dict[str, Any]:
    return dict(aws.boto3("sagemaker").describe_model_package(ModelPackageName=made["arn"]))


def objects(aws: AwsServer) -> set[str]:
    found = aws.boto3("s3").list_objects_v2(Bucket=BUCKET, Prefix="neuron-sum/").get("Contents", [])
    return {item["Key"] for item in found}


def test_a_version_has_the_image_the_model_the_scores_and_a_card(aws: AwsServer) -> None:
    made = told(neuron_sum(*REGISTER, "--scores", "metrics.json", "--json"))
    assert (made["group"], made["version"], made["approval"]) == (GROUP, 1, "PendingManualApproval")
    package = described(aws, made)
    [container] = package["InferenceSpecification"]["Containers"]
    assert container["Image"] == digest_of(aws) and container["ImageDigest"] == digest_of(aws).partition("@")[2]
    assert container["ModelDataUrl"] == f"{made['files']}model.tar.gz"
    prefix = made["files"].removeprefix(f"s3://{BUCKET}/")
    scores = f"{prefix}{files.sha256(Path('metrics.json'))[:20]}/metrics.json"
    assert objects(aws) == {f"{prefix}model.tar.gz", f"{prefix}manifest.json", scores}
    statistics = package["ModelMetrics"]["ModelQuality"]["Statistics"]
    assert statistics["S3Uri"] == f"s3://{BUCKET}/{scores}"
    card = json.loads(package["ModelCard"]["ModelCardContent"])
    [evaluation] = card["evaluation_details"]
    assert evaluation["name"] == "tiny on DialogSum"
    assert [each["value"] for each in evaluation["metric_groups"][0]["metric_data"]] == [42.1, 18.0]
    assert card["additional_information"]["custom_details"]["manifest_target"] == "cpu"
    [tag] = aws.boto3("sagemaker").list_tags(ResourceArn=group_arn())["Tags"]
    assert tag["Key"] == "neuron-sum-run"


def group_arn() -> str:
    return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:model-package-group/{GROUP}"


def test_the_card_has_the_schema_of_aws(aws: AwsServer) -> None:
    """The schema of a model card in CloudFormation's resource types, whose names begin with capitals."""
    pytest.importorskip("cfnlint")
    import jsonschema
    from cfnlint.schema import PROVIDER_SCHEMA_MANAGER

    comparison = {"systems": [METRICS, {**METRICS, "system": "x" * 200, "data": "y" * 200}]}
    Path("comparison.json").write_text(json.dumps(comparison))
    made = told(neuron_sum(*REGISTER, "--scores", "metrics.json", "--scores", "comparison.json", "--json"))
    card = json.loads(described(aws, made)["ModelCard"]["ModelCardContent"])
    assert len(card["evaluation_details"]) == 3

    def capital(value: Any) -> Any:
        if isinstance(value, list):
            return [capital(each) for each in value]
        if not isinstance(value, dict):
            return value
        return {
            "".join(word.capitalize() for word in key.split("_")): content
            if key == "custom_details"
            else capital(content)
            for key, content in value.items()
        }

    schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema(REGION, "AWS::SageMaker::ModelCard").schema
    content = {**schema["definitions"]["Content"], "definitions": schema["definitions"]}
    jsonschema.Draft7Validator(content).validate(capital(card))


def test_versions_count_and_may_be_approved(aws: AwsServer) -> None:
    assert told(neuron_sum(*REGISTER, "--json"))["version"] == 1
    approved = told(neuron_sum(*REGISTER, "--approve", "--json"))
    assert (approved["version"], approved["approval"]) == (2, "Approved")
    assert aws.calls.count("sagemaker.CreateModelPackageGroup") == 1


def test_a_version_keeps_its_scores_when_the_model_is_registered_again(aws: AwsServer) -> None:
    versions = [told(neuron_sum(*REGISTER, "--scores", "metrics.json", "--json"))]
    other = Path("validation") / "metrics.json"
    other.parent.mkdir()
    other.write_text(json.dumps({**METRICS, "split": "validation"}))
    versions.append(told(neuron_sum(*REGISTER, "--scores", str(other), "--scores", "metrics.json", "--json")))
    assert versions[0]["files"] == versions[1]["files"]
    for version in versions:
        statistics = described(aws, version)["ModelMetrics"]["ModelQuality"]["Statistics"]
        bucket, _, key = statistics["S3Uri"].removeprefix("s3://").partition("/")
        content = aws.boto3("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        assert statistics["ContentDigest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_a_registered_model_survives_down_and_can_be_deployed(aws: AwsServer) -> None:
    compiled(aws, RUN, "cpu")
    model = aws.boto3("sagemaker").describe_training_job(TrainingJobName=RUN.name("compile"))
    key = model["ModelArtifacts"]["S3ModelArtifacts"].split("/", 3)[3]
    aws.boto3("s3").upload_file("model.tar.gz", BUCKET, key)
    made = told(neuron_sum("aws", "register", RUN.id, "--group", "summaries", *QUICK, "--json"))
    assert made["run"] == RUN.id
    down = told(neuron_sum("aws", "down", RUN.id, "--artifacts", "--every", "0.01", "--json"))
    assert [(each["group"], each["version"], each["run"]) for each in down["registered"]] == [(GROUP, 1, RUN.id)]
    down = neuron_sum("aws", "down", "--all", "--artifacts", "--every", "0.01")
    assert down.exit_code == 0 and f"stays: {GROUP} version 1 (PendingManualApproval)" in " ".join(down.stdout.split())
    assert all(name.startswith("neuron-sum/registry/") for name in objects(aws)) and objects(aws)
    images = aws.boto3("ecr").describe_images(repositoryName="neuron-sum")["imageDetails"]
    assert [image["imageDigest"] for image in images] == [digest_of(aws).partition("@")[2]]
    words = ("aws", "deploy", f"{made['files']}model.tar.gz", *CPU, "--image", made["image"], "--json")
    assert told(neuron_sum(*words))["status"] == "InService"


def test_a_version_of_others_stops_no_cleanup(aws: AwsServer) -> None:
    """A version may have no image, or one by its tag; images of models are kept by their digest."""
    told(neuron_sum(*REGISTER, "--json"))
    sagemaker, older = aws.boto3("sagemaker"), f"{IMAGE.rpartition(':')[0]}:cpu-000000000000"
    containers = [{"Image": older, "ImageDigest": digest_of(aws, older).partition("@")[2]}]
    for specification in ({}, {"InferenceSpecification": {"Containers": containers}}):
        sagemaker.create_model_package(ModelPackageGroupName=GROUP, **specification)
    down = neuron_sum("aws", "down", "--all", "--artifacts", "--every", "0.01")
    assert down.exit_code == 0 and f"{GROUP} version 3" in " ".join(down.stdout.split())
    images = aws.boto3("ecr").describe_images(repositoryName="neuron-sum")["imageDetails"]
    assert {image["imageDigest"] for image in images} == {
        digest_of(aws, uri).partition("@")[2] for uri in (IMAGE, older)
    }


def test_setup_delete_names_the_entries_that_stay(aws: AwsServer) -> None:
    told(neuron_sum(*REGISTER, "--json"))
    aws.script.policies = None  # of an administrator
    made = neuron_sum("aws", "setup", "--delete", "--artifacts", "--every", "0.01")
    said = " ".join(made.stdout.split())
    assert made.exit_code == 0, made.stderr
    assert f"stays: {GROUP} version 1" in said and "kept: the bucket" in said and "kept: the repository" in said
    assert "deletes the contents" not in said


def test_a_model_package_that_fails_is_an_error_with_its_reason(aws: AwsServer) -> None:
    aws.script.package_failure = "the image cannot be pulled"
    error = failed(neuron_sum(*REGISTER))
    assert "is Failed: the image cannot be pulled" in error and "delete-model-package" in error


def test_an_interrupted_registration_is_repeated(aws: AwsServer) -> None:
    aws.script.refusals["sagemaker.CreateModelPackage"] = ("ThrottlingX", "later", 400)
    assert "later" in failed(neuron_sum(*REGISTER))
    before = objects(aws)
    aws.script.refusals.clear()
    assert told(neuron_sum(*REGISTER, "--json"))["version"] == 1 and objects(aws) == before


def foreign_group(aws: AwsServer) -> None:
    aws.boto3("sagemaker").create_model_package_group(ModelPackageGroupName=GROUP)


WRONG: dict[str, tuple[tuple[str, ...], str, int]] = {
    "a group's name": ((*REGISTER[:4], "a_b", *QUICK), "'a_b' is not the name of a model package group", 14),
    "no scores": ((*REGISTER, "--scores", "nothing.json"), "nothing.json contains no scores", 4),
    "other scores": ((*REGISTER, "--scores", "other.json"), "other.json contains no scores", 4),
    "another instance": ((*REGISTER, "--instance", "ml.inf2.xlarge"), "was compiled for cpu", 14),
    "an unknown image": ((*REGISTER, "--image", f"{IMAGE}c"), "was not found", 14),
    "no run": (("aws", "register", RUN.id, "--group", "summaries"), "neuron-sum aws status", 14),
    "a group of others": (REGISTER, f"{GROUP} was not created by neuron-sum", 14),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_registers_nothing(aws: AwsServer, name: str) -> None:
    Path("other.json").write_text(json.dumps({"scores": {"ROUGE-1": "high"}}))
    words, message, code = WRONG[name]
    if name == "a group of others":
        foreign_group(aws)
    assert message in failed(neuron_sum(*words), code)
    assert "sagemaker.CreateModelPackage" not in aws.calls and objects(aws) == set()


def test_a_dry_run_prints_both_requests(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = told(neuron_sum(*REGISTER, "--scores", "metrics.json", "--dry-run", "--json"))["requests"]
    assert [each["operation"] for each in requests] == ["create_model_package_group", "create_model_package"]
    assert "sagemaker.CreateModelPackageGroup" not in aws.calls and objects(aws) == set()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    offline = told(neuron_sum(*REGISTER, "--dry-run", "--offline", "--json"))["requests"]
    assert offline[1]["request"]["ModelPackageGroupName"] == GROUP
