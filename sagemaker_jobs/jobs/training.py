"""A recipe as a training job: what is uploaded, which calls are made; and which jobs a run has had."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neuron_sum.errors import AwsError
from neuron_sum.recipes.schema import Recipe
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import PREFIX, RECIPE_TAG, RUN_TAG, AwsContext, Run
from sagemaker_jobs.aws.place import NetworkSecurity
from sagemaker_jobs.jobs import requests
from sagemaker_jobs.jobs.follow import TRAINING, TRANSFORM, JobKind
from sagemaker_jobs.jobs.requests import Job
from sagemaker_jobs.launch.bucket import bucket_calls
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.channels import Channel
from sagemaker_jobs.launch.roles import job_role_calls
from sagemaker_jobs.launch.start import Launch, encryption_of, place_of


@dataclass(frozen=True)
class Options:
    """What the command line says about a training job.

    Attributes:
        instance: The instance type.
        instances: How many.
        max_runtime_s: When it is stopped at the latest.
        max_wait_s: For spot; None: on demand.
        bucket: The caller's own; None: one is made.
        role_arn: The caller's own; None: one is made.
        image: None: AWS's.
        isolation: Encryption and network.
    """

    instance: str
    instances: int
    max_runtime_s: int
    max_wait_s: int | None = None
    bucket: str | None = None
    role_arn: str | None = None
    image: str | None = None
    isolation: NetworkSecurity = field(default_factory=NetworkSecurity)


def launch(
    run: Run, recipe: Recipe, options: Options, channels: Sequence[Channel], site: AwsContext, *, attempt: int = 1
) -> Launch:
    """Everything that a training sends; sends nothing.

    Args:
        run: A new one, or the one that goes on.
        recipe: What is trained.
        options: How.
        channels: What the job reads.
        site: Where.
        attempt: From 1.

    Raises:
        AwsError: If SageMaker would refuse the job.
        PlatformError: If AWS has no image in the region.
    """
    cache = recipe.train.neuron.cache_url
    return job_launch(
        run,
        "train",
        requests.train_arguments(options.instance, options.instances),
        options,
        channels,
        site,
        environment={"NEURON_COMPILE_CACHE_URL": cache} if cache else {},
        attempt=attempt,
    )


def job_launch(
    run: Run,
    stage: str,
    arguments: tuple[str, ...],
    options: Options,
    channels: Sequence[Channel],
    site: AwsContext,
    *,
    addresses: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    attempt: int = 1,
) -> Launch:
    """A training job of SageMaker's with all that it needs, whatever it is told to do; sends nothing.

    Args:
        run: Whose.
        stage: train or compile.
        arguments: What the container is told.
        options: How.
        channels: What is uploaded for it.
        site: Where.
        addresses: S3 addresses of further channels, by name, which lie there already.
        environment: Of the container.
        attempt: From 1.

    Raises:
        AwsError: If SageMaker would refuse the job.
        PlatformError: If AWS has no image in the region.
    """
    there = addresses or {}
    place = place_of(run, site, bucket=options.bucket, role_arn=options.role_arn)
    uploaded = {channel.name: place.inputs(channel.name, channel.digest) for channel in channels}
    job = Job(
        run=run,
        stage=stage,
        arguments=arguments,
        channels={**uploaded, **there},
        instance=options.instance,
        instances=options.instances,
        max_runtime_s=options.max_runtime_s,
        max_wait_s=options.max_wait_s,
        image=options.image or requests.training_image(site.region),
        attempt=attempt,
        environment=environment or {},
        isolation=options.isolation,
    )
    roles: tuple[Call, ...] = ()
    if options.role_arn is None:
        reads = place.not_ours(run, there.values())
        roles = job_role_calls(run, place, options.isolation, stage=stage, reads=reads, image=options.image)
    return Launch(
        run,
        place,
        (Call("sagemaker", "create_training_job", requests.create_training_job(job, place), "training-job", job.name),),
        tuple(channels),
        () if options.bucket else bucket_calls(place, options.isolation.kms_key),
        roles,
        encryption_of(options.isolation),
    )


def attempts_of(account: Account, run: Run, stage: str = "train") -> int:
    """How many training jobs a run has had for a stage, whatever became of them."""
    return len(jobs_of(account, run, stage))


def next_attempt(account: Account, run: Run, stage: str = "train") -> int:
    """The number of the job that goes on with a run's stage.

    Raises:
        AwsError: If a job of that stage still runs: all attempts write one folder of checkpoints, and two at once would
            spoil it.
    """
    for status in ("InProgress", "Stopping"):
        if running := jobs_of(account, run, stage, StatusEquals=status):
            raise AwsError(
                f"{running[0]} is {status}, and writes the checkpoints that another {stage} job of {run.id} would",
                f"neuron-sum aws status {run.id} --follow waits for its end; neuron-sum aws down {run.id} stops it",
            )
    return attempts_of(account, run, stage) + 1


def jobs_of(account: Account, run: Run, stage: str, **asked: str) -> list[str]:
    """The training jobs of a run's stage, the newest first.

    Args:
        account: Where.
        run: Whose.
        stage: train or compile.
        asked: More that ListTrainingJobs is asked for, such as StatusEquals.
    """
    name = run.name(stage)
    listing = account.pages("sagemaker", "list_training_jobs", "TrainingJobSummaries", NameContains=name, **asked)
    own = [job for job in listing if re.fullmatch(rf"{name}(-\d+)?", job["TrainingJobName"])]
    return [job["TrainingJobName"] for job in sorted(own, key=lambda job: job["CreationTime"], reverse=True)]


def last_job(account: Account, run_id: str) -> tuple[str, JobKind]:
    """The name of a run's newest job, whether it trains, compiles or answers, runs or has ended; and its kind.

    Raises:
        AwsError: If it has none.
    """
    begins = f"{PREFIX}-{run_id}-"
    found = [
        (job["CreationTime"], job[f"{kind.noun}Name"], kind)
        for operation, kind in (("list_training_jobs", TRAINING), ("list_transform_jobs", TRANSFORM))
        for job in account.pages("sagemaker", operation, f"{kind.noun}Summaries", NameContains=begins)
    ]
    if not found:
        raise AwsError(f"no job of a run {run_id!r} in {account.region}", "neuron-sum aws status")
    _, name, kind = max(found, key=lambda job: job[:2])
    return name, kind


def find_run(account: Account, run_id: str) -> Run:
    """A run of before, by its id, with the name of its recipe.

    Raises:
        AwsError: If no training job is one of its.
    """
    listing = account.pages(
        "sagemaker", "list_training_jobs", "TrainingJobSummaries", NameContains=f"{PREFIX}-{run_id}-"
    )
    for job in listing:
        found = account.call("sagemaker", "list_tags", ResourceArn=job["TrainingJobArn"])["Tags"]
        values = {tag["Key"]: tag["Value"] for tag in found}
        if values.get(RUN_TAG) == run_id:
            return Run(run_id, values.get(RECIPE_TAG, ""))
    raise AwsError(f"no run {run_id!r} in {account.region}", "neuron-sum aws status lists what is there")


@dataclass(frozen=True)
class Described:
    """What DescribeTrainingJob says of a completed job's inputs and output.

    Attributes:
        answer: As it came.
    """

    answer: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The S3 address of its model.tar.gz."""
        return str(self.answer["ModelArtifacts"]["S3ModelArtifacts"])

    @property
    def channels(self) -> dict[str, str]:
        """The S3 address of each of its channels."""
        return {
            channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"]
            for channel in self.answer.get("InputDataConfig") or []
        }

    @property
    def arguments(self) -> list[str]:
        """What its container was told."""
        return list(self.answer.get("AlgorithmSpecification", {}).get("ContainerArguments") or [])
