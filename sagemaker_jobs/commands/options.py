"""Command-line options shared by the commands of `neuron-sum aws`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from neuron_sum.recipes.schema import Recipe
    from sagemaker_jobs.aws.place import NetworkSecurity
    from sagemaker_jobs.jobs.training import Options

EndpointArgument = Annotated[
    str, typer.Argument(metavar="RUN|ENDPOINT", help="Run id or endpoint name, printed by `aws deploy`.")
]

RegionOption = Annotated[str | None, typer.Option(help="AWS region. Default: AWS_REGION, or the profile's region.")]
InstanceOption = Annotated[
    str, typer.Option(help="SageMaker instance type: ml.trn1.2xlarge, ml.trn1.32xlarge or a CPU type.")
]
InstancesOption = Annotated[
    int, typer.Option(min=1, help="Number of instances; only ml.trn1.32xlarge supports more than one.")
]
MAX_HOURS = 24 * 365
HoursOption = Annotated[
    float, typer.Option(min=0.01, max=MAX_HOURS, help="Maximum run time in hours; the job is stopped afterwards.")
]
SpotOption = Annotated[
    float | None,
    typer.Option(max=MAX_HOURS, help="Use spot instances: maximum hours of waiting for capacity and running together."),
]
CapOption = Annotated[
    float | None, typer.Option(min=0, help="Maximum cost in USD; refuse to start if the cost may exceed it.")
]
ExpectedOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=MAX_HOURS,
        help="Expected run time in hours, from an earlier run or a projection, to estimate the cost.",
    ),
]
ProjectionOption = Annotated[
    Path | None,
    typer.Option(
        dir_okay=False,
        metavar="FILE",
        help="Output of `neuron-sum preflight RECIPE --json`, to estimate the cost.",
    ),
]
OfflineOption = Annotated[
    bool, typer.Option("--offline", help="Do not query AWS for prices; use the shipped price table.")
]
BucketOption = Annotated[
    str | None,
    typer.Option(help="Name of an existing bucket in the region. Default: neuron-sum's bucket, created if needed."),
]
RoleOption = Annotated[
    str | None, typer.Option(help="ARN of an existing role. Default: neuron-sum creates one for the run.")
]
ExpiryRoleOption = Annotated[
    str | None,
    typer.Option(
        "--expiry-role",
        help="ARN of an existing role for EventBridge Scheduler. Default: neuron-sum creates one for the run.",
    ),
]
ImageOption = Annotated[str | None, typer.Option(help="Image URI. Default: the AWS image of the supported platform.")]
KeyOption = Annotated[str | None, typer.Option(help="ARN of a KMS key for inputs, outputs and volumes.")]
SubnetOption = Annotated[list[str] | None, typer.Option(help="Id of a VPC subnet; may be repeated.")]
GroupOption = Annotated[list[str] | None, typer.Option(help="Id of a security group of the same VPC; may be repeated.")]
IsolatedOption = Annotated[
    bool,
    typer.Option(
        "--network-isolation", help="Run the container without network access; data and model come from this machine."
    ),
]
EveryOption = Annotated[float, typer.Option(min=0.01, help="Seconds between status polls.")]
WheelhouseOption = Annotated[
    Path | None,
    typer.Option(exists=True, file_okay=False, help="Folder of wheels to install. Default: build the wheels now."),
]
DetachOption = Annotated[bool, typer.Option("--detach", help="Return after the start, without waiting for the end.")]
RequestsOption = Annotated[bool, typer.Option("--dry-run", help="Print every request; send and write nothing.")]
RunArgument = Annotated[str | None, typer.Argument(metavar="[RUN]", help="Run id, printed by `aws train`.")]


def isolation_of(
    kms_key: str | None, subnets: list[str] | None, groups: list[str] | None, network_isolation: bool
) -> "NetworkSecurity":
    """The encryption and network settings from the options."""
    from sagemaker_jobs.aws.place import NetworkSecurity

    return NetworkSecurity(kms_key, tuple(subnets or ()), tuple(groups or ()), network_isolation)


def options_of(
    instance: str,
    instances: int,
    max_hours: float,
    max_wait_hours: float | None,
    *,
    bucket: str | None,
    role: str | None,
    image: str | None,
    isolation: "NetworkSecurity",
    encrypt_traffic: bool = False,
) -> "Options":
    """The settings of a training job from the options."""
    from sagemaker_jobs.jobs.training import Options

    return Options(
        instance=instance,
        instances=instances,
        max_runtime_s=round(max_hours * 3600),
        max_wait_s=None if max_wait_hours is None else round(max_wait_hours * 3600),
        bucket=bucket,
        role_arn=role,
        image=image,
        isolation=isolation,
        encrypt_traffic=encrypt_traffic,
    )


def expected_of(
    hours: float | None, projection: Path | None, recipe: "Recipe", instance: str, instances: int
) -> tuple[float | None, str | None]:
    """The expected hours of a training from the options, and the source of that number.

    Raises:
        AwsError: If both options are given, or the projection is of another recipe or other instances.
    """
    from neuron_sum.errors import AwsError
    from sagemaker_jobs.cost.expected import training_hours

    if projection is None:
        return hours, None if hours is None else "--expected-hours"
    if hours is not None:
        raise AwsError("--expected-hours and --projection cannot be combined", "Use one of them.")
    projected = training_hours(projection, recipe, instance, instances)
    return projected.hours, projected.reason
