"""Launch of a batch transform and its stop schedule, cleanup after its end, and download of the answers."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from neuron_sum import files
from neuron_sum.console import quote
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws import policies
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import ignore_missing
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import AwsContext, Run
from sagemaker_jobs.aws.place import Destination, NetworkSecurity
from sagemaker_jobs.batch import requests as batch_requests
from sagemaker_jobs.batch.inputs import Texts, count_lines, list_keys
from sagemaker_jobs.batch.requests import OUT
from sagemaker_jobs.endpoint import sources as endpoint_sources
from sagemaker_jobs.endpoint.sources import ARCHIVE, Source
from sagemaker_jobs.image import registry
from sagemaker_jobs.launch.bucket import bucket_calls
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.roles import job_role_calls, role_calls
from sagemaker_jobs.launch.schedules import times_after
from sagemaker_jobs.launch.start import Launch, encryption_of, place_of


@dataclass(frozen=True)
class Options:
    """The command-line options of a transform job.

    Attributes:
        instance: The instance type.
        instances: The number of instances.
        max_hours: The maximum run time in hours.
        bucket: The name of an existing bucket; None: a new one.
        role_arn: The ARN of an existing role for the job; None: a new one.
        isolation: The encryption and network settings.
        expiry_role_arn: The ARN of an existing role for the scheduler; None: a new one.
    """

    instance: str
    instances: int
    max_hours: float
    bucket: str | None = None
    role_arn: str | None = None
    isolation: NetworkSecurity = field(default_factory=NetworkSecurity)
    expiry_role_arn: str | None = None


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
    place: Destination,
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
        image: The serving image.
        place: The destination of the run.
        now: The current time with its time zone, for a dry run; otherwise the hours count from sending the schedule.

    Raises:
        AwsError: If SageMaker would refuse the job.
    """
    address, isolation = source.address_in(place), options.isolation
    model = batch_requests.create_model(
        run, place, image=image, model_data=address, isolation=isolation, attempt=attempt
    )
    job = batch_requests.create_transform_job(
        run,
        place,
        instance=options.instance,
        instances=options.instances,
        source=texts.address,
        isolation=isolation,
        attempt=attempt,
    )
    stopper = options.expiry_role_arn or place.site.role_arn(run.name("expiry-role"))
    ends = now + timedelta(hours=options.max_hours)
    stop = batch_requests.create_stop(run, at=ends, role_arn=stopper, attempt=attempt)
    jobs = place.site.arn("sagemaker", f"transform-job/{run.name('batch')}*")
    return Launch(
        run,
        place,
        (
            Call(
                "scheduler", "create_schedule", stop, "schedule", stop["Name"], partial(times_after, options.max_hours)
            ),
            Call("sagemaker", "create_model", model, "model", model["ModelName"]),
            Call("sagemaker", "create_transform_job", job, "transform-job", job["TransformJobName"]),
        ),
        tuple(channel for channel in (source.channel, texts.channel) if channel is not None),
        () if options.bucket else bucket_calls(place, options.isolation.kms_key),
        (
            *(
                ()
                if options.role_arn
                else job_role_calls(
                    run,
                    place,
                    isolation,
                    stage="batch",
                    reads=place.not_ours(run, (address, texts.address)),
                    image=image,
                )
            ),
            *(
                ()
                if options.expiry_role_arn
                else role_calls(
                    run,
                    place.site.region,
                    policies.scheduler_trust(place.site.account),
                    policies.one_off_policy("sagemaker:StopTransformJob", jobs),
                    "expiry-role",
                    policy_name="batch",
                )
            ),
        ),
        encryption_of(isolation),
    )


def place_for(run: Run, options: Options, site: AwsContext) -> Destination:
    """The destination of a run's transform job."""
    return place_of(run, site, bucket=options.bucket, role_arn=options.role_arn)


def unpaid_names(launched: Launch) -> dict[str, str]:
    """The resources that remain, by kind, if the last request is refused; the next attempt has the same number."""
    stop, model, _ = launched.calls
    return {"schedule": stop.name, "model": model.name}


def attempts_of(account: Account, run: Run) -> int:
    """The number of transform jobs that a run has had, with any status."""
    listing = account.pages("sagemaker", "list_transform_jobs", "TransformJobSummaries", NameContains=run.name("batch"))
    return sum(1 for _ in listing)


def clear(account: Account, ledger: Ledger, launched: Launch) -> None:
    """Remove the schedule and the model of an ended job; `down` removes its roles, which cost nothing.

    Args:
        account: The account that has the resources.
        ledger: The ledger of that account.
        launched: The launch of the job.

    Raises:
        AwsError: If AWS refuses; `aws down` removes the resources.
    """
    stop, model, job = launched.calls
    ledger.note("gone", "transform-job", job.name, launched.run.id)
    for call, service, operation, request in (
        (stop, "scheduler", "delete_schedule", {"Name": stop.name}),
        (model, "sagemaker", "delete_model", {"ModelName": model.name}),
    ):
        with ignore_missing():
            account.call(service, operation, **request)
        ledger.note("gone", call.kind or "", call.name, launched.run.id)


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
    address = f"{launched.calls[-1].request['TransformOutput']['S3OutputPath']}/"
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
