"""`neuron-sum aws setup`: the stack from its creation to its deletion, in every state, and its template."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aws_faults import hasten
from aws_iam import role_may
from aws_inputs import BUCKET, IMAGE, RUN, add_images, archive, failed, told
from aws_script import ACCOUNT, REGION
from aws_server import AwsServer
from aws_template import Resolver
from in_process import neuron_sum

from neuron_sum.errors import AwsError
from neuron_sum.platform.matrix import REGISTRY_ACCOUNTS
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import AwsContext
from sagemaker_jobs.aws.policies import caller_policy, setup_policy
from sagemaker_jobs.image.build import start_build
from sagemaker_jobs.stack import lifecycle, storage
from sagemaker_jobs.stack.stack import planned_stack
from sagemaker_jobs.stack.storage import RULES
from sagemaker_jobs.stack.template import WITHOUT_BUILDS, Settings, render

SETUP = ("aws", "setup", "--every", "0.01")
KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
BOUNDARY = f"arn:aws:iam::{ACCOUNT}:policy/limit"
OTHER_KEY = KEY.replace("1234abcd", "5678abcd")
VPC = ("--subnet", "subnet-0a1b2c3d", "--security-group", "sg-0a1b2c3d")


@pytest.fixture
def aws(aws: AwsServer, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """An account without a stack, whose administrator has the printed policies; the folder `wheels` has wheels."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(wheels.parent)
    aws.reset()
    administrator(aws)
    return aws


def administrator(aws: AwsServer) -> None:
    site = AwsContext(ACCOUNT, REGION)
    aws.script.policies = [caller_policy(site, kms_key=KEY), setup_policy(site, kms_key=KEY)]


def parameters(aws: AwsServer) -> dict[str, str]:
    """Those with a value, without the two that say what exists."""
    return {key: value for key, value in aws.script.stacks[-1].parameters.items() if value not in ("", "true", "false")}


def created(aws: AwsServer) -> tuple[str, str]:
    """Whether the stack creates the bucket and the repository."""
    given = aws.script.stacks[-1].parameters
    return given["CreateBucket"], given["CreateRepository"]


