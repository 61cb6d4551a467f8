"""All that a start sends, in its order: bucket, uploads, roles, and what they are for; the ledger beside it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import AwsContext, Run
from sagemaker_jobs.aws.place import Destination, NetworkSecurity, inputs_prefix
from sagemaker_jobs.launch import bucket
from sagemaker_jobs.launch.call import Call, create, create_with_new_role
from sagemaker_jobs.launch.channels import Channel, upload


@dataclass(frozen=True)
class Copy:
    """One object that S3 copies.

    Attributes:
        source: Its address.
        key: Where to, in the launch's bucket.
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
    """All that a start is.

    Attributes:
        run: Whose.
        place: Where.
        calls: What it is for, in the order of their making.
        channels: What is uploaded first.
        bucket_calls: That make and set the bucket; none for the caller's own.
        role_calls: That make roles; none for the caller's own.
        encryption: Of every upload, as put_object takes it.
        copies: From S3 to keys of the bucket, once the uploads are there.
        later: What can be sent only when the rest has come up; `start` does not.
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
        """Every request in its order; an upload's body is the file."""
        uploads = [
            Call(
                "s3",
                "put_object",
                {
                    "Bucket": self.place.bucket,
                    "Key": inputs_prefix(channel.name, channel.digest) + name,
                    "Body": f"file://{path}",
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
        made = (*self.bucket_calls, *uploads, *copies, *self.role_calls, *self.calls, *self.later)
        return [call.as_dict() for call in made]


def place_of(run: Run, site: AwsContext, *, bucket: str | None = None, role_arn: str | None = None) -> Destination:
    """Where a run's things go: the caller's bucket and role, or those that are made for it.

    Args:
        run: Whose.
        site: Where.
        bucket: The caller's own.
        role_arn: The caller's own.
    """
    return Destination(site, bucket or site.bucket, role_arn or site.role_arn(run.name("role")))


def encryption_of(isolation: NetworkSecurity) -> dict[str, str]:
    """Of uploads, as put_object takes it."""
    key = isolation.kms_key
    return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}


def start(
    account: Account,
    ledger: Ledger,
    made: Launch,
    on_upload: Callable[[int], None],
    on_send: Callable[[Call], None] = lambda call: None,
) -> None:
    """Sends a launch; whatever it makes is in the ledger before it is there.

    Args:
        account: Where.
        ledger: Of that account and region.
        made: What to send.
        on_upload: Called with each file's size in bytes after its upload.
        on_send: Called with each of the launch's main calls, as it is sent, just before each attempt.

    Raises:
        AwsError: If AWS refuses, or cannot be reached; `aws down` removes what was made by then.
    """
    bucket.ready(
        account,
        ledger,
        made.run,
        made.place,
        made.bucket_calls,
        made.encryption,
        checkpoints=any("CheckpointConfig" in call.request for call in made.calls),
        own_role=bool(made.role_calls),
    )
    for channel in made.channels:
        for _, size in upload(account, made.place.bucket, channel, made.encryption):
            on_upload(size)
    for copy in made.copies:
        extra = {**made.encryption, "ExpectedBucketOwner": made.place.site.account}
        account.copy(copy.place, made.place.bucket, copy.key, extra)
    for call in made.role_calls:
        create(account, ledger, call, made.run)
    send = create_with_new_role if made.role_calls else create
    for call in made.calls:
        send(account, ledger, call, made.run, on_send)
