"""Follow a SageMaker job until it ends, and explain a failure."""

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from neuron_sum.errors import AwsError
from neuron_sum.platform.prices import Price
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import NoCapacity, is_shortage
from sagemaker_jobs.aws.logs import Log, State, explained, watch
from sagemaker_jobs.aws.names import Run, owner_of, run_prefix
from sagemaker_jobs.cleanup.kinds import TRAINING, JobKind
from sagemaker_jobs.cleanup.rollback import roll_back
from sagemaker_jobs.jobs.requests import TRAINED
from sagemaker_jobs.launch.start import Launch

ENDED = ("Completed", "Failed", "Stopped")

VERIFY = "--verify="
"""Start of the arguments of a job's container that name the SHA-256 of a channel."""

DATA_LOG = "[sagemaker logs]:"
"""Start of SageMaker's messages about a transform's records, in the log stream whose name ends with data-log."""


@dataclass(frozen=True)
class Job:
    """A job as AWS describes it.

    Attributes:
        described: The response to the describe operation.
        kind: The kind of the job.
    """

    described: dict[str, Any]
    kind: JobKind = TRAINING

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
    def channels(self) -> dict[str, str]:
        """The S3 address of each input channel of a training job."""
        return {
            channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"]
            for channel in self.described.get("InputDataConfig") or []
        }

    @property
    def arguments(self) -> list[str]:
        """The arguments of a training job's container."""
        return list(self.described.get("AlgorithmSpecification", {}).get("ContainerArguments") or [])

    @property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each channel that was uploaded for a training job."""
        given = (word.removeprefix(VERIFY).partition("=") for word in self.arguments if word.startswith(VERIFY))
        return {name: sha256 for name, _, sha256 in given}

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self.status in ENDED

    @property
    def started(self) -> bool:
        """Whether its instances started; from then on they are billed (botocore, TrainingStartTime)."""
        return f"{self.kind.noun.removesuffix('Job')}StartTime" in self.described

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
        end = self.described.get(f"{self.kind.noun.removesuffix('Job')}EndTime") if self.ended else None
        passed: float = ((end or datetime.now(timezone.utc)) - self.described["CreationTime"]).total_seconds()
        return max(passed, 0.0)


def describe(account: Account, name: str, kind: JobKind = TRAINING) -> Job:
    """The current state of a job.

    Raises:
        AwsError: If the job does not exist, or the request fails.
    """
    return Job(account.call("sagemaker", f"describe_{kind.snake}", **{f"{kind.noun}Name": name}), kind)


def follow(
    account: Account,
    name: str,
    *,
    price: Price | None = None,
    kind: JobKind = TRAINING,
    launch: Launch | None = None,
) -> Job:
    """Wait for a job to end and log its progress.

    Args:
        account: The account that the job runs in.
        name: The name of the job.
        price: The price of the job's instance, to log the cost so far.
        kind: The kind of the job.
        launch: The launch of the job; its other resources are deleted when the job has ended, with any status.

    Returns:
        The completed job.

    Raises:
        NoCapacity: If AWS had no free instances for the job, so that it never ran.
        LostContact: If AWS cannot be reached any more while the job runs.
        AwsError: If the job failed, with the reason and the known cause from its log, or if it was stopped.
    """

    def read() -> tuple[Job, State]:
        job = describe(account, name, kind)
        text, instances = f"{job.stage} ({job.status})", job.described[kind.resources]["InstanceCount"]
        # Each host has a log stream with this prefix.
        return job, State(text, job.ended, job.seconds, (kind.log_group, f"{name}/"), instances)

    job, _, log = watch(account, name, read, price=price)
    if launch is not None:
        account.ledger.note("gone", kind.name, name, launch.run.id)
        roll_back(account, launch)
    if job.status != "Completed":
        raise _unsuccessful(account, job, log)
    return job


def _unsuccessful(account: Account, job: Job, log: Log | None) -> AwsError:
    reason = " ".join(str(job.described.get("FailureReason", "")).split())
    # A job that ran is not repeated: the cost of all attempts could exceed the maximum.
    if not job.started and (is_shortage(reason) or job.stage == "MaxWaitTimeExceeded"):
        return NoCapacity(
            f"{job.name} found no free instances: {reason or 'the maximum wait passed before it started'}",
            "Start it again with further types, such as --instance A,B.",
        )
    if job.status == "Stopped":
        limits = {"MaxRuntimeExceeded": "its maximum run time", "MaxWaitTimeExceeded": "its maximum wait"}
        why = reason or limits.get(job.stage, "a request to stop")
        message = f"{job.name} was stopped by {why} before it completed"
        return AwsError(explained(message, reason, log, "")[0], _again(account, job))
    tail = f"Run `{account.tail_command(job.kind.log_group, '--log-stream-name-prefix', f'{job.name}/')}`."
    message, hint = explained(f"{job.name} failed: {reason or 'AWS reports no reason'}", reason, log, tail)
    records = [line for line in (log.lines if log else []) if DATA_LOG in line and "rror" in line]
    if records:
        message += f"; {len(records)} records failed; the first: {records[0].partition(DATA_LOG)[2].strip():.300}"
    return AwsError(message, hint)


def _again(account: Account, job: Job) -> str | None:
    """The hint for a job that was stopped."""
    stage, run = re.search(r"-([a-z]+)(-\d+)?$", job.name), owner_of(job.name)
    if stage is None or run is None:
        return None
    if stage[1] == "train":
        again = account.command("train", "RECIPE", resume=run)
        return f"Run `{again}` with the same recipe to continue from its last checkpoint."
    if stage[1] == "compile":
        target = dict(zip(job.arguments, job.arguments[1:], strict=False)).get("--target")
        source = run if f"/{run_prefix(Run(run, ''))}" in job.channels.get(TRAINED, "") else "SOURCE"
        again = account.command("compile", source, target=target)
        return f"Run `{again}` with the same changes to continue; finished graphs are not compiled again."
    if stage[1] == "batch":
        return f"Run `{account.command('batch', 'SOURCE', 'INPUT')}` again with a larger --max-hours."
    return None
