"""What a batch transform reads: JSON Lines here or in S3, each line checked and counted."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from neuron_sum.errors import AwsError, DataError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.place import Destination
from sagemaker_jobs.batch.requests import MAX_PAYLOAD_MB
from sagemaker_jobs.launch.channels import Channel

CHANNEL = "batch"
"""The texts lie in S3 as a job's channel does."""


@dataclass(frozen=True)
class Texts:
    """What it is asked: JSON Lines.

    Attributes:
        address: The S3 prefix.
        channel: What is uploaded there first.
        lines: How many each file has, by its name; None where they lie in S3, and are counted there in the end.
    """

    address: str
    channel: Channel | None = None
    lines: Mapping[str, int] | None = None


def find_texts(given: str, account: Account | None, place: Destination) -> Texts:
    """What INPUT means.

    Args:
        given: A .jsonl file, a folder of them, or an S3 prefix.
        account: To look there; None in a dry run.
        place: Where what lies here is uploaded to.

    Raises:
        DataError: If a line is not what the endpoint takes, with its number; or there is none.
        AwsError: If nothing lies there.
    """
    if given.startswith("s3://"):
        if account is not None and not list(listed(account, given)):
            raise AwsError(f"nothing lies in {given}", "an S3 prefix with .jsonl files, or a file or folder here")
        return Texts(given)
    path = Path(given)
    if path.is_file():
        found = {path.name: path}
    else:
        found = {file.relative_to(path).as_posix().replace("/", "-"): file for file in sorted(path.rglob("*.jsonl"))}
        if not found:
            raise DataError(f"{path} holds no .jsonl file", "a .jsonl file, a folder of them, or s3://BUCKET/PREFIX/")
    lines = {name: _checked_lines(file) for name, file in found.items()}
    channel = Channel(CHANNEL, found)
    return Texts(place.inputs(CHANNEL, channel.digest), channel, lines)


def listed(account: Account, address: str) -> Iterator[str]:
    """The keys below an S3 address; empty objects, which stand for folders, are left out."""
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    for item in account.pages("s3", "list_objects_v2", "Contents", Bucket=bucket, Prefix=prefix):
        if item["Size"]:
            yield item["Key"]


def counted(account: Account, address: str) -> Counter[str]:
    """Lines of what lies in S3, by file name."""
    bucket = address.removeprefix("s3://").partition("/")[0]
    found: Counter[str] = Counter()
    for key in listed(account, address):
        lines = account.read(bucket, key).decode().split("\n")
        found[key.rpartition("/")[2]] += sum(1 for line in lines if line.strip())
    return found


def _checked_lines(path: Path) -> int:
    """How many lines a file has, each of which is one question."""
    count = 0
    with path.open(encoding="utf-8", newline="\n") as lines:
        try:
            for count, line in enumerate(lines, start=1):
                if (fault := _fault(line)) is not None:
                    raise DataError(
                        f"{path}, line {count}: {fault}", 'one JSON object a line: {"inputs": "a dialogue"}'
                    )
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, after line {count}: not UTF-8", "write the file as UTF-8") from error
    if not count:
        raise DataError(f"{path} is empty", 'one JSON object a line: {"inputs": "a dialogue"}')
    return count


def _fault(line: str) -> str | None:
    if not line.strip():
        return "nothing is in it"
    if (size := len(line.encode())) > MAX_PAYLOAD_MB * 1024 * 1024:
        return f"{size:,} bytes, and a record may have {MAX_PAYLOAD_MB} MB"
    try:
        content = json.loads(line)
    except ValueError as error:
        return f"not JSON: {error}"
    if not isinstance(content, dict) or not isinstance(content.get("inputs"), str):
        return "no text is in its inputs"
    return None
