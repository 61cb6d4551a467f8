"""Launch of a batch transform and its stop schedule, cleanup after its end, and download of the answers."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from neuron_sum import files
from neuron_sum.console import quote
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import Run
from sagemaker_jobs.batch import requests as batch_requests
from sagemaker_jobs.batch.inputs import Texts, count_lines, list_keys
from sagemaker_jobs.batch.requests import OUT
from sagemaker_jobs.cleanup.kinds import KINDS
from sagemaker_jobs.endpoint import sources as endpoint_sources
from sagemaker_jobs.endpoint.sources import ARCHIVE, Source
from sagemaker_jobs.image import registry
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.schedules import times_after
from sagemaker_jobs.launch.start import Launch
from sagemaker_jobs.stack.stack import Stack


@dataclass(frozen=True)
class Options:
    """The command-line options of a transform job.

    Attributes:
        instance: The instance type.
        instances: The number of instances.
        max_hours: The maximum run time in hours.
        network_isolation: Whether the container has no network access.
    """

    instance: str
    instances: int
    max_hours: float
    network_isolation: bool = False


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
            f"Run `neuron-sum aws deploy {quote(source.name + ARCHIVE)} --image {quote(source.target)}`.",
        )
    return endpoint_sources.image_target(source, instance, None)


def launch(
    run: Run,
    attempt: int,
    source: Source,
    texts: Texts,
    options: Options,
    image: str,
    stack: Stack,
    now: datetime,
) -> Launch:
    """The launch of a transform job; sends nothing.

    The stop schedule is created before the job, because the request of a transform job has no maximum run time.

    Args:
        run: A new run, or the run that compiled the model.
        attempt: The attempt number, from 1.
        source: The packaged model.
        texts: The inputs.
        options: The options of the job.
        image: The serving image, which `registry.pin` returned.
        stack: The stack with the bucket and the roles.
        now: The current time with its time zone, for a dry run; otherwise the hours count from sending the schedule.

    Raises:
        AwsError: If SageMaker would refuse the job, or its role may not read an address.
    """
    address = source.address_in(stack)
    stack.check_readable((address, texts.address))
    model = batch_requests.create_model(
        run, stack, image=image, model_data=address, network_isolation=options.network_isolation, attempt=attempt
    )
    job = batch_requests.create_transform_job(
        run,
        stack,
        instance=options.instance,
        instances=options.instances,
        source=texts.address,
        attempt=attempt,
    )
    ends = now + timedelta(hours=options.max_hours)
    stop = batch_requests.create_stop(run, stack, at=ends, attempt=attempt)
    late = partial(times_after, options.max_hours)
    return Launch(
        run,
        stack,
        (
            Call("scheduler", "create_schedule", stop, "schedule", stop["Name"], late),
            Call("sagemaker", "create_model", model, "model", model["ModelName"]),
            Call("sagemaker", "create_transform_job", job, "transform-job", job["TransformJobName"]),
        ),
        tuple(channel for channel in (source.channel, texts.channel) if channel is not None),
    )


def unpaid_names(run: Run, attempt: int) -> dict[str, str]:
    """The resources that remain, by kind, if the last request is refused; the next attempt has the same number."""
    return {"schedule": run.name("batch-expiry", attempt), "model": run.name("batch-model", attempt)}


def attempts_of(account: Account, run: Run) -> int:
    """The number of transform jobs that a run has had, with any status."""
    listing = account.pages("sagemaker", "list_transform_jobs", "TransformJobSummaries", NameContains=run.name("batch"))
    return sum(1 for _ in listing)


def clear(account: Account, ledger: Ledger, launched: Launch) -> None:
    """Remove the schedule and the model of an ended job.

    Args:
        account: The account that has the resources.
        ledger: The ledger of that account.
        launched: The launch of the job.

    Raises:
        AwsError: If AWS refuses; `aws down` removes the resources.
    """
    ledger.note("gone", "transform-job", launched["transform-job"].name, launched.run.id)
    for kind in ("schedule", "model"):
        KINDS[kind].delete(account, launched[kind].name)
        ledger.note("gone", kind, launched[kind].name, launched.run.id)


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
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    for key in list_keys(account, address):
        # AWS adds a newline to each answer, which already ends with one, so that every second line is empty.
        lines = [line for line in account.read(bucket, key).decode().split("\n") if line.strip()]
        target = folder / key.removeprefix(prefix).removesuffix(OUT)
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
