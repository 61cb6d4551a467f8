"""Batch transform: requests of its launch, cleanup after its end, and download of the answers."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuron_sum import files
from neuron_sum.console import command
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import Run, last_attempt, run_prefix
from sagemaker_jobs.batch.inputs import MAX_PAYLOAD_MB, Texts, count_lines, list_objects
from sagemaker_jobs.endpoint import sources as endpoint_sources
from sagemaker_jobs.endpoint.launch import container_of, create_model
from sagemaker_jobs.endpoint.sources import ARCHIVE, Source
from sagemaker_jobs.image import registry
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.options import TransformOptions
from sagemaker_jobs.launch.schedules import ending
from sagemaker_jobs.launch.start import Launch
from sagemaker_jobs.stack.stack import Stack

PARTS = ("batch", "batch-model", "batch-expiry")
"""The parts of the names of a transform job and its resources after the run id; the number of the attempt follows."""

JSON_LINES = "application/jsonlines"
OUT = ".out"
"""Suffix that SageMaker adds to the name of an input file for its output file."""

CONCURRENT = 16
"""Number of concurrent requests, which the server groups into batches of the compiled sizes. The product of CONCURRENT
and MAX_PAYLOAD_MB must be at most 100, and at most serve.queue_size requests may wait."""

INVOCATION_S = 60
"""Seconds; longer than any serve.deadline_s, after which the container itself sends an answer."""

RETRIES = 3
"""SageMaker's maximum number of retries, for a container that reports that it is busy."""


@dataclass(frozen=True)
class Answers:
    """The downloaded answers.

    Attributes:
        files: The paths of the downloaded files.
        lines: The total number of lines.
        errors: The error messages of individual records.
    """

    files: Sequence[Path]
    lines: int
    errors: Sequence[str]


def image_target(source: Source, instance: str) -> str:
    """The kind of image that a transform needs: cpu or inf2.

    Args:
        source: The model.
        instance: The instance type.

    Raises:
        AwsError: If model and instance do not fit, or the model was packaged for a published container.
    """
    if source.target in registry.PUBLISHED:
        raise AwsError(
            f"{source.name} was packaged for the container {source.target}, which supports only endpoints",
            f"Run `{command('aws', 'deploy', source.name + ARCHIVE, image=source.target)}`.",
        )
    return endpoint_sources.image_target(source, instance, None)


def launch(
    run: Run, attempt: int, source: Source, texts: Texts, options: TransformOptions, image: str, stack: Stack
) -> Launch:
    """The launch of a transform job; sends nothing.

    The stop schedule is created before the job, because the request of a transform job has no maximum run time. Each
    request to the container has one line: with MultiRecord, SageMaker would fill a request up to MaxPayloadInMB, in
    whole megabytes: thousands of dialogues, but the container accepts serve.max_items and answers within
    serve.deadline_s.

    Args:
        run: A new run, or the run that compiled the model.
        attempt: The attempt number, from 1.
        source: The packaged model.
        texts: The inputs.
        options: The options of the job.
        image: The serving image, which `registry.pin` returned.
        stack: The stack with the bucket and the roles.

    Raises:
        AwsError: If the role of jobs may not read an address.
    """
    address = source.address_in(stack)
    stack.check_readable((address, texts.address))
    name, key, volume_key = run.name("batch", attempt), stack.kms_key, stack.volume_key(options.instance)
    container = container_of(image, source, stack)
    model = create_model(run, stack, run.name("batch-model", attempt), container, "jobs", options.network_isolation)
    job = {
        "TransformJobName": name,
        "ModelName": model.name,
        "MaxConcurrentTransforms": CONCURRENT,
        "ModelClientConfig": {"InvocationsTimeoutInSeconds": INVOCATION_S, "InvocationsMaxRetries": RETRIES},
        "MaxPayloadInMB": MAX_PAYLOAD_MB,
        "BatchStrategy": "SingleRecord",
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": texts.address}},
            "ContentType": JSON_LINES,
            "SplitType": "Line",
        },
        "TransformOutput": {
            # SageMaker adds the trailing slash.
            "S3OutputPath": f"s3://{stack.bucket}/{run_prefix(run)}batch" + (f"-{attempt}" if attempt > 1 else ""),
            "Accept": JSON_LINES,
            "AssembleWith": "Line",
            **({"KmsKeyId": key} if key is not None else {}),
        },
        "TransformResources": {
            "InstanceType": options.instance,
            "InstanceCount": options.instances,
            **({"VolumeKmsKeyId": volume_key} if volume_key is not None else {}),
        },
        "Tags": run.tags,
    }
    target, arguments = "sagemaker:stopTransformJob", {"TransformJobName": name}
    calls = (
        ending(run.name("batch-expiry", attempt), stack, target, arguments, hours=options.max_hours),
        model,
        Call("sagemaker", "create_transform_job", job, "transform-job", name),
    )
    return Launch(run, stack, calls, tuple(each for each in (source.channel, texts.channel) if each is not None))


def last_job(account: Account, run: Run) -> int:
    """The attempt number of a run's last transform job, which may be running; 0 without a job."""
    listing = account.pages("sagemaker", "list_transform_jobs", "TransformJobSummaries", NameContains=run.name("batch"))
    return last_attempt(job["TransformJobName"] for job in listing)


def fetch(account: Account, launched: Launch, texts: Texts, folder: Path) -> Answers:
    """Download the answers, each file under the name of its input, and count them.

    Args:
        account: The account that has the answers.
        launched: The launch of the job.
        texts: The inputs.
        folder: The target folder.

    Raises:
        AwsError: If a line has no answer; the hint names the location of the other answers.
    """
    address = f"{launched['transform-job'].request['TransformOutput']['S3OutputPath']}/"
    input_lines = Counter(texts.lines) if texts.lines is not None else count_lines(account, texts.address)
    answer_lines: Counter[str] = Counter()
    errors: list[str] = []
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    for each in list_objects(account, address):
        # AWS adds a newline to each answer, which already ends with one, so that every second line is empty.
        lines = [line for line in account.read(each).decode().split("\n") if line.strip()]
        target = folder / each.removeprefix(address).removesuffix(OUT)
        target.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(target, "".join(f"{line}\n" for line in lines))
        written.append(target)
        answer_lines[target.name] += len(lines)
        errors += _errors(lines)
    incomplete = [name for name in input_lines | answer_lines if input_lines[name] != answer_lines[name]]
    if incomplete:
        listing = ", ".join(f"{name} {answer_lines[name]:,} of {input_lines[name]:,}" for name in incomplete[:3])
        raise AwsError(
            f"some lines have no answer: {listing}", f"Inspect the other answers in {folder} and in {address}."
        )
    return Answers(written, sum(answer_lines.values()), errors)


def _errors(lines: Sequence[str]) -> Iterator[str]:
    """The error messages of individual records; SageMaker may have truncated or extended the lines."""
    for line in lines:
        try:
            content = json.loads(line)
        except ValueError:
            yield f"the answer is not JSON: {line:.100}"
            continue
        if isinstance(content, dict) and isinstance(error := content.get("error"), dict):
            yield str(error.get("message"))
