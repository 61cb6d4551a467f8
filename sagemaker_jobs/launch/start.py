"""Start of a job, build or endpoint: upload inputs, create resources, and record them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import Run, bucket_and_key, inputs_prefix
from sagemaker_jobs.launch.call import Call, create
from sagemaker_jobs.launch.channels import Channel, upload
from sagemaker_jobs.launch.schedules import time_of
from sagemaker_jobs.stack.stack import Stack


@dataclass(frozen=True)
class Launch:
    """All requests of a start.

    Attributes:
        run: The run that owns the resources.
        stack: The stack with the bucket and the roles.
        calls: The calls that create resources, in order.
        channels: The input channels, which are uploaded first.
        copies: The S3 addresses of objects that S3 copies after the uploads, by their new keys in the bucket.
        later: The calls for when the resources are in service, which `start` does not send.
        sent: The calls as they were sent, so far.
    """

    run: Run
    stack: Stack
    calls: tuple[Call, ...]
    channels: tuple[Channel, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    later: tuple[Call, ...] = ()
    sent: list[Call] = field(default_factory=list, compare=False)

    @property
    def all_calls(self) -> tuple[Call, ...]:
        """The calls that create and configure the resources, in order."""
        return (*self.calls, *self.later)

    def __getitem__(self, kind: str) -> Call:
        """The call that creates a kind of resource.

        Raises:
            KeyError: If the launch creates none.
        """
        return {call.kind: call for call in self.all_calls}[kind]

    @property
    def ends(self) -> datetime | None:
        """The time (UTC) at which AWS ends what the launch creates; None if it never does."""
        schedules = [call for call in (*self.calls, *self.sent) if call.kind == "schedule"]
        return time_of(schedules[-1].request) if schedules else None

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return all requests in order; the body of an upload is the file's path."""
        common = {"Bucket": self.stack.bucket, "ExpectedBucketOwner": self.stack.site.account}
        uploads = [
            {"Key": inputs_prefix(channel.name, channel.digest) + name, "Body": f"file://{path}"}
            for channel in self.channels
            for name, path in sorted(channel.files.items())
        ]
        calls = [
            *(Call("s3", "put_object", {**common, **each, "ChecksumAlgorithm": "SHA256"}) for each in uploads),
            *(
                Call("s3", "copy_object", {**common, "CopySource": "/".join(bucket_and_key(source)), "Key": key})
                for key, source in self.copies.items()
            ),
            *self.all_calls,
        ]
        return [call.as_dict() for call in calls]


def start(account: Account, launch: Launch, on_upload: Callable[[int], None]) -> None:
    """Send a launch; the ledger has every resource before it is created.

    Args:
        account: The account and region.
        launch: The launch to send.
        on_upload: Called with each file's size in bytes after its upload.

    Raises:
        AwsError: If AWS refuses, or cannot be reached; `aws down` deletes the resources created so far.
    """
    bucket, owner = launch.stack.bucket, {"ExpectedBucketOwner": launch.stack.site.account}
    for channel in launch.channels:
        for _, size in upload(account, bucket, channel):
            on_upload(size)
    for key, source in launch.copies.items():
        account.copy(source, bucket, key, owner)
    for call in launch.calls:
        create(account, call, launch.run, launch.sent.append)
