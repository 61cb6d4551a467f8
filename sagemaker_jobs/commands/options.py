"""What the commands of `neuron-sum aws` take on the command line, each option once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from neuron_sum.recipes.schema import Recipe
    from sagemaker_jobs.aws.place import NetworkSecurity
    from sagemaker_jobs.jobs.training import Options

EndpointArgument = Annotated[str, typer.Argument(metavar="RUN|ENDPOINT", help="As `aws deploy` printed it.")]

RegionOption = Annotated[str | None, typer.Option(help="Default: AWS_REGION, or the profile's.")]
InstanceOption = Annotated[str, typer.Option(help="ml.trn1.2xlarge, ml.trn1.32xlarge, or a CPU.")]
InstancesOption = Annotated[int, typer.Option(min=1, help="Several of ml.trn1.32xlarge train together.")]
HoursOption = Annotated[float, typer.Option(min=0.01, help="The job is stopped after so long, whatever it does.")]
SpotOption = Annotated[
    float | None, typer.Option(help="Spot: running and waiting for capacity together may take so long.")
]
CapOption = Annotated[float | None, typer.Option(min=0, help="Refuse what may cost more.")]
ExpectedOption = Annotated[
    float | None, typer.Option(min=0, help="What an earlier run or a projection says, for the expected cost.")
]
ProjectionOption = Annotated[
    Path | None,
    typer.Option(
        dir_okay=False, metavar="FILE", help="What `neuron-sum preflight RECIPE --json` printed, for the same."
    ),
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Ask AWS nothing; prices from the shipped table.")]
BucketOption = Annotated[str | None, typer.Option(help="Yours, in that region. Default: one is made.")]
RoleOption = Annotated[str | None, typer.Option(help="The ARN of a role of yours. Default: one is made for the run.")]
ExpiryRoleOption = Annotated[
    str | None,
    typer.Option(
        "--expiry-role",
        help="The ARN of a role of yours with which AWS's scheduler ends it. Default: one is made for the run.",
    ),
]
ImageOption = Annotated[str | None, typer.Option(help="Default: AWS's own, of the platform's row.")]
KeyOption = Annotated[str | None, typer.Option(help="The ARN of a KMS key for inputs, outputs and volumes.")]
SubnetOption = Annotated[list[str] | None, typer.Option(help="Of a VPC; may be repeated.")]
GroupOption = Annotated[list[str] | None, typer.Option(help="Of that VPC; may be repeated.")]
IsolatedOption = Annotated[
    bool, typer.Option("--network-isolation", help="No way out of the container; data and model from this machine.")
]
EveryOption = Annotated[float, typer.Option(min=0.01, help="Seconds between two looks at a job.")]
WheelhouseOption = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, help="Wheels for the image. Default: built now.")
]
DetachOption = Annotated[bool, typer.Option("--detach", help="Start it and do not wait for it.")]
RequestsOption = Annotated[bool, typer.Option("--dry-run", help="Print every request; send and write nothing.")]
RunArgument = Annotated[str | None, typer.Argument(metavar="[RUN]", help="As `aws train` printed it.")]


def isolation_of(
    kms_key: str | None, subnets: list[str] | None, groups: list[str] | None, network_isolation: bool
) -> "NetworkSecurity":
    """What the options say about encryption and network."""
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
) -> "Options":
    """What the options say about a training job."""
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
    )


def expected_of(
    hours: float | None, projection: Path | None, recipe: "Recipe", instance: str, instances: int
) -> tuple[float | None, str | None]:
    """What the options say about a training's expected hours, and what that rests on.

    Raises:
        AwsError: If both are given, or the projection is of something else.
    """
    from neuron_sum.errors import AwsError
    from sagemaker_jobs.cost.expected import training_hours

    if projection is None:
        return hours, None if hours is None else "--expected-hours"
    if hours is not None:
        raise AwsError("both --expected-hours and --projection", "one of the two says what is expected")
    found = training_hours(projection, recipe, instance, instances)
    return found.hours, found.reason
