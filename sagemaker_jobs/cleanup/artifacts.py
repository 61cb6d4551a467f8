"""Artifacts of runs (inputs, checkpoints, models, images and logs): their monthly cost and their deletion."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from neuron_sum.console import size
from neuron_sum.errors import AwsError
from neuron_sum.platform import prices
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused, ignore_missing
from sagemaker_jobs.aws.names import (
    CAPTURED,
    ENDPOINT_LOGS,
    LOG_GROUPS,
    PREFIX,
    REPOSITORY,
    RUN_TAG,
    Run,
    capture_prefix,
    owner_of,
    run_of,
    run_prefix,
)
from sagemaker_jobs.cleanup.registered import image_digests
from sagemaker_jobs.stack.storage import bucket_is_ours, owned_bucket

STORED = (f"{PREFIX}/inputs/", f"{PREFIX}/runs/", f"{PREFIX}/cache/", CAPTURED)
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
        usd_per_gb: The storage price in USD per GB and month.
        source: The source of the price.
        delete: Deletes the artifacts; returns the number of objects of which an old version remains.
    """

    address: str
    objects: int
    size: int | None
    usd_per_gb: float
    source: str
    delete: Callable[[], int] = field(compare=False, repr=False)

    @property
    def usd_per_month(self) -> float | None:
        """The storage cost in USD per month; None if the size is unknown."""
        return None if self.size is None else self.size / 1e9 * self.usd_per_gb

    def __str__(self) -> str:
        if self.size is None or self.usd_per_month is None:
            return f"{self.address}: {self.objects:,}; {self.source}"
        cost = f"${self.usd_per_month:.2f} a month" if self.usd_per_month >= 0.01 else "less than $0.01 a month"
        return f"{self.address}: {self.objects:,}, {size(self.size)}, {cost} ({self.source})"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for --json."""
        cost = None if self.usd_per_month is None else round(self.usd_per_month, 4)
        return {"address": self.address, "objects": self.objects, "bytes": self.size, "usd_per_month": cost}


def stored(account: Account, run: str | None) -> list[Stored]:
    """Return the uploads, images, logs and outputs of jobs; the stack keeps the bucket and the repository.

    Args:
        account: The account that owns the artifacts.
        run: The only run whose outputs and logs to include; None also includes inputs and images, which runs share
            because their addresses contain a hash of their content.

    Raises:
        AwsError: If AWS refuses, or cannot be reached.
    """
    found, bucket = [], account.site.bucket
    for prefix in STORED if run is None else (run_prefix(Run(run, "")), capture_prefix(Run(run, ""))):
        if objects := list(_objects(account, prefix)):
            address, total = f"s3://{bucket}/{prefix}", sum(item["Size"] for item in objects)
            delete = partial(_delete_objects, account, [item["Key"] for item in objects])
            price = prices.S3_USD_PER_GB_MONTH
            found.append(Stored(address, len(objects), total, price, prices.S3_SOURCE, delete))
    if run is None and (images := _images(account)):
        # Layers count once per image that contains them, so this is an upper bound.
        total = sum(each.get("imageSizeInBytes", 0) for each in images)
        delete = partial(_delete_images, account, {each["imageDigest"] for each in images})
        address, price = f"images in the repository {REPOSITORY}", prices.ECR_USD_PER_GB_MONTH
        found.append(Stored(address, len(images), total, price, prices.ECR_SOURCE, delete))
    names = f"{PREFIX}-" if run is None else f"{PREFIX}-{run}-"
    for group in LOG_GROUPS:
        with ignore_missing():
            request = {"logGroupName": group, "logStreamNamePrefix": names}
            listing = account.pages("logs", "describe_log_streams", "logStreams", **request)
            # Others may use the same prefix.
            streams = [each["logStreamName"] for each in listing if owner_of(each["logStreamName"]) is not None]
            if streams:
                source = "AWS reports no size of single streams"
                delete = partial(_delete_streams, account, group, streams)
                found.append(Stored(f"log streams in {group}", len(streams), None, 0.0, source, delete))
    for each in account.pages("logs", "describe_log_groups", "logGroups", logGroupNamePrefix=ENDPOINT_LOGS + names):
        name, total = each["logGroupName"], each.get("storedBytes", 0)
        if run_of(name.removeprefix(ENDPOINT_LOGS)) is not None:
            price, delete = prices.LOGS_USD_PER_GB_MONTH, partial(_delete_group, account, name)
            found.append(Stored(f"log group {name}", 1, total, price, prices.LOGS_SOURCE, delete))
    return found


def remove_artifacts(found: list[Stored]) -> list[str]:
    """Delete artifacts; an error does not stop the deletion of the others.

    Returns:
        Messages about artifacts that could not be deleted: old versions of objects.

    Raises:
        AwsError: If AWS refused, or did not delete an object.
    """
    versions, errors = 0, []
    for each in found:
        try:
            versions += each.delete()
        except AwsError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    if not versions:
        return []
    return [
        f"the old versions of {versions:,} objects, which are still billed: the bucket keeps them until a lifecycle "
        "rule (NoncurrentVersionExpiration) deletes them"
    ]


def delete_retained(account: Account) -> list[str]:
    """Delete the bucket and the repository that a deleted stack retained, if they are empty.

    Returns:
        What was kept, with the reason.

    Raises:
        AwsError: If AWS refuses.
    """
    kept, bucket = [], account.site.bucket
    try:
        if bucket_is_ours(account):
            owner = owned_bucket(account)
            for part in account.pages("s3", "list_multipart_uploads", "Uploads", **owner):
                account.call("s3", "abort_multipart_upload", Key=part["Key"], UploadId=part["UploadId"], **owner)
            account.call("s3", "delete_bucket", **owner)
    except Refused as refused:
        if refused.code != "BucketNotEmpty":
            raise
        count = len(list(_objects(account, "")))
        kept.append(f"the bucket {bucket}, because it contains {f'{count:,} objects' if count else 'old versions'}")
    if (images := _images(account)) is not None:
        if images:
            kept.append(f"the repository {REPOSITORY}, because it contains {len(images):,} images")
        else:
            account.call("ecr", "delete_repository", repositoryName=REPOSITORY)
    return kept


def _delete_objects(account: Account, keys: list[str]) -> int:
    """Delete objects. In a bucket with versions, deleting only adds a marker."""
    bucket, versions = account.site.bucket, 0
    refused: list[dict[str, Any]] = []
    for first in range(0, len(keys), DELETED_AT_ONCE):
        objects = [{"Key": key} for key in keys[first : first + DELETED_AT_ONCE]]
        # The reply has status 200 even if S3 does not delete some objects.
        answer = account.call("s3", "delete_objects", Delete={"Objects": objects}, **owned_bucket(account))
        refused += answer.get("Errors", [])
        versions += sum(1 for each in answer.get("Deleted", []) if each.get("DeleteMarker"))
    if refused:
        first_error = refused[0]
        raise AwsError(
            f"S3 did not delete {len(refused):,} of {len(keys):,} objects of s3://{bucket}, the first: "
            f"{first_error['Key']}: {first_error.get('Code')}, {first_error.get('Message')}",
            f"`{account.command('iam')}` prints the policy that the caller needs; also check the bucket's policy and "
            "locks",
        )
    return versions


def _delete_images(account: Account, found: set[str]) -> int:
    """Delete images, except those of registered models."""
    digests = sorted(found - image_digests(account))
    for first in range(0, len(digests), IMAGES_DELETED_AT_ONCE):
        chunk = [{"imageDigest": digest} for digest in digests[first : first + IMAGES_DELETED_AT_ONCE]]
        answer = account.call("ecr", "batch_delete_image", repositoryName=REPOSITORY, imageIds=chunk)
        if failures := answer.get("failures"):
            raise AwsError(
                f"ECR did not delete {len(failures)} of {len(digests)} images, the first: {failures[0]}",
                "run the command again",
            )
    return 0


def _delete_streams(account: Account, group: str, streams: list[str]) -> int:
    for stream in streams:
        account.call("logs", "delete_log_stream", logGroupName=group, logStreamName=stream)
    return 0


def _delete_group(account: Account, group: str) -> int:
    account.call("logs", "delete_log_group", logGroupName=group)
    return 0


def _objects(account: Account, prefix: str) -> Iterator[dict[str, Any]]:
    with ignore_missing():
        yield from account.objects(f"s3://{account.site.bucket}/{prefix}")


def _images(account: Account) -> list[dict[str, Any]] | None:
    """Return the images of neuron-sum's repository; None if it does not exist, or neuron-sum did not create it."""
    with ignore_missing():
        [found] = account.call("ecr", "describe_repositories", repositoryNames=[REPOSITORY])["repositories"]
        tags = account.call("ecr", "list_tags_for_resource", resourceArn=found["repositoryArn"])["tags"]
        if not any(tag["Key"] == RUN_TAG for tag in tags):
            return None
        return list(account.pages("ecr", "describe_images", "imageDetails", repositoryName=REPOSITORY))
    return None
