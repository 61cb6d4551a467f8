"""The stack of an account and region: its bucket, roles and settings, and the addresses of a run's files in it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from neuron_sum.console import command
from neuron_sum.errors import AwsError
from neuron_sum.platform.matrix import REGISTRY_ACCOUNTS
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import EXPIRY_QUEUE, PREFIX, AwsContext, Run, inputs_prefix, run_prefix
from sagemaker_jobs.stack.template import DESCRIPTION

Request = dict[str, Any]
NAME = PREFIX
"""Name of the stack."""
COMPLETE = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")

LOCAL_DISKS = re.compile(r"ml\.([a-z]+\d+[a-z]*d[a-z]*|trn\d+[a-z]*|g5|g6e?|gr6|p5[a-z]*|i\d+[a-z]*)\.")
"""Instance families with local disks: those with a d after the generation number (EC2's naming conventions), such as
c5d and p4de, and some without it. The hardware encrypts these disks, and SageMaker refuses VolumeKmsKeyId."""

PRIVATE_IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/(?P<repository>[^:@]+)"
)
"""Pattern of the full name of an image in an Amazon ECR registry."""


@dataclass(frozen=True)
class Stack:
    """The resources and settings of a stack.

    Attributes:
        site: The account and the region.
        kms_key: The ARN of the KMS key for outputs and volumes; None for keys managed by AWS.
        old_keys: The ARNs of earlier keys, with which objects in the bucket are encrypted.
        permissions_boundary: The ARN of the permissions boundary of every role; None without one.
        subnets: The subnets of a VPC; empty for the default network of SageMaker.
        security_groups: The security groups of the VPC.
        reads: BUCKET/PREFIX of further objects that jobs and endpoints may read.
        writes: BUCKET/PREFIX of further objects that jobs may write.
        repositories: The ARNs of further image repositories that may be pulled.
        mlflow_servers: The ARNs of MLflow tracking servers that training jobs may report to.
        known: Whether the stack exists; otherwise it is not known what its roles may do.
    """

    site: AwsContext
    kms_key: str | None = None
    old_keys: tuple[str, ...] = ()
    permissions_boundary: str | None = None
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()
    mlflow_servers: tuple[str, ...] = ()
    known: bool = True

    @property
    def bucket(self) -> str:
        """The bucket for inputs and outputs."""
        return self.site.bucket

    @property
    def expiry_queue(self) -> str:
        """The ARN of the queue for calls of schedules that AWS rejected."""
        return self.site.arn("sqs", EXPIRY_QUEUE)

    @property
    def vpc(self) -> Request:
        """The VPC parameter of a request; empty without a VPC."""
        if not self.subnets:
            return {}
        return {"VpcConfig": {"SecurityGroupIds": list(self.security_groups), "Subnets": list(self.subnets)}}

    def volume_key(self, instance: str) -> str | None:
        """Return the KMS key of an instance's volumes; None without a key, and for instances with local disks."""
        return None if LOCAL_DISKS.match(instance) else self.kms_key

    def inputs(self, channel: str, digest: str) -> str:
        """Return the S3 address of a channel's files, which contains the hash of their content."""
        return f"s3://{self.bucket}/{inputs_prefix(channel, digest)}"

    def output(self, run: Run, stage: str = "train") -> str:
        """Return the S3 address of a run's results."""
        return f"s3://{self.bucket}/{_stage_prefix(run, stage)}output"

    def model(self, run: Run, stage: str, attempt: int = 1) -> str:
        """Return the S3 address of the model of a stage's job, which SageMaker packs."""
        return f"{self.output(run, stage)}/{run.name(stage, attempt)}/output/model.tar.gz"

    def checkpoints(self, run: Run, stage: str = "train") -> str:
        """Return the S3 address of the checkpoints from which an interrupted run resumes; all its attempts share it."""
        return f"s3://{self.bucket}/{_stage_prefix(run, stage)}checkpoints"

    def check_readable(self, addresses: Iterable[str]) -> None:
        """Reject S3 addresses that the roles may not read.

        Raises:
            AwsError: If an address is neither in the bucket below neuron-sum/inputs/, neuron-sum/runs/ or
                neuron-sum/registry/, nor in `reads` or `writes`.
        """
        ours = [f"{self.bucket}/{PREFIX}/{folder}/" for folder in ("inputs", "runs", "registry")]
        self._check(addresses, (*ours, *self.reads, *self.writes), "read", "reads")

    def check_writable(self, address: str) -> None:
        """Reject an S3 address that the role of jobs may not write.

        Raises:
            AwsError: If the address is neither in the bucket below neuron-sum/cache/ nor in `writes`.
        """
        self._check([address], (f"{self.bucket}/{PREFIX}/cache/", *self.writes), "write", "writes")

    def check_mlflow(self, server: str) -> None:
        """Reject an MLflow tracking server that the role of jobs may not report to.

        Raises:
            AwsError: If it is not one of `mlflow_servers`.
        """
        if self.known and server not in self.mlflow_servers:
            raise AwsError(
                f"neuron-sum's roles may not report to {server}; allowed: {', '.join(self.mlflow_servers) or 'none'}",
                f"run {self._setup(mlflow=server)}, with the servers already allowed",
            )

    def _setup(self, **options: str) -> str:
        return command("aws", "setup", **options, region=self.site.region)

    def _check(self, addresses: Iterable[str], allowed: tuple[str, ...], action: str, option: str) -> None:
        for address in addresses:
            if self.known and not address.removeprefix("s3://").startswith(allowed):
                places = ", ".join(f"s3://{place}" for place in allowed)
                raise AwsError(
                    f"neuron-sum's roles may not {action} {address}; allowed: {places}",
                    f"run {self._setup(**{option: address})}, with the addresses already allowed",
                )

    def check_image(self, image: str) -> None:
        """Reject an image in an Amazon ECR registry that the roles may not pull.

        Raises:
            AwsError: If it is neither in a repository of neuron-sum, of AWS, nor in an allowed one.
        """
        match = PRIVATE_IMAGE.match(image)
        if match is None or not self.known:
            return
        account, region, repository = match["account"], match["region"], match["repository"]
        arn = AwsContext(account, region, self.site.partition).arn("ecr", f"repository/{repository}")
        ours = arn.startswith(self.site.arn("ecr", f"repository/{PREFIX}"))
        published = account == REGISTRY_ACCOUNTS.get(self.site.region) and region == self.site.region
        if not (ours or published or any(fnmatchcase(arn, each) for each in self.repositories)):
            raise AwsError(
                f"neuron-sum's roles may not pull {image}",
                f"run {self._setup(repository=arn)}, with the repositories already allowed",
            )


def _stage_prefix(run: Run, stage: str) -> str:
    """Return the prefix of a stage's keys, so that a compile job does not share the folders of the training job."""
    return run_prefix(run) + ("" if stage == "train" else f"{stage}/")


def planned_stack(site: AwsContext) -> Stack:
    """Return the stack that `aws setup` creates without options, for plans and dry runs."""
    return Stack(site, known=False)


def describe(account: Account) -> dict[str, Any] | None:
    """Return the description of the stack, in any state; None if there is none.

    Raises:
        AwsError: If a stack of that name was not created from neuron-sum's template, or the request fails.
    """
    answer = account.find("cloudformation", "describe_stacks", StackName=NAME)
    if answer is None:
        return None
    [stack] = answer["Stacks"]
    if stack.get("Description") != DESCRIPTION:
        raise AwsError(
            f"the stack {NAME} in {account.region} is not from neuron-sum's template: it is not used or changed",
            "use another account or --region, or delete that stack yourself",
        )
    return dict(stack)


def parameters_of(described: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters in the description of a stack."""
    return {each["ParameterKey"]: each["ParameterValue"] for each in described.get("Parameters") or []}


def is_usable(described: Mapping[str, Any]) -> bool:
    """Return whether the resources of a described stack exist, also while it is updated."""
    status = described["StackStatus"]
    return bool(status == "CREATE_COMPLETE" or status.startswith("UPDATE_"))


def find_stack(account: Account) -> Stack | None:
    """Return the stack of an account and region; None if there is none.

    Raises:
        AwsError: If it is not neuron-sum's, is incomplete, or the request fails.
    """
    described = describe(account)
    if described is None:
        return None
    if not is_usable(described):
        raise AwsError(
            f"the stack {NAME} in {account.region} is {described['StackStatus']}",
            f"an administrator can run {account.command('setup')}",
        )
    parameters = parameters_of(described)

    def values(name: str) -> tuple[str, ...]:
        return tuple(value for value in parameters.get(name, "").split(",") if value)

    def places(name: str) -> tuple[str, ...]:
        return tuple(value.rpartition(":")[2].removesuffix("*") for value in values(name))

    return Stack(
        account.site,
        kms_key=parameters.get("KmsKey") or None,
        old_keys=values("OldKeys"),
        permissions_boundary=parameters.get("PermissionsBoundary") or None,
        subnets=values("Subnets"),
        security_groups=values("SecurityGroups"),
        reads=places("Reads"),
        writes=places("Writes"),
        repositories=values("Repositories"),
        mlflow_servers=values("MlflowServers"),
    )


def require_stack(account: Account) -> Stack:
    """Return the stack of an account and region.

    Raises:
        AwsError: If there is none, it is incomplete, or the request fails.
    """
    stack = find_stack(account)
    if stack is None:
        raise AwsError(
            f"no stack {NAME} in account {account.id}, {account.region}",
            f"an administrator can run {account.command('setup')} once, or deploy the template of "
            f"{account.command('setup', template=True)}",
        )
    return stack
