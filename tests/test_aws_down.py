"""`status` and `down` over every kind of thing that the commands make, and that what is not ours stays."""

import json
from pathlib import Path
from typing import Any

import pytest
from aws_script import ACCOUNT, REGION
from aws_server import AwsServer
from in_process import neuron_sum
from typer.testing import Result

from sagemaker_jobs.account import Account
from sagemaker_jobs.endpoint_requests import create_expiry
from sagemaker_jobs.names import RUN_TAG, Run, role_path, run_of

RUN, OTHER = Run("tiny-261121-2000-abcd", "tiny"), Run("tiny-261121-2000-abce", "tiny")
ROLE = f"arn:aws:iam::{ACCOUNT}:role/x"


def make_all(aws: AwsServer, run: Run, *, tagged: bool = True) -> None:
    """One of each kind, by AWS's own calls, as another machine would have made them."""
    sagemaker, lower = aws.boto3("sagemaker"), [{"key": RUN_TAG, "value": run.id}] if tagged else []
    tags = run.tags if tagged else []
    sagemaker.create_model(ModelName=run.name("model"), ExecutionRoleArn=ROLE, Tags=tags,
                           PrimaryContainer={"Image": "image"})  # fmt: skip
    sagemaker.create_endpoint_config(
        EndpointConfigName=run.name("config"), Tags=tags,
        ProductionVariants=[{"VariantName": "main", "ModelName": run.name("model"), "InitialInstanceCount": 2,
                             "InstanceType": "ml.c5.xlarge", "InitialVariantWeight": 1.0}],
    )  # fmt: skip
    sagemaker.create_endpoint(EndpointName=run.name("endpoint"), EndpointConfigName=run.name("config"), Tags=tags)
    aws.boto3("application-autoscaling").register_scalable_target(
        ServiceNamespace="sagemaker", ResourceId=f"endpoint/{run.name('endpoint')}/variant/main",
        ScalableDimension="sagemaker:variant:DesiredInstanceCount", MinCapacity=1, MaxCapacity=2,
    )  # fmt: skip
    from datetime import datetime, timezone

    aws.boto3("scheduler").create_schedule(
        **create_expiry(run, at=datetime(2030, 1, 1, tzinfo=timezone.utc), role_arn=ROLE)
    )
    aws.boto3("iam").create_role(
        RoleName=run.name("expiry-role"), Path=role_path(REGION), AssumeRolePolicyDocument="{}", Tags=run.tags
    )
    aws.boto3("codebuild").create_project(
        name=run.name("build"), source={"type": "S3", "location": "a/b.zip"}, artifacts={"type": "NO_ARTIFACTS"},
        environment={"type": "LINUX_CONTAINER", "image": "i", "computeType": "BUILD_GENERAL1_MEDIUM"},
        serviceRole=ROLE, tags=lower,
    )  # fmt: skip


KINDS = {"scaling-target", "endpoint", "endpoint-config", "model", "schedule", "build-project", "role"}


def kinds(result: Result, key: str) -> set[str]:
    assert result.exit_code == 0, result.stderr
    return {item["kind"] for item in json.loads(result.stdout)[key]}


def test_all_kinds_are_found_priced_and_removed_from_a_machine_that_made_none(aws: AwsServer) -> None:
    make_all(aws, RUN)
    shown = neuron_sum("aws", "status", "--json")
    assert kinds(shown, "ours") == KINDS
    ours: list[dict[str, Any]] = json.loads(shown.stdout)["ours"]
    [endpoint] = [item for item in ours if item["kind"] == "endpoint"]
    assert (endpoint["instance"], endpoint["instances"]) == ("ml.c5.xlarge", 2)
    assert endpoint["ends"] == "2030-01-01T00:00:00Z"
    assert neuron_sum("aws", "down", "--check").exit_code == 14
    removed = neuron_sum("aws", "down", "--all", "--every", "0.01", "--json")
    assert kinds(removed, "removed") == KINDS
    assert aws.everything() == []
    order = [item["kind"] for item in json.loads(removed.stdout)["removed"]]
    assert order.index("scaling-target") < order.index("endpoint") < order.index("endpoint-config")
    assert order.index("endpoint") < order.index("schedule"), "it ends the endpoint if this machine goes away"
    assert neuron_sum("aws", "down", "--check").exit_code == 0


def test_a_runs_down_leaves_the_others_and_what_is_not_ours(aws: AwsServer) -> None:
    theirs = Run("theirs-261121-2000-abcf", "")  # of our name's form, and without our tag
    for run in (RUN, OTHER):
        make_all(aws, run)
    aws.boto3("sagemaker").create_model(
        ModelName=theirs.name("model"), ExecutionRoleArn=ROLE, PrimaryContainer={"Image": "image"}
    )
    assert neuron_sum("aws", "down", RUN.id, "--every", "0.01").exit_code == 0
    left = aws.everything()
    assert not [item for item in left if RUN.id in item]
    assert kinds(neuron_sum("aws", "status", OTHER.id, "--json"), "ours") == KINDS
    assert neuron_sum("aws", "down", "--all", "--every", "0.01").exit_code == 0
    assert [item for item in aws.everything() if theirs.id not in item] == []
    assert [item for item in aws.everything() if theirs.id in item]


@pytest.mark.parametrize("call", ["sagemaker.ListModels", "codebuild.ListProjects"])
def test_what_may_not_be_looked_at_is_said_and_the_rest_is_removed(aws: AwsServer, call: str) -> None:
    make_all(aws, RUN)
    aws.script.refusals[call] = ("AccessDeniedException", "not authorized to perform this", 400)
    down = neuron_sum("aws", "down", "--all", "--every", "0.01")
    assert down.exit_code == 14
    assert "not all could be removed" in down.stderr and "neuron-sum aws iam" in down.stderr
    assert not [item for item in aws.everything() if "endpoint" in item]
    status = neuron_sum("aws", "status")
    assert status.exit_code == 0 and "not all could be looked at" in status.stderr
    aws.script.refusals.clear()
    assert neuron_sum("aws", "down", "--all", "--every", "0.01").exit_code == 0
    assert aws.everything() == []


def test_a_runs_id_is_in_all_its_names(tmp_path: Path) -> None:
    for kind, attempt in (("train", 1), ("batch-model", 3), ("expiry-role", 1), ("config", 12)):
        assert run_of(RUN.name(kind, attempt)) == RUN.id
    assert run_of("neuron-sum-somebody-elses") is None
    assert run_of("other") is None


def test_status_says_beforehand_what_it_asks(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    make_all(aws, RUN)
    asked: set[tuple[str, str]] = set()
    call, pages = Account.call, Account.pages

    def called(self: Account, service: str, operation: str, /, **request: Any) -> Any:
        asked.add((service, operation))
        return call(self, service, operation, **request)

    def paged(self: Account, service: str, operation: str, key: str, /, **request: Any) -> Any:
        asked.add((service, operation))
        return pages(self, service, operation, key, **request)

    monkeypatch.setattr(Account, "call", called)
    monkeypatch.setattr(Account, "pages", paged)
    printed = json.loads(neuron_sum("aws", "status", "--dry-run", "--json").stdout)["requests"]
    assert not asked
    assert neuron_sum("aws", "status").exit_code == 0
    told = {(each["service"], each["operation"]) for each in printed}
    assert asked <= told, asked - told
    only_while_they_run = {("codebuild", "batch_get_builds"), ("sagemaker", "describe_training_job"),
                           ("sagemaker", "describe_transform_job")}  # fmt: skip
    assert told - asked <= only_while_they_run
