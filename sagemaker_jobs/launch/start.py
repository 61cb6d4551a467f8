"""Start of a job or endpoint: create the bucket, upload inputs, create roles and resources, and record them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import AwsContext, Run
from sagemaker_jobs.aws.place import Destination, NetworkSecurity, inputs_prefix
from sagemaker_jobs.launch import bucket
from sagemaker_jobs.launch.call import Call, create
from sagemaker_jobs.launch.channels import Channel, upload


@dataclass(frozen=True)
class Copy:
    """Object that S3 copies.

    Attributes:
        source: The source's S3 address.
        key: The target key in the launch's bucket.
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
        place: The account, region, bucket and role.
        calls: The main calls, in order.
        channels: The input channels, which are uploaded first.
        bucket_calls: The calls that create and configure the bucket; empty for a bucket from --bucket.
        role_calls: The calls that create roles; empty for existing roles.
        encryption: The encryption arguments of put_object for every upload.
        copies: The copies from S3 to the bucket, made after the uploads.
        later: The calls for when the resources are in service, which `start` does not send.
    """

    run: Run
    place: Destination
    calls: tuple[Call, ...]
    channels: tuple[Channel, ...] = ()
    bucket_calls: tuple[Call, ...] = ()
    role_calls: tuple[Call, ...] = ()
    encryption: Mapping[str, str] = field(default_factory=dict)
    copies: tuple[Copy, ...] = ()
    later: tuple[Call, ...] = ()

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return all requests in order; the body of an upload is the file's path."""
        uploads = [
            Call(
                "s3",
                "put_object",
                {
                    "Bucket": self.place.bucket,
                    "Key": inputs_prefix(channel.name, channel.digest) + name,
                    "Body": f"file://{path}",
                    "ChecksumAlgorithm": "SHA256",
                    "ExpectedBucketOwner": self.place.site.account,
                    **self.encryption,
                },
            )
            for channel in self.channels
            for name, path in sorted(channel.files.items())
        ]
        copies = [
            Call(
                "s3",
                "copy_object",
                {
                    "CopySource": copy.source.removeprefix("s3://"),
                    "Bucket": self.place.bucket,
                    "Key": copy.key,
                    "ExpectedBucketOwner": self.place.site.account,
                    **self.encryption,
                },
            )
            for copy in self.copies
        ]
        calls = (*self.bucket_calls, *uploads, *copies, *self.role_calls, *self.calls, *self.later)
        return [call.as_dict() for call in calls]


def place_of(run: Run, site: AwsContext, *, bucket: str | None = None, role_arn: str | None = None) -> Destination:
    """Return the destination of a run, with an existing bucket and role or those that are created for it.

    Args:
        run: The run that owns the resources.
        site: The account and region.
        bucket: An existing bucket; None for the default bucket.
        role_arn: An existing role; None for a new role.
    """
    return Destination(site, bucket or site.bucket, role_arn or site.role_arn(run.name("role")))


def encryption_of(isolation: NetworkSecurity) -> dict[str, str]:
    """Return the encryption arguments of put_object for uploads."""
    key = isolation.kms_key
    return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}


def start(
    account: Account,
    ledger: Ledger,
    launch: Launch,
    on_upload: Callable[[int], None],
    on_send: Callable[[Call], None] = lambda call: None,
) -> None:
    """Send a launch; the ledger has every resource before it is created.

    Args:
        account: The account and region.
        ledger: The account's ledger.
        launch: The launch to send.
        on_upload: Called with each file's size in bytes after its upload.
        on_send: Called with each of the launch's main calls, as it is sent, just before each attempt.

    Raises:
        AwsError: If AWS refuses, or cannot be reached; `aws down` deletes the resources created so far.
    """
    bucket.ready(
        account,
        ledger,
        launch.run,
        launch.place,
        launch.bucket_calls,
        launch.encryption,
        checkpoints=any("CheckpointConfig" in call.request for call in launch.calls),
        own_role=bool(launch.role_calls),
    )
    for channel in launch.channels:
        for _, size in upload(account, launch.place.bucket, channel, launch.encryption):
            on_upload(size)
    for copy in launch.copies:
        extra = {**launch.encryption, "ExpectedBucketOwner": launch.place.site.account}
        account.copy(copy.place, launch.place.bucket, copy.key, extra)
    for call in launch.role_calls:
        create(account, ledger, call, launch.run)
    for call in launch.calls:
        create(account, ledger, call, launch.run, on_send, new_role=bool(launch.role_calls))
