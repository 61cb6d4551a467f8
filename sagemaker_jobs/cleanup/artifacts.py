"""What runs leave that is worth keeping: inputs, checkpoints, models, images, logs; and what a month of it costs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from neuron_sum.console import size
from neuron_sum.errors import AwsError
from neuron_sum.platform import prices
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused, ignore_missing
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import LOG_GROUPS, OWN_LOG_GROUPS, PREFIX, REPOSITORY, RUN_TAG, Run
from sagemaker_jobs.aws.place import run_prefix

STORED = (f"{PREFIX}/inputs/", f"{PREFIX}/runs/")
"""Where the keys of all that we write begin; beside it may lie what is the user's."""

DELETED_AT_ONCE = 1000
"""Objects in one DeleteObjects call; S3's own limit."""


@dataclass(frozen=True)
class Stored:
    """What lies in S3, in a registry or in CloudWatch.

    Attributes:
        address: Where.
        objects: How many: files, images, log streams.
        size: Bytes; None where AWS does not say.
        usd_per_month: What keeping it costs.
        source: Who says so.
    """

    address: str
    objects: int
    size: int | None
    usd_per_month: float | None
    source: str

    def __str__(self) -> str:
        if self.size is None or self.usd_per_month is None:
            return f"{self.address}: {self.objects:,}; {self.source}"
        cost = f"${self.usd_per_month:.2f} a month" if self.usd_per_month >= 0.01 else "under a cent a month"
        return f"{self.address}: {self.objects:,}, {size(self.size)}, {cost} ({self.source})"

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        cost = None if self.usd_per_month is None else round(self.usd_per_month, 4)
        return {"address": self.address, "objects": self.objects, "bytes": self.size, "usd_per_month": cost}


def stored(account: Account, bucket: str, run: str | None) -> list[Stored]:
    """What was uploaded, built and logged, and what jobs wrote.

    Args:
        account: Whose.
        bucket: Its name.
        run: What this run wrote alone; inputs and images are of several runs, for they lie by their content.

    Raises:
        AwsError: If AWS cannot be asked.
    """
    found = []
    for prefix in _prefixes(run):
        if sizes := [item["Size"] for item in _objects(account, bucket, prefix)]:
            cost = sum(sizes) / 1e9 * prices.S3_USD_PER_GB_MONTH
            found.append(Stored(f"s3://{bucket}/{prefix}", len(sizes), sum(sizes), cost, prices.S3_SOURCE))
    if run is None and (images := _images(account)):
        # An image's layers are counted for each image that has them, so this is the most that it can be.
        whole = sum(image.get("imageSizeInBytes", 0) for image in images)
        cost = whole / 1e9 * prices.ECR_USD_PER_GB_MONTH
        found.append(Stored(f"images in the repository {REPOSITORY}", len(images), whole, cost, prices.ECR_SOURCE))
    for group, streams in _shared_streams(account, run):
        found.append(Stored(f"log streams in {group}", len(streams), None, None, "AWS tells no size of single streams"))
    for own in _own_groups(account, run):
        kept = own.get("storedBytes", 0)
        cost = kept / 1e9 * prices.LOGS_USD_PER_GB_MONTH
        found.append(Stored(f"log group {own['logGroupName']}", 1, kept, cost, prices.LOGS_SOURCE))
    return found


def remove_artifacts(
    account: Account, ledger: Ledger, bucket: str, run: str | None, *, whole_bucket: bool
) -> list[str]:
    """Deletes what a run wrote, or everything of ours, with its logs.

    Args:
        account: Whose.
        ledger: Of it.
        bucket: Its name.
        run: Of this run alone; what several runs share stays then.
        whole_bucket: Delete the bucket too, if it then is empty: it is the one that we made.

    Returns:
        What stays although it was to go, in words: old versions of objects, a bucket with somebody else's.

    Raises:
        AwsError: If AWS refuses; of single objects, once everything else is deleted but the bucket.
    """
    keys = [item["Key"] for prefix in _prefixes(run) for item in _objects(account, bucket, prefix)]
    refused, versions = _delete_objects(account, bucket, keys)
    stays = (
        [
            f"the old versions of {versions:,} objects, which are still billed: s3://{bucket} keeps them until a "
            "lifecycle rule (NoncurrentVersionExpiration) deletes them"
        ]
        if versions
        else []
    )
    for group, streams in _shared_streams(account, run):
        for stream in streams:
            account.call("logs", "delete_log_stream", logGroupName=group, logStreamName=stream)
    for own in list(_own_groups(account, run)):
        account.call("logs", "delete_log_group", logGroupName=own["logGroupName"])
    if run is None:
        _remove_repository(account, ledger)
    if refused:
        one = refused[0]
        raise AwsError(
            f"S3 did not delete {len(refused):,} of {len(keys):,} objects of s3://{bucket}, the first: {one['Key']}: "
            f"{one.get('Code')}, {one.get('Message')}",
            "`neuron-sum aws iam` prints what the caller needs; the bucket's policy or an object lock may forbid it",
        )
    if run is None and whole_bucket:
        if (why := _delete_bucket(account, bucket)) is None:
            ledger.note("gone", "bucket", bucket, "all")
        else:
            stays.append(why)
    return stays


