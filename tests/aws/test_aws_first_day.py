"""What surprises on the first day in an account: quotas, the price of uploads, encryption between instances."""

from pathlib import Path
from typing import Any

import pytest
from aws_faults import hasten
from aws_inputs import BUCKET, failed, told, write_context
from aws_server import AwsServer
from in_process import neuron_sum

TRAIN = ("aws", "train", "tiny", "--wheelhouse", "wheels", "--every", "0.01")
NEURON = ("aws", "train", "trn1-flan-t5-base-lora")
TRN1 = "ml.trn1.2xlarge for training job usage"
BUILDS = "Concurrently running builds for Linux/Medium environment"


@pytest.fixture
def aws(aws: AwsServer, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """conftest's account without pauses; the folder `wheels` has wheels, `context` a build context."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(wheels.parent)
    write_context(Path("context"))
    return aws


def request_of(*words: str, operation: str = "create_training_job") -> dict[str, Any]:
    """The request of a dry run."""
    requests = told(neuron_sum(*words, "--dry-run", "--offline", "--json"))["requests"]
    [found] = [each["request"] for each in requests if each["operation"] == operation]
    return dict(found)


def test_a_quota_that_exists_only_as_a_default_counts(aws: AwsServer) -> None:
    aws.script.quotas = {"ml.c5.xlarge for training job usage": 5, "other": 1}
    aws.script.default_quotas = {"ml.c5.xlarge for training job usage": 0, "other": 1, TRN1: 0}
    error = failed(neuron_sum(*TRAIN))
    assert f"the quota {TRN1!r} is 0" in error and "--service-code sagemaker" in error
    assert aws.everything() == []


@pytest.mark.parametrize("listed", [True, False])
def test_an_account_without_builds_is_told_the_quota_and_another_way(aws: AwsServer, listed: bool) -> None:
    aws.script.builds = 0
    if listed:
        aws.script.quotas, aws.script.default_quotas = {}, {"other builds": 9, BUILDS: 0}
    error = failed(neuron_sum("aws", "image", "--context", "context", "--every", "0.01"))
    assert "Concurrently running builds" in error and "docs/aws.md" in error
    assert not listed or (f"the quota {BUILDS!r} is 0" in error and "--service-code codebuild" in error)
    assert neuron_sum("aws", "down", "--all", "--every", "0.01").exit_code == 0


def test_the_worst_case_includes_the_upload_of_the_results() -> None:
    plan = told(neuron_sum(*NEURON, "--max-hours", "1", "--dry-run", "--offline", "--json"))["plan"]
    [job] = [item for item in plan["items"] if item["kind"] == "training-job"]
    assert job["worst_hours"] == pytest.approx(1 + (120 + 600) / 3600)
    assert "to upload" in job["bounded_by"]


def test_encryption_between_instances_has_an_option_of_its_own() -> None:
    words = ("aws", "train", "tiny", "--instance", "ml.trn1.32xlarge", "--instances", "2")
    assert not request_of(*words)["EnableInterContainerTrafficEncryption"]
    assert request_of(*words, "--encrypt-traffic")["EnableInterContainerTrafficEncryption"]
    alone = neuron_sum("aws", "train", "tiny", "--encrypt-traffic", "--dry-run", "--offline")
    assert "--instances 2" in failed(alone)


def test_compiled_graphs_survive_a_spot_restart() -> None:
    words = (*NEURON, "--max-wait-hours", "8")
    assert request_of(*words)["Environment"]["NEURON_COMPILE_CACHE_URL"].startswith("/opt/ml/checkpoints/")
    elsewhere = request_of(*words, "train.neuron.cache_url=/opt/graphs")["Environment"]
    assert elsewhere["NEURON_COMPILE_CACHE_URL"] == "/opt/graphs"


def test_a_cache_of_graphs_in_s3_needs_a_role_that_may_use_it(aws: AwsServer) -> None:
    words = (*NEURON, "train.neuron.cache_url=s3://graphs/neuron")
    assert "aws setup --writes s3://graphs/neuron" in failed(neuron_sum(*words, "--wheelhouse", "wheels"))
    aws.set_up(writes=["s3://graphs/"])
    aws.script.stacks = aws.script.stacks[-1:]
    for url in ("s3://graphs/neuron", f"s3://{BUCKET}/neuron-sum/cache/"):
        made = neuron_sum(*NEURON, f"train.neuron.cache_url={url}", "--dry-run", "--wheelhouse", "wheels", "--json")
        [job] = [each["request"] for each in told(made)["requests"] if each["operation"] == "create_training_job"]
        assert job["Environment"]["NEURON_COMPILE_CACHE_URL"] == url


def test_batch_runs_on_a_cpu_by_default(aws: AwsServer) -> None:
    Path("texts.jsonl").write_text('{"inputs": "A: hi"}\n')
    words = ("aws", "batch", "s3://b/model.tar.gz", "texts.jsonl", "--image", "i")
    assert request_of(*words, operation="create_transform_job")["TransformResources"]["InstanceType"].startswith("ml.c")
    assert "driver" in neuron_sum(*words, "--instance", "ml.inf2.xlarge", "--dry-run", "--offline").stderr
