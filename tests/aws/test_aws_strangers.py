"""`status` and `down` next to resources, log groups and ledger lines of others, which are never changed."""

import json
from pathlib import Path
from typing import Any

import pytest
from aws_faults import hasten
from aws_inputs import RUN, told
from aws_requests import STACK
from aws_script import ACCOUNT, REGION
from aws_server import AwsServer
from in_process import neuron_sum
from moto.sagemaker.models import sagemaker_backends

from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import AwsContext, Run
from sagemaker_jobs.cleanup.kinds import KINDS
from sagemaker_jobs.launch.schedules import ending

ROLE = f"arn:aws:iam::{ACCOUNT}:role/x"
DOWN = ("aws", "down", "--all", "--every", "0.01")


@pytest.fixture
def aws(aws: AwsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AwsServer:
    """conftest's account without pauses."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(tmp_path)
    return aws


def variant(name: str, model: str) -> dict[str, Any]:
    return {"VariantName": name, "ModelName": model, "InitialInstanceCount": 1, "InstanceType": "ml.c5.xlarge"}


def make_endpoint(aws: AwsServer, name: str, tags: list[dict[str, str]], variants: int = 1) -> None:
    sagemaker, backend = aws.boto3("sagemaker"), sagemaker_backends[ACCOUNT][REGION]
    if "m" not in backend._models:
        sagemaker.create_model(ModelName="m", ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "image"})
    sagemaker.create_endpoint_config(
        EndpointConfigName=f"{name}-config", ProductionVariants=[variant(f"v{n}", "m") for n in range(variants)]
    )
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=f"{name}-config", Tags=tags)
    aws.script.endpoint_looks = 0


def endpoints(aws: AwsServer) -> set[str]:
    return {item.split()[1] for item in aws.everything() if item.startswith("endpoint ")}


def test_a_ledger_that_names_resources_of_others_deletes_nothing(aws: AwsServer) -> None:
    untagged = Run("theirs-261121-2000-abcf", "").name("endpoint")  # has the form of neuron-sum's names
    for name in ("prod-endpoint", untagged):
        make_endpoint(aws, name, [])
    ledger = Ledger(AwsContext(ACCOUNT, REGION))
    for kind, name in (("endpoint", "prod-endpoint"), ("endpoint", untagged), ("role", "AdminRole")):
        ledger.note("made", kind, name, RUN.id)
    aws.script.policies = None  # an administrator, who may describe and delete everything
    result = neuron_sum(*DOWN)
    assert result.exit_code == 14, result.stdout
    said = " ".join(result.stderr.split())
    assert "prod-endpoint, which was not created by neuron-sum: kept (and 1 more)" in said
    assert endpoints(aws) == {"prod-endpoint", untagged}


def test_logs_of_others_are_kept(aws: AwsServer) -> None:
    logs, theirs = aws.boto3("logs"), "neuron-sum-other-team-prod"
    ours = RUN.name("endpoint")
    for name in (theirs, ours):
        logs.create_log_group(logGroupName=f"/aws/sagemaker/Endpoints/{name}")
    logs.create_log_group(logGroupName="/aws/sagemaker/TrainingJobs")
    for name in (theirs, RUN.name("train")):
        logs.create_log_stream(logGroupName="/aws/sagemaker/TrainingJobs", logStreamName=f"{name}/algo-1-1")
    listed = told(neuron_sum(*DOWN, "--artifacts", "--json"))["artifacts"]
    assert ours in json.dumps(listed) and theirs not in json.dumps(listed)
    groups = {group["logGroupName"] for group in logs.describe_log_groups()["logGroups"]}
    assert groups == {f"/aws/sagemaker/Endpoints/{theirs}", "/aws/sagemaker/TrainingJobs", "/aws/codebuild/neuron-sum"}
    streams = logs.describe_log_streams(logGroupName="/aws/sagemaker/TrainingJobs")["logStreams"]
    assert [stream["logStreamName"] for stream in streams] == [f"{theirs}/algo-1-1"]


@pytest.mark.parametrize("odd", [False, True])
def test_one_odd_resource_does_not_stop_the_others(aws: AwsServer, monkeypatch: pytest.MonkeyPatch, odd: bool) -> None:
    """A schedule without a start is deleted; one that cannot be described is kept."""
    other = Run("tiny-261121-2000-abce", "tiny")
    make_endpoint(aws, RUN.name("endpoint"), RUN.tags, variants=2)
    make_endpoint(aws, other.name("endpoint"), other.tags)
    at = ending(other.name("expiry"), STACK, "sagemaker:x", {}, hours=24).request
    if odd:
        monkeypatch.setattr("sagemaker_jobs.cleanup.kinds.time_of", lambda schedule: schedule["renamed"])
    else:
        del at["StartDate"]
    aws.boto3("scheduler").create_schedule(**at)
    Ledger(AwsContext(ACCOUNT, REGION)).note("made", "endpoint", RUN.name("endpoint"), RUN.id)
    path = Ledger(AwsContext(ACCOUNT, REGION)).path
    empty = b"".join(
        b'{"time": "t", "event": "made", "run": "%s", "kind": "%s", "name": ""}\n'
        % (RUN.id.encode(), kind.name.encode())
        for kind in KINDS.values()
    )
    path.write_bytes(b"\n{}\nnot json\n\xef\xbb\xbf[]\n\xff\xfe\n" + empty + path.read_bytes())
    shown = neuron_sum("aws", "status", "--json")
    [double] = [item for item in told(shown)["ours"] if item["name"] == RUN.name("endpoint")]
    assert double["instances"] == 2 and "is damaged" in shown.stderr
    assert (other.name("expiry") in shown.stderr) == odd
    result = neuron_sum(*DOWN)
    assert (result.exit_code, "is not as neuron-sum creates it" in result.stderr) == (14 if odd else 0, odd), (
        result.stderr
    )
    assert endpoints(aws) == set()
    assert (f"schedule {other.name('expiry')}" in aws.everything()) == odd


@pytest.mark.parametrize("name", ["prod-{}", "team-neuron-sum-{}", "neuron-sum-prod-{}"])
def test_a_thousand_foreign_endpoints_cost_few_calls(aws: AwsServer, name: str) -> None:
    make_endpoint(aws, RUN.name("endpoint"), RUN.tags)
    backend = sagemaker_backends[ACCOUNT][REGION]
    for number in range(1000):
        backend.create_endpoint(name.format(number), f"{RUN.name('endpoint')}-config", [])
    aws.script.throttled_every = 5
    aws.calls.clear()
    assert [item["name"] for item in told(neuron_sum("aws", "status", "--json"))["ours"]] == [RUN.name("endpoint")]
    assert len(aws.calls) < 100, len(aws.calls)
    aws.calls.clear()
    told(neuron_sum(*DOWN, "--json"))
    assert len(aws.calls) < 100, len(aws.calls)
    assert len(backend.endpoints) == 1000
