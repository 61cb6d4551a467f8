"""The policies of users and roles: sufficient for every call in the code, and no way to more rights."""

import ast
import json
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from aws_endpoints import tick
from aws_faults import hasten
from aws_iam import allowed
from aws_script import ACCOUNT, REGION
from aws_server import AwsServer
from aws_template import Resolver
from botocore import xform_name
from botocore.exceptions import ClientError
from in_process import neuron_sum

import sagemaker_jobs
from neuron_sum.recipes.loading import load_recipe
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import AwsContext, Run
from sagemaker_jobs.aws.policies import MANAGED_POLICY, documents
from sagemaker_jobs.cleanup.kinds import KINDS
from sagemaker_jobs.endpoint.launch import expiry
from sagemaker_jobs.jobs import inputs, training
from sagemaker_jobs.launch.options import TrainOptions
from sagemaker_jobs.stack.stack import planned_stack
from sagemaker_jobs.stack.template import Settings, render

SERVICES = {
    "sagemaker": "sagemaker", "iam": "iam", "codebuild": "codebuild", "ecr": "ecr", "logs": "logs",
    "scheduler": "scheduler", "application-autoscaling": "application-autoscaling", "cloudwatch": "cloudwatch",
    "ce": "ce",
    "pricing": "pricing", "service-quotas": "servicequotas", "cloudformation": "cloudformation", "sqs": "sqs",
}  # fmt: skip
"""boto3's name of each service, and IAM's prefix."""

S3 = {
    "head_bucket": "ListBucket", "list_objects_v2": "ListBucket", "put_object": "PutObject",
    "copy_object": "PutObject", "get_object": "GetObject", "head_object": "GetObject", "delete_object": "DeleteObject",
    "delete_objects": "DeleteObject", "delete_bucket": "DeleteBucket",
    "get_bucket_encryption": "GetEncryptionConfiguration", "put_bucket_encryption": "PutEncryptionConfiguration",
    "put_public_access_block": "PutBucketPublicAccessBlock", "put_bucket_policy": "PutBucketPolicy",
    "get_bucket_policy": "GetBucketPolicy", "get_bucket_tagging": "GetBucketTagging",
    "get_bucket_lifecycle_configuration": "GetLifecycleConfiguration",
    "put_bucket_lifecycle_configuration": "PutLifecycleConfiguration",
    "list_multipart_uploads": "ListBucketMultipartUploads", "abort_multipart_upload": "AbortMultipartUpload",
}  # fmt: skip
"""Methods whose IAM action has a different name."""

FREE = {"get_caller_identity"}
"""Actions that everybody may perform."""
WITHOUT_NAMES = {"Costs", "ListAndPrices", "Metrics", "Network", "RegistryToken"}
RUN = Run("tiny-261121-2000-abcd", "tiny")
ROLES = {
    kind: f"arn:aws:iam::{ACCOUNT}:role/neuron-sum-{REGION}-{kind}" for kind in ("jobs", "endpoint", "expiry", "build")
}


@cache
def operations() -> dict[str, set[str]]:
    """boto3's methods, each with its possible IAM actions."""
    found: dict[str, set[str]] = {method: {f"s3:{action}"} for method, action in S3.items()}
    found["describe_budget"] = {"budgets:ViewBudget"}
    found["create_budget"] = found["delete_budget"] = {"budgets:ModifyBudget"}
    for service, prefix in SERVICES.items():
        for name in botocore.session.get_session().get_service_model(service).operation_names:
            found.setdefault(xform_name(name), set()).add(f"{prefix}:{name}")
    return found


