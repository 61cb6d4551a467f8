"""Training jobs: the launch of a recipe, with uploads and requests, and the previous jobs of a run."""

import re
from collections.abc import Mapping, Sequence

from neuron_sum.errors import AwsError
from neuron_sum.recipes.schema import Recipe
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import PREFIX, RECIPE_TAG, RUN_TAG, Run, last_attempt
from sagemaker_jobs.cleanup.kinds import TRAINING, TRANSFORM, JobKind
from sagemaker_jobs.jobs.follow import VERIFY, Job, describe
from sagemaker_jobs.jobs.requests import (
    CHECKPOINTS,
    CODE,
    EFA_ENVIRONMENT,
    EFA_INSTANCES,
    ENTRY,
    ENTRY_SHA256,
    GRAPHS,
    INPUT,
    LAUNCHER,
    VOLUME_GB,
    check_job,
    train_arguments,
    training_image,
)
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.channels import Channel
from sagemaker_jobs.launch.options import JobOptions, TrainOptions
from sagemaker_jobs.launch.start import Launch
from sagemaker_jobs.stack.stack import Stack


def launch(
    run: Run,
    recipe: Recipe,
    options: TrainOptions,
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
        train_arguments(options.instance, options.instances),
        options,
        channels,
        stack,
        environment={**({"NEURON_COMPILE_CACHE_URL": cache} if cache else {}), **(environment or {})},
        attempt=attempt,
        instances=options.instances,
        encrypt_traffic=options.encrypt_traffic,
    )


def job_launch(
    run: Run,
    stage: str,
    arguments: tuple[str, ...],
    options: JobOptions,
    channels: Sequence[Channel],
    stack: Stack,
    *,
    addresses: Mapping[str, str] | None = None,
    hashes: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    attempt: int = 1,
    instances: int = 1,
    encrypt_traffic: bool = False,
) -> Launch:
    """The launch of a SageMaker training job of any stage, with its uploads; sends nothing.

    The same arguments produce the same request, so `--dry-run` prints exactly what would be sent.

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
        attempt: The attempt number, from 1; a resumed run has a new job.
        instances: The number of instances.
        encrypt_traffic: Whether the traffic between the instances is encrypted.

    Raises:
        AwsError: If SageMaker would refuse the job, or its role may not read an address.
        PlatformError: If AWS has no image in the region.
    """
    instance, runtime, name = options.instance, round(options.max_hours * 3600), run.name(stage, attempt)
    wait = None if options.max_wait_hours is None else round(options.max_wait_hours * 3600)
    check_job(instance, instances, runtime, wait)
    if encrypt_traffic and instances == 1:
        raise AwsError(
            "--encrypt-traffic encrypts the traffic between instances, but the job has one",
            "Omit it, or use --instances 2 or more.",
        )
    existing = addresses or {}
    stack.check_readable(existing.values())
    inputs = {channel.name: stack.inputs(channel.name, channel.digest) for channel in channels} | {**existing}
    verified = {channel.name: channel.sha256 for channel in channels} | {**(hashes or {})}
    key, volume_key = stack.kms_key, stack.volume_key(instance)
    request = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {
            "TrainingImage": options.image or training_image(stack.site.region),
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", "-c", LAUNCHER, f"{INPUT}/{CODE}/{ENTRY}", ENTRY_SHA256],
            "ContainerArguments": [
                *(f"{VERIFY}{channel}={sha256}" for channel, sha256 in sorted(verified.items())),
                *arguments,
            ],
        },
        "RoleArn": stack.site.role_arn("jobs"),
        "InputDataConfig": [
            {
                "ChannelName": channel,
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3Uri": uri,
                        "S3DataDistributionType": "FullyReplicated",
                    }
                },
                "InputMode": "File",
            }
            for channel, uri in sorted(inputs.items())
        ],
        "OutputDataConfig": {
            "S3OutputPath": stack.output(run, stage),
            "CompressionType": "GZIP",
            **({"KmsKeyId": key} if key is not None else {}),
        },
        "ResourceConfig": {
            "InstanceType": instance,
            "InstanceCount": instances,
            "VolumeSizeInGB": VOLUME_GB,
            **({"VolumeKmsKeyId": volume_key} if volume_key is not None else {}),
        },
        "StoppingCondition": {
            "MaxRuntimeInSeconds": runtime,
            **({"MaxWaitTimeInSeconds": wait} if wait is not None else {}),
        },
        "EnableManagedSpotTraining": wait is not None,
        # Also for on-demand jobs, so that the checkpoints of a job that fails late are not lost.
        "CheckpointConfig": {"S3Uri": stack.checkpoints(run, stage), "LocalPath": CHECKPOINTS},
        "EnableNetworkIsolation": options.network_isolation,
        "EnableInterContainerTrafficEncryption": encrypt_traffic,
        "Environment": {
            **(EFA_ENVIRONMENT if instance in EFA_INSTANCES else {}),
            **({"HF_HUB_OFFLINE": "1"} if options.network_isolation else {}),
            **(environment or {}),
        },
        "Tags": run.tags,
        **stack.vpc,
    }
    call = Call("sagemaker", "create_training_job", request, "training-job", name)
    return Launch(run, stack, (call,), tuple(channels))


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
                f"Wait for it with `{account.command('status', run.id, follow=True)}` or stop it with "
                f"`{account.command('down', run.id)}`.",
            )
    return last_attempt(jobs_of(account, run, stage)) + 1


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


def newest(account: Account, run: Run, stage: str) -> Job:
    """The newest completed job of a run's stage.

    Raises:
        AwsError: If no job has completed.
    """
    if names := jobs_of(account, run, stage, StatusEquals="Completed"):
        return describe(account, names[0])
    others = len(jobs_of(account, run, stage))
    found = f"none of its {others} jobs has completed" if others else "the run has no such job"
    again = account.command("train", "RECIPE", resume=run.id) if stage == "train" else account.command(stage, run.id)
    raise AwsError(
        f"no completed {stage} job of run {run.id}: {found}",
        f"Run `{again}`, or follow a job with `{account.command('status', run.id, follow=True)}`.",
    )


def last_job(account: Account, run_id: str) -> tuple[str, JobKind]:
    """The name and kind of a run's newest training, compile or batch job, with any status.

    Raises:
        AwsError: If the run has no job.
    """
    prefix = f"{PREFIX}-{run_id}-"
    found = [
        (job["CreationTime"], job[f"{kind.noun}Name"], kind)
        for kind in (TRAINING, TRANSFORM)
        for job in account.pages("sagemaker", f"list_{kind.snake}s", f"{kind.noun}Summaries", NameContains=prefix)
    ]
    if not found:
        raise AwsError(
            f"no job of a run {run_id!r} in {account.region}",
            f"Run `{account.command('status')}` to list the resources.",
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
    raise AwsError(
        f"no run {run_id!r} in {account.region}", f"Run `{account.command('status')}` to list the resources."
    )
