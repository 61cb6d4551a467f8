"""Artifacts of runs (inputs, checkpoints, models, images and logs): their monthly cost and their deletion."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from neuron_sum.console import size
from neuron_sum.errors import AwsError
from neuron_sum.platform import prices
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused, ignore_missing
from sagemaker_jobs.aws.names import (
    ENDPOINT_LOGS,
    LOG_GROUPS,
    PREFIX,
    REPOSITORY,
    RUN_TAG,
    Run,
    owner_of,
    run_of,
    run_prefix,
)
from sagemaker_jobs.cleanup.registered import image_digests
from sagemaker_jobs.stack.storage import bucket_is_ours

STORED = (f"{PREFIX}/inputs/", f"{PREFIX}/runs/", f"{PREFIX}/cache/")
"""Prefixes of the keys of everything that neuron-sum writes; the bucket may also contain the user's objects."""

DELETED_AT_ONCE, IMAGES_DELETED_AT_ONCE = 1000, 100
"""Maximum numbers of objects in one DeleteObjects call, and of images in one BatchDeleteImage call."""


@dataclass(frozen=True)
class Stored:
    """Artifacts at one address in S3, in a registry or in CloudWatch.

    Attributes:
        address: The address.
        objects: The number of files, images or log streams.
        size: The size in bytes; None if AWS does not report it.
        usd_per_month: The storage cost in USD per month.
        source: The source of the price.
    """

    address: str
    objects: int
    size: int | None
    usd_per_month: float | None
    source: str

    def __str__(self) -> str:
        if self.size is None or self.usd_per_month is None:
            return f"{self.address}: {self.objects:,}; {self.source}"
        cost = f"${self.usd_per_month:.2f} a month" if self.usd_per_month >= 0.01 else "less than $0.01 a month"
        return f"{self.address}: {self.objects:,}, {size(self.size)}, {cost} ({self.source})"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for --json."""
        cost = None if self.usd_per_month is None else round(self.usd_per_month, 4)
        return {"address": self.address, "objects": self.objects, "bytes": self.size, "usd_per_month": cost}


def stored(account: Account, bucket: str, run: str | None) -> list[Stored]:
    """Return the uploads, images, logs and outputs of jobs.

    Args:
        account: The account that owns the artifacts.
        bucket: The bucket's name.
        run: The only run whose outputs and logs to include; None also includes inputs and images, which runs share
            because their addresses contain a hash of their content.

    Raises:
        AwsError: If AWS refuses, or cannot be reached.
    """
    found = []
    for prefix in _prefixes(run):
        if sizes := [item["Size"] for item in _objects(account, bucket, prefix)]:
            cost = sum(sizes) / 1e9 * prices.S3_USD_PER_GB_MONTH
            found.append(Stored(f"s3://{bucket}/{prefix}", len(sizes), sum(sizes), cost, prices.S3_SOURCE))
    if run is None and (images := _images(account)):
        # Layers count once per image that contains them, so this is an upper bound.
        total = sum(image.get("imageSizeInBytes", 0) for image in images)
        cost = total / 1e9 * prices.ECR_USD_PER_GB_MONTH
        found.append(Stored(f"images in the repository {REPOSITORY}", len(images), total, cost, prices.ECR_SOURCE))
    for name, streams in _shared_streams(account, run):
        found.append(
            Stored(f"log streams in {name}", len(streams), None, None, "AWS reports no size of single streams")
        )
    for group in _endpoint_groups(account, run):
        stored_bytes = group.get("storedBytes", 0)
        cost = stored_bytes / 1e9 * prices.LOGS_USD_PER_GB_MONTH
        found.append(Stored(f"log group {group['logGroupName']}", 1, stored_bytes, cost, prices.LOGS_SOURCE))
    return found


def remove_artifacts(account: Account, bucket: str, run: str | None) -> list[str]:
    """Delete the artifacts and logs of one run or of all runs; the stack keeps the bucket and the repository.

    Args:
        account: The account that owns the artifacts.
        bucket: The bucket's name.
        run: The only run whose artifacts to delete, without shared ones; None for all runs.

    Returns:
        Messages about artifacts that could not be deleted: old versions of objects.

    Raises:
        AwsError: If AWS refuses; for single objects, after everything else is deleted.
    """
    keys = [item["Key"] for prefix in _prefixes(run) for item in _objects(account, bucket, prefix)]
    refused, versions = _delete_objects(account, bucket, keys)
    for group, streams in _shared_streams(account, run):
        for stream in streams:
            account.call("logs", "delete_log_stream", logGroupName=group, logStreamName=stream)
    for log_group in list(_endpoint_groups(account, run)):
        account.call("logs", "delete_log_group", logGroupName=log_group["logGroupName"])
    if run is None:
        _delete_images(account)
    if refused:
        first = refused[0]
        raise AwsError(
            f"S3 did not delete {len(refused):,} of {len(keys):,} objects of s3://{bucket}, the first: {first['Key']}: "
            f"{first.get('Code')}, {first.get('Message')}",
            "`neuron-sum aws iam` prints the policy that the caller needs; also check the bucket's policy and locks",
        )
    if not versions:
        return []
    return [
        f"the old versions of {versions:,} objects, which are still billed: s3://{bucket} keeps them until a lifecycle "
        "rule (NoncurrentVersionExpiration) deletes them"
    ]


def delete_retained(account: Account, bucket: str) -> list[str]:
    """Delete the bucket and the repository that a deleted stack retained, if they are empty.

    Args:
        account: The account and region.
        bucket: The stack's bucket.

    Returns:
        What was kept, with the reason.

    Raises:
        AwsError: If AWS refuses.
    """
    kept = []
    try:
        if bucket_is_ours(account):
            owner = {"Bucket": bucket, "ExpectedBucketOwner": account.id}
            for part in account.pages("s3", "list_multipart_uploads", "Uploads", **owner):
                account.call("s3", "abort_multipart_upload", Key=part["Key"], UploadId=part["UploadId"], **owner)
            account.call("s3", "delete_bucket", **owner)
    except Refused as refused:
        if refused.code != "BucketNotEmpty":
            raise
        count = len(list(_objects(account, bucket, "")))
        kept.append(f"the bucket {bucket}, because it contains {f'{count:,} objects' if count else 'old versions'}")
    if (images := _images(account)) is not None:
        if images:
            kept.append(f"the repository {REPOSITORY}, because it contains {len(images):,} images")
        else:
            account.call("ecr", "delete_repository", repositoryName=REPOSITORY)
    return kept


def _delete_objects(account: Account, bucket: str, keys: list[str]) -> tuple[list[dict[str, Any]], int]:
    """Delete objects; return the errors of S3 for single objects, and the number of those with an old version.

    The reply has status 200 even if S3 does not delete some objects. In a bucket with versions, deleting only adds a
    marker.
    """
    refused: list[dict[str, Any]] = []
    versions = 0
    for first in range(0, len(keys), DELETED_AT_ONCE):
        objects = [{"Key": key} for key in keys[first : first + DELETED_AT_ONCE]]
        answer = account.call(
            "s3", "delete_objects", Bucket=bucket, Delete={"Objects": objects}, ExpectedBucketOwner=account.id
        )
        refused += answer.get("Errors", [])
        versions += sum(1 for each in answer.get("Deleted", []) if each.get("DeleteMarker"))
    return refused, versions


def _delete_images(account: Account) -> None:
    """Delete the images of neuron-sum's repository, except those of registered models."""
    found = {image["imageDigest"] for image in _images(account) or []}
    digests = sorted(found - image_digests(account)) if found else []
    images = [{"imageDigest": digest} for digest in digests]
    for first in range(0, len(images), IMAGES_DELETED_AT_ONCE):
        chunk = images[first : first + IMAGES_DELETED_AT_ONCE]
        answer = account.call("ecr", "batch_delete_image", repositoryName=REPOSITORY, imageIds=chunk)
        if failures := answer.get("failures"):
            raise AwsError(
                f"ECR did not delete {len(failures)} of {len(images)} images, the first: {failures[0]}",
                "run the command again",
            )