def called() -> Iterator[str]:
    """Every string of the package that is a method of a used service."""
    for path in sorted(Path(sagemaker_jobs.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in operations():
                yield node.value
    for kind in KINDS.values():
        yield from (operation for _, operation in kind.reads)
        if hasattr(kind, "snake"):
            yield f"{kind.end}_{kind.snake}"  # type: ignore[attr-defined]


def printed(*words: str) -> dict[str, Any]:
    made = neuron_sum("aws", "iam", "--account", ACCOUNT, "--region", REGION, *words, "--json")
    assert made.exit_code == 0, made.stderr
    return merged(made.stdout)


def merged(text: str) -> dict[str, Any]:
    """The printed documents as one policy."""
    return {"Statement": [each for part in json.loads(text).values() for each in part["Statement"]]}


def actions(policy: dict[str, Any]) -> set[str]:
    return {action for statement in policy["Statement"] for action in statement["Action"]}


def granted(patterns: set[str], action: str) -> bool:
    return any(fnmatchcase(action, pattern) for pattern in patterns)


def test_the_policies_allow_every_call_in_the_code() -> None:
    caller, setup = actions(printed()), actions(printed("--setup"))
    methods = set(called()) - FREE
    assert {"create_training_job", "create_stack", "put_object", "delete_endpoint", "stop_build"} <= methods
    lacking = {method for method in methods if not any(granted(caller | setup, each) for each in operations()[method])}
    assert not lacking
    possible = {action for method in methods for action in operations()[method]}
    by_other_ways = {
        "sagemaker:AddTags", "iam:PassRole", "application-autoscaling:TagResource", "cloudwatch:PutMetricAlarm",
        "cloudwatch:DeleteAlarms", "cloudwatch:DescribeAlarms", "sagemaker:InvokeEndpoint",
        "sagemaker:InvokeEndpointWithResponseStream", "sagemaker:UpdateEndpointWeightsAndCapacities",
    }  # fmt: skip
    """Actions that AWS requires in addition to the call itself, and the calls of `request`."""
    assert caller - possible - by_other_ways <= {"s3:GetObject", "s3:PutObject"}, "more than the code needs"


def test_the_caller_writes_nothing_in_iam_and_the_policies_fit() -> None:
    caller = printed()
    assert {action for action in actions(caller) if action.startswith("iam:")} == {"iam:PassRole"}
    passed = {arn for each in caller["Statement"] if each["Action"] == ["iam:PassRole"] for arn in each["Resource"]}
    assert passed == {
        f"arn:aws:iam::{ACCOUNT}:role/neuron-sum-{REGION}-{kind}" for kind in ("jobs", "endpoint", "expiry")
    }
    for part in documents(caller):
        assert len(json.dumps(part, separators=(",", ":"))) <= MANAGED_POLICY
    assert [each for part in documents(caller) for each in part["Statement"]] == caller["Statement"]
    bounded = printed("--setup", "--permissions-boundary", f"arn:aws:iam::{ACCOUNT}:policy/limit")
    [roles] = [each for each in bounded["Statement"] if each["Sid"] == "ChangeRoles"]
    assert roles["Condition"]["StringEquals"] == {"iam:PermissionsBoundary": f"arn:aws:iam::{ACCOUNT}:policy/limit"}


def role_policies(**options: Any) -> dict[str, dict[str, Any]]:
    """The policy of each role of the template."""
    parameters = Settings(**options).parameters(AwsContext(ACCOUNT, REGION), {})
    resources = Resolver(render(AwsContext(ACCOUNT, REGION), parameters), parameters).resources()
    return {
        name: each["Properties"]["Policies"][0]["PolicyDocument"]
        for name, each in resources.items()
        if each["Type"] == "AWS::IAM::Role"
    }


def test_policies_name_specific_resources() -> None:
    options = {"subnets": ["subnet-1"], "security_groups": ["sg-1"], "reads": ["s3://theirs/a", "s3://other"]}
    both = (*role_policies(**options).values(), printed(), printed("--setup"))
    wildcards = {each["Sid"] for policy in both for each in policy["Statement"] if each["Resource"] == ["*"]}
    assert wildcards == WITHOUT_NAMES
    shared = (
        "*:log-group:/aws/sagemaker/T*", "*:log-group:/aws/codebuild/neuron-sum*", "*:scalable-target/*",
        "*:role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/*", "*:763104351884:repository/*",
        "arn:aws:s3:::theirs*", "arn:aws:s3:::other*", "*",
    )  # fmt: skip
    for policy in both:
        for each in policy["Statement"]:
            for arn in each["Resource"]:
                assert "neuron-sum" in arn or any(fnmatchcase(arn, pattern) for pattern in shared), each
                service = "*" if arn == "*" else arn.split(":")[2]
                assert f":{REGION}:" in arn or service in ("*", "s3", "iam", "budgets", "ecr"), each


def test_the_roles_reach_the_files_of_a_launch_and_no_others(tmp_path: Path) -> None:
    """Every channel, its checkpoints and its output, as the container reads and writes them."""
    launch = training.launch(
        RUN,
        load_recipe("tiny"),
        TrainOptions("ml.c7i.4xlarge", 1),
        inputs.channels(load_recipe("tiny"), tmp_path, None),
        planned_stack(AwsContext(ACCOUNT, REGION)),
    )
    jobs = [role_policies()["JobsRole"]]

    def reaches(address: str, action: str) -> bool:
        bucket, _, key = address.removeprefix("s3://").partition("/")
        listed = allowed(jobs, "s3:ListBucket", f"arn:aws:s3:::{bucket}", {"s3:prefix": key})
        return listed and allowed(jobs, action, f"arn:aws:s3:::{bucket}/{key.rstrip('/')}/a-file")

    request = launch["training-job"].request
    channels = [each["DataSource"]["S3DataSource"]["S3Uri"] for each in request["InputDataConfig"]]
    assert len(channels) >= 2
    assert [each for each in channels if not reaches(each, "s3:GetObject")] == []
    written = [request["CheckpointConfig"]["S3Uri"], request["OutputDataConfig"]["S3OutputPath"]]
    assert [each for each in written if not reaches(each, "s3:PutObject")] == []
    assert not reaches(channels[0], "s3:PutObject")
    pull = "ecr:BatchGetImage"
    for policy in role_policies(repositories=[f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/mine"]).values():
        if any(each["Sid"] == "Pull" for each in policy["Statement"]):
            assert allowed([policy], pull, f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/mine")
            assert not allowed([policy], pull, f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/another")


def test_s3_addresses_of_the_stack_are_readable_and_no_others() -> None:
    made = role_policies(reads=["s3://theirs/models/"], writes=["s3://graphs/neuron"])
    for policy in (made["JobsRole"], made["EndpointRole"]):
        assert allowed([policy], "s3:GetObject", "arn:aws:s3:::theirs/models/model.tar.gz")
        assert allowed([policy], "s3:ListBucket", "arn:aws:s3:::theirs", {"s3:prefix": "models/"})
        assert not allowed([policy], "s3:ListBucket", "arn:aws:s3:::theirs", {"s3:prefix": ""})
        assert not allowed([policy], "s3:GetObject", "arn:aws:s3:::theirs/other/model.tar.gz")
        assert not allowed([policy], "s3:PutObject", "arn:aws:s3:::theirs/models/x")
    assert allowed([made["JobsRole"]], "s3:PutObject", "arn:aws:s3:::graphs/neuron/x")
    assert not allowed([made["EndpointRole"]], "s3:PutObject", "arn:aws:s3:::graphs/neuron/x")
    both = [role_policies(reads=["s3://theirs/models/", "s3://other"])["JobsRole"]]
    assert allowed(both, "s3:ListBucket", "arn:aws:s3:::other", {"s3:prefix": ""})
    assert not allowed(both, "s3:ListBucket", "arn:aws:s3:::theirs", {"s3:prefix": "secret/"})
    assert not allowed([made["EndpointRole"]], "cloudwatch:PutMetricData", "*", {"cloudwatch:namespace": "others"})
    metrics = {"cloudwatch:namespace": "/aws/sagemaker/Endpoints"}
    assert allowed([made["EndpointRole"]], "cloudwatch:PutMetricData", "*", metrics)


def test_the_expiry_role_only_ends_what_is_neuron_sums() -> None:
    policy, site = role_policies()["ExpiryRole"], AwsContext(ACCOUNT, REGION)
    tagged = {"aws:ResourceTag/neuron-sum-run": RUN.id}
    deregister, target = (
        "application-autoscaling:DeregisterScalableTarget",
        site.arn("application-autoscaling", "scalable-target/1"),
    )
    assert allowed([policy], "sagemaker:DeleteEndpoint", site.arn("sagemaker", f"endpoint/{RUN.name('endpoint')}"))
    assert not allowed([policy], "sagemaker:DeleteEndpoint", site.arn("sagemaker", "endpoint/prod"))
    assert allowed([policy], deregister, target, tagged) and not allowed([policy], deregister, target)
    assert actions(policy) == {
        "sagemaker:DeleteEndpoint", "sagemaker:StopTransformJob", deregister, "cloudwatch:DeleteAlarms",
        "sqs:SendMessage",
    }  # fmt: skip


def test_the_key_and_the_addresses_of_the_stack_are_in_the_policy_of_the_caller(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasten(aws, monkeypatch)
    key = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    aws.reset()
    aws.set_up(kms_key=key, reads=["s3://theirs/models/"])
    made = neuron_sum("aws", "iam", "--json")
    policy = merged(made.stdout)
    assert allowed([policy], "kms:GenerateDataKey", key)
    assert not allowed([policy], "kms:CreateGrant", key) and allowed(
        [policy], "kms:CreateGrant", key, {"kms:GrantIsForAWSResource": "true"}
    )
    assert allowed([policy], "s3:GetObject", "arn:aws:s3:::theirs/models/m.tar.gz")
    for role in ("JobsRole", "EndpointRole", "BuildRole"):
        assert allowed([role_policies(kms_key=key)[role]], "kms:Decrypt", key)


def test_without_credentials_policies_use_the_region_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nowhere")
    monkeypatch.setenv("AWS_REGION", "cn-north-1")
    made = neuron_sum("aws", "iam", "--account", ACCOUNT, "--json")
    assert made.exit_code == 0 and f"arn:aws-cn:iam::{ACCOUNT}:role/neuron-sum-cn-north-1-jobs" in made.stdout
    planned = neuron_sum("aws", "plan", "tiny", "--offline", "--region", "us-east-1", "--json")
    assert planned.exit_code == 0 and json.loads(planned.stdout)["region"] == "us-east-1"


TRUST = json.dumps({"Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}]})
ALL = json.dumps({"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]})
ADMIN = f"arn:aws:iam::{ACCOUNT}:role/admin"
JOBS = f"neuron-sum-{REGION}-jobs"


def training_job(role: str) -> dict[str, Any]:
    return {
        "TrainingJobName": RUN.name("train"), "RoleArn": role, "Tags": RUN.tags,
        "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
        "OutputDataConfig": {"S3OutputPath": f"s3://neuron-sum-{ACCOUNT}-{REGION}/neuron-sum/runs/x"},
        "ResourceConfig": {"InstanceType": "ml.c5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
    }  # fmt: skip


def schedule(role: str) -> dict[str, Any]:
    request = expiry(RUN, planned_stack(AwsContext(ACCOUNT, REGION)), hours=24).request
    target = {**request["Target"], "RoleArn": role, "Arn": "arn:aws:scheduler:::aws-sdk:iam:attachRolePolicy"}
    return {**request, "Target": target}


BUILD = {
    "projectName": "neuron-sum", "sourceLocationOverride": f"neuron-sum-{ACCOUNT}-{REGION}/neuron-sum/inputs/image/a/b",
    "computeTypeOverride": "BUILD_GENERAL1_LARGE",
    "environmentVariablesOverride": [{"name": "NEURON_SUM_TAG", "value": "a"}],
}  # fmt: skip
TABLE = {
    "ServiceNamespace": "dynamodb", "ResourceId": "table/theirs",
    "ScalableDimension": "dynamodb:table:ReadCapacityUnits",
}  # fmt: skip
ATTEMPTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "create a role": ("iam", "create_role", {"RoleName": "neuron-sum-mine", "AssumeRolePolicyDocument": TRUST}),
    "write a role's policy": ("iam", "put_role_policy", {"RoleName": JOBS, "PolicyName": "a", "PolicyDocument": ALL}),
    "attach a policy": (
        "iam", "attach_role_policy", {"RoleName": JOBS, "PolicyArn": "arn:aws:iam::aws:policy/AdministratorAccess"}
    ),
    "change a trust": ("iam", "update_assume_role_policy", {"RoleName": JOBS, "PolicyDocument": TRUST}),
    "change the stack": ("cloudformation", "update_stack", {"StackName": "neuron-sum", "TemplateBody": "{}"}),
    "pass another role": ("sagemaker", "create_training_job", training_job(ADMIN)),
    "pass the build role": ("sagemaker", "create_training_job", training_job(ROLES["build"])),
    **{
        f"a build with {member}": ("codebuild", "start_build", {**BUILD, member: value})
        for member, value in {
            "serviceRoleOverride": ADMIN,
            "buildspecOverride": "version: 0.2",
            "imageOverride": "theirs",
            "sourceLocationOverride": "https://github.com/theirs/private",
            "sourceAuthOverride": {"type": "CODECONNECTIONS", "resource": "arn:x"},
            "secondarySourcesOverride": [{"type": "S3", "location": "b/k", "sourceIdentifier": "a"}],
            "artifactsOverride": {"type": "S3", "location": "theirs"},
            "computeTypeOverride": "BUILD_GENERAL1_2XLARGE",
            "fleetOverride": {"fleetArn": "arn:x"},
            "environmentVariablesOverride": [{"name": "BASH_ENV", "value": "x"}],
            "logsConfigOverride": {"s3Logs": {"status": "ENABLED", "location": "theirs/logs"}},
        }.items()
    },
    "a build of a private repository": (
        "codebuild",
        "start_build",
        {**BUILD, "sourceTypeOverride": "GITHUB", "sourceLocationOverride": "https://github.com/theirs/private"},
    ),
    "schedule with the endpoints' role": ("scheduler", "create_schedule", schedule(ROLES["endpoint"])),
    "scale another service": (
        "application-autoscaling",
        "register_scalable_target",
        {**TABLE, "MinCapacity": 1, "MaxCapacity": 2, "Tags": {"neuron-sum-run": "x"}},
    ),
    "end the scaling of another service": ("application-autoscaling", "deregister_scalable_target", TABLE),
    "end the scaling of another endpoint": (
        "application-autoscaling",
        "deregister_scalable_target",
        {
            "ServiceNamespace": "sagemaker",
            "ResourceId": "endpoint/prod/variant/main",
            "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
        },
    ),
    "read another job's log": (
        "logs", "get_log_events", {"logGroupName": "/aws/sagemaker/TrainingJobs", "logStreamName": "prod/algo-1"}
    ),
    "delete another job's log": (
        "logs", "delete_log_stream", {"logGroupName": "/aws/sagemaker/TrainingJobs", "logStreamName": "prod/algo-1"}
    ),
    "tag another resource": (
        "sagemaker",
        "add_tags",
        {"ResourceArn": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/prod", "Tags": RUN.tags},
    ),
    "delete the stack": ("cloudformation", "delete_stack", {"StackName": "neuron-sum"}),
    "create a stack": (
        "cloudformation", "create_stack", {"StackName": "neuron-sum", "TemplateBody": "{}"}
    ),
    "assume a role": ("sts", "assume_role", {"RoleArn": ROLES["build"], "RoleSessionName": "ab"}),
    "delete another object": (
        "s3", "delete_objects", {"Bucket": f"neuron-sum-{ACCOUNT}-{REGION}", "Delete": {"Objects": [{"Key": "theirs"}]}}
    ),
    "schedule another role": ("scheduler", "create_schedule", schedule(ADMIN)),
    "schedule a job's role": ("scheduler", "create_schedule", schedule(ROLES["jobs"])),
    "move the expiry to another role": ("scheduler", "update_schedule", schedule(ADMIN)),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTEMPTS)
def test_the_caller_cannot_get_more_rights(aws: AwsServer, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    hasten(aws, monkeypatch)
    aws.boto3("iam").create_role(RoleName="admin", AssumeRolePolicyDocument=TRUST)
    service, operation, request = ATTEMPTS[name]
    with pytest.raises(ClientError) as refused:
        getattr(Account(REGION).client(service), operation)(**request)
    assert refused.value.response["Error"]["Code"] == "AccessDeniedException"


def test_the_usual_build_is_allowed(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same request without one of the overrides."""
    hasten(aws, monkeypatch)
    logs = {"cloudWatchLogs": {"status": "ENABLED", "groupName": "/aws/codebuild/neuron-sum", "streamName": "a"}}
    Account(REGION).client("codebuild").start_build(**BUILD, logsConfigOverride=logs)


NEEDLESS = {
    "AWS::S3::Bucket": r"Abac|Analytics|CORS|Cors|Inventory|Metrics|Notification|Replication|Website|Accelerate|"
    r"ObjectAcl|ObjectLock|Logging|Versioning|OwnershipControls|IntelligentTiering|MetadataTable|Annotation|Journal|"
    r"s3tables:|iam:PassRole|s3:DeleteObject|PutBucketAcl|DeleteBucketTagging",
    "AWS::ECR::Repository": r"(Put|Set|Delete)(Lifecycle|Repository)Policy|kms:",
    "AWS::IAM::Role": r"iam:AttachRolePolicy",
    "AWS::Logs::LogGroup": r"DataProtection|LogDelivery|s3:REST|firehose|ResourcePolic|IndexPolic|Bearer|KmsKey|"
    r"DeletionProtection",
}
"""Permissions in the resource schemas for properties that the template does not use."""


def test_the_administrators_policy_is_sufficient_for_every_resource_of_the_stack() -> None:
    """CloudFormation creates resources with the permissions of the caller; they are in the resource schemas."""
    manager = pytest.importorskip("cfnlint.schema").PROVIDER_SCHEMA_MANAGER
    both = actions(printed()) | actions(printed("--setup"))
    site = AwsContext(ACCOUNT, REGION)
    resources = render(site, Settings().parameters(site, {}))["Resources"]
    for kind in sorted({each["Type"] for each in resources.values()}):
        schema = manager.get_resource_schema(REGION, kind).schema
        handlers = schema.get("handlers", {})
        assert handlers or kind == "AWS::CodeBuild::Project", "its schema has no permissions"
        needed = {each for name, given in handlers.items() if name != "list" for each in given["permissions"]}
        needed |= set(schema.get("tagging", {}).get("permissions", []))
        lacking = {
            each
            for each in needed
            if not granted(both, each) and not (kind in NEEDLESS and re.search(NEEDLESS[kind], each))
        }
        assert not lacking, kind


def test_a_schedule_with_another_target_cannot_do_more_than_its_role(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller may change the target of an expiry; the call is then made with the role of expiries."""
    hasten(aws, monkeypatch)
    Account(REGION).client("scheduler").create_schedule(**schedule(ROLES["expiry"]))
    assert tick(datetime(2030, 1, 1, tzinfo=timezone.utc)) == []
