"""Bucket of a launch: check it, create it if it is missing, and keep the settings of its owner."""

from collections.abc import Mapping
from typing import Any

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import RUN_TAG, Run, tags
from sagemaker_jobs.aws.place import Destination
from sagemaker_jobs.launch.call import Call, create

PARTS_KEPT_DAYS = 1
"""Days after which S3 deletes the parts that a killed upload of a large file left."""

UNSET = ("NoSuchTagSet", "NoSuchLifecycleConfiguration", "ServerSideEncryptionConfigurationNotFoundError")
"""Error codes of S3 for a setting that a bucket does not have."""


def ready(
    account: Account,
    ledger: Ledger,
    run: Run,
    place: Destination,
    calls: tuple[Call, ...],
    encryption: Mapping[str, str],
    *,
    checkpoints: bool,
    own_role: bool,
) -> None:
    """Verify that the account owns the bucket; create the default bucket, or add settings that it lacks.

    Args:
        account: The account that owns the bucket.
        ledger: The account's ledger.
        run: The run that needs the bucket.
        place: The destination with the bucket's name.
        calls: The calls that create and configure the bucket; empty for a bucket from --bucket.
        encryption: The encryption arguments of put_object for the run's uploads.
        checkpoints: Whether jobs of this launch write checkpoints.
        own_role: Whether the launch creates the run's role, which may use only the run's key.

    Raises:
        AwsError: If the bucket does not exist, or AWS refuses a call.
    """
    bucket, owner = place.bucket, {"ExpectedBucketOwner": place.site.account}
    try:
        account.call("s3", "head_bucket", Bucket=bucket, **owner)
    except Refused as refused:
        if not refused.missing or not calls:
            hint = None if refused.missing else refused.hint
            raise AwsError(
                f"bucket {bucket}: {refused.message}", hint or "use --bucket with an existing bucket"
            ) from refused
        create(account, ledger, calls[0], run)
        for call in calls[1:]:
            account.call(call.service, call.operation, **call.request)
        return
    complete = not calls or _complete(account, calls[1:], bucket, owner)
    if complete or not encryption:
        _check_encryption(account, bucket, owner, encryption.get("SSEKMSKeyId"), checkpoints, own_role)


def _complete(account: Account, calls: tuple[Call, ...], bucket: str, owner: dict[str, str]) -> bool:
    """Add the settings that the default bucket lacks, because a kill may have prevented them; keep all others.

    S3 replaces all tags and all rules of a bucket at once, so they are read first.

    Returns:
        Whether the bucket was complete before; encryption is set only at creation, before the tag.
    """
    present = _read(account, "get_bucket_tagging", bucket, owner).get("TagSet", [])
    complete = RUN_TAG in {tag["Key"] for tag in present}
    for call in calls:
        if call.operation == "put_bucket_encryption" and complete:
            continue
        request: dict[str, Any] | None = call.request
        if call.operation == "put_bucket_tagging":
            request = _with_tags(call.request, present)
        elif call.operation == "put_bucket_lifecycle_configuration":
            request = _with_rules(call.request, _read(account, "get_bucket_lifecycle_configuration", bucket, owner))
        if request is not None:
            account.call(call.service, call.operation, **request)
    return complete


def _with_tags(request: dict[str, Any], present: list[dict[str, str]]) -> dict[str, Any] | None:
    """Return a PutBucketTagging request that keeps the present tags; None if none is missing."""
    known = {tag["Key"] for tag in present}
    missing = [tag for tag in request["Tagging"]["TagSet"] if tag["Key"] not in known]
    return {**request, "Tagging": {"TagSet": [*present, *missing]}} if missing else None


def _with_rules(request: dict[str, Any], present: dict[str, Any]) -> dict[str, Any] | None:
    """Return a PutBucketLifecycleConfiguration request that keeps the present rules; None if none is missing."""
    rules = present.get("Rules", [])
    known = {rule.get("ID") for rule in rules}
    missing = [rule for rule in request["LifecycleConfiguration"]["Rules"] if rule["ID"] not in known]
    if not missing:
        return None
    if any("Filter" not in rule for rule in rules):  # S3 does not accept a filter next to rules without one
        missing = [{**{k: v for k, v in rule.items() if k != "Filter"}, **rule["Filter"]} for rule in missing]
    # S3 resets this setting of the whole document if it is omitted.
    size = "TransitionDefaultMinimumObjectSize"
    minimum = {size: present[size]} if size in present else {}
    return {**request, "LifecycleConfiguration": {"Rules": [*rules, *missing]}, **minimum}


