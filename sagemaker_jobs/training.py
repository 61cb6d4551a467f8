"""A recipe as a training job: what is uploaded, which calls are made; and which jobs a run has had."""

from dataclasses import dataclass, field

from neuron_sum.errors import AwsError
from neuron_sum.recipe import Recipe
from sagemaker_jobs import requests
from sagemaker_jobs.account import Account
from sagemaker_jobs.calls import Call
from sagemaker_jobs.inputs import Channel
from sagemaker_jobs.launch import Launch, bucket_calls, encryption_of, job_role_calls, place_of
from sagemaker_jobs.names import PREFIX, RECIPE_TAG, RUN_TAG, Run
from sagemaker_jobs.requests import Isolation, Job


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
    isolation: Isolation = field(default_factory=Isolation)


def launch(
    run: Run, recipe: Recipe, options: Options, channels: list[Channel], account: str, region: str, *,
    attempt: int = 1, partition: str = "aws",
) -> Launch:  # fmt: skip
    """Everything that is to be sent; sends nothing.

    Args:
        run: A new one, or the one that goes on.
        recipe: What is trained.
        options: How.
        channels: What the job reads.
        account: Twelve digits.
        region: Where.
        attempt: From 1.
        partition: Of ARNs.

    Raises:
        AwsError: If SageMaker would refuse the job.
        PlatformError: If AWS has no image in the region.
    """
    place = place_of(
        run, account, region, bucket=options.bucket, role_arn=options.role_arn, partition=partition
    )  # fmt: skip
    cache = recipe.train.neuron.cache_url
    job = Job(
        run=run,
        stage="train",
        arguments=requests.train_arguments(options.instance, options.instances),
        channels={channel.name: place.inputs(channel.name, channel.digest) for channel in channels},
        instance=options.instance,
        instances=options.instances,
        max_runtime_s=options.max_runtime_s,
        max_wait_s=options.max_wait_s,
        image=options.image or requests.training_image(region),
        attempt=attempt,
        environment={"NEURON_COMPILE_CACHE_URL": cache} if cache else {},
        isolation=options.isolation,
    )
    return Launch(
        run,
        place,
        (Call("sagemaker", "create_training_job", requests.create_training_job(job, place), "training-job", job.name),),
        tuple(channels),
        () if options.bucket else bucket_calls(place),
        () if options.role_arn else job_role_calls(run, place, options.isolation, partition),
        encryption_of(options.isolation),
    )


def attempts_of(account: Account, run: Run) -> int:
    """How many training jobs a run has had, whatever became of them."""
    name = run.name("train")
    listing = account.pages("sagemaker", "list_training_jobs", "TrainingJobSummaries", NameContains=name)
    return sum(1 for _ in listing)


def last_job(account: Account, run_id: str) -> str:
    """The name of a run's newest training job, whether it runs or has ended.

    Raises:
        AwsError: If it has none.
    """
    listing = account.pages(
        "sagemaker", "list_training_jobs", "TrainingJobSummaries", NameContains=Run(run_id, "").name("train"),
        SortBy="CreationTime", SortOrder="Descending",
    )  # fmt: skip
    newest = next(listing, None)
    if newest is None:
        raise AwsError(f"no training job of a run {run_id!r} in {account.region}", "neuron-sum aws status")
    return str(newest["TrainingJobName"])


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