def test_a_stack_is_created_once(aws: AwsServer) -> None:
    assert "no stack neuron-sum" in failed(neuron_sum(*SETUP, "--check"))
    made = neuron_sum(*SETUP, "--json")
    assert told(made)["outcome"] == "created"
    for line in ("Bucket: CREATE_COMPLETE", "JobsRole: CREATE_IN_PROGRESS", "neuron-sum: CREATE_COMPLETE"):
        assert line in made.stderr
    roles = [f"role neuron-sum-{REGION}-{kind}" for kind in ("jobs", "endpoint", "expiry", "build")]
    expected = [f"bucket {BUCKET}", "repository neuron-sum", "project neuron-sum", *roles]
    assert set(aws.stack_resources()) == set(expected)
    assert aws.script.bucket_policies[BUCKET]["Statement"][0]["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert told(neuron_sum(*SETUP, "--json"))["outcome"] == "unchanged"
    assert neuron_sum(*SETUP, "--check").exit_code == 0
    assert aws.calls.count("cloudformation.CreateStack") == 1


def test_settings_are_kept_until_they_are_changed_or_removed(aws: AwsServer) -> None:
    options = ("--kms-key", KEY, *VPC, "--permissions-boundary", BOUNDARY, "--reads", "s3://theirs/a")
    told(neuron_sum(*SETUP, *options, "--monthly-usd", "50", "--email", "a@example.com", "--json"))
    before = parameters(aws)
    assert before["Reads"] == "arn:aws:s3:::theirs/a*"
    assert aws.script.budgets[f"neuron-sum-{REGION}"]["BudgetLimit"] == {"Amount": "50.00", "Unit": "USD"}
    role = aws.boto3("iam").get_role(RoleName=f"neuron-sum-{REGION}-jobs")["Role"]
    assert role["PermissionsBoundary"]["PermissionsBoundaryArn"] == BOUNDARY
    encryption = aws.boto3("s3").get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]
    assert KEY in json.dumps(encryption)
    assert told(neuron_sum(*SETUP, "--json"))["outcome"] == "unchanged"
    assert "parameter KmsKey:" in failed(neuron_sum(*SETUP, "--check", "--kms-key", OTHER_KEY))
    told(neuron_sum(*SETUP, "--monthly-usd", "100000.5", "--email", "b@example.com", "--json"))
    assert "b@example.com" in str(aws.script.budgets) and "100000.50" in str(aws.script.budgets)
    told(neuron_sum(*SETUP, "--reads", "s3://theirs/a", "--reads", "s3://other", "--json"))
    assert parameters(aws) == {**before, "Reads": "arn:aws:s3:::theirs/a*,arn:aws:s3:::other/*"}
    job = told(neuron_sum("aws", "train", "tiny", "--wheelhouse", "wheels", "--dry-run", "--json"))["requests"][-1]
    assert job["request"]["VpcConfig"] == {"SecurityGroupIds": ["sg-0a1b2c3d"], "Subnets": ["subnet-0a1b2c3d"]}
    assert job["request"]["OutputDataConfig"]["KmsKeyId"] == KEY
    removed = ("--kms-key", "", "--subnet", "", "--security-group", "", "--reads", "", "--monthly-usd", "0")
    told(neuron_sum(*SETUP, *removed, "--json"))
    assert parameters(aws) == {"PermissionsBoundary": BOUNDARY, "OldKeys": KEY}
    assert aws.script.budgets == {}


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "a key": (("--kms-key", "arn:aws:s3:::x"), "is not the ARN or id of a KMS key"),
    "an alias of a key": (("--kms-key", "alias/mine"), "an alias is invalid"),
    "a key of another region": (("--kms-key", KEY.replace(REGION, "eu-west-1")), "in the stack's region"),
    "a boundary": (("--permissions-boundary", "limit"), "is not the ARN of an IAM policy"),
    "half a VPC": (VPC[:2], "--security-group"),
    "an address": (("--reads", "theirs/models"), "--reads theirs/models is not an S3 address"),
    "a wildcard": (("--writes", "s3://b/*"), "is not an S3 address"),
    "a repository": (("--repository", "mine"), "is not the ARN of an image repository"),
    "a budget without an address": (("--monthly-usd", "5"), "--email ADDRESS"),
    "an address without a budget": (("--email", "a@b"), "--monthly-usd USD"),
    "an address of mail": (("--monthly-usd", "5", "--email", "nobody"), "is not an e-mail address"),
    "a deletion with settings": (("--delete", "--kms-key", KEY), "uses no settings"),
    "a template with a budget": (("--template", "--monthly-usd", "0"), "cannot be combined with --template"),
    "a template with the id of a key": (("--template", "--kms-key", KEY.rpartition("/")[2]), "needs the ARN"),
    "two actions": (("--check", "--delete"), "cannot be combined"),
    "artifacts": (("--artifacts",), "requires --delete"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_rejected_before_anything_is_sent(aws: AwsServer, name: str) -> None:
    words, told_ = WRONG[name]
    assert told_ in failed(neuron_sum(*SETUP, *words))
    assert not {"cloudformation.CreateStack", "cloudformation.UpdateStack"} & set(aws.calls)
    assert not [call for call in aws.calls if call.startswith("budgets")]


@pytest.mark.parametrize("region", WITHOUT_BUILDS)
def test_a_region_without_codebuild_has_the_rest_of_the_stack(region: str) -> None:
    template = render(AwsContext(ACCOUNT, region), Settings().parameters(AwsContext(ACCOUNT, region), {}))
    assert not {"BuildProject", "BuildRole", "BuildLogs"} & set(template["Resources"])
    assert "JobsRole" in Resolver(template, region=region).resources()
    with pytest.raises(AwsError, match=f"no build project in {region}"):
        start_build(RUN, planned_stack(AwsContext(ACCOUNT, region)), "cpu-x", source="b/k")


def test_a_failed_creation_names_the_first_cause_and_is_repeated_with_its_settings(aws: AwsServer) -> None:
    aws.script.stack_failures["Repository"] = "the repository is denied"
    error = failed(neuron_sum(*SETUP, "--kms-key", KEY))
    assert "ROLLBACK_COMPLETE: Repository CREATE_FAILED: the repository is denied" in error
    assert aws.stack_resources() == []
    assert "the stack is ROLLBACK_COMPLETE" in failed(neuron_sum(*SETUP, "--check"))
    assert "is ROLLBACK_COMPLETE" in failed(neuron_sum("aws", "train", "tiny", "--wheelhouse", "wheels"))
    aws.script.stack_failures.clear()
    assert told(neuron_sum(*SETUP, "--json"))["outcome"] == "created"
    assert parameters(aws) == {"KmsKey": KEY}


def test_a_failed_update_keeps_the_stack(aws: AwsServer) -> None:
    told(neuron_sum(*SETUP, "--json"))
    denied = f"User: arn:aws:sts::{ACCOUNT}:assumed-role/Admin/ann@example.org is not authorized"
    aws.script.stack_failures["JobsRole"] = denied
    update = neuron_sum(*SETUP, "--reads", "s3://theirs/")
    error = failed(update)
    assert "UPDATE_ROLLBACK_COMPLETE: JobsRole UPDATE_FAILED: User: arn:aws:sts:" in error
    assert "assumed-role/Admin/NAME is not authorized" in error and "ann@" not in update.stderr
    assert neuron_sum(*SETUP, "--check").exit_code == 0
    aws.script.stack_failures.clear()
    assert told(neuron_sum(*SETUP, "--reads", "s3://theirs/", "--json"))["outcome"] == "updated"


@pytest.mark.parametrize("state", ["ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED"])
def test_a_broken_stack_is_replaced_or_deleted(aws: AwsServer, state: str) -> None:
    for words in ((), ("--delete",)):
        aws.reset()
        aws.set_up(kms_key=KEY)
        administrator(aws)
        aws.script.stacks[-1].status = state
        assert f"the stack is {state}" in failed(neuron_sum(*SETUP, "--check"))
        made = told(neuron_sum(*SETUP, *words, "--json"))
        if words:
            assert made["deleted"] and made["kept"] == [] and aws.stack_resources() == []
        else:
            assert made["outcome"] == "created" and parameters(aws) == {"KmsKey": KEY}


def test_an_interrupted_setup_is_repeated(aws: AwsServer) -> None:
    denied = ("AccessDenied", "not authorized", 403)
    aws.script.refusals["cloudformation.CreateStack"] = denied
    assert "aws iam --setup" in failed(neuron_sum(*SETUP, "--kms-key", KEY))
    aws.script.refusals.clear()
    made = neuron_sum(*SETUP, "--json")
    assert told(made)["outcome"] == "created" and parameters(aws) == {"KmsKey": KEY}
    assert f"continuing with the settings of an unfinished setup: KmsKey={KEY}" in " ".join(made.stderr.split())
    assert not unfinished().exists()
    aws.script.refusals["cloudformation.UpdateStack"] = denied
    failed(neuron_sum(*SETUP, "--reads", "s3://theirs/"))
    aws.script.refusals.clear()
    assert told(neuron_sum(*SETUP, "--reads", "s3://theirs/", "--json"))["outcome"] == "updated"


def unfinished() -> Path:
    return Ledger(AwsContext(ACCOUNT, REGION)).path.with_suffix(".setup.json")


@pytest.mark.parametrize("exists", [False, True])
def test_one_of_two_administrators_at_the_same_time_gets_an_error(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    """The second one starts between the first one's look at the stack and its change."""
    if exists:
        told(neuron_sum(*SETUP, "--json"))
    existing, nested = storage.existing, False

    def looked(account: Account) -> Any:
        nonlocal nested
        found = existing(account)
        if not nested:
            nested = True
            if exists:
                aws.script.stacks[-1].become("UPDATE_IN_PROGRESS")
            else:
                told(neuron_sum(*SETUP, "--reads", "s3://second/", "--json"))
        return found

    monkeypatch.setattr(storage, "existing", looked)
    assert "another `neuron-sum aws setup` changes the stack" in failed(neuron_sum(*SETUP, "--reads", "s3://first/"))
    assert parameters(aws) == ({} if exists else {"Reads": "arn:aws:s3:::second/*"})


@pytest.mark.parametrize("options", [("--delete",), ()])
def test_ctrl_c_names_the_same_command(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    if options:
        told(neuron_sum(*SETUP, "--json"))

    def interrupt(seconds: float) -> None:
        if aws.script.stacks and aws.script.stacks[-1].pending is not None:
            raise KeyboardInterrupt

    monkeypatch.setattr(lifecycle.time, "sleep", interrupt)
    made = neuron_sum(*SETUP, *options)
    command = " ".join(("neuron-sum aws setup", *options, "--region", REGION))
    assert made.exit_code == 130 and f"Run `{command}` to wait for it." in " ".join(made.stderr.split())


def test_an_update_that_cannot_be_rolled_back_is_reported(aws: AwsServer) -> None:
    aws.set_up()
    administrator(aws)
    aws.script.stacks[-1].status = "UPDATE_ROLLBACK_FAILED"
    assert "aws cloudformation continue-update-rollback" in failed(neuron_sum(*SETUP))


def test_an_operation_in_progress_is_waited_for(aws: AwsServer) -> None:
    aws.set_up()
    administrator(aws)
    stack = aws.script.stacks[-1]
    stack.become("UPDATE_IN_PROGRESS")
    stack.pending = lambda: stack.become("UPDATE_COMPLETE")
    made = neuron_sum(*SETUP, "--json")
    assert told(made)["outcome"] == "unchanged" and "is UPDATE_IN_PROGRESS: waiting" in made.stderr


@pytest.mark.parametrize("words", [(), ("--check",), ("--delete",), ("train",)])
@pytest.mark.parametrize("state", ["CREATE_COMPLETE", "REVIEW_IN_PROGRESS", "ROLLBACK_COMPLETE"])
def test_a_foreign_stack_of_that_name_is_not_touched(aws: AwsServer, words: tuple[str, ...], state: str) -> None:
    aws.set_up()
    administrator(aws)
    stack = aws.script.stacks[-1]
    stack.template, stack.status = {**stack.template, "Description": "theirs"}, state
    command = ("aws", "train", "tiny", "--wheelhouse", "wheels") if words == ("train",) else (*SETUP, *words)
    assert "is not from neuron-sum's template" in failed(neuron_sum(*command))
    assert stack.status == state and not [
        call for call in aws.calls if "CreateStack" in call or "Update" in call or "Delete" in call
    ]


COMMANDS: dict[str, tuple[str, ...]] = {
    "image": ("image", "--context", "."),
    "train": ("train", "tiny", "--wheelhouse", "wheels"),
    "compile": ("compile", RUN.id, "--wheelhouse", "wheels"),
    "deploy": ("deploy", "model.tar.gz", "--instance", "ml.c7i.4xlarge", "--image", "other/image:1"),
    "batch": ("batch", "model.tar.gz", "texts.jsonl", "--image", "other/image:1"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_without_a_stack_name_setup_and_create_nothing(aws: AwsServer, name: str) -> None:
    archive(Path("model.tar.gz"))
    error = failed(neuron_sum("aws", *COMMANDS[name], "--every", "0.01"))
    assert f"no stack neuron-sum in account {ACCOUNT}, {REGION}" in error and "neuron-sum aws setup" in error
    assert set(aws.calls) <= {"sts.GetCallerIdentity", "cloudformation.DescribeStacks"}


def test_a_stack_in_use_is_not_deleted_and_what_is_not_empty_is_kept(aws: AwsServer) -> None:
    told(neuron_sum(*SETUP, "--json"))
    aws.script.looks = None
    job = told(
        neuron_sum(
            "aws", "train", "tiny", "--instance", "ml.c7i.4xlarge", "--wheelhouse", "wheels", "--detach", "--json"
        )
    )
    error = failed(neuron_sum(*SETUP, "--delete"))
    assert f"training-job {job['job']}" in error and "neuron-sum aws down --all" in error
    told(neuron_sum("aws", "down", "--all", "--every", "0.01", "--json"))
    add_images(aws)
    kept = told(neuron_sum(*SETUP, "--delete", "--json"))["kept"]
    assert f"the bucket {BUCKET}, because it contains" in kept[0] and "3 images" in kept[1]
    assert aws.stack_resources()[:2] == [f"bucket {BUCKET}", "repository neuron-sum"]
    objects = aws.kept()
    made = told(neuron_sum(*SETUP, "--json"))
    assert made["outcome"] == "created" and aws.kept() == objects, "the retained ones are used"
    assert created(aws) == ("false", "false")
    assert BUCKET in aws.script.bucket_policies
    assert told(neuron_sum(*SETUP, "--json"))["outcome"] == "unchanged"
    told(neuron_sum(*SETUP, "--kms-key", KEY, "--json"))
    encryption = aws.boto3("s3").get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]
    assert KEY in json.dumps(encryption)
    assert neuron_sum(*SETUP, "--check").exit_code == 0
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    aws.boto3("s3").put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration={"Rules": [rule]})
    assert f"bucket {BUCKET}: encrypted with" in failed(neuron_sum(*SETUP, "--check"))
    gone = told(neuron_sum(*SETUP, "--delete", "--artifacts", "--json"))
    assert gone["kept"] == [] and aws.stack_resources() == []
    assert told(neuron_sum(*SETUP, "--delete", "--json"))["deleted"] is False
    assert "there is no stack" in neuron_sum(*SETUP, "--delete", "--dry-run").stdout
    Ledger(AwsContext(ACCOUNT, REGION)).note("gone", "endpoint", RUN.name("endpoint"), RUN.id)
    assert "may still use its role" in failed(neuron_sum(*SETUP, "--delete"))


def test_an_earlier_bucket_and_repository_are_used_only_with_the_tag(aws: AwsServer) -> None:
    s3, ecr = aws.boto3("s3"), aws.boto3("ecr")
    s3.create_bucket(Bucket=BUCKET)
    error = failed(neuron_sum(*SETUP))
    assert f"the bucket {BUCKET} was not created by neuron-sum" in error and "put-bucket-tagging" in error
    assert aws.script.stacks == []
    s3.put_bucket_tagging(Bucket=BUCKET, Tagging={"TagSet": [{"Key": "neuron-sum-run", "Value": "all"}]})
    ecr.create_repository(repositoryName="neuron-sum")
    assert "the repository neuron-sum in" in failed(neuron_sum(*SETUP))
    ecr.delete_repository(repositoryName="neuron-sum")
    told(neuron_sum(*SETUP, "--json"))
    assert created(aws) == ("false", "true")
    assert s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"]["BlockPublicPolicy"]
    assert "aws:SecureTransport" in json.dumps(aws.script.bucket_policies[BUCKET])
    parts, captured = s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    assert parts["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
    assert captured["Filter"] == {"Prefix": "neuron-sum/capture/"} and captured["Expiration"] == {"Days": 7}
    s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": [parts]})
    told(neuron_sum(*SETUP, "--json"))
    assert len(s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]) == 2, "an earlier version's rules"
    mine = {"ID": "mine", "Prefix": "mine/", "Status": "Enabled", "Expiration": {"Days": 3}}  # the older form
    s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": [mine]})
    assert "no lifecycle rule parts-of-killed-uploads, captured-requests" in failed(neuron_sum(*SETUP, "--check"))
    told(neuron_sum(*SETUP, "--json"))
    told(neuron_sum(*SETUP, "--check", "--json"))
    rules = s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    assert [rule["ID"] for rule in rules] == ["mine", "parts-of-killed-uploads", "captured-requests"]
    assert (rules[0]["Filter"], rules[0]["Expiration"]) == ({"Prefix": "mine/"}, {"Days": 3})
    rules[-1]["Expiration"] = {"Days": 90}
    s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": rules})
    assert "no lifecycle rule captured-requests" in failed(neuron_sum(*SETUP, "--check"))
    told(neuron_sum(*SETUP, "--json"))
    told(neuron_sum(*SETUP, "--check", "--json"))


def test_the_template_has_the_rules_of_a_bucket_outside_of_the_stack(aws: AwsServer) -> None:
    told(neuron_sum(*SETUP, "--json"))
    rules = aws.boto3("s3").get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
    assert sorted(rules, key=lambda rule: rule["ID"]) == sorted(RULES, key=lambda rule: rule["ID"])


def test_the_objects_of_an_earlier_key_stay_readable(aws: AwsServer) -> None:
    told(neuron_sum(*SETUP, "--kms-key", KEY, "--json"))
    told(neuron_sum(*SETUP, "--kms-key", OTHER_KEY, "--json"))
    assert parameters(aws) == {"KmsKey": OTHER_KEY, "OldKeys": KEY}
    for role in ("jobs", "endpoint", "build"):
        assert role_may(f"arn:aws:iam::{ACCOUNT}:role/neuron-sum-{REGION}-{role}", "kms:Decrypt", KEY)
    assert KEY in neuron_sum("aws", "iam").stdout
    told(neuron_sum(*SETUP, "--kms-key", KEY, "--json"))
    assert parameters(aws) == {"KmsKey": KEY, "OldKeys": OTHER_KEY}


def test_graphs_in_the_bucket_are_artifacts(aws: AwsServer) -> None:
    told(neuron_sum(*SETUP, "--json"))
    aws.boto3("s3").put_object(Bucket=BUCKET, Key="neuron-sum/cache/graph.neff", Body=b"x")
    told(neuron_sum(*SETUP, "--delete", "--artifacts", "--json"))
    assert aws.stack_resources() == []


def test_the_role_of_autoscaling_is_not_required(aws: AwsServer) -> None:
    aws.script.refusals["iam.CreateServiceLinkedRole"] = ("AccessDenied", "not authorized", 403)
    made = neuron_sum(*SETUP, "--json")
    assert told(made)["outcome"] == "created" and "create-service-linked-role" in made.stderr


@pytest.mark.parametrize("fault", [pytest.param("before", marks=pytest.mark.slow), "lost"])
@pytest.mark.parametrize("start", ["broken", "update", "delete"])
def test_a_change_that_fails_at_any_call_keeps_the_settings(aws: AwsServer, fault: Any, start: str) -> None:
    words = {"broken": (), "update": ("--reads", "s3://theirs/"), "delete": ("--delete",)}[start]
    number = 0
    while True:
        aws.reset()
        unfinished().unlink(missing_ok=True)
        aws.set_up(kms_key=KEY, permissions_boundary=BOUNDARY, subnets=["subnet-1"], security_groups=["sg-1"])
        before = parameters(aws)
        if start == "broken":
            aws.script.stacks[-1].status = "DELETE_FAILED"
        administrator(aws)
        aws.fault, aws.point = fault, number
        code = neuron_sum(*SETUP, *words).exit_code
        hit, aws.point = aws.hit, None
        assert code in (0, 14), hit  # a warning if only the role of autoscaling fails
        told(neuron_sum(*SETUP, *words, "--json"))
        if start == "delete":
            assert aws.stack_resources() == [], hit
        else:
            stack = aws.script.stacks[-1]
            assert stack.status in ("CREATE_COMPLETE", "UPDATE_COMPLETE"), hit
            assert parameters(aws) == {**before, **({"Reads": "arn:aws:s3:::theirs/*"} if words else {})}, hit
        if hit is None:
            assert number >= 8
            return
        number += 1


@pytest.mark.parametrize("fault", ["before", "lost"])
def test_a_setup_that_fails_at_any_call_is_repeated(aws: AwsServer, fault: str) -> None:
    number = 0
    while True:
        aws.reset()
        administrator(aws)
        aws.fault, aws.point = fault, number
        code = neuron_sum(*SETUP).exit_code
        if aws.hit is None:
            assert code == 0 and number >= 8
            return
        assert code == (0 if aws.hit == "iam.CreateServiceLinkedRole" else 14), aws.hit
        aws.point = None
        made = neuron_sum(*SETUP, "--json")
        assert told(made)["outcome"] in ("created", "unchanged"), aws.hit
        assert neuron_sum(*SETUP, "--check").exit_code == 0, aws.hit
        number += 1


def test_plan_shows_what_counts_against_the_budget(aws: AwsServer) -> None:
    plan = ("aws", "plan", "tiny", "--instance", "ml.c7i.4xlarge", "--json")
    assert told(neuron_sum(*plan))["budget"] is None
    told(neuron_sum(*SETUP, "--monthly-usd", "50", "--email", "a@example.com", "--json"))
    budget = aws.script.budgets[f"neuron-sum-{REGION}"]
    assert budget["CostFilters"] == {"Service": ["Amazon SageMaker"], "Region": [REGION]}
    aws.script.spent = 12.5
    assert told(neuron_sum(*plan))["budget"] == {"name": f"neuron-sum-{REGION}", "limit_usd": 50, "spent_usd": 12.5}
    assert f"budget neuron-sum-{REGION}: $12.50 of $50.00 spent this month" in neuron_sum(*plan[:-1]).stdout
    aws.script.refusals["budgets.DescribeBudget"] = ("AccessDeniedException", "not authorized", 400)
    made = neuron_sum(*plan)
    assert told(made)["budget"] is None and "budget not read" in made.stderr


def test_a_private_image_must_be_allowed(aws: AwsServer) -> None:
    repository = f"arn:aws:ecr:{REGION}:210987654321:repository/theirs"
    words = ("aws", "train", "tiny", "--wheelhouse", "wheels", "--instance", "ml.c7i.4xlarge", "--dry-run", "--json")
    image = f"210987654321.dkr.ecr.{REGION}.amazonaws.com/theirs:1"
    told(neuron_sum(*SETUP, "--json"))
    assert f"aws setup --repository {repository}" in failed(neuron_sum(*words, "--image", image))
    told(neuron_sum(*SETUP, "--repository", repository, "--json"))
    for allowed in (image, IMAGE, f"763104351884.dkr.ecr.{REGION}.amazonaws.com/any:1"):
        told(neuron_sum(*words, "--image", allowed))


def test_a_dry_run_and_the_template_send_nothing(aws: AwsServer) -> None:
    template = told(neuron_sum(*SETUP, "--template", "--region", "cn-north-1", "--json"))
    [request] = told(neuron_sum(*SETUP, "--dry-run", "--reads", "s3://theirs/a", "--json"))["requests"]
    assert aws.calls == [] and request["operation"] == "create_stack"
    assert len(request["request"]["TemplateBody"]) < 51_200
    roles = Resolver(template, region="cn-north-1", partition="aws-cn").resources()
    assert roles["JobsRole"]["Properties"]["RoleName"] == "neuron-sum-cn-north-1-jobs"
    assert f"arn:aws-cn:s3:::neuron-sum-{ACCOUNT}-cn-north-1/" in json.dumps(roles)
    text = json.dumps(template["Resources"])
    assert "arn:aws:" not in text and "amazonaws.com/" not in text
    assert f":{REGISTRY_ACCOUNTS['cn-north-1']}:repository/*" in text.replace("${AWS::Region}", "")
    without = told(neuron_sum(*SETUP, "--template", "--region", "us-gov-west-1", "--json"))
    assert ("us-gov-west-1" in REGISTRY_ACCOUNTS) == ("PullPublished" in json.dumps(without))
    given = told(neuron_sum(*SETUP, "--template", "--reads", "s3://theirs/a", "--kms-key", KEY, "--json"))
    assert given["Parameters"]["KmsKey"]["Default"] == KEY and "List1" in json.dumps(given)


COMBINATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "no options": (REGION, {}),
    "a key, a boundary and a VPC": (
        "eu-west-1",
        {"kms_key": KEY.replace(REGION, "eu-west-1"), "permissions_boundary": BOUNDARY, "subnets": ["subnet-0a1b2c3d"],
         "security_groups": ["sg-0a1b2c3d"]},
    ),
    "addresses and repositories": (
        REGION,
        {"reads": ["s3://theirs/a", "s3://other"], "writes": ["s3://graphs/"],
         "repositories": [f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/mine"],
         "mlflow_servers": [f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:mlflow-tracking-server/ours"]},
    ),
    "no builds": ("mx-central-1", {}),
    "another partition": ("cn-north-1", {}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", COMBINATIONS)
def test_cfn_lint_finds_nothing(tmp_path: Path, name: str) -> None:
    pytest.importorskip("cfnlint")
    region, options = COMBINATIONS[name]
    site = AwsContext(ACCOUNT, region, "aws-cn" if region.startswith("cn-") else "aws")
    parameters, path = Settings(**options).parameters(site, {}), tmp_path / "template.json"
    path.write_text(json.dumps(render(site, parameters)), encoding="utf-8")
    words = ["--regions", region, "--template", str(path)]
    linted = subprocess.run(
        [sys.executable, "-c", "import sys; from cfnlint.runner import main; sys.exit(main())", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_builds_are_in_the_regions_of_the_registry() -> None:
    assert set(WITHOUT_BUILDS) <= set(REGISTRY_ACCOUNTS)
