"""The exact requests of a batch transform: its model, its job, and what stops it at the latest."""

from datetime import datetime

from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.names import Run
from sagemaker_jobs.aws.place import Destination, NetworkSecurity, Request, has_local_disks, run_prefix
from sagemaker_jobs.endpoint import requests as endpoint_requests
from sagemaker_jobs.launch.schedules import create_ending

JSON_LINES = "application/jsonlines"
OUT = ".out"
"""What SageMaker adds to an input's name for its output's."""

STOP_TARGET = "sagemaker:stopTransformJob"

MAX_PAYLOAD_MB = 6
"""For one record; what an artifact is served with takes as much (serve.max_body_bytes)."""

CONCURRENT = 16
"""Requests at a time: the server gathers them into the batches that were compiled. CONCURRENT × MAX_PAYLOAD_MB must not
be above 100, and not more than serve.queue_size may wait."""

INVOCATION_S = 60
"""Above every serve.deadline_s, after which the container itself answers."""

RETRIES = 3
"""The most that SageMaker allows: for a container that says that it is busy."""


def output_address(run: Run, place: Destination, attempt: int) -> str:
    """The S3 folder of a transform job's outputs; without a slash at its end, for SageMaker adds one."""
    return f"s3://{place.bucket}/{run_prefix(run)}batch" + (f"-{attempt}" if attempt > 1 else "")


def create_model(
    run: Run, place: Destination, *, image: str, model_data: str, isolation: NetworkSecurity, attempt: int = 1
) -> Request:
    """CreateModel for a transform job, which goes when that has ended.

    Args:
        run: Whose it is.
        place: Where.
        image: Ours, in a registry of the account.
        model_data: The S3 address of what `neuron-sum package` made.
        isolation: Its network.
        attempt: From 1.

    Raises:
        AwsError: If SageMaker would refuse it.
    """
    return endpoint_requests.create_model(
        run,
        place,
        image=image,
        model_data=model_data,
        environment={},
        isolation=isolation,
        name=run.name("batch-model", attempt),
    )


def create_transform_job(
    run: Run,
    place: Destination,
    *,
    instance: str,
    instances: int,
    source: str,
    isolation: NetworkSecurity,
    attempt: int = 1,
) -> Request:
    """CreateTransformJob over JSON Lines; inf2 is allowed here.

    One line a request. With MultiRecord SageMaker fills a request up to MaxPayloadInMB, which is whole megabytes:
    thousands of dialogues, where the container takes serve.max_items and answers within serve.deadline_s.

    Args:
        run: Whose it is; its model must be there.
        place: Where.
        instance: The instance type.
        instances: How many; each takes whole input files.
        source: The S3 prefix of the .jsonl files.
        isolation: Its key.
        attempt: From 1.

    Raises:
        AwsError: If that is no instance of SageMaker's.
    """
    if not instance.startswith("ml."):
        raise AwsError(f"{instance!r} is no SageMaker instance", f"did you mean ml.{instance}?")
    key = isolation.kms_key
    volume = key is not None and not has_local_disks(instance)
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
            "S3OutputPath": output_address(run, place, attempt),
            "Accept": JSON_LINES,
            "AssembleWith": "Line",
            **({"KmsKeyId": key} if key is not None else {}),
        },
        "TransformResources": {
            "InstanceType": instance,
            "InstanceCount": instances,
            **({"VolumeKmsKeyId": key} if volume else {}),
        },
        "Tags": run.tags,
    }


def create_stop(run: Run, *, at: datetime, role_arn: str, attempt: int = 1) -> Request:
    """CreateSchedule for the latest end of a transform job, which has no maximum run time of its own.

    Args:
        run: Whose job it is.
        at: When first, with its time zone.
        role_arn: What may stop that job, for the scheduler.
        attempt: From 1.
    """
    return create_ending(
        run.name("batch-expiry", attempt),
        at=at,
        role_arn=role_arn,
        target=STOP_TARGET,
        arguments={"TransformJobName": run.name("batch", attempt)},
    )
