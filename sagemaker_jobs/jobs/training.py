"""Training jobs: the launch of a recipe, with uploads and requests, and the previous jobs of a run."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuron_sum.errors import AwsError
from neuron_sum.recipes.schema import Recipe
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import PREFIX, RECIPE_TAG, RUN_TAG, Run
from sagemaker_jobs.jobs import requests
from sagemaker_jobs.jobs.follow import TRAINING, TRANSFORM, JobKind
from sagemaker_jobs.jobs.requests import GRAPHS, VERIFY, Job
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.channels import Channel
from sagemaker_jobs.launch.start import Launch
from sagemaker_jobs.stack.stack import Stack


@dataclass(frozen=True)
class Options:
    """The command-line options of a training job.

    Attributes:
        instance: The instance type.
        instances: The number of instances.
        max_runtime_s: The maximum run time in seconds.
        max_wait_s: The maximum seconds of waiting and running together, for spot; None: on demand.
        image: The image URI; None: the default AWS image.
        network_isolation: Whether the container has no network access.
        encrypt_traffic: Whether the traffic between instances is encrypted.
    """

    instance: str
    instances: int
    max_runtime_s: int
    max_wait_s: int | None = None
    image: str | None = None
    network_isolation: bool = False
    encrypt_traffic: bool = False


def launch(
    run: Run,
    recipe: Recipe,
    options: Options,
    channels: Sequence[Channel],
    stack: Stack,
    *,
    attempt: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Launch:
    """The launch of a training job; sends nothing.

    Args:
        run: A new run, or the run to resume.
        recipe: The recipe to train.
        options: The options of the job.
        channels: The input channels of the job.
        stack: The stack with the bucket and the roles.
        attempt: The attempt number, from 1.
        environment: Further environment variables of the container.

    Raises:
        AwsError: If SageMaker would refuse the job, or its role may not use the cache of graphs.
        PlatformError: If AWS has no image in the region.
    """
    # SageMaker restores the checkpoints after a spot interruption, so that no graph is compiled again.
    cache = recipe.train.neuron.cache_url or (GRAPHS if options.instance.startswith("ml.trn") else None)
    if cache and cache.startswith("s3://"):
        stack.check_writable(cache)
    return job_launch(
        run,
        "train",
        requests.train_arguments(options.instance, options.instances),
        options,
        channels,
        stack,
        environment={**({"NEURON_COMPILE_CACHE_URL": cache} if cache else {}), **(environment or {})},
        attempt=attempt,
    )


def job_launch(
    run: Run,
    stage: str,
    arguments: tuple[str, ...],
    options: Options,
    channels: Sequence[Channel],
    stack: Stack,
    *,
    addresses: Mapping[str, str] | None = None,
    hashes: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    attempt: int = 1,
) -> Launch:
    """The launch of a SageMaker training job of any stage, with its uploads; sends nothing.

    Args:
        run: The run that owns the job.
        stage: train or compile.
        arguments: The arguments of the container.
        options: The options of the job.
        channels: The channels to upload.
        stack: The stack with the bucket and the roles.
        addresses: The S3 addresses of further channels that already exist, by name.
        hashes: The SHA-256 of further channels, as far as it is known, by name.
        environment: The environment variables of the container.
        attempt: The attempt number, from 1.

    Raises:
        AwsError: If SageMaker would refuse the job, or its role may not read an address.
        PlatformError: If AWS has no image in the region.
    """
    existing = addresses or {}
    stack.check_readable(existing.values())
    uploaded = {channel.name: stack.inputs(channel.name, channel.digest) for channel in channels}
    job = Job(
        run=run,
        stage=stage,
        arguments=arguments,
        channels={**uploaded, **existing},
        hashes={**{channel.name: channel.sha256 for channel in channels}, **(hashes or {})},
        instance=options.instance,
        instances=options.instances,
        max_runtime_s=options.max_runtime_s,
        max_wait_s=options.max_wait_s,
        image=options.image or requests.training_image(stack.site.region),
        attempt=attempt,
        environment=environment or {},
        network_isolation=options.network_isolation,
        encrypt_traffic=options.encrypt_traffic,
    )
    request = requests.create_training_job(job, stack)
    call = Call("sagemaker", "create_training_job", request, "training-job", job.name)
    return Launch(run, stack, (call,), tuple(channels))


def attempts_of(account: Account, run: Run, stage: str = "train") -> int:
    """The number of training jobs that a run has had for a stage, with any status."""
    return len(jobs_of(account, run, stage))


def next_attempt(account: Account, run: Run, stage: str = "train") -> int:
    """The attempt number of the next job of a run's stage.

    Raises:
        AwsError: If a job of that stage still runs: all attempts write to one folder of checkpoints, which two
            concurrent jobs would corrupt.
    """
    for status in ("InProgress", "Stopping"):
        if running := jobs_of(account, run, stage, StatusEquals=status):
            raise AwsError(
                f"{running[0]} is {status} and writes to the checkpoints that another {stage} job of {run.id} needs",
                f"Wait for it with `neuron-sum aws status {run.id} --follow` or stop it with "
                f"`neuron-sum aws down {run.id}`.",
            )
    return attempts_of(account, run, stage) + 1


def jobs_of(account: Account, run: Run, stage: str, **filters: str) -> list[str]:
    """The training jobs of a run's stage, the newest first.

    Args:
        account: The account that has the jobs.
        run: The run that owns the jobs.
        stage: train or compile.
        filters: Further parameters of ListTrainingJobs, such as StatusEquals.
    """
    name = run.name(stage)
    listing = account.pages("sagemaker", "list_training_jobs", "TrainingJobSummaries", NameContains=name, **filters)
    matching = [job for job in listing if re.fullmatch(rf"{name}(-\d+)?", job["TrainingJobName"])]
    return [job["TrainingJobName"] for job in sorted(matching, key=lambda job: job["CreationTime"], reverse=True)]


def last_job(account: Account, run_id: str) -> tuple[str, JobKind]:
    """The name and kind of a run's newest training, compile or batch job, with any status.

    Raises:
        AwsError: If the run has no job.
    """
    prefix = f"{PREFIX}-{run_id}-"
    found = [
        (job["CreationTime"], job[f"{kind.noun}Name"], kind)
        for operation, kind in (("list_training_jobs", TRAINING), ("list_transform_jobs", TRANSFORM))
        for job in account.pages("sagemaker", operation, f"{kind.noun}Summaries", NameContains=prefix)
    ]
    if not found:
        raise AwsError(
            f"no job of a run {run_id!r} in {account.region}", "Run `neuron-sum aws status` to list the resources."
        )
    _, name, kind = max(found, key=lambda job: job[:2])
    return name, kind


def find_run(account: Account, run_id: str) -> Run:
    """An earlier run, by its id, with the name of its recipe.

    Raises:
        AwsError: If the run has no training job.
    """
    listing = account.pages(
        "sagemaker", "list_training_jobs", "TrainingJobSummaries", NameContains=f"{PREFIX}-{run_id}-"
    )
    for job in listing:
        found = account.call("sagemaker", "list_tags", ResourceArn=job["TrainingJobArn"])["Tags"]
        values = {tag["Key"]: tag["Value"] for tag in found}
        if values.get(RUN_TAG) == run_id:
            return Run(run_id, values.get(RECIPE_TAG, ""))
    raise AwsError(f"no run {run_id!r} in {account.region}", "Run `neuron-sum aws status` to list the resources.")


@dataclass(frozen=True)
class Described:
    """The inputs and the output of a completed training job.

    Attributes:
        answer: The response of DescribeTrainingJob.
    """

    answer: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The S3 address of the job's model.tar.gz."""
        return str(self.answer["ModelArtifacts"]["S3ModelArtifacts"])

    @property
    def channels(self) -> dict[str, str]:
        """The S3 address of each input channel."""
        return {
            channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"]
            for channel in self.answer.get("InputDataConfig") or []
        }

    @property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each channel that was uploaded for the job."""
        given = (word.removeprefix(VERIFY).partition("=") for word in self.arguments if word.startswith(VERIFY))
        return {name: sha256 for name, _, sha256 in given}

    @property
    def arguments(self) -> list[str]:
        """The arguments of the job's container."""
        return list(self.answer.get("AlgorithmSpecification", {}).get("ContainerArguments") or [])
