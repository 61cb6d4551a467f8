"""A bucket and a repository that exist outside of the stack: retained by an earlier stack, or of an earlier version.

CloudFormation would fail to create them, and importing them into a stack does not change their settings. The stack
leaves them out, and `aws setup` writes their settings with S3 and ECR.
"""

import json
from typing import Any

from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused, ignore_missing
from sagemaker_jobs.aws.names import CAPTURED, PREFIX, REPOSITORY, RUN_TAG

CAPTURE_DAYS = 7
"""Days after which the bucket deletes captured requests, as in template.yaml."""
RULES: tuple[dict[str, Any], ...] = (
    {
        "ID": "parts-of-killed-uploads",
        "Status": "Enabled",
        "Filter": {"Prefix": f"{PREFIX}/"},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
    },
    {
        "ID": "captured-requests",
        "Status": "Enabled",
        "Filter": {"Prefix": CAPTURED},
        "Expiration": {"Days": CAPTURE_DAYS},
        "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
    },
)
"""The lifecycle rules of the bucket, as in template.yaml."""


def existing(account: Account) -> dict[str, bool]:
    """Return whether the bucket and the repository exist, by the template's parameters that create them.

    Raises:
        AwsError: If one exists without neuron-sum's tag, or a request fails.
    """
    return {"CreateBucket": bucket_is_ours(account), "CreateRepository": repository_is_ours(account)}


def bucket_is_ours(account: Account) -> bool:
    """Return whether the bucket exists.

    Raises:
        AwsError: If it was not created by neuron-sum, or a request fails.
    """
    bucket = account.site.bucket
    try:
        if account.find("s3", "head_bucket", **owned_bucket(account)) is None:
            return False
        with ignore_missing("NoSuchTagSet"):
            found = account.call("s3", "get_bucket_tagging", **owned_bucket(account))["TagSet"]
            if any(tag["Key"] == RUN_TAG for tag in found):
                return True
    except Refused as refused:
        if refused.code != "403":
            raise
        raise AwsError(
            f"the bucket {bucket} belongs to another account, or you may not read it",
            f"`{account.command('iam', setup=True)}` prints the policy that the administrator needs",
        ) from None
    raise AwsError(
        f"the bucket {bucket} was not created by neuron-sum: it has no tag {RUN_TAG}",
        f"to use it, run `aws s3api put-bucket-tagging --bucket {bucket} "
        f"--tagging 'TagSet=[{{Key={RUN_TAG},Value=all}}]'`",
    )


def repository_is_ours(account: Account) -> bool:
    """Return whether the image repository exists.

    Raises:
        AwsError: If it was not created by neuron-sum, or a request fails.
    """
    answer = account.find("ecr", "describe_repositories", repositoryNames=[REPOSITORY])
    if answer is None:
        return False
    arn = answer["repositories"][0]["repositoryArn"]
    if not any(tag["Key"] == RUN_TAG for tag in account.call("ecr", "list_tags_for_resource", resourceArn=arn)["tags"]):
        raise AwsError(
            f"the repository {REPOSITORY} in {account.region} was not created by neuron-sum: it has no tag {RUN_TAG}",
            f"to use it, run `aws ecr tag-resource --resource-arn {arn} --tags Key={RUN_TAG},Value=all`",
        )
    return True