def _delete_objects(account: Account, bucket: str, keys: list[str]) -> tuple[list[dict[str, Any]], int]:
    """Deletes them; gives what S3 says of those that it did not delete, and how many have a version that stays.

    The reply has status 200 whatever became of the single objects. In a bucket with versions, deleting only adds a
    marker.
    """
    refused: list[dict[str, Any]] = []
    versions = 0
    for first in range(0, len(keys), DELETED_AT_ONCE):
        named = [{"Key": key} for key in keys[first : first + DELETED_AT_ONCE]]
        answer = account.call(
            "s3", "delete_objects", Bucket=bucket, Delete={"Objects": named}, ExpectedBucketOwner=account.id
        )
        refused += answer.get("Errors", [])
        versions += sum(1 for each in answer.get("Deleted", []) if each.get("DeleteMarker"))
    return refused, versions


def _remove_repository(account: Account, ledger: Ledger) -> None:
    if _images(account) is not None:
        account.call("ecr", "delete_repository", repositoryName=REPOSITORY, force=True)
    for entry in ledger.open():
        if entry.kind == "repository":
            ledger.note("gone", entry.kind, entry.name, entry.run)


def _delete_bucket(account: Account, bucket: str) -> str | None:
    """Deletes it if it is empty; gives in words why it stays, None if it is gone."""
    owner = {"ExpectedBucketOwner": account.id}
    try:
        with ignore_missing():
            for part in account.pages("s3", "list_multipart_uploads", "Uploads", Bucket=bucket, **owner):
                account.call(
                    "s3", "abort_multipart_upload", Bucket=bucket, Key=part["Key"], UploadId=part["UploadId"], **owner
                )
            account.call("s3", "delete_bucket", Bucket=bucket, **owner)
    except Refused as refused:
        if refused.code != "BucketNotEmpty":
            raise
        other = [item["Key"] for item in _objects(account, bucket, "")]
        what = f"{len(other):,} objects that are not ours, the first {other[0]}" if other else "old versions"
        return f"the bucket {bucket}, for there are still {what}"
    return None


def _prefixes(run: str | None) -> tuple[str, ...]:
    return STORED if run is None else (run_prefix(Run(run, "")),)


def _objects(account: Account, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    with ignore_missing():
        yield from account.pages(
            "s3", "list_objects_v2", "Contents", Bucket=bucket, Prefix=prefix, ExpectedBucketOwner=account.id
        )


def _images(account: Account) -> list[dict[str, Any]] | None:
    """The images of our repository; None if there is none, or one of that name is somebody else's."""
    with ignore_missing():
        [found] = account.call("ecr", "describe_repositories", repositoryNames=[REPOSITORY])["repositories"]
        tags = account.call("ecr", "list_tags_for_resource", resourceArn=found["repositoryArn"])["tags"]
        if not any(tag["Key"] == RUN_TAG for tag in tags):
            return None
        return list(account.pages("ecr", "describe_images", "imageDetails", repositoryName=REPOSITORY))
    return None


def _begins(run: str | None) -> str:
    return f"{PREFIX}-" if run is None else f"{PREFIX}-{run}-"


def _shared_streams(account: Account, run: str | None) -> Iterator[tuple[str, list[str]]]:
    for group in LOG_GROUPS:
        with ignore_missing():
            listing = account.pages(
                "logs", "describe_log_streams", "logStreams", logGroupName=group, logStreamNamePrefix=_begins(run)
            )
            if names := [stream["logStreamName"] for stream in listing]:
                yield group, names


def _own_groups(account: Account, run: str | None) -> Iterator[dict[str, Any]]:
    for begins in OWN_LOG_GROUPS:
        yield from account.pages("logs", "describe_log_groups", "logGroups", logGroupNamePrefix=begins + _begins(run))
