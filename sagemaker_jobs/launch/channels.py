"""Input channels of a job, and their upload to S3."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from neuron_sum import files
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.place import inputs_prefix

DIGEST_DIGITS = 20


@dataclass(frozen=True)
class Channel:
    """Files that a container receives in one folder.

    Attributes:
        name: The channel's name.
        files: The local path of each file, by its name in the folder.
    """

    name: str
    files: Mapping[str, Path]

    @cached_property
    def sha256(self) -> str:
        """The hash of all names and contents; a job's entry.py computes the same one."""
        digest = hashlib.sha256()
        for name, path in sorted(self.files.items()):
            digest.update(f"{name}\0{files.sha256(path)}\n".encode())
        return digest.hexdigest()

    @property
    def digest(self) -> str:
        """The start of the hash, for the channel's address in S3."""
        return self.sha256[:DIGEST_DIGITS]

    @property
    def size(self) -> int:
        """The total size in bytes."""
        return sum(path.stat().st_size for path in self.files.values())


def upload(account: Account, bucket: str, channel: Channel, encryption: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Upload the files that S3 does not have yet; keys contain the hash, so existing objects are up to date.

    Args:
        account: The account that owns the bucket.
        bucket: The bucket's name.
        channel: The channel to upload.
        encryption: The encryption arguments of put_object for every object.

    Yields:
        The name and the size in bytes of each file, after its upload.

    Raises:
        AwsError: If AWS refuses.
    """
    prefix = inputs_prefix(channel.name, channel.digest)
    owner = {"ExpectedBucketOwner": account.id}
    present = {
        item["Key"]: item["Size"]
        for item in account.pages("s3", "list_objects_v2", "Contents", Bucket=bucket, Prefix=prefix, **owner)
    }
    for name, path in sorted(channel.files.items()):
        size = path.stat().st_size
        if present.get(prefix + name) != size:
            account.upload(path, bucket, prefix + name, {**encryption, **owner})
        yield name, size


def files_of(path: Path) -> dict[str, Path]:
    """Return a file, or all files of a folder except hidden ones, by name."""
    if path.is_file():
        return {path.name: path}
    inside = (file for file in path.rglob("*") if file.is_file())
    named = {file.relative_to(path).as_posix(): file for file in sorted(inside)}
    return {name: file for name, file in named.items() if not any(part.startswith(".") for part in Path(name).parts)}
