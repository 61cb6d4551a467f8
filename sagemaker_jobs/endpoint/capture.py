"""Data capture of an endpoint: its configuration, the lifecycle of the files in S3, and their redacted copies.

SageMaker writes requests and answers as it receives them, so nothing in the container can redact them.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from neuron_sum.errors import AwsError
from neuron_sum.monitoring.redaction import redact_files
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import ignore_missing
from sagemaker_jobs.aws.names import CAPTURED, Run, capture_prefix
from sagemaker_jobs.stack.stack import Request, Stack
from sagemaker_jobs.stack.storage import CAPTURE_DAYS, owned_bucket

CONTENT_TYPES = ["application/json", "application/jsonlines"]
"""Content types that are stored as text; SageMaker stores others in base64."""


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
        AwsError: If the bucket has no such lifecycle rule, or AWS refuses.
    """
    rules = []
    with ignore_missing("NoSuchLifecycleConfiguration"):
        answer = account.call("s3", "get_bucket_lifecycle_configuration", **owned_bucket(account))
        rules = answer["Rules"]
    for rule in rules:
        chosen = rule.get("Filter", {})
        prefix = chosen.get("Prefix", rule.get("Prefix"))
        days = rule.get("Expiration", {}).get("Days")
        # A rule with tags or sizes, which are in And or beside the prefix, does not cover all files.
        covers = prefix is not None and set(chosen) <= {"Prefix"} and CAPTURED.startswith(prefix)
        if rule["Status"] == "Enabled" and covers and days is not None and days <= CAPTURE_DAYS:
            return
    raise AwsError(
        f"the bucket {stack.bucket} has no lifecycle rule that deletes {CAPTURED} after {CAPTURE_DAYS} days or less",
        f"run neuron-sum aws setup --region {account.region}; if its owner has written other rules, add one yourself "
        "(docs/aws.md, Captured requests)",
    )


def fetch(
    account: Account,
    stack: Stack,
    run: Run,
    folder: Path,
    hook: Callable[[str], str] | None,
    *,
    keep: bool,
) -> list[Path]:
    """Copy the captured files of a run, redacted, and delete them in S3.

    Files are redacted in a temporary folder next to the target, so that a failure leaves no text in the target. An
    object is deleted once its copy is in the target.

    Args:
        account: The account and region.
        stack: The stack with the bucket.
        run: The run.
        folder: The target folder, which may have the files of an earlier call.
        hook: Redacts a text; None: the files are copied as they are.
        keep: Whether the objects stay in S3.

    Returns:
        The new files in the folder.

    Raises:
        AwsError: If AWS refuses, or cannot be reached.
        DataError: If the hook fails; nothing is copied or deleted.
    """
    prefix, owner = capture_prefix(run), owned_bucket(account)
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, tuple[Path, Path]] = {}
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        for item in account.pages("s3", "list_objects_v2", "Contents", Prefix=prefix, **owner):
            name = item["Key"].removeprefix(prefix)
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not name.endswith(".jsonl"):
                raise AwsError(
                    f"SageMaker does not write {item['Key']}", "delete the object, or copy the files yourself"
                )
            temporary, target = Path(scratch) / name, folder / name
            temporary.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(account.read(f"s3://{stack.bucket}/{item['Key']}"))
            made[item["Key"]] = temporary, target
        if hook is not None and made:
            redact_files([temporary for temporary, _ in made.values()], hook)
        for temporary, target in made.values():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(temporary, target)
    if not keep:
        for key in made:
            account.call("s3", "delete_object", Key=key, **owner)
    return [target for _, target in made.values()]
