"""Start of a job, build or endpoint: upload inputs, create resources, and record them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import Run, inputs_prefix
from sagemaker_jobs.launch.call import Call, create
from sagemaker_jobs.launch.channels import Channel, upload
from sagemaker_jobs.launch.schedules import time_of
from sagemaker_jobs.stack.stack import Request, Stack


@dataclass(frozen=True)
class Copy:
    """Object that S3 copies.

    Attributes:
        source: The source's S3 address.
        key: The target key in the stack's bucket.
    """

    source: str
    key: str

    @property
    def place(self) -> tuple[str, str]:
        """The source's bucket and key."""
        bucket, _, key = self.source.removeprefix("s3://").partition("/")
        return bucket, key


@dataclass(frozen=True)
class Launch:
    """All requests of a start.

    Attributes:
        run: The run that owns the resources.
        stack: The stack with the bucket and the roles.
        calls: The calls that create resources, in order.
        channels: The input channels, which are uploaded first.
        copies: The copies from S3 to the bucket, made after the uploads.
        later: The calls for when the resources are in service, which `start` does not send.
        sent: The calls as they were sent, so far.
    """

    run: Run
    stack: Stack
    calls: tuple[Call, ...]
    channels: tuple[Channel, ...] = ()
    copies: tuple[Copy, ...] = ()
    later: tuple[Call, ...] = ()
    sent: list[Call] = field(default_factory=list, compare=False)

    @property
    def requests(self) -> dict[str, Request]:
        """The requests by the kind of resource they create."""
        return {call.kind: call.request for call in (*self.calls, *self.later) if call.kind is not None}

    def __getitem__(self, kind: str) -> Call:
        """The call that creates a kind of resource.

        Raises:
            KeyError: If the launch creates none.
        """
        return {call.kind: call for call in (*self.calls, *self.later)}[kind]

    def __contains__(self, kind: str) -> bool:
        return any(call.kind == kind for call in (*self.calls, *self.later))

    @property
    def ends(self) -> datetime | None:
        """The time (UTC) at which AWS ends what the launch creates; None if it never does."""
        schedules = [call for call in (*self.calls, *self.sent) if call.kind == "schedule"]
        return time_of(schedules[-1].request) if schedules else None

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return all requests in order; the body of an upload is the file's path."""
        common = {"Bucket": self.stack.bucket, "ExpectedBucketOwner": self.stack.site.account}
        uploads = [
            Call(
                "s3",
                "put_object",
                {
                    **common,
                    "Key": inputs_prefix(channel.name, channel.digest) + name,
                    "Body": f"file://{path}",
                    "ChecksumAlgorithm": "SHA256",
                },
            )
            for channel in self.channels
            for name, path in sorted(channel.files.items())
        ]
        copies = [
            Call("s3", "copy_object", {**common, "CopySource": copy.source.removeprefix("s3://"), "Key": copy.key})
            for copy in self.copies
        ]
        return [call.as_dict() for call in (*uploads, *copies, *self.calls, *self.later)]


def start(account: Account, ledger: Ledger, launch: Launch, on_upload: Callable[[int], None]) -> None:
    """Send a launch; the ledger has every resource before it is created.

    Args:
        account: The account and region.
        ledger: The account's ledger.
        launch: The launch to send.
        on_upload: Called with each file's size in bytes after its upload.

    Raises:
        AwsError: If AWS refuses, or cannot be reached; `aws down` deletes the resources created so far.
    """
    bucket, owner = launch.stack.bucket, {"ExpectedBucketOwner": launch.stack.site.account}
    for channel in launch.channels:
        for _, size in upload(account, bucket, channel):
            on_upload(size)
    for copy in launch.copies:
        account.copy(copy.place, bucket, copy.key, owner)
    for call in launch.calls:
        create(account, ledger, call, launch.run, launch.sent.append)
