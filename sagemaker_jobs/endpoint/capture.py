"""Data capture of an endpoint: its configuration, the lifecycle of the files in S3, and their redacted copies.

SageMaker writes requests and answers as it receives them, so nothing in the container can redact them.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from neuron_sum.errors import AwsError
from neuron_sum.monitoring.redaction import redact_files
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import CAPTURED, Run, capture_prefix
from sagemaker_jobs.stack import storage
from sagemaker_jobs.stack.stack import Request, Stack
from sagemaker_jobs.stack.storage import CAPTURE_DAYS, owned_bucket

CONTENT_TYPES = ["application/json", "application/jsonlines"]
"""Content types that are stored as text; SageMaker stores others in base64."""


@dataclass(frozen=True)
class Fetched:
    """The result of `fetch`.

    Attributes:
        files: The new files in the folder.
        incomplete: The number of lines that cannot be read, and are {} in the copy, by the key of their object.
    """

    files: list[Path]
    incomplete: dict[str, int]


def config(run: Run, stack: Stack, percent: int) -> Request:
    """Return the DataCaptureConfig of CreateEndpointConfig.

    Args:
        run: The run that owns the endpoint.
        stack: The stack with the bucket and the KMS key.
        percent: The percentage of requests to capture.
    """
    key = {} if stack.kms_key is None else {"KmsKeyId": stack.kms_key}
    return {
        "EnableCapture": True,
        "InitialSamplingPercentage": percent,
        "DestinationS3Uri": address(run, stack).rstrip("/"),
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
        "CaptureContentTypeHeader": {"JsonContentTypes": CONTENT_TYPES},
        **key,
    }


def address(run: Run, stack: Stack) -> str:
    """Return the S3 address of the captured requests of a run."""
    return f"s3://{stack.bucket}/{capture_prefix(run)}"


def check_lifecycle(account: Account, stack: Stack) -> None:
    """Reject a bucket that does not delete captured requests.

    Args:
        account: The account and region.
        stack: The stack with the bucket.

    Raises:
        AwsError: If the bucket has no such lifecycle rule, also for old versions, or AWS refuses.
    """
    if missing := storage.captures_kept(storage.lifecycle_of(account)):
        raise AwsError(
            f"the bucket {stack.bucket} has no lifecycle rule that deletes {' and '.join(missing)} of {CAPTURED} after "
            f"{CAPTURE_DAYS} days or less",
            f"run {account.command('setup')}; if it changes nothing, add the rule yourself "
            "(docs/aws.md, Captured requests)",
        )


def folders_of(files: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Return the folder of each variant with captured files: SageMaker names files ENDPOINT/VARIANT/….

    Args:
        files: The files that `fetch` returned.
        folder: Its target folder.
    """
    parts = sorted(path.relative_to(folder).parts for path in files)
    return {each[1]: folder / each[0] / each[1] for each in parts if len(each) > 2}


def fetch(
    account: Account,
    stack: Stack,
    run: Run,
    folder: Path,
    hook: Callable[[str], str] | None,
    *,
    keep: bool,
) -> Fetched:
    """Copy the captured files of a run, redacted, and delete them in S3.

    Each file is redacted in a temporary folder next to the target, so that a failure leaves no text in the target. An
    object is deleted once its copy is in the target, unless the copy lacks lines that cannot be read.

    Args:
        account: The account and region.
        stack: The stack with the bucket.
        run: The run.
        folder: The target folder, which may have the files of an earlier call.
        hook: Redacts a text; None: the files are copied as they are.
        keep: Whether the objects stay in S3.

    Raises:
        AwsError: If AWS refuses, or cannot be reached.
        DataError: If the hook fails; nothing is copied or deleted.
    """
    prefix, owner = capture_prefix(run), owned_bucket(account)
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, tuple[Path, Path]] = {}
    incomplete: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        for item in account.objects(address(run, stack)):
            name = item["Key"].removeprefix(prefix)
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not name.endswith(".jsonl"):
                raise AwsError(
                    f"SageMaker does not write {item['Key']}", "delete the object, or copy the files yourself"
                )
            temporary, target = Path(scratch) / name, folder / name
            temporary.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(account.read(f"s3://{stack.bucket}/{item['Key']}"))
            made[item["Key"]] = temporary, target
            if hook is not None and (emptied := redact_files([temporary], hook).emptied):
                incomplete[item["Key"]] = emptied
        for temporary, target in made.values():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(temporary, target)
    if not keep:
        for key in made.keys() - incomplete.keys():
            account.call("s3", "delete_object", Key=key, **owner)
    return Fetched([target for _, target in made.values()], incomplete)
