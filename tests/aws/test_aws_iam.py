"""The policies that `aws iam` prints: sufficient for every call in the code, and hardly more."""

import ast
import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from aws_script import ACCOUNT, REGION
from botocore import xform_name
from in_process import neuron_sum
from sagemaker_jobs.aws.caller_policy import MANAGED_POLICY
from sagemaker_jobs.aws.place import NetworkSecurity

import sagemaker_jobs
from neuron_sum.recipes.loading import load_recipe
from sagemaker_jobs.aws.names import AwsContext, Run
from sagemaker_jobs.aws.policies import endpoint_policy
from sagemaker_jobs.jobs import inputs, training
from sagemaker_jobs.jobs.training import Options

SERVICES = {
    "sagemaker": "sagemaker",
    "iam": "iam",
    "codebuild": "codebuild",
    "ecr": "ecr",
    "logs": "logs",
    "scheduler": "scheduler",
    "application-autoscaling": "application-autoscaling",
    "cloudwatch": "cloudwatch",
    "pricing": "pricing",
    "service-quotas": "servicequotas",
}
"""boto3's name of each service, and IAM's prefix."""

S3 = {
    "head_bucket": "ListBucket", "list_objects_v2": "ListBucket", "create_bucket": "CreateBucket",
    "put_bucket_tagging": "PutBucketTagging", "put_public_access_block": "PutBucketPublicAccessBlock",
    "put_bucket_lifecycle_configuration": "PutLifecycleConfiguration",
    "get_bucket_tagging": "GetBucketTagging", "get_bucket_lifecycle_configuration": "GetLifecycleConfiguration",
    "get_bucket_encryption": "GetEncryptionConfiguration", "put_bucket_encryption": "PutEncryptionConfiguration",
    "put_object": "PutObject",
    "copy_object": "PutObject", "get_object": "GetObject", "head_object": "GetObject", "delete_object": "DeleteObject",
    "delete_objects": "DeleteObject", "delete_bucket": "DeleteBucket",
    "list_multipart_uploads": "ListBucketMultipartUploads", "abort_multipart_upload": "AbortMultipartUpload",
}  # fmt: skip
"""Methods whose IAM action has a different name."""

FREE = {"get_caller_identity"}
"""Actions that everybody may perform."""

WITHOUT_NAMES = {"Metrics", "RegistryToken", "ListAndPrices"}


@cache
def operations() -> dict[str, set[str]]:
    """boto3's methods, each with its possible IAM actions."""
    found: dict[str, set[str]] = {method: {f"s3:{action}"} for method, action in S3.items()}
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


def policies() -> dict[str, Any]:
    made = neuron_sum("aws", "iam", "--account", ACCOUNT, "--region", REGION, "--json")
    assert made.exit_code == 0, made.stderr
    printed: dict[str, Any] = json.loads(made.stdout)
    return printed


def test_the_policy_of_the_caller_allows_every_call_in_the_code() -> None:
    allowed = {action for statement in policies()["caller"]["Statement"] for action in statement["Action"]}
    methods = set(called()) - FREE
    assert {"create_training_job", "create_role", "put_object", "delete_endpoint", "stop_build"} <= methods
    lacking = {method for method in methods if not operations()[method] & allowed}
    assert not lacking
    possible = {action for method in methods for action in operations()[method]}
    by_other_ways = {
        "sagemaker:AddTags",
        "iam:TagRole",
        "iam:PassRole",
        "ecr:TagResource",
        "iam:CreateServiceLinkedRole",
        "application-autoscaling:TagResource",
        "cloudwatch:PutMetricAlarm",
        "cloudwatch:DeleteAlarms",
        "cloudwatch:DescribeAlarms",
        "sagemaker:InvokeEndpoint",
        "sagemaker:InvokeEndpointWithResponseStream",
        "sagemaker:UpdateEndpointWeightsAndCapacities",
    }
    """Actions that AWS requires in addition to the call itself, and the calls of `request`."""
    assert allowed - possible - by_other_ways <= {"s3:GetObject", "s3:PutObject"}, "more than the code needs"


def may(policies: list[dict[str, Any]], action: str, resource: str, **context: str) -> bool:
    """Whether one of the statements allows the action, as IAM evaluates policies without a Deny."""
    for statement in (each for policy in policies for each in policy["Statement"]):
        fits = any(fnmatchcase(action, each) for each in statement["Action"])
        fits = fits and any(fnmatchcase(resource, each) for each in statement["Resource"])
        for operator, wanted in statement.get("Condition", {}).items():
            for key, patterns in wanted.items():
                given = context.get(key.replace(":", "_").replace("/", "_").replace("-", "_"), "")
                if operator == "Null":
                    fits = fits and (patterns == "true") == (given == "")
                else:
                    assert operator in ("StringLike", "StringEquals")
                    fits = fits and any(fnmatchcase(given, each) for each in patterns)
        if fits:
            return True
    return False


