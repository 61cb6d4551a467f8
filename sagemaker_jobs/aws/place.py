"""Destination of a run's files in S3, and the network and encryption settings of its requests."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.names import PREFIX, AwsContext, Run

Request = dict[str, Any]
STOP_GRACE_S = 120
"""After the maximum run time SageMaker sends SIGTERM and waits so long before it kills; this is paid, too."""
LOCAL_DISKS = re.compile(r"ml\.([a-z]+\d+[a-z]*d[a-z]*|trn\d+[a-z]*|g5|g6e?|gr6|p5[a-z]*|i\d+[a-z]*)\.")
"""Families with disks of their own: a d after the generation's number says so (EC2's naming conventions), such as c5d
and p4de; some have them without."""


@dataclass(frozen=True)
class Destination:
    """Where in AWS everything goes.

    Attributes:
        site: The account and the region.
        bucket: For inputs and outputs.
        role_arn: What the job runs as.
    """

    site: AwsContext
    bucket: str
    role_arn: str

    def inputs(self, channel: str, digest: str) -> str:
        """Where a channel's files lie, by the hash of their content."""
        return f"s3://{self.bucket}/{inputs_prefix(channel, digest)}"

    def output(self, run: Run, stage: str = "train") -> str:
        """Where a run's results come."""
        return f"s3://{self.bucket}/{_stage_prefix(run, stage)}output"

    def not_ours(self, run: Run, addresses: Iterable[str]) -> tuple[str, ...]:
        """The addresses that a run's role may not read without being told: no inputs of ours, nor the run's own."""
        own = tuple(f"s3://{self.bucket}/{prefix}" for prefix in (f"{PREFIX}/inputs/", run_prefix(run)))
        return tuple(sorted(address for address in addresses if not address.startswith(own)))

    def checkpoints(self, run: Run, stage: str = "train") -> str:
        """What a run that was interrupted goes on from; all attempts of a run share it."""
        return f"s3://{self.bucket}/{_stage_prefix(run, stage)}checkpoints"


def inputs_prefix(channel: str, digest: str) -> str:
    """The keys of a channel's files begin so."""
    return f"neuron-sum/inputs/{channel}/{digest}/"


def run_prefix(run: Run) -> str:
    """The keys of all that a run writes begin so."""
    return f"neuron-sum/runs/{run.id}/"


def _stage_prefix(run: Run, stage: str) -> str:
    """A compile neither fetches what training has saved, nor writes beside it."""
    return run_prefix(run) + ("" if stage == "train" else f"{stage}/")


@dataclass(frozen=True)
class NetworkSecurity:
    """Encryption and network of whatever is started.

    Attributes:
        kms_key: For output and volumes; None for S3's own key.
        subnets: Of a VPC; none for SageMaker's own network.
        security_groups: Of that VPC.
        network_isolation: No way out of the container at all, S3 through SageMaker excepted.
    """

    kms_key: str | None = None
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    network_isolation: bool = False

    def check(self) -> None:
        """Refuses half a VPC.

        Raises:
            AwsError: If subnets come without security groups, or the other way.
        """
        if bool(self.subnets) != bool(self.security_groups):
            raise AwsError("a VPC needs both subnets and security groups", "give --subnet and --security-group")

    @property
    def vpc(self) -> Request:
        """The VPC in a request; nothing where there is none."""
        if not self.subnets:
            return {}
        return {"VpcConfig": {"SecurityGroupIds": list(self.security_groups), "Subnets": list(self.subnets)}}


def has_local_disks(instance: str) -> bool:
    """Whether an instance has disks of its own, which their hardware encrypts: SageMaker refuses VolumeKmsKeyId."""
    return LOCAL_DISKS.match(instance) is not None
