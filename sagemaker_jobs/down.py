"""Removing what was made, until nothing is left that runs: jobs, then their roles; artifacts only if asked.

What is there is found anew each time, by ledger, name and tag, so it can be run again after anything, and from a
machine that made none of it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from neuron_sum.console import size
from neuron_sum.prices import S3_SOURCE, S3_USD_PER_GB_MONTH
from sagemaker_jobs.account import Account, Refused
from sagemaker_jobs.following import describe
from sagemaker_jobs.iam import LOG_GROUP
from sagemaker_jobs.inventory import Found, roles, running_jobs
from sagemaker_jobs.ledger import Ledger
from sagemaker_jobs.names import PREFIX, Run
from sagemaker_jobs.requests import run_prefix

STORED = f"{PREFIX}/"
DELETED_AT_ONCE = 1000
"""Objects in one DeleteObjects call; S3's own limit."""


@dataclass(frozen=True)
class Stored:
    """What lies in S3.

    Attributes:
        address: Where.
        objects: How many.
        size: Bytes.
    """

    address: str
    objects: int
    size: int

    @property
    def usd_per_month(self) -> float:
        """What keeping it costs."""
        return self.size / 1e9 * S3_USD_PER_GB_MONTH

    def __str__(self) -> str:
        cost = f"${self.usd_per_month:.2f} a month" if self.usd_per_month >= 0.01 else "under a cent a month"
        return f"{self.address}: {self.objects:,} objects, {size(self.size)}, {cost} ({S3_SOURCE})"

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {"address": self.address, "objects": self.objects, "bytes": self.size,
                "usd_per_month": round(self.usd_per_month, 4)}  # fmt: skip


def left(account: Account, ledger: Ledger, run: str | None) -> list[Found]:
    """What `remove` would remove: empty if nothing of ours is left but artifacts.

    Args:
        account: Where.
        ledger: Of it.
        run: Of this run alone.

    Raises:
        AwsError: If AWS cannot be asked.
    """
    return [*running_jobs(account, ledger, run), *roles(account, ledger, run)]


def remove(
    account: Account, ledger: Ledger, run: str | None, say: Callable[[str], None], *, every_s: float
) -> list[Found]:  # fmt: skip
    """Stops jobs, waits until they have stopped (until then they are paid), and deletes their roles.

    Args:
        account: Where.
        ledger: Of it; what is gone is noted.
        run: Of this run alone.
        say: Is told each step.
        every_s: How often to look whether a job has stopped.

    Returns:
        What was removed.

    Raises:
        AwsError: If AWS refuses; run it again.
    """
    jobs = running_jobs(account, ledger, run)
    for job in jobs:
        say(f"stopping {job.name}")
        try:
            account.call("sagemaker", "stop_training_job", TrainingJobName=job.name)
        except Refused as refused:
            # It has ended meanwhile, or is stopping already.
            if refused.code != "ValidationException":
                raise
    for job in jobs:
        while not describe(account, job.name).ended:
            time.sleep(every_s)
        ledger.note("gone", "training-job", job.name, job.run or "")
    unused = roles(account, ledger, run)
    for role in unused:
        say(f"deleting role {role.name}")
        _delete_role(account, role.name)
        ledger.note("gone", "role", role.name, role.run or "")
    return [*jobs, *unused]


def stored(account: Account, bucket: str, run: str | None) -> list[Stored]:
    """What was uploaded and what jobs wrote.

    Args:
        account: Whose bucket it is.
        bucket: Its name.
        run: What this run wrote alone; inputs are of several runs, for they lie by their content.

    Raises:
        AwsError: If AWS cannot be asked.
    """
    prefix = run_prefix(Run(run, "")) if run else STORED
    sizes = [item["Size"] for item in _objects(account, bucket, prefix)]
    return [Stored(f"s3://{bucket}/{prefix}", len(sizes), sum(sizes))] if sizes else []


def remove_artifacts(
    account: Account, ledger: Ledger, bucket: str, run: str | None, *, whole_bucket: bool
) -> None:  # fmt: skip
    """Deletes what a run wrote, or everything of ours, with the logs of its jobs.

    Args:
        account: Whose bucket it is.
        ledger: Of it.
        bucket: Its name.
        run: Of this run alone.
        whole_bucket: Delete the bucket too, if it then is empty: it is the one that we made.

    Raises:
        AwsError: If AWS refuses.
    """
    owner = {"ExpectedBucketOwner": account.id}
    prefix = run_prefix(Run(run, "")) if run else STORED
    keys = [{"Key": item["Key"]} for item in _objects(account, bucket, prefix)]
    for first in range(0, len(keys), DELETED_AT_ONCE):
        account.call(
            "s3", "delete_objects", Bucket=bucket,
            Delete={"Objects": keys[first : first + DELETED_AT_ONCE], "Quiet": True}, **owner,
        )  # fmt: skip
    _delete_logs(account, f"{PREFIX}-{run}-" if run else f"{PREFIX}-")
    if run is not None or not whole_bucket:
        return
    try:
        for part in account.pages("s3", "list_multipart_uploads", "Uploads", Bucket=bucket, **owner):
            account.call(
                "s3", "abort_multipart_upload", Bucket=bucket, Key=part["Key"], UploadId=part["UploadId"], **owner
            )
        account.call("s3", "delete_bucket", Bucket=bucket, **owner)
    except Refused as refused:
        if refused.code != "BucketNotEmpty" and not refused.missing:  # somebody else's objects stay
            raise
    ledger.note("gone", "bucket", bucket, "all")


def _objects(account: Account, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    try:
        yield from account.pages(
            "s3", "list_objects_v2", "Contents", Bucket=bucket, Prefix=prefix, ExpectedBucketOwner=account.id
        )
    except Refused as refused:
        if not refused.missing:
            raise


def _delete_role(account: Account, name: str) -> None:
    """A role must be bare before it can go; what somebody attached to it by hand is detached, not deleted."""
    try:
        for policy in list(account.pages("iam", "list_role_policies", "PolicyNames", RoleName=name)):
            account.call("iam", "delete_role_policy", RoleName=name, PolicyName=policy)
        for attached in list(account.pages("iam", "list_attached_role_policies", "AttachedPolicies", RoleName=name)):
            account.call("iam", "detach_role_policy", RoleName=name, PolicyArn=attached["PolicyArn"])
        account.call("iam", "delete_role", RoleName=name)
    except Refused as refused:
        if not refused.missing:  # another clean-up was faster
            raise


def _delete_logs(account: Account, begins: str) -> None:
    try:
        streams = list(
            account.pages("logs", "describe_log_streams", "logStreams", logGroupName=LOG_GROUP,
                          logStreamNamePrefix=begins)
        )  # fmt: skip
        for stream in streams:
            account.call("logs", "delete_log_stream", logGroupName=LOG_GROUP, logStreamName=stream["logStreamName"])
    except Refused as refused:
        if not refused.missing:
            raise
