"""Destination of a run's files in S3, and the network and encryption settings of its requests."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.names import PREFIX, AwsContext, Run

Request = dict[str, Any]
STOP_GRACE_S = 120
"""Seconds between SIGTERM, which SageMaker sends after the maximum run time, and SIGKILL; they are also billed."""
LOCAL_DISKS = re.compile(r"ml\.([a-z]+\d+[a-z]*d[a-z]*|trn\d+[a-z]*|g5|g6e?|gr6|p5[a-z]*|i\d+[a-z]*)\.")
"""Instance families with local disks: those with a d after the generation number (EC2's naming conventions), such as
c5d and p4de, and some without it."""


@dataclass(frozen=True)
class Destination:
    """Account, bucket and role of a run.

    Attributes:
        site: The account and the region.
        bucket: The bucket for inputs and outputs.
        role_arn: The role of the jobs.
    """

    site: AwsContext
    bucket: str
    role_arn: str

    def inputs(self, channel: str, digest: str) -> str:
        """Return the S3 address of a channel's files, which contains the hash of their content."""
        return f"s3://{self.bucket}/{inputs_prefix(channel, digest)}"

    def output(self, run: Run, stage: str = "train") -> str:
        """Return the S3 address of a run's results."""
        return f"s3://{self.bucket}/{_stage_prefix(run, stage)}output"

    def not_ours(self, run: Run, addresses: Iterable[str]) -> tuple[str, ...]:
        """Return the addresses that a run's role may not read by default: all but neuron-sum's inputs and the run's."""
        readable = tuple(f"s3://{self.bucket}/{prefix}" for prefix in (f"{PREFIX}/inputs/", run_prefix(run)))
        return tuple(sorted(address for address in addresses if not address.startswith(readable)))

    def checkpoints(self, run: Run, stage: str = "train") -> str:
        """Return the S3 address of the checkpoints from which an interrupted run resumes; all its attempts share it."""
        return f"s3://{self.bucket}/{_stage_prefix(run, stage)}checkpoints"


def inputs_prefix(channel: str, digest: str) -> str:
    """Return the prefix of the keys of a channel's files."""
    return f"neuron-sum/inputs/{channel}/{digest}/"


def run_prefix(run: Run) -> str:
    """Return the prefix of the keys of everything that a run writes."""
    return f"neuron-sum/runs/{run.id}/"


def _stage_prefix(run: Run, stage: str) -> str:
    """Return the prefix of a stage's keys, so that a compile job does not share the folders of the training job."""
    return run_prefix(run) + ("" if stage == "train" else f"{stage}/")


@dataclass(frozen=True)
class NetworkSecurity:
    """Encryption and network settings of jobs and endpoints.

    Attributes:
        kms_key: The KMS key for outputs and volumes; None for the default key of S3.
        subnets: The subnets of a VPC; empty for the default network of SageMaker.
        security_groups: The security groups of the VPC.
        network_isolation: Whether the container has no network access, except to S3 through SageMaker.
    """

    kms_key: str | None = None
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    network_isolation: bool = False

    def check(self) -> None:
        """Reject an incomplete VPC.

        Raises:
            AwsError: If there are subnets without security groups, or the other way around.
        """
        if bool(self.subnets) != bool(self.security_groups):
            raise AwsError("a VPC needs both subnets and security groups", "use both --subnet and --security-group")

    @property
    def vpc(self) -> Request:
        """The VPC parameter of a request; empty without a VPC."""
        if not self.subnets:
            return {}
        return {"VpcConfig": {"SecurityGroupIds": list(self.security_groups), "Subnets": list(self.subnets)}}


def has_local_disks(instance: str) -> bool:
    """Return whether an instance has local disks, which the hardware encrypts: SageMaker refuses VolumeKmsKeyId."""
    return LOCAL_DISKS.match(instance) is not None
