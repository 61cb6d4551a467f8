"""Follow a SageMaker job until it ends: print its status and log, and explain a failure."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from neuron_sum import console
from neuron_sum.console import duration
from neuron_sum.errors import AwsError
from neuron_sum.platform.prices import Price
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import NoCapacity, is_shortage
from sagemaker_jobs.aws.logs import Log, known_cause, read_with_retry
from sagemaker_jobs.aws.names import LOG_GROUP, TRANSFORM_LOG_GROUP

ENDED = ("Completed", "Failed", "Stopped")

DATA_LOG = "[sagemaker logs]:"
"""Start of SageMaker's messages about a transform's records, in the log stream whose name ends with data-log."""

AGAIN = {
    "train": "Run `neuron-sum aws train RECIPE --resume RUN` to continue from its last checkpoint.",
    "compile": "Run `neuron-sum aws compile RUN` to continue; finished graphs are not compiled again.",
    "batch": "Run `neuron-sum aws batch SOURCE INPUT` again with a larger --max-hours.",
}
"""Hints for a job that was stopped, by its stage."""


@dataclass(frozen=True)
class JobKind:
    """The differences between training jobs, which also compile, and transform jobs.

    Attributes:
        operation: The operation that describes a job.
        noun: The first part of the field names in the description.
        resources: The name of the field for the instances.
        end: The name of the field for the end time.
        log_group: The log group in CloudWatch.
    """

    operation: str
    noun: str
    resources: str
    end: str
    log_group: str


TRAINING = JobKind("describe_training_job", "TrainingJob", "ResourceConfig", "TrainingEndTime", LOG_GROUP)
TRANSFORM = JobKind(
    "describe_transform_job", "TransformJob", "TransformResources", "TransformEndTime", TRANSFORM_LOG_GROUP
)


@dataclass(frozen=True)
class Job:
    """A job as AWS describes it.

    Attributes:
        described: The response to the describe operation.
        kind: The kind of the job.
    """

    described: dict[str, Any]
    kind: JobKind = field(default=TRAINING)

    @property
    def name(self) -> str:
        """The job's name."""
        return str(self.described[f"{self.kind.noun}Name"])

    @property
    def status(self) -> str:
        """InProgress, Completed, Failed, Stopping or Stopped."""
        return str(self.described[f"{self.kind.noun}Status"])

    @property
    def stage(self) -> str:
        """The secondary status, such as Downloading."""
        return str(self.described.get("SecondaryStatus", self.status))

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self.status in ENDED

    @property
    def model(self) -> str | None:
        """The S3 address of the model of a completed job."""
        artifacts = self.described.get("ModelArtifacts") or {}
        return artifacts.get("S3ModelArtifacts") if self.status == "Completed" else None

    @property
    def output(self) -> str | None:
        """The S3 address of the model, or of the folder of a transform's answers."""
        return self.model or (self.described.get("TransformOutput") or {}).get("S3OutputPath")

    @property
    def seconds(self) -> float:
        """Seconds from the creation of the job until its end, or until now."""
        end = self.described.get(self.kind.end) if self.ended else None
        passed: float = ((end or datetime.now(timezone.utc)) - self.described["CreationTime"]).total_seconds()
        return max(passed, 0.0)


def describe(account: Account, name: str, kind: JobKind = TRAINING) -> Job:
    """The current state of a job.

    Raises:
        AwsError: If the job does not exist, or the request fails.
    """
    return Job(account.call("sagemaker", kind.operation, **{f"{kind.noun}Name": name}), kind)


def follow(
    account: Account,
    name: str,
    *,
    every_s: float,
    price: Price | None = None,
    kind: JobKind = TRAINING,
    on_end: Callable[[Job], None] = lambda job: None,
) -> Job:
    """Wait for a job to end and log its progress.

    Args:
        account: The account that the job runs in.
        name: The name of the job.
        every_s: Seconds between status polls.
        price: The price of the job's instance, to log the cost so far.
        kind: The kind of the job.
        on_end: Called with the job when it has ended, with any status.

    Returns:
        The completed job.

    Raises:
        NoCapacity: If AWS had no free instances for the job, so that it never ran.
        LostContact: If AWS cannot be reached any more while the job runs.
        AwsError: If the job failed, with the reason and the known cause from its log, or if it was stopped.
    """
    log = Log(account, kind.log_group, f"{name}/")  # each host has a log stream with this prefix
    before = ""
    while True:
        job = read_with_retry(lambda: describe(account, name, kind), name, every_s)
        if (now := f"{job.status}, {job.stage}") != before:
            before = now
            count = job.described[kind.resources]["InstanceCount"]
            cost = f", at most ${price.cost(job.seconds / 3600, count):.2f} by now" if price else ""
            console.note(f"{name}: {job.stage} ({job.status}) after {duration(job.seconds)}{cost}")
        log.print_new()
        if job.ended:
            break
        time.sleep(every_s)
    on_end(job)
    if job.status == "Completed":
        return job
    raise _unsuccessful(job, log)


def _unsuccessful(job: Job, log: "Log") -> AwsError:
    reason = " ".join(str(job.described.get("FailureReason", "")).split())
    records = [line for line in log.lines if DATA_LOG in line and "rror" in line]
    cause = known_cause(reason, log.lines)
    known = f"; {cause.name}: {cause.cause}" if cause else ""
    if records:
        known += f"; {len(records)} records failed; the first: {records[0].partition(DATA_LOG)[2].strip():.300}"
    # A spot job that waited in vain has no time at which its instances started.
    waited = job.stage == "MaxWaitTimeExceeded" and "TrainingStartTime" not in job.described
    if is_shortage(reason) or waited:
        return NoCapacity(
            f"{job.name} found no free instances: {reason or 'the maximum wait passed before it started'}", None
        )
    if job.status == "Stopped":
        why = reason or {"MaxRuntimeExceeded": "its maximum run time", "MaxWaitTimeExceeded": "its maximum wait"}.get(
            job.stage, "a request to stop"
        )
        stage = re.search(r"-([a-z]+)(-\d+)?$", job.name)
        return AwsError(
            f"{job.name} was stopped by {why} before it completed{known}", AGAIN.get(stage.group(1)) if stage else None
        )
    tail = f"Run `aws logs tail {job.kind.log_group} --log-stream-name-prefix {job.name}/`."
    hint = cause.remedy if cause else tail
    return AwsError(f"{job.name} failed: {reason or 'AWS reports no reason'}{known}", hint)
