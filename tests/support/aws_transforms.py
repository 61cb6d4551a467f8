"""Patches of moto's batch transforms: they behave as in AWS."""

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import moto.sagemaker.responses as sagemaker_responses
from aws_endpoints import find
from aws_script import ACCOUNT, NO_CAPACITY, Script, refuse
from aws_training import write_log
from moto.core.responses import ActionResult
from moto.s3.models import s3_backends

LOG_GROUP = "/aws/sagemaker/TransformJobs"

_Response = sagemaker_responses.SageMakerResponse


def patch(script: Callable[[], Script]) -> None:
    """Makes moto's transform jobs behave as in AWS."""

    def create(self: Any) -> ActionResult:
        name, model = self._get_param("TransformJobName"), self._get_param("ModelName")
        # A job's name can be used only once, even after the job has ended; moto replaces it.
        if name in self.sagemaker_backend.transform_jobs:
            raise refuse("ResourceInUse", f"Job name must be unique. The job {name} already exists.")
        find(self.sagemaker_backend._models, model, "model", script())  # moto accepts any name
        # AWS allows 100 MB in flight in total.
        assert self._get_param("MaxConcurrentTransforms") * self._get_param("MaxPayloadInMB") <= 100
        short = script().lacks(self._get_param("TransformResources")["InstanceType"])
        made = _create(self)
        job = self.sagemaker_backend.transform_jobs[name]
        # moto's jobs are created completed.
        job.transform_job_status, job.transform_end_time, job.failure_reason = "InProgress", None, None
        job.looks, job.short = 0, short
        return made

    def describe(self: Any) -> ActionResult:
        name = self._get_param("TransformJobName")
        job = self.sagemaker_backend.transform_jobs.get(name)
        if job is None:
            raise refuse("ValidationException", f"Could not find transform job '{name}'.")
        job.looks += 1
        looks = script().looks
        if job.short and job.transform_job_status == "InProgress":
            job.failure_reason = NO_CAPACITY
            _end(job, "Failed")
        elif job.transform_job_status == "Stopping":
            _end(job, "Stopped")
        elif job.transform_job_status == "InProgress" and looks is not None and job.looks > looks:
            job.failure_reason = script().reason or None
            _log(name, script().log)
            if script().end == "Completed":
                _answer(job, script().transformed)
            _end(job, script().end)
        response = job.response_object
        start = ["TransformStartTime"] if job.short else []
        for key in ("Looks", "Short", "Tags", "LabelingJobArn", "AutoMlJobArn", *start):
            response.pop(key, None)
        return ActionResult(response)

    def stop(self: Any) -> ActionResult:
        """moto lacks it. AWS rejects it for a finished job."""
        name = self._get_param("TransformJobName")
        job = self.sagemaker_backend.transform_jobs.get(name)
        if job is None:
            raise refuse("ValidationException", f"Could not find transform job '{name}'.")
        if job.transform_job_status in ("Completed", "Failed", "Stopped"):
            raise refuse(
                "ValidationException",
                f"The request was rejected because the transform job is in status {job.transform_job_status}.",
            )
        job.transform_job_status = "Stopping"
        return ActionResult({})

    _Response.create_transform_job, _Response.describe_transform_job = create, describe
    _Response.stop_transform_job = stop


_create = _Response.create_transform_job


def _end(job: Any, status: str) -> None:
    job.transform_job_status = status
    job.transform_end_time = datetime.now(timezone.utc).replace(tzinfo=None)


def _log(name: str, lines: tuple[str, ...]) -> None:
    """Writes the container's lines to one stream, and SageMaker's messages about records to one ending in data-log."""
    own = tuple(line for line in lines if "[sagemaker logs]" not in line)
    write_log(LOG_GROUP, f"{name}/i-0123456789abcdef0-1700000000", own)
    write_log(LOG_GROUP, f"{name}/i-0123456789abcdef0-1700000000/data-log", tuple(x for x in lines if x not in own))


def _answer(job: Any, transformed: Callable[[str], str]) -> None:
    """moto writes no outputs. AWS writes one object per input, under its name and ".out".

    SplitType Line and SingleRecord: each line is a separate request. AssembleWith Line: a line end after each answer,
    whether or not the answer has one.
    """
    s3 = s3_backends[ACCOUNT]["aws"]
    asked = job.transform_input
    assert (asked["SplitType"], job.batch_strategy) == ("Line", "SingleRecord")
    bucket, _, prefix = asked["DataSource"]["S3DataSource"]["S3Uri"].removeprefix("s3://").partition("/")
    output, _, folder = job.transform_output["S3OutputPath"].removeprefix("s3://").partition("/")
    for key in [name for name in s3.buckets[bucket].keys if name.startswith(prefix)]:
        lines = s3.get_object(bucket, key).value.decode().split("\n")
        answers = "".join(transformed(line) + "\n" for line in lines if line)
        s3.put_object(output, f"{folder}/{key.rpartition('/')[2]}.out", answers.encode())
