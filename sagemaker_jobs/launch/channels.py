"""Input channels of a job, and their upload to S3."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from neuron_sum import files
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.place import inputs_prefix

DIGEST_DIGITS = 20


@dataclass(frozen=True)
class Channel:
    """Files that come to a container in one folder.

    Attributes:
        name: The channel's.
        files: Where each is on this disk, by its name in the folder.
    """

    name: str
    files: Mapping[str, Path]

    @property
    def digest(self) -> str:
        """The hash of all names and contents."""
        whole = hashlib.sha256()
        for name, path in sorted(self.files.items()):
            whole.update(f"{name}\0{files.sha256(path)}\n".encode())
        return whole.hexdigest()[:DIGEST_DIGITS]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(path.stat().st_size for path in self.files.values())


def upload(account: Account, bucket: str, channel: Channel, encryption: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Puts what is not there yet into S3; keys have the hash in them, so what is there is right.

    Args:
        account: Whose bucket it is.
        bucket: Its name.
        channel: What to upload.
        encryption: Of every object, as put_object takes it.

    Yields:
        Each file's name and bytes, once it is there.

    Raises:
        AwsError: If AWS refuses.
    """
    prefix = inputs_prefix(channel.name, channel.digest)
    owner = {"ExpectedBucketOwner": account.id}
    there = {
        item["Key"]: item["Size"]
        for item in account.pages("s3", "list_objects_v2", "Contents", Bucket=bucket, Prefix=prefix, **owner)
    }
    for name, path in sorted(channel.files.items()):
        size = path.stat().st_size
        if there.get(prefix + name) != size:
            account.upload(path, bucket, prefix + name, {**encryption, **owner})
        yield name, size


def files_of(path: Path) -> dict[str, Path]:
    """A file, or everything in a folder; hidden files stay here."""
    if path.is_file():
        return {path.name: path}
    inside = (file for file in path.rglob("*") if file.is_file())
    named = {file.relative_to(path).as_posix(): file for file in sorted(inside)}
    return {name: file for name, file in named.items() if not any(part.startswith(".") for part in Path(name).parts)}
