"""Patches of moto's training jobs: they behave as in AWS."""

import json
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import moto.sagemaker.responses as sagemaker_responses
from aws_builds import image_exists
from aws_iam import assumable, role_may
from aws_script import ACCOUNT, NO_CAPACITY, REGION, Script, refuse
from moto.core.responses import ActionResult
from moto.logs.models import logs_backends
from moto.s3.models import s3_backends

LOG_GROUP = "/aws/sagemaker/TrainingJobs"

_Response = sagemaker_responses.SageMakerResponse


def patch(script: Callable[[], Script]) -> None:
    """Makes moto's training jobs behave as in AWS."""

    def create(self: Any) -> ActionResult:
        name = self._get_param("TrainingJobName")
        # A job's name can be used only once, even after the job has ended; moto replaces it.
        if name in self.sagemaker_backend.training_jobs:
            raise refuse("ResourceInUse", f"Training job names must be unique. The job {name} already exists.")
        # The role must exist, and trust SageMaker; moto accepts any.
        if not _of_a_test(self) and not assumable(self._get_param("RoleArn"), "sagemaker.amazonaws.com"):
            told = "that the role exists and allows principal 'sagemaker.amazonaws.com' to assume the role."
            raise refuse("ValidationException", f"Could not assume role {self._get_param('RoleArn')}. Ensure {told}")
        image = self._get_param("AlgorithmSpecification")["TrainingImage"]
        if not _of_a_test(self) and not image_exists(image):
            raise refuse("ValidationException", f"Requested image {image} not found.")
        # Buckets must exist.
        bucket = self._get_param("OutputDataConfig")["S3OutputPath"].split("/")[2]
        if bucket not in s3_backends[ACCOUNT]["aws"].buckets:
            raise refuse("ValidationException", f"S3 bucket {bucket} does not exist")
        # SageMaker looks for every input, with the job's role (awslabs/amazon-sagemaker-examples#2267).
        arn = self._get_param("RoleArn")
        for channel in self._get_param("InputDataConfig") or []:
            uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
            source, _, prefix = uri.removeprefix("s3://").partition("/")
            known = s3_backends[ACCOUNT]["aws"].buckets.get(source)
            there = known is not None and any(key.startswith(prefix) for key in known.keys)
            if not there or not role_may(arn, "s3:ListBucket", f"arn:aws:s3:::{source}", **{"s3:prefix": prefix}):
                text = (
                    f'No S3 objects found under S3 URL "{uri}" given in input data source. Please ensure that the '
                    f"bucket exists in the selected region ({REGION}), that objects exist under that S3 prefix, and "
                    f'that the role "{arn}" has "s3:ListBucket" permissions on bucket "{source}".'
                )
                raise refuse("ValidationException", text)
        short = script().lacks(self._get_param("ResourceConfig")["InstanceType"])
        made = _create(self)
        job = self.sagemaker_backend.training_jobs[name]
        job.short = short
        # moto's jobs are created completed, and lose their environment.
        job.training_job_status, job.secondary_status, job.training_end_time = "InProgress", "Starting", None
        job.environment, job.looks, job.failure_reason = self._get_param("Environment"), 0, None
        if (runner := script().runner) is not None:  # moto runs nothing
            runner.start(json.loads(self.body))
        return made

    def describe(self: Any) -> ActionResult:
        job = self.sagemaker_backend.training_jobs.get(self._get_param("TrainingJobName"))
        if job is None:
            raise refuse("ValidationException", "Requested resource not found.")
        job.looks += 1
        if job.short and job.training_job_status == "InProgress":
            if script().shortage_at == "wait":
                _end(job, "Stopped", "MaxWaitTimeExceeded")
            else:
                job.failure_reason = NO_CAPACITY
                _end(job, "Failed", "Failed")
        elif (runner := script().runner) is not None and job.training_job_status in ("InProgress", "Stopping"):
            job.secondary_status = "Training" if job.training_job_status == "InProgress" else "Stopping"
            if (ended := runner.ended(job.training_job_name)) is not None:
                job.failure_reason = ended.reason
                _end(job, ended.status, ended.status)
        elif job.training_job_status == "Stopping":
            _end(job, "Stopped", "Stopped")
        elif job.training_job_status == "InProgress":
            job.secondary_status = "Training" if job.looks > 1 else "Starting"
            if script().looks is not None and job.looks > script().looks:
                job.failure_reason = script().reason or None
                write_log(LOG_GROUP, f"{job.training_job_name}/algo-1-1700000000", script().log)
                _end(job, script().end, "MaxRuntimeExceeded" if script().end == "Stopped" else script().end)
                if script().end == "Completed":  # moto writes no results
                    _write_model(job)
                if "receipt" in job.algorithm_specification.get("ContainerArguments", []):
                    _write_receipt(job, script().receipt)
        response = job.response_object
        for key in ("Looks", "Tags", "Short", *(["TrainingStartTime"] if job.short else [])):
            response.pop(key, None)
        if job.training_job_status not in ("InProgress", "Stopping"):
            # moto reports no times. The upload of the results is billed too (botocore, BillableTimeInSeconds).
            seconds = round((job.training_end_time - job.creation_time).total_seconds())
            response |= {"TrainingTimeInSeconds": seconds, "BillableTimeInSeconds": seconds + script().upload_s}
        if job.training_job_status != "Completed":  # model.tar.gz does not exist before
            response.pop("ModelArtifacts", None)
        return ActionResult(response)

    def stop(self: Any) -> ActionResult:
        """moto lacks it. AWS rejects it for a finished job."""
        job = self.sagemaker_backend.training_jobs.get(self._get_param("TrainingJobName"))
        if job is None:
            raise refuse("ValidationException", "Requested resource not found.")
        if job.training_job_status in ("Completed", "Failed", "Stopped"):
            raise refuse(
                "ValidationException",
                f"The request was rejected because the training job is in status {job.training_job_status}.",
            )
        job.training_job_status = job.secondary_status = "Stopping"
        if (runner := script().runner) is not None:
            runner.stop(job.training_job_name)
        return ActionResult({})

    def list_apps(self: Any) -> ActionResult:
        """moto lacks it."""
        return ActionResult({"Apps": script().apps})

    _Response.create_training_job, _Response.describe_training_job = create, describe
    _Response.stop_training_job, _Response.list_apps = stop, list_apps


