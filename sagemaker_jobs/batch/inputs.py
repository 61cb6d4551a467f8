"""Inputs of a batch transform: local JSON Lines, checked and counted, or an S3 prefix."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from neuron_sum import files
from neuron_sum.errors import AwsError, DataError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import bucket_and_key
from sagemaker_jobs.launch.channels import Channel
from sagemaker_jobs.stack.stack import Stack

CHANNEL = "batch"
"""Channel name of the uploaded texts."""

MAX_PAYLOAD_MB = 6
"""Maximum size of a record; the server accepts the same size (serve.max_body_bytes)."""


@dataclass(frozen=True)
class Texts:
    """The JSON Lines that a transform reads.

    Attributes:
        address: The S3 prefix.
        channel: The files to upload to that prefix.
        lines: The number of lines per file name; None for texts in S3, which are counted at the end.
    """

    address: str
    channel: Channel | None = None
    lines: Mapping[str, int] | None = None


def find_texts(source: str, account: Account | None, stack: Stack) -> Texts:
    """Resolve INPUT.

    Args:
        source: A .jsonl file, a folder of them, or an S3 prefix.
        account: The account that has the S3 prefix; None in a dry run.
        stack: The stack with the bucket that local files are uploaded to.

    Raises:
        DataError: If a line is invalid, with its number, or there are no lines.
        AwsError: If the S3 prefix has no files.
    """
    if source.startswith("s3://"):
        if account is not None and not list(list_objects(account, source)):
            raise AwsError(
                f"{source} contains no files", "Use an S3 prefix with .jsonl files, or a local file or folder."
            )
        return Texts(source)
    path = Path(source)
    if path.is_file():
        found = {path.name: path}
    else:
        found = {file.relative_to(path).as_posix().replace("/", "-"): file for file in sorted(path.rglob("*.jsonl"))}
        if not found:
            raise DataError(
                f"{path} contains no .jsonl file", "Use a .jsonl file, a folder of them, or s3://BUCKET/PREFIX/."
            )
    lines = {name: _checked_lines(file) for name, file in found.items()}
    channel = Channel(CHANNEL, found)
    return Texts(stack.inputs(CHANNEL, channel.digest), channel, lines)


def list_objects(account: Account, address: str) -> Iterator[str]:
    """The addresses of the objects below an S3 address, without empty objects, which represent folders."""
    bucket, _ = bucket_and_key(address)
    for item in account.objects(address, owned=False):
        if item["Size"]:
            yield f"s3://{bucket}/{item['Key']}"


def count_lines(account: Account, address: str) -> Counter[str]:
    """The number of lines of the objects below an S3 address, by file name."""
    found: Counter[str] = Counter()
    for each in list_objects(account, address):
        lines = account.read(each).decode().split("\n")
        found[each.rpartition("/")[2]] += sum(1 for line in lines if line.strip())
    return found


def _checked_lines(path: Path) -> int:
    """Check each line of a file and return the number of lines."""
    count = 0
    with path.open(encoding="utf-8", newline="\n") as lines:
        try:
            for count, line in enumerate(lines, start=1):
                if (fault := _fault(line)) is not None:
                    raise DataError(
                        f"{path}, line {count}: {fault}", 'Write one JSON object per line: {"inputs": "a dialogue"}.'
                    )
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, after line {count}: invalid UTF-8", "Save the file as UTF-8.") from error
    if not count:
        raise DataError(f"{path} is empty", 'Write one JSON object per line: {"inputs": "a dialogue"}.')
    return count


def _fault(line: str) -> str | None:
    if not line.strip():
        return "empty line"
    if (size := len(line.encode())) > MAX_PAYLOAD_MB * 1024 * 1024:
        return f"{size:,} bytes, but a record may have at most {MAX_PAYLOAD_MB} MB"
    try:
        content = files.parse_json(line)
    except ValueError as error:
        return f"invalid JSON: {error}"
    if not isinstance(content, dict) or not isinstance(content.get("inputs"), str):
        return '"inputs" is missing or not a string'
    return None
