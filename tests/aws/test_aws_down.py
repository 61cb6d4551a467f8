"""`status` and `down` for every kind of resource that the commands create; foreign resources are kept."""

import json
from pathlib import Path
from typing import Any

import boto3
import pytest
from aws_faults import hasten
from aws_requests import STACK
from aws_script import ACCOUNT, REGION
from aws_server import AwsServer
from in_process import neuron_sum
from typer.testing import Result

from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import AwsContext, Run, parse_run_id, run_of
from sagemaker_jobs.cleanup.down import needs
from sagemaker_jobs.cleanup.inventory import Inventory, look
from sagemaker_jobs.cleanup.kinds import KINDS as KINDS_OF
from sagemaker_jobs.endpoint.launch import expiry

RUN, OTHER = Run("tiny-261121-2000-abcd", "tiny"), Run("tiny-261121-2000-abce", "tiny")
BUCKET = AwsContext(ACCOUNT, REGION).bucket
ROLE = f"arn:aws:iam::{ACCOUNT}:role/x"


@pytest.fixture
def aws(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """conftest's account, without pauses."""
    hasten(aws, monkeypatch)
    return aws


def make_all(aws: AwsServer, run: Run, *, tagged: bool = True) -> None:
    """Creates one resource of each kind with calls to AWS, as another machine would have."""
    sagemaker = aws.boto3("sagemaker")
    tags = run.tags if tagged else []
    sagemaker.create_model(
        ModelName=run.name("model"), ExecutionRoleArn=ROLE, Tags=tags, PrimaryContainer={"Image": "image"}
    )
    sagemaker.create_endpoint_config(
        EndpointConfigName=run.name("config"),
        Tags=tags,
        ProductionVariants=[
            {
                "VariantName": "main",
                "ModelName": run.name("model"),
                "InitialInstanceCount": 2,
                "InstanceType": "ml.c5.xlarge",
                "InitialVariantWeight": 1.0,
            }
        ],
    )
    sagemaker.create_endpoint(EndpointName=run.name("endpoint"), EndpointConfigName=run.name("config"), Tags=tags)
    aws.boto3("application-autoscaling").register_scalable_target(
        ServiceNamespace="sagemaker",
        ResourceId=f"endpoint/{run.name('endpoint')}/variant/main",
        ScalableDimension="sagemaker:variant:DesiredInstanceCount",
        MinCapacity=1,
        MaxCapacity=2,
        Tags={tag["Key"]: tag["Value"] for tag in tags},
    )
    request = expiry(run, STACK, hours=2).request
    aws.boto3("scheduler").create_schedule(**request | {"StartDate": "2030-01-01T00:00:00+00:00"})


KINDS = {"scaling-target", "endpoint", "endpoint-config", "model", "schedule"}


def kinds(result: Result, key: str) -> set[str]:
    assert result.exit_code == 0, result.stderr
    return {item["kind"] for item in json.loads(result.stdout)[key]}


def test_all_kinds_are_found_priced_and_removed_from_another_machine(aws: AwsServer) -> None:
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


@pytest.mark.parametrize("words", [(RUN.id,), ("--all",)])
def test_what_is_billed_is_deleted_before_the_model_registry_is_read(aws: AwsServer, words: tuple[str, ...]) -> None:
    make_all(aws, RUN)
    assert neuron_sum("aws", "down", *words, "--every", "0.01").exit_code == 0
    assert aws.calls.index("sagemaker.DeleteEndpoint") < aws.calls.index("sagemaker.ListModelPackageGroups")
    assert aws.calls.count("sagemaker.ListEndpoints") == 2, "the search, and the check at the end"


def test_down_of_one_run_keeps_other_runs_and_foreign_resources(aws: AwsServer) -> None:
    theirs = Run("theirs-261121-2000-abcf", "")  # has the form of neuron-sum's names, without its tag
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


CALLER = f"arn:aws:sts::{ACCOUNT}:assumed-role/AWSReservedSSO_Dev_0123/ann@example.org"


@pytest.mark.parametrize("caller", [CALLER, f"arn:aws:iam::{ACCOUNT}:user/teams/ann@example.org"])
def test_denials_do_not_name_the_person(aws: AwsServer, caller: str) -> None:
    """The session of a role is often named by an e-mail address, and errors are copied into issues and receipts."""
    text = f"User: {caller} is not authorized to perform: sagemaker:ListModels on resource: arn:aws:sagemaker:x"
    aws.script.refusals["sagemaker.ListModels"] = ("AccessDeniedException", text, 400)
    down = neuron_sum("aws", "down", "--all", "--every", "0.01")
    assert down.exit_code == 14 and "ann" not in down.stderr
    assert "/NAME is not authorized to perform: sagemaker:ListModels" in " ".join(down.stderr.split())


@pytest.mark.parametrize("call", ["sagemaker.ListModels", "codebuild.ListBuildsForProject"])
def test_resources_without_list_permission_are_reported_and_the_rest_is_removed(aws: AwsServer, call: str) -> None:
    make_all(aws, RUN)
    aws.script.refusals[call] = ("AccessDeniedException", "not authorized to perform this", 400)
    down = neuron_sum("aws", "down", "--all", "--every", "0.01")
    assert down.exit_code == 14
    assert "not everything was deleted" in down.stderr and "neuron-sum aws iam" in down.stderr
    assert not [item for item in aws.everything() if "endpoint" in item]
    status = neuron_sum("aws", "status")
    assert status.exit_code == 0 and "the list is incomplete" in status.stderr
    aws.script.refusals.clear()
    assert neuron_sum("aws", "down", "--all", "--every", "0.01").exit_code == 0
    assert aws.everything() == []


def stops(*words: str) -> str:
    """The output of a command that exits with 14: its one line and its hint."""
    made = neuron_sum("aws", *words)
    assert made.exit_code == 14, made.stdout
    return made.stderr


DENIED = ("AccessDeniedException", "not authorized to perform this", 400)
DOWN = ("down", RUN.id, "--every", "0.01")
NEEDED = {"endpoint-config", "model", "schedule"}


@pytest.mark.parametrize("call", ["sagemaker.DeleteEndpoint", "sagemaker.ListEndpoints"])
def test_the_expiry_of_an_endpoint_is_kept_until_it_is_deleted(aws: AwsServer, call: str) -> None:
    make_all(aws, RUN)
    aws.script.refusals[call] = DENIED
    said = stops(*DOWN)
    assert "not authorized" in said and "kept for resources that may still run" in said and RUN.name("expiry") in said
    assert {item.split()[0] for item in aws.everything()} == {*NEEDED, "endpoint"}
    aws.script.refusals.clear()
    assert neuron_sum("aws", *DOWN).exit_code == 0
    assert aws.everything() == []


def look_at_all() -> Inventory:
    return look(Account(REGION))


def test_a_running_endpoint_does_not_block_the_cleanup_of_another_run(aws: AwsServer) -> None:
    for run in (RUN, OTHER):
        make_all(aws, run)
    running = [(KINDS_OF["endpoint"], RUN.id)]
    kept = {(thing.kind, thing.run) for kind, thing in look_at_all().found if needs(*running[0], thing)}
    assert kept == {(kind, RUN.id) for kind in NEEDED}


def test_an_unreachable_service_does_not_block_the_rest(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    make_all(aws, RUN)
    monkeypatch.setattr("boto3.Session", boto3.session.Session)  # creates new clients for these addresses
    for service in ("APPLICATION_AUTO_SCALING", "CODEBUILD", "SCHEDULER"):
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", "http://127.0.0.1:1")
    status = neuron_sum("aws", "status", "--json")
    assert kinds(status, "ours") == KINDS - {"scaling-target", "schedule"}
    assert status.stderr.count("AWS did not answer") == 3, "each of them once"
    said = stops(*DOWN)
    assert "AWS did not answer application-autoscaling" in said
    assert {item.split()[0] for item in aws.everything()} == {"scaling-target", "schedule"}
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
    aws.calls.clear()
    assert "AWS did not answer sts" in stops(*DOWN)
    assert aws.calls == []


@pytest.mark.parametrize("said", ["", "tiny", "tiny-261121-2000", "neuron-sum-somebody-elses", "*"])
@pytest.mark.parametrize("words", [("down", "--artifacts"), ("down", "--check"), ("status",)])
def test_an_invalid_run_id_changes_nothing(aws: AwsServer, words: tuple[str, ...], said: str) -> None:
    told = stops(words[0], said, *words[1:])
    assert f"{said!r} is not a run" in told and "neuron-sum aws status" in told
    assert aws.calls == []


def test_a_run_may_be_named_by_one_of_its_resources(aws: AwsServer) -> None:
    for name in ("endpoint", "config", "expiry"):
        assert parse_run_id(RUN.name(name)) == RUN.id
    assert parse_run_id(f"endpoint/{RUN.name('endpoint')}/variant/main") == RUN.id
    make_all(aws, RUN)
    assert {
        item["run"] for item in json.loads(neuron_sum("aws", "status", RUN.name("endpoint"), "--json").stdout)["ours"]
    } == {RUN.id}


def test_an_unknown_run_is_rejected_with_the_known_ones(aws: AwsServer) -> None:
    assert "no runs in this region" in stops("down", OTHER.id)
    make_all(aws, RUN)
    for words in (("down", OTHER.id), ("down", OTHER.id, "--check"), ("down", OTHER.id, "--artifacts")):
        told = stops(*words)
        assert f"unknown run {OTHER.id!r}" in told and RUN.id in told
    assert len({item.split()[0] for item in aws.everything()}) == len(KINDS)
    for words in (DOWN, DOWN, (*DOWN, "--check")):  # repeating it is not an error: the ledger knows the run
        assert neuron_sum("aws", *words).exit_code == 0
    assert RUN.id in stops("down", OTHER.id), "by the ledger"


def test_a_run_with_nothing_but_objects_is_known(aws: AwsServer) -> None:
    s3 = aws.boto3("s3")
    s3.put_object(Bucket=BUCKET, Key=f"neuron-sum/runs/{RUN.id}/output/model.tar.gz", Body=b"x")
    assert neuron_sum("aws", "down", RUN.id, "--artifacts").exit_code == 0
    assert s3.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0


def bucket_with(aws: AwsServer, *keys: str, versions: bool = False) -> Any:
    s3 = aws.boto3("s3")
    if versions:
        s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    for key in keys:
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    return s3


WRITTEN = ("neuron-sum/inputs/data/0/train.jsonl", f"neuron-sum/runs/{RUN.id}/output/model.tar.gz")


def test_other_objects_and_the_bucket_of_the_user_are_kept(aws: AwsServer) -> None:
    s3 = bucket_with(aws, *WRITTEN, "neuron-sum/data.jsonl", "mine")
    gone = neuron_sum("aws", "down", "--all", "--artifacts", "--json")
    assert gone.exit_code == 0, gone.stderr
    assert json.loads(gone.stdout)["stays"] == []
    assert [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["mine", "neuron-sum/data.jsonl"]


def test_remaining_object_versions_are_reported(aws: AwsServer) -> None:
    bucket_with(aws, *WRITTEN, versions=True)
    gone = neuron_sum("aws", "down", "--all", "--artifacts", "--json")
    assert gone.exit_code == 0, gone.stderr
    [versions] = json.loads(gone.stdout)["stays"]
    assert "old versions of 2 objects" in versions
    aws.script.policies = None
    kept = json.loads(neuron_sum("aws", "setup", "--delete", "--every", "0.01", "--json").stdout)["kept"]
    assert kept == [f"the bucket {BUCKET}, because it contains old versions"]


def test_objects_that_are_not_deleted_are_an_error(aws: AwsServer) -> None:
    s3 = bucket_with(aws, *WRITTEN)
    # S3 answers DeleteObjects with 200, and the reply lists each object that was not deleted.
    s3.put_bucket_policy(
        Bucket=BUCKET,
        Policy=json.dumps(
            {
                "Version": "2012-10-17",
                "Statement": [
                    {
                        "Effect": "Deny",
                        "Principal": "*",
                        "Action": "s3:DeleteObject",
                        "Resource": f"arn:aws:s3:::{BUCKET}/*",
                    }
                ],
            }
        ),
    )
    told = stops("down", "--all", "--artifacts")
    assert f"did not delete 1 of 1 objects of s3://{BUCKET}, the first: {WRITTEN[0]}: AccessDenied" in told
    assert len(aws.kept()) == 2
    s3.delete_bucket_policy(Bucket=BUCKET)
    assert neuron_sum("aws", "down", "--all", "--artifacts").exit_code == 0
    assert aws.kept() == []


def test_an_unknown_price_is_not_zero(aws: AwsServer) -> None:
    for name, instance in (("known", "ml.c5.xlarge"), ("other", "ml.t2.medium")):
        aws.boto3("sagemaker").create_notebook_instance(NotebookInstanceName=name, InstanceType=instance, RoleArn=ROLE)
    shown = json.loads(neuron_sum("aws", "status", "--json").stdout)
    unknown = [item for item in shown["not_ours"] if item["usd_per_hour"] is None]
    known = sum(item["usd_per_hour"] or 0 for item in shown["not_ours"])
    assert len(unknown) == len(shown["no_price_known"]) >= 1
    assert shown["usd_per_hour"] is None and shown["usd_per_hour_at_least"] == pytest.approx(known)
    said = neuron_sum("aws", "status").stdout
    assert f"at least ${known:.2f} an hour; no price known for {len(unknown)}" in " ".join(said.split())


@pytest.mark.parametrize("call", ["sagemaker.ListApps", "sagemaker.ListNotebookInstances"])
def test_foreign_resources_that_cannot_be_listed_are_a_warning(aws: AwsServer, call: str) -> None:
    make_all(aws, RUN)
    aws.script.refusals[call] = DENIED
    status = neuron_sum("aws", "status", "--json")
    assert kinds(status, "ours") == KINDS
    assert "the list is incomplete" in status.stderr and "not authorized" in status.stderr


def test_every_resource_name_contains_the_run_id(tmp_path: Path) -> None:
    for kind, attempt in (("train", 1), ("batch-model", 3), ("expiry", 1), ("config", 12)):
        assert run_of(RUN.name(kind, attempt)) == RUN.id
    assert run_of("neuron-sum-somebody-elses") is None
    assert run_of("other") is None


def test_a_dry_run_of_status_lists_its_requests(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
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
    only_while_they_run = {
        ("cloudwatch", "get_metric_statistics"),
        ("codebuild", "batch_get_builds"),
        ("sagemaker", "describe_training_job"),
        ("sagemaker", "describe_transform_job"),
    }
    assert told - asked <= only_while_they_run