def _read(account: Account, operation: str, bucket: str, owner: dict[str, str]) -> dict[str, Any]:
    """Return a setting of a bucket; empty if the bucket does not have it."""
    try:
        return account.call("s3", operation, Bucket=bucket, **owner)
    except Refused as refused:
        if refused.code not in UNSET:
            raise
    return {}


def _check_encryption(
    account: Account, bucket: str, owner: dict[str, str], key: str | None, checkpoints: bool, own_role: bool
) -> None:
    """Warn if a bucket's default encryption is not the run's, because SageMaker accepts no key for checkpoints.

    A caller who may not read the encryption gets the warning only with --kms-key.

    Raises:
        AwsError: If the run's role could not write to the bucket.
    """
    if not (own_role if key is None else checkpoints):
        return
    try:
        encryption = _read(account, "get_bucket_encryption", bucket, owner)
    except Refused as refused:
        if key is not None:
            console.warn(f"checkpoints use the default encryption of {bucket}, which is unreadable: {refused.message}")
        return
    rules = encryption.get("ServerSideEncryptionConfiguration", {}).get("Rules", [])
    default: dict[str, str] = next((rule.get("ApplyServerSideEncryptionByDefault", {}) for rule in rules), {})
    default_key = default.get("KMSMasterKeyID")
    if key is not None and (default_key is None or _key_id(default_key) != _key_id(key)):
        what = default_key or default.get("SSEAlgorithm", "none")
        console.warn(
            f"checkpoints use the default encryption of {bucket} ({what}) instead of --kms-key, because SageMaker "
            "accepts no key for them"
        )
    # Every role of the account may use alias/aws/s3.
    if key is None and default_key is not None and not default_key.endswith("alias/aws/s3"):
        raise AwsError(
            f"{bucket} encrypts with {default_key}, which the new role may not use, so the run could not save anything",
            f"use --kms-key {default_key}, or --role with one that may use the key",
        )


def _key_id(key: str) -> str:
    """Return the key id from a key's ARN or id."""
    return key.rpartition("/")[2]


def bucket_calls(place: Destination, kms_key: str | None = None) -> tuple[Call, ...]:
    """Return the calls that create the default bucket: closed to the public, with parts of killed uploads deleted.

    Args:
        place: The destination with the bucket's name.
        kms_key: The default KMS key, for example for checkpoints, which SageMaker writes without a key; set only when
            the bucket is created, because all runs share it.
    """
    name, owner = place.bucket, {"ExpectedBucketOwner": place.site.account}
    # S3 refuses us-east-1, its default, as a LocationConstraint.
    region = place.site.region
    location = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    closed = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
    cleanup = {
        "ID": "parts-of-killed-uploads",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": PARTS_KEPT_DAYS},
    }
    rule = {
        "ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": kms_key},
        "BucketKeyEnabled": True,
    }
    encryption = Call(
        "s3",
        "put_bucket_encryption",
        {
            "Bucket": name,
            "ServerSideEncryptionConfiguration": {"Rules": [rule]},
            **owner,
        },
    )
    return (
        Call("s3", "create_bucket", {"Bucket": name, **location}, "bucket", name),
        *([encryption] if kms_key is not None else []),  # before the tag, which marks the bucket as complete
        # All runs share the bucket, so its tag does not name a run.
        Call("s3", "put_bucket_tagging", {"Bucket": name, "Tagging": {"TagSet": tags({RUN_TAG: "all"})}, **owner}),
        Call("s3", "put_public_access_block", {"Bucket": name, "PublicAccessBlockConfiguration": closed, **owner}),
        Call(
            "s3",
            "put_bucket_lifecycle_configuration",
            {"Bucket": name, "LifecycleConfiguration": {"Rules": [cleanup]}, **owner},
        ),
    )
