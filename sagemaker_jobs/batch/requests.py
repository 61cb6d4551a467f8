"""Requests of a batch transform: its model, its job, and the schedule that stops it."""

from datetime import datetime

from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.names import Run, run_prefix
from sagemaker_jobs.endpoint import requests as endpoint_requests
from sagemaker_jobs.launch.schedules import create_ending
from sagemaker_jobs.stack.stack import Request, Stack

JSON_LINES = "application/jsonlines"
OUT = ".out"
"""Suffix that SageMaker adds to the name of an input file for its output file."""

STOP_TARGET = "sagemaker:stopTransformJob"

MAX_PAYLOAD_MB = 6
"""Maximum size of a record; the server accepts the same size (serve.max_body_bytes)."""

CONCURRENT = 16
"""Number of concurrent requests, which the server groups into batches of the compiled sizes. The product of CONCURRENT
and MAX_PAYLOAD_MB must be at most 100, and at most serve.queue_size requests may wait."""

INVOCATION_S = 60
"""Seconds; longer than any serve.deadline_s, after which the container itself sends an answer."""

RETRIES = 3
"""SageMaker's maximum number of retries, for a container that reports that it is busy."""


def output_address(run: Run, stack: Stack, attempt: int) -> str:
    """The S3 folder of a transform job's outputs, without the trailing slash, which SageMaker adds."""
    return f"s3://{stack.bucket}/{run_prefix(run)}batch" + (f"-{attempt}" if attempt > 1 else "")


def create_model(
    run: Run, stack: Stack, *, image: str, model_data: str, network_isolation: bool = False, attempt: int = 1
) -> Request:
    """CreateModel for a transform job; the model is deleted when the job has ended.

    Args:
        run: The run that owns the model.
        stack: The stack with the bucket and the roles.
        image: The serving image, in a registry of the account.
        model_data: The S3 address of an archive written by `neuron-sum package`.
        network_isolation: Whether the container has no network access.
        attempt: The attempt number, from 1.
    """
    return endpoint_requests.create_model(
        run,
        stack,
        image=image,
        model_data=model_data,
        environment={},
        role=stack.jobs_role,
        network_isolation=network_isolation,
        name=run.name("batch-model", attempt),
    )


def create_transform_job(
    run: Run,
    stack: Stack,
    *,
    instance: str,
    instances: int,
    source: str,
    attempt: int = 1,
) -> Request:
    """CreateTransformJob over JSON Lines; inf2 instances are allowed.

    Each request has one line. With MultiRecord, SageMaker would fill a request up to MaxPayloadInMB, in whole
    megabytes: thousands of dialogues, but the container accepts serve.max_items and answers within serve.deadline_s.

    Args:
        run: The run that owns the job; its model must exist.
        stack: The stack with the bucket and the roles.
        instance: The instance type.
        instances: The number of instances; each processes whole input files.
        source: The S3 prefix of the .jsonl files.
        attempt: The attempt number, from 1.

    Raises:
        AwsError: If `instance` is not a SageMaker instance type.
    """
    if not instance.startswith("ml."):
        raise AwsError(f"{instance!r} is not a SageMaker instance type", f"Use an ml. type, such as ml.{instance}.")
    key, volume_key = stack.kms_key, stack.volume_key(instance)
    return {
        "TransformJobName": run.name("batch", attempt),
        "ModelName": run.name("batch-model", attempt),
        "MaxConcurrentTransforms": CONCURRENT,
        "ModelClientConfig": {"InvocationsTimeoutInSeconds": INVOCATION_S, "InvocationsMaxRetries": RETRIES},
        "MaxPayloadInMB": MAX_PAYLOAD_MB,
        "BatchStrategy": "SingleRecord",
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": source}},
            "ContentType": JSON_LINES,
            "SplitType": "Line",
        },
        "TransformOutput": {
            "S3OutputPath": output_address(run, stack, attempt),
            "Accept": JSON_LINES,
            "AssembleWith": "Line",
            **({"KmsKeyId": key} if key is not None else {}),
        },
        "TransformResources": {
            "InstanceType": instance,
            "InstanceCount": instances,
            **({"VolumeKmsKeyId": volume_key} if volume_key is not None else {}),
        },
        "Tags": run.tags,
    }


def create_stop(run: Run, stack: Stack, *, at: datetime, attempt: int = 1) -> Request:
    """CreateSchedule to stop a transform job, because SageMaker has no maximum run time for such jobs.

    Args:
        run: The run that owns the job.
        stack: The stack with the role and the queue of schedules.
        at: The time of the first attempt, with its time zone.
        attempt: The attempt number, from 1.
    """
    return create_ending(
        run.name("batch-expiry", attempt),
        stack,
        at=at,
        target=STOP_TARGET,
        arguments={"TransformJobName": run.name("batch", attempt)},
    )