def configure(account: Account, parameters: dict[str, str]) -> None:
    """Write the settings of a bucket and a repository that are not in the stack, as the template has them.

    A bucket policy and lifecycle rules of the user are kept; RULES are added to the latter.

    Args:
        account: The account and region.
        parameters: The parameters of the stack.

    Raises:
        AwsError: If AWS refuses.
    """
    if parameters["CreateBucket"] == "false":
        key = parameters["KmsKey"]
        default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key} if key else {"SSEAlgorithm": "AES256"}
        closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
        _put(
            account,
            "put_bucket_encryption",
            ServerSideEncryptionConfiguration={
                "Rules": [{"ApplyServerSideEncryptionByDefault": default, "BucketKeyEnabled": bool(key)}]
            },
        )
        _put(account, "put_public_access_block", PublicAccessBlockConfiguration=dict.fromkeys(closed, True))
        arn = account.site.s3_arn(account.site.bucket)
        only_tls = {
            "Sid": "OnlyTls",
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": [arn, f"{arn}/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
        if not _get(account, "get_bucket_policy"):
            policy = {"Version": "2012-10-17", "Statement": [only_tls]}
            _put(account, "put_bucket_policy", Policy=json.dumps(policy))
        found = lifecycle_of(account)
        if missing_rules(found):
            ours = [rule["ID"] for rule in RULES]
            others = [_with_filter(rule) for rule in found.get("Rules", []) if rule.get("ID") not in ours]
            # S3 resets this setting if a request omits it.
            smallest = {key: found[key] for key in ("TransitionDefaultMinimumObjectSize",) if key in found}
            rules = {"Rules": [*others, *RULES]}
            _put(account, "put_bucket_lifecycle_configuration", LifecycleConfiguration=rules, **smallest)
    if parameters["CreateRepository"] == "false":
        mutability = {"repositoryName": REPOSITORY, "imageTagMutability": "IMMUTABLE"}
        account.call("ecr", "put_image_tag_mutability", **mutability)


def _with_filter(rule: dict[str, Any]) -> dict[str, Any]:
    """The rule with a filter in place of the older prefix, because S3 rejects rules of both forms in one request."""
    if "Prefix" not in rule:
        return rule
    others = {key: value for key, value in rule.items() if key != "Prefix"}
    return {**others, "Filter": {"Prefix": rule["Prefix"]}}


def lifecycle_of(account: Account) -> dict[str, Any]:
    """Return the answer of GetBucketLifecycleConfiguration; empty if the bucket has no rules.

    Raises:
        AwsError: If AWS refuses.
    """
    return _get(account, "get_bucket_lifecycle_configuration")


def captures_kept(lifecycle: dict[str, Any]) -> list[str]:
    """Return the captured requests that a bucket keeps for more than CAPTURE_DAYS: objects, old versions.

    Args:
        lifecycle: The result of `lifecycle_of`.
    """
    deleted = set()
    for rule in lifecycle.get("Rules", []):
        chosen = rule.get("Filter", {})
        prefix = chosen.get("Prefix", rule.get("Prefix"))
        # A rule with tags or sizes, which are in And or beside the prefix, does not cover all files.
        covers = prefix is not None and set(chosen) <= {"Prefix"} and CAPTURED.startswith(prefix)
        if rule["Status"] == "Enabled" and covers:
            days = {
                "objects": rule.get("Expiration", {}).get("Days"),
                "old versions": rule.get("NoncurrentVersionExpiration", {}).get("NoncurrentDays"),
            }
            deleted |= {what for what, limit in days.items() if limit is not None and limit <= CAPTURE_DAYS}
    return [what for what in ("objects", "old versions") if what not in deleted]


def missing_rules(lifecycle: dict[str, Any]) -> list[str]:
    """Return the names of the RULES that a bucket lacks, also if somebody changed one so that captured requests stay.

    Args:
        lifecycle: The result of `lifecycle_of`.
    """
    present = {rule.get("ID") for rule in lifecycle.get("Rules", []) if rule["Status"] == "Enabled"}
    missing = [rule["ID"] for rule in RULES if rule["ID"] not in present]
    return missing or ([RULES[-1]["ID"]] if captures_kept(lifecycle) else [])


def differences(account: Account, parameters: dict[str, str]) -> list[str]:
    """Return how the encryption and the lifecycle of a bucket that is not in the stack differ.

    Raises:
        AwsError: If a request fails.
    """
    if parameters["CreateBucket"] == "true":
        return []
    encryption = account.find("s3", "get_bucket_encryption", **owned_bucket(account)) or {}
    rules = encryption.get("ServerSideEncryptionConfiguration", {}).get("Rules", [])
    keys = [rule.get("ApplyServerSideEncryptionByDefault", {}).get("KMSMasterKeyID", "") for rule in rules]
    wanted, found = parameters["KmsKey"], []
    if keys != [wanted]:
        found.append(f"bucket {account.site.bucket}: encrypted with {keys} instead of {wanted!r}")
    if missing := missing_rules(lifecycle_of(account)):
        found.append(f"bucket {account.site.bucket}: no lifecycle rule {', '.join(missing)}")
    return found


def owned_bucket(account: Account) -> dict[str, str]:
    """Return the parameters of a request that name the stack's bucket and its owner."""
    return {"Bucket": account.site.bucket, "ExpectedBucketOwner": account.id}


def _put(account: Account, operation: str, **setting: Any) -> None:
    account.call("s3", operation, **owned_bucket(account), **setting)


def _get(account: Account, operation: str) -> dict[str, Any]:
    """The answer of an operation; empty if the bucket has no such setting."""
    with ignore_missing("NoSuchBucketPolicy", "NoSuchLifecycleConfiguration"):
        return account.call("s3", operation, **owned_bucket(account))
    return {}