_create = _Response.create_training_job


def _write_model(job: Any) -> None:
    bucket, _, key = job.model_artifacts["S3ModelArtifacts"].removeprefix("s3://").partition("/")
    if bucket in s3_backends[ACCOUNT]["aws"].buckets:
        s3_backends[ACCOUNT]["aws"].put_object(bucket, key, b"packed")


def _write_receipt(job: Any, receipt: dict[str, Any] | None) -> None:
    """SageMaker copies the folder of checkpoints to S3, also that of a job that was stopped."""
    if receipt is None:
        return
    bucket, _, prefix = job.checkpoint_config["S3Uri"].removeprefix("s3://").partition("/")
    for name, content in (("receipt.json", json.dumps(receipt)), ("receipt.md", "# Receipt\n")):
        s3_backends[ACCOUNT]["aws"].put_object(bucket, f"{prefix}/receipt/{name}", content.encode())


def _of_a_test(self: Any) -> bool:
    return "the-test" in self.headers.get("User-Agent", "")


def _end(job: Any, status: str, secondary: str) -> None:
    job.training_job_status, job.secondary_status = status, secondary
    job.training_end_time = datetime.now(timezone.utc).replace(tzinfo=None)


def write_log(group: str, stream: str, lines: tuple[str, ...]) -> None:
    """Writes lines into a CloudWatch stream, as a job's container does."""
    logs = logs_backends[ACCOUNT][REGION]
    if group not in logs.groups:
        logs.create_log_group(group, {})
    logs.create_log_stream(group, stream)
    now = int(datetime.now(timezone.utc).timestamp() * 1000)
    logs.put_log_events(group, stream, [{"timestamp": now + at, "message": line} for at, line in enumerate(lines)])
