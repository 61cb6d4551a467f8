"""The policies that `aws iam` prints: enough for every call that the code makes, and hardly more."""

import ast
import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
from aws_script import ACCOUNT, REGION
from botocore import xform_name
from in_process import neuron_sum

import sagemaker_jobs

SERVICES = {
    "sagemaker": "sagemaker", "iam": "iam", "codebuild": "codebuild", "ecr": "ecr", "logs": "logs",
    "scheduler": "scheduler", "application-autoscaling": "application-autoscaling", "pricing": "pricing",
    "service-quotas": "servicequotas",
}  # fmt: skip
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
"""Methods whose IAM action is called otherwise."""

FREE = {"get_caller_identity"}
"""What everybody may."""

WITHOUT_NAMES = {"Metrics", "RegistryToken", "ListAndPrices"}


@cache
def operations() -> dict[str, set[str]]:
    """boto3's methods, each with the IAM actions that it can be."""
    found: dict[str, set[str]] = {method: {f"s3:{action}"} for method, action in S3.items()}
    for service, prefix in SERVICES.items():
        for name in botocore.session.get_session().get_service_model(service).operation_names:
            found.setdefault(xform_name(name), set()).add(f"{prefix}:{name}")
    return found


def called() -> Iterator[str]:
    """Every string of the package that is a method of a service that we use."""
    for path in sorted(Path(sagemaker_jobs.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in operations():
                yield node.value


def policies() -> dict[str, Any]:
    made = neuron_sum("aws", "iam", "--account", ACCOUNT, "--region", REGION, "--json")
    assert made.exit_code == 0, made.stderr
    printed: dict[str, Any] = json.loads(made.stdout)
    return printed


def test_the_caller_may_do_all_that_the_code_does() -> None:
    allowed = {action for statement in policies()["caller"]["Statement"] for action in statement["Action"]}
    methods = set(called()) - FREE
    assert {"create_training_job", "create_role", "put_object", "delete_endpoint", "stop_build"} <= methods
    lacking = {method for method in methods if not operations()[method] & allowed}
    assert not lacking
    possible = {action for method in methods for action in operations()[method]}
    by_other_ways = {
        "sagemaker:AddTags", "iam:TagRole", "iam:PassRole", "ecr:TagResource", "iam:CreateServiceLinkedRole",
        "application-autoscaling:TagResource", "cloudwatch:PutMetricAlarm", "cloudwatch:DeleteAlarms",
        "cloudwatch:DescribeAlarms", "sagemaker:InvokeEndpoint",
    }  # fmt: skip
    """What AWS asks for beside the call itself, and what `request` calls."""
    assert allowed - possible - by_other_ways <= {"s3:GetObject", "s3:PutObject"}, "more than the code needs"


def test_whoever_attaches_it_has_the_room() -> None:
    """A managed policy may have 6,144 characters, white space not counted (IAM's quotas)."""
    assert len(json.dumps(policies()["caller"], separators=(",", ":"))) <= 6144


def resources(policy: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for statement in policy["Statement"]:
        for resource in statement.get("Resource", []):
            yield statement["Sid"], resource


def test_policies_name_what_can_be_named() -> None:
    made = policies()
    both = (*(role["policy"] for role in made["roles"].values()), made["caller"])
    assert {sid for policy in both for sid, arn in resources(policy) if arn == "*"} == WITHOUT_NAMES
    for sid, arn in resources(made["caller"]):
        shared = ("*:log-group:/aws/sagemaker/T*", "*:alarm:TargetTracking-endpoint/*", "*:scalable-target/*",
                  "*:role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/*")  # fmt: skip
        assert "neuron-sum" in arn or arn == "*" or any(fnmatchcase(arn, each) for each in shared), sid
