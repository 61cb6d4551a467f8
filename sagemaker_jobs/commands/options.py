"""Command-line options shared by the commands of `neuron-sum aws`, and groups of them."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from neuron_sum.recipes.schema import Recipe

EndpointArgument = Annotated[
    str, typer.Argument(metavar="RUN|ENDPOINT", help="Run id or endpoint name, printed by `aws deploy`.")
]

RegionOption = Annotated[str | None, typer.Option(help="AWS region. Default: AWS_REGION, or the profile's region.")]
InstanceOption = Annotated[
    str, typer.Option(help="SageMaker instance type: ml.trn1.2xlarge, ml.trn1.32xlarge or a CPU type.")
]
MAX_HOURS = 24 * 365
IN_ORDER = "Several, separated by commas, are tried in this order if AWS has no capacity."
InstanceTypesOption = Annotated[
    str,
    typer.Option(help=f"SageMaker instance type: ml.trn1.2xlarge, ml.trn1.32xlarge or a CPU type. {IN_ORDER}"),
]
CapacityOption = Annotated[
    float,
    typer.Option(min=0, max=MAX_HOURS, help="Hours during which the types are tried again if AWS has no capacity."),
]
InstancesOption = Annotated[
    int, typer.Option(min=1, help="Number of instances; only ml.trn1.32xlarge supports more than one.")
]
HoursOption = Annotated[
    float, typer.Option(min=0.01, max=MAX_HOURS, help="Maximum run time in hours; the job is stopped afterwards.")
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
IsolatedOption = Annotated[
    bool,
    typer.Option(
        "--network-isolation", help="Run the container without network access; data and model come from this machine."
    ),
]
KeyOption = Annotated[str | None, typer.Option(help="ARN or id of a KMS key for the bucket, outputs and volumes.")]
BoundaryOption = Annotated[str | None, typer.Option(help="ARN of an IAM policy that limits every role.")]
EveryOption = Annotated[float, typer.Option(min=0.01, help="Seconds between status polls.")]
WheelhouseOption = Annotated[
    Path | None,
    typer.Option(exists=True, file_okay=False, help="Folder of wheels to install. Default: build the wheels now."),
]
RequestsOption = Annotated[bool, typer.Option("--dry-run", help="Print every request; send and write nothing.")]
RunArgument = Annotated[str | None, typer.Argument(metavar="[RUN]", help="Run id, printed by `aws train`.")]


@dataclass(frozen=True)
class StartOptions:
    """Options of every command that starts a job, a build or an endpoint."""

    max_usd: CapOption = None
    region: RegionOption = None
    detach: Annotated[bool, typer.Option("--detach", help="Return after the start, without waiting for the end.")] = (
        False
    )
    every: EveryOption = 15.0
    offline: OfflineOption = False
    dry_run: RequestsOption = False


@dataclass(frozen=True)
class JobOptions:
    """Options of a training or compile job."""

    max_wait_hours: Annotated[
        float | None,
        typer.Option(
            max=MAX_HOURS, help="Use spot instances: maximum hours of waiting for capacity and running together."
        ),
    ] = None
    image: Annotated[str | None, typer.Option(help="Image URI. Default: the AWS image of the supported platform.")] = (
        None
    )
    wheelhouse: WheelhouseOption = None
    network_isolation: IsolatedOption = False
    expected_hours: ExpectedOption = None


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose options are the fields of its parameters that are groups of options."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if not is_dataclass(parameter.annotation):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = parameter.annotation
        hints = get_type_hints(parameter.annotation, include_extras=True)
        for field in fields(parameter.annotation):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            parameters.append(
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
                )
            )

    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


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
