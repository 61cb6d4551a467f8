"""The bucket of a launch: checked, made where it is missing; what its owner has set there stays."""

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
"""What a killed upload leaves of a large file is removed by S3 itself."""

UNSET = ("NoSuchTagSet", "NoSuchLifecycleConfiguration", "ServerSideEncryptionConfigurationNotFoundError")
"""S3's words for a setting that a bucket has not."""


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
    """The bucket, checked to be the account's own; ours is made where it is missing, and its making completed.

    Args:
        account: Whose.
        ledger: Of it.
        run: That needs it.
        place: With its name.
        calls: That make and set it; none for the caller's own.
        encryption: Of the run's uploads, as put_object takes it.
        checkpoints: Whether jobs of this launch write some.
        own_role: Whether the run's role is made here, and may use no other key than the run's.

    Raises:
        AwsError: If it is not there, or AWS refuses.
    """
    bucket, owner = place.bucket, {"ExpectedBucketOwner": place.site.account}
    try:
        account.call("s3", "head_bucket", Bucket=bucket, **owner)
    except Refused as refused:
        if not refused.missing or not calls:
            hint = None if refused.missing else refused.hint
            raise AwsError(
                f"bucket {bucket}: {refused.message}", hint or "--bucket with one that is there"
            ) from refused
        create(account, ledger, calls[0], run)
        for call in calls[1:]:
            account.call(call.service, call.operation, **call.request)
        return
    whole = not calls or _complete(account, calls[1:], bucket, owner)
    if whole or not encryption:
        _check_encryption(account, bucket, owner, encryption.get("SSEKMSKeyId"), checkpoints, own_role)


def _complete(account: Account, calls: tuple[Call, ...], bucket: str, owner: dict[str, str]) -> bool:
    """Sets what our bucket lacks, each time: a kill may have come between it and its settings. Nothing there is lost.

    S3 replaces a bucket's tags and rules as a whole, so they are read first.

    Returns:
        Whether it had been made whole; its encryption is set with its making only, before its tag.
    """
    there = _read(account, "get_bucket_tagging", bucket, owner).get("TagSet", [])
    whole = RUN_TAG in {tag["Key"] for tag in there}
    for call in calls:
        if call.operation == "put_bucket_encryption" and whole:
            continue
        request: dict[str, Any] | None = call.request
        if call.operation == "put_bucket_tagging":
            request = _with_tags(call.request, there)
        elif call.operation == "put_bucket_lifecycle_configuration":
            request = _with_rules(call.request, _read(account, "get_bucket_lifecycle_configuration", bucket, owner))
        if request is not None:
            account.call(call.service, call.operation, **request)
    return whole


def _with_tags(request: dict[str, Any], there: list[dict[str, str]]) -> dict[str, Any] | None:
    """PutBucketTagging with what is there; None if ours are."""
    known = {tag["Key"] for tag in there}
    lacking = [tag for tag in request["Tagging"]["TagSet"] if tag["Key"] not in known]
    return {**request, "Tagging": {"TagSet": [*there, *lacking]}} if lacking else None


def _with_rules(request: dict[str, Any], there: dict[str, Any]) -> dict[str, Any] | None:
    """PutBucketLifecycleConfiguration with what is there; None if ours are."""
    rules = there.get("Rules", [])
    known = {rule.get("ID") for rule in rules}
    lacking = [rule for rule in request["LifecycleConfiguration"]["Rules"] if rule["ID"] not in known]
    if not lacking:
        return None
    if any("Filter" not in rule for rule in rules):  # S3 takes no filter beside rules of the form before filters
        lacking = [{**{k: v for k, v in rule.items() if k != "Filter"}, **rule["Filter"]} for rule in lacking]
    # A setting of the whole document, which S3 resets where it is left out.
    size = "TransitionDefaultMinimumObjectSize"
    kept = {size: there[size]} if size in there else {}
    return {**request, "LifecycleConfiguration": {"Rules": [*rules, *lacking]}, **kept}


def _read(account: Account, operation: str, bucket: str, owner: dict[str, str]) -> dict[str, Any]:
    """A setting of a bucket's; empty where it has none."""
    try:
        return account.call("s3", operation, Bucket=bucket, **owner)
    except Refused as refused:
        if refused.code not in UNSET:
            raise
    return {}


def _check_encryption(
    account: Account, bucket: str, owner: dict[str, str], key: str | None, checkpoints: bool, own_role: bool
) -> None:
    """Warns where a bucket's default encryption is not the run's: SageMaker takes no key for checkpoints.

    Whoever may not ask is warned only of what they asked for themselves.

    Raises:
        AwsError: If the run's role could not write there.
    """
    if not (own_role if key is None else checkpoints):
        return
    try:
        found = _read(account, "get_bucket_encryption", bucket, owner)
    except Refused as refused:
        if key is not None:
            console.warn(f"checkpoints get the default encryption of {bucket}, which cannot be read: {refused.message}")
        return
    rules = found.get("ServerSideEncryptionConfiguration", {}).get("Rules", [])
    default: dict[str, str] = next((rule.get("ApplyServerSideEncryptionByDefault", {}) for rule in rules), {})
    used = default.get("KMSMasterKeyID")
    if key is not None and (used is None or _key_id(used) != _key_id(key)):
        what = used or default.get("SSEAlgorithm", "none")
        console.warn(
            f"checkpoints get the default encryption of {bucket}, which is {what}, not --kms-key: SageMaker takes no "
            "key for them"
        )
    if key is None and used is not None and not used.endswith("alias/aws/s3"):  # which every role of the account may
        raise AwsError(
            f"{bucket} encrypts with {used}, which the role that is made may not use: nothing could be saved",
            f"--kms-key {used}, or --role with one that may",
        )


def _key_id(key: str) -> str:
    """Of an ARN, or as it is."""
    return key.rpartition("/")[2]


def bucket_calls(place: Destination, kms_key: str | None = None) -> tuple[Call, ...]:
    """The bucket that is made where none is given: closed to the public, swept of killed uploads.

    Args:
        place: Where.
        kms_key: Of what is written without one, as SageMaker writes checkpoints; set when the bucket is made, and never
            later, for a bucket is all runs'.
    """
    name, owner = place.bucket, {"ExpectedBucketOwner": place.site.account}
    # us-east-1 is refused as a LocationConstraint: it is what a bucket has without one.
    region = place.site.region
    elsewhere = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    closed = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
    swept = {
        "ID": "parts-of-killed-uploads",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": PARTS_KEPT_DAYS},
    }
    encrypted = {
        "ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": kms_key},
        "BucketKeyEnabled": True,
    }
    encryption = Call(
        "s3",
        "put_bucket_encryption",
        {
            "Bucket": name,
            "ServerSideEncryptionConfiguration": {"Rules": [encrypted]},
            **owner,
        },
    )
    return (
        Call("s3", "create_bucket", {"Bucket": name, **elsewhere}, "bucket", name),
        *([encryption] if kms_key is not None else []),  # before the tag, by which a bucket is known to have it
        # The bucket is all runs', so its tag names none.
        Call("s3", "put_bucket_tagging", {"Bucket": name, "Tagging": {"TagSet": tags({RUN_TAG: "all"})}, **owner}),
        Call("s3", "put_public_access_block", {"Bucket": name, "PublicAccessBlockConfiguration": closed, **owner}),
        Call(
            "s3",
            "put_bucket_lifecycle_configuration",
            {"Bucket": name, "LifecycleConfiguration": {"Rules": [swept]}, **owner},
        ),
    )