def test_the_role_of_a_job_can_access_only_its_inputs_and_outputs(tmp_path: Path) -> None:
    """For the actual launch: every channel, its checkpoints and its output, as the container reads and writes them."""
    own, other = (
        training.launch(
            Run(f"tiny-261121-2000-abc{digit}", "tiny"),
            load_recipe("tiny"),
            Options("ml.c7i.4xlarge", 1, 3600, image=f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/mine:1"),
            inputs.channels(load_recipe("tiny"), tmp_path, None, NetworkSecurity()),
            AwsContext(ACCOUNT, REGION),
        )
        for digit in "de"
    )
    roles = [
        json.loads(call.request["PolicyDocument"]) for call in own.role_calls if call.operation == "put_role_policy"
    ]

    def reaches(address: str, action: str) -> bool:
        bucket, _, key = address.removeprefix("s3://").partition("/")
        listed = may(roles, "s3:ListBucket", f"arn:aws:s3:::{bucket}", s3_prefix=key)
        return listed and may(roles, action, f"arn:aws:s3:::{bucket}/{key.rstrip('/')}/a-file")

    request = own.calls[0].request
    channels = [each["DataSource"]["S3DataSource"]["S3Uri"] for each in request["InputDataConfig"]]
    assert len(channels) >= 2
    assert [each for each in channels if not reaches(each, "s3:GetObject")] == []
    written = [request["CheckpointConfig"]["S3Uri"], request["OutputDataConfig"]["S3OutputPath"]]
    assert [each for each in written if not reaches(each, "s3:PutObject")] == []
    theirs = other.calls[0].request
    assert not reaches(theirs["CheckpointConfig"]["S3Uri"], "s3:PutObject")
    assert not reaches(channels[0], "s3:PutObject")
    pull = "ecr:BatchGetImage"
    assert may(roles, pull, f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/mine")
    assert not may(roles, pull, f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/another")


def test_the_policy_of_the_caller_fits_the_size_limit() -> None:
    assert len(json.dumps(policies()["caller"], separators=(",", ":"))) <= MANAGED_POLICY


def resources(policy: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for statement in policy["Statement"]:
        for resource in statement.get("Resource", []):
            yield statement["Sid"], resource


def test_policies_name_specific_resources() -> None:
    made = policies()
    both = (*(role["policy"] for role in made["roles"].values()), made["caller"])
    assert {sid for policy in both for sid, arn in resources(policy) if arn == "*"} == WITHOUT_NAMES
    for sid, arn in resources(made["caller"]):
        shared = (
            "*:log-group:/aws/sagemaker/T*",
            "*:alarm:TargetTracking-endpoint/*",
            "*:scalable-target/*",
            "*:role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/*",
        )
        assert "neuron-sum" in arn or arn == "*" or any(fnmatchcase(arn, each) for each in shared), sid


def test_a_key_and_a_role_of_the_caller_are_included() -> None:
    key, role = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1234", f"arn:aws:iam::{ACCOUNT}:role/theirs"
    words = ("aws", "iam", "--account", ACCOUNT, "--region", REGION, "--json")
    made = [json.loads(neuron_sum(*words, "--kms-key", key, "--role", role).stdout)["caller"]]
    assert may(made, "kms:GenerateDataKey", key)
    assert len(json.dumps(made[0], separators=(",", ":"))) <= MANAGED_POLICY
    assert may(made, "iam:PassRole", role, iam_PassedToService="sagemaker.amazonaws.com")
    assert not may([policies()["caller"]], "iam:PassRole", role, iam_PassedToService="sagemaker.amazonaws.com")


def test_s3_addresses_of_the_caller_become_readable() -> None:
    words = ("aws", "iam", "--account", ACCOUNT, "--region", "cn-north-1", "--reads", "s3://theirs/models", "--json")
    made = json.loads(neuron_sum(*words).stdout)
    bucket = "arn:aws-cn:s3:::theirs"
    for one in (made["caller"], *(made["roles"][name]["policy"] for name in ("jobs", "endpoint"))):
        assert may([one], "s3:GetObject", f"{bucket}/models/model.tar.gz")
        assert may([one], "s3:ListBucket", bucket, s3_prefix="models/")
        assert not may([one], "s3:GetObject", f"{bucket}/other/model.tar.gz")
    assert "attach its statements as two" not in neuron_sum(*words).stderr
    assert "attach its statements as two" in neuron_sum(*words, *("--reads", "s3://theirs/others") * 3).stderr
    for wrong in ("theirs/models/", "s3://"):
        refused = neuron_sum("aws", "iam", "--account", ACCOUNT, "--reads", wrong)
        assert refused.exit_code == 14 and f"--reads {wrong} is not an S3 address" in refused.stderr


def test_without_credentials_policies_use_the_region_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nowhere")
    monkeypatch.setenv("AWS_REGION", "cn-north-1")
    made = neuron_sum("aws", "iam", "--account", ACCOUNT, "--json")
    assert made.exit_code == 0 and f"arn:aws-cn:iam::{ACCOUNT}:role/neuron-sum/cn-north-1/*" in made.stdout
    planned = neuron_sum("aws", "plan", "tiny", "--offline", "--region", "us-east-1", "--json")
    assert planned.exit_code == 0 and json.loads(planned.stdout)["region"] == "us-east-1"


def test_an_endpoint_may_list_only_the_prefixes_it_serves() -> None:
    site, run = AwsContext(ACCOUNT, REGION), Run("tiny-261121-2000-abcd", "tiny")
    policy = endpoint_policy(run, site, ["s3://bucket/models/one/", "s3://bucket/a/model.tar.gz", "s3://other/b/"])

    def lists(bucket: str, prefix: str) -> bool:
        return may([policy], "s3:ListBucket", f"arn:aws:s3:::{bucket}", s3_prefix=prefix)

    assert lists("bucket", "models/one/") and lists("bucket", "models/one/x") and lists("other", "b/")
    assert lists("bucket", "a/model.tar.gz")
    for bucket, prefix in (("bucket", ""), ("bucket", "models/"), ("bucket", "b/"), ("other", "models/one/")):
        assert not lists(bucket, prefix), (bucket, prefix)
