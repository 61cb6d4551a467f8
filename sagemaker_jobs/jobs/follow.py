"""A job of SageMaker's until its end: its status and its log, as they come; and what its end means."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from neuron_sum.console import duration
from neuron_sum.errors import AwsError
from neuron_sum.platform.prices import Price
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.logs import Log, known_cause, read_with_retry
from sagemaker_jobs.aws.names import LOG_GROUP, TRANSFORM_LOG_GROUP

ENDED = ("Completed", "Failed", "Stopped")

DATA_LOG = "[sagemaker logs]:"
"""What SageMaker itself says of a transform's records begins so, in the stream that ends with data-log."""

AGAIN = {
    "train": "neuron-sum aws train RECIPE --resume RUN goes on from its last checkpoint",
    "compile": "neuron-sum aws compile RUN goes on: graphs that are done are not compiled again",
    "batch": "neuron-sum aws batch SOURCE INPUT starts another, with more --max-hours",
}
"""What to do about a job that was stopped, by its stage."""


@dataclass(frozen=True)
class JobKind:
    """What differs between training jobs, which compile as well, and transform jobs.

    Attributes:
        operation: That describes one.
        noun: Fields of the description begin so.
        resources: Its field for the instances.
        end: Its field for the time of its end.
        log_group: In CloudWatch.
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
    """What AWS says of a job, as far as anybody here asks.

    Attributes:
        described: The answer.
        kind: Of the job.
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
        """What it is doing, such as Downloading."""
        return str(self.described.get("SecondaryStatus", self.status))

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.status in ENDED

    @property
    def model(self) -> str | None:
        """The S3 address of what it made."""
        artifacts = self.described.get("ModelArtifacts") or {}
        return artifacts.get("S3ModelArtifacts") if self.status == "Completed" else None

    @property
    def output(self) -> str | None:
        """The S3 address of what it made, or of the folder of a transform's answers."""
        return self.model or (self.described.get("TransformOutput") or {}).get("S3OutputPath")

    @property
    def seconds(self) -> float:
        """Since it was made, or between that and its end."""
        end = self.described.get(self.kind.end) if self.ended else None
        passed: float = ((end or datetime.now(timezone.utc)) - self.described["CreationTime"]).total_seconds()
        return max(passed, 0.0)


def describe(account: Account, name: str, kind: JobKind = TRAINING) -> Job:
    """A job as it is now.

    Raises:
        AwsError: If there is none, or AWS cannot be asked.
    """
    return Job(account.call("sagemaker", kind.operation, **{f"{kind.noun}Name": name}), kind)


def follow(
    account: Account,
    name: str,
    say: Callable[[str], None],
    *,
    every_s: float,
    price: Price | None = None,
    kind: JobKind = TRAINING,
    on_end: Callable[[Job], None] = lambda job: None,
) -> Job:
    """Waits for a job's end and tells what happens.

    Args:
        account: Where it runs.
        name: The job's.
        say: Is told each change of its state, and each line of its log.
        every_s: How often to look.
        price: Of its instance, to say what it has cost by now.
        kind: Of the job.
        on_end: Is given the job once it has ended, however.

    Returns:
        The completed job.

    Raises:
        LostContact: If AWS cannot be asked any more while it runs.
        AwsError: If it failed, with AWS's reason and the known cause in its log; or was stopped, which is no success.
    """
    log = Log(account, kind.log_group, f"{name}/")  # each of its hosts has a stream that begins so
    before = ""
    while True:
        job = read_with_retry(lambda: describe(account, name, kind), name, say, every_s)
        if (now := f"{job.status}, {job.stage}") != before:
            before = now
            count = job.described[kind.resources]["InstanceCount"]
            cost = f", at most ${price.cost(job.seconds / 3600, count):.2f} by now" if price else ""
            say(f"{name}: {job.stage} ({job.status}) after {duration(job.seconds)}{cost}")
        log.print_new(say)
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
        known += f"; {len(records)} records failed, the first: {records[0].partition(DATA_LOG)[2].strip():.300}"
    if job.status == "Stopped":
        why = reason or {"MaxRuntimeExceeded": "its maximum run time", "MaxWaitTimeExceeded": "its maximum wait"}.get(
            job.stage, "a request to stop"
        )
        stage = re.search(r"-([a-z]+)(-\d+)?$", job.name)
        return AwsError(
            f"{job.name} was stopped by {why}: it is not done{known}", AGAIN.get(stage.group(1)) if stage else None
        )
    hint = cause.remedy if cause else f"aws logs tail {job.kind.log_group} --log-stream-name-prefix {job.name}/"
    return AwsError(f"{job.name} failed: {reason or 'AWS gives no reason'}{known}", hint)
