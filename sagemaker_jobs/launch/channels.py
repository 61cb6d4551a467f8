"""Input channels of a job, and their upload to S3."""

import base64
import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from neuron_sum import files
from neuron_sum.errors import DataError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import inputs_prefix

DIGEST_DIGITS = 20
PART_BYTES = 8 << 20
"""Size of the parts in which boto3 uploads files of this size or more (its TransferConfig)."""


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


def upload(account: Account, bucket: str, channel: Channel) -> Iterator[tuple[str, int]]:
    """Upload the files that S3 does not have yet, by the checksum that S3 itself computed of each object.

    Args:
        account: The account that owns the bucket.
        bucket: The bucket's name.
        channel: The channel to upload.

    Yields:
        The name and the size in bytes of each file, after its upload.

    Raises:
        AwsError: If AWS refuses.
    """
    prefix = inputs_prefix(channel.name, channel.digest)
    owner = {"ExpectedBucketOwner": account.id}
    present = {item["Key"] for item in account.objects(f"s3://{bucket}/{prefix}")}
    for name, path in sorted(channel.files.items()):
        key = prefix + name
        request = {"Bucket": bucket, "Key": key, "ChecksumMode": "ENABLED", **owner}
        stored = account.find("s3", "head_object", **request) if key in present else None
        if stored is None or stored.get("ChecksumSHA256") != s3_checksum(path):
            account.upload(path, bucket, key, owner)
        yield name, path.stat().st_size


def s3_checksum(path: Path) -> str:
    """Return the SHA-256 that S3 reports for a file that boto3 uploaded; for a large one, that of its parts' hashes."""
    hashes = []
    with path.open("rb") as file:
        while piece := file.read(PART_BYTES):
            hashes.append(hashlib.sha256(piece).digest())
    if path.stat().st_size < PART_BYTES:
        return base64.b64encode(hashes[0] if hashes else hashlib.sha256().digest()).decode()
    return f"{base64.b64encode(hashlib.sha256(b''.join(hashes)).digest()).decode()}-{len(hashes)}"


def files_of(path: Path) -> dict[str, Path]:
    """Return a file, or all files of a folder except hidden ones, by name."""
    if path.is_file():
        return {path.name: path}
    inside = [file for file in path.rglob("*") if file.is_file()]
    hidden = {file for file in inside if any(part.startswith(".") for part in file.relative_to(path).parts)}
    return named(path, [file for file in inside if file not in hidden])


def named(folder: Path, inside: Collection[Path]) -> dict[str, Path]:
    """Return files of a folder by name.

    Raises:
        DataError: If one is a link to a file outside of the folder, other than one of a hub's cache.
    """
    root = folder.resolve()
    # A snapshot in the cache of huggingface_hub links to MODEL/blobs.
    allowed = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    for file in inside:
        if not (target := file.resolve()).is_relative_to(root) and not target.is_relative_to(allowed):
            link = f"a link to {target}, " if file.absolute() != target else ""
            raise DataError(
                f"{file} is {link}outside of the folder {folder}",
                "Copy the file into the folder, or remove the link.",
            )
    return {file.relative_to(folder).as_posix(): file for file in sorted(inside)}