def _prefixes(run: str | None) -> tuple[str, ...]:
    return STORED if run is None else (run_prefix(Run(run, "")),)


def _objects(account: Account, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    with ignore_missing():
        yield from account.pages(
            "s3", "list_objects_v2", "Contents", Bucket=bucket, Prefix=prefix, ExpectedBucketOwner=account.id
        )


def _images(account: Account) -> list[dict[str, Any]] | None:
    """Return the images of neuron-sum's repository; None if it does not exist, or neuron-sum did not create it."""
    with ignore_missing():
        [found] = account.call("ecr", "describe_repositories", repositoryNames=[REPOSITORY])["repositories"]
        tags = account.call("ecr", "list_tags_for_resource", resourceArn=found["repositoryArn"])["tags"]
        if not any(tag["Key"] == RUN_TAG for tag in tags):
            return None
        return list(account.pages("ecr", "describe_images", "imageDetails", repositoryName=REPOSITORY))
    return None


def _name_prefix(run: str | None) -> str:
    return f"{PREFIX}-" if run is None else f"{PREFIX}-{run}-"


def _shared_streams(account: Account, run: str | None) -> Iterator[tuple[str, list[str]]]:
    for group in LOG_GROUPS:
        with ignore_missing():
            listing = account.pages(
                "logs", "describe_log_streams", "logStreams", logGroupName=group, logStreamNamePrefix=_name_prefix(run)
            )
            names = (stream["logStreamName"] for stream in listing)
            if ours := [name for name in names if owner_of(name) is not None]:  # others may use the same prefix
                yield group, ours


def _endpoint_groups(account: Account, run: str | None) -> Iterator[dict[str, Any]]:
    listing = account.pages(
        "logs", "describe_log_groups", "logGroups", logGroupNamePrefix=ENDPOINT_LOGS + _name_prefix(run)
    )
    yield from (group for group in listing if run_of(group["logGroupName"].removeprefix(ENDPOINT_LOGS)) is not None)
