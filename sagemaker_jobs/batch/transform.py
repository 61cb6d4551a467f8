"""A batch transform: what it reads, which calls make it and what bounds it, what is left when it has ended."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from neuron_sum import files
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws import policies
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import ignore_missing
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import AwsContext, Run
from sagemaker_jobs.aws.place import Destination, NetworkSecurity
from sagemaker_jobs.batch import requests as batch_requests
from sagemaker_jobs.batch.inputs import Texts, counted, listed
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
    """What the command line says about a transform job.

    Attributes:
        instance: The instance type.
        instances: How many.
        max_hours: When it is stopped at the latest.
        bucket: The caller's own; None: one is made.
        role_arn: The caller's own, of the job; None: one is made.
        isolation: Encryption and network.
        expiry_role_arn: The caller's own, for the scheduler; None: one is made.
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
    """What came back.

    Attributes:
        files: Where they are now.
        lines: How many, in all of them.
        errors: The messages of the records that were refused alone.
    """

    files: Sequence[Path]
    lines: int
    errors: Sequence[str]


def image_target(source: Source, instance: str) -> str:
    """The kind of image that a transform needs: cpu or inf2.

    Args:
        source: What is asked.
        instance: On what.

    Raises:
        AwsError: If they do not fit, or it was packed for AWS's frozen container.
    """
    if source.target == registry.ENDED:
        raise AwsError(
            f"{source.name} was packed for AWS's frozen container, which runs behind an endpoint alone",
            f"neuron-sum aws deploy {source.name}{ARCHIVE} --image {registry.ENDED}",
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
    """Everything that is to be sent; sends nothing.

    What stops the job is made before it: a transform job has no maximum run time in its request.

    Args:
        run: A new one, or the one that compiled what is asked.
        attempt: From 1.
        source: What is asked: a packaged model.
        texts: What it is asked.
        options: How.
        image: Ours.
        place: Where.
        now: For a dry run, with its time zone; the job's hours count from when the schedule is sent.

    Raises:
        AwsError: If SageMaker would refuse it.
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
    """Where a run's transform goes."""
    return place_of(run, site, bucket=options.bucket, role_arn=options.role_arn)


def unpaid_names(made: Launch) -> dict[str, str]:
    """What an attempt that was refused at its last request has left, by kind: the next one has its number."""
    stop, model, _ = made.calls
    return {"schedule": stop.name, "model": model.name}


def attempts_of(account: Account, run: Run) -> int:
    """How many transform jobs a run has had, whatever became of them."""
    listing = account.pages("sagemaker", "list_transform_jobs", "TransformJobSummaries", NameContains=run.name("batch"))
    return sum(1 for _ in listing)


def clear(account: Account, ledger: Ledger, made: Launch) -> None:
    """Removes what an ended job needs no more: its schedule and its model; a role costs nothing, and `down` takes it.

    Args:
        account: Where.
        ledger: Of it.
        made: What was sent.

    Raises:
        AwsError: If AWS refuses; `aws down` removes them.
    """
    stop, model, job = made.calls
    ledger.note("gone", "transform-job", job.name, made.run.id)
    for call, service, operation, request in (
        (stop, "scheduler", "delete_schedule", {"Name": stop.name}),
        (model, "sagemaker", "delete_model", {"ModelName": model.name}),
    ):
        with ignore_missing():
            account.call(service, operation, **request)
        ledger.note("gone", call.kind or "", call.name, made.run.id)


def fetch(account: Account, made: Launch, texts: Texts, folder: Path) -> Answers:
    """Downloads the answers, each file under its input's name, and counts them.

    Args:
        account: Where.
        made: What was sent.
        texts: What was asked.
        folder: Where they go.

    Raises:
        AwsError: If a question has no answer, with where the answers are.
    """
    address = f"{made.calls[-1].request['TransformOutput']['S3OutputPath']}/"
    asked = Counter(texts.lines) if texts.lines is not None else counted(account, texts.address)
    answered: Counter[str] = Counter()
    errors: list[str] = []
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    for key in listed(account, address):
        # AWS adds a line's end to each answer, which has one: between two there is an empty line.
        lines = [line for line in account.read(bucket, key).decode().split("\n") if line.strip()]
        target = folder / key.removeprefix(prefix).removesuffix(OUT)
        target.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(target, "".join(f"{line}\n" for line in lines))
        written.append(target)
        answered[target.name] += len(lines)
        errors += _errors(lines)
    wrong = [name for name in asked | answered if asked[name] != answered[name]]
    if wrong:
        listing = ", ".join(f"{name} {answered[name]:,} of {asked[name]:,}" for name in wrong[:3])
        raise AwsError(f"not every line has an answer: {listing}", f"what there is lies in {folder}, and in {address}")
    return Answers(written, sum(answered.values()), errors)


def _errors(lines: Sequence[str]) -> Iterator[str]:
    """The messages of the records that were refused alone; SageMaker may have cut or added something of its own."""
    for line in lines:
        try:
            content = json.loads(line)
        except ValueError:
            yield f"no JSON came back: {line:.100}"
            continue
        if isinstance(content, dict) and isinstance(error := content.get("error"), dict):
            yield str(error.get("message"))
