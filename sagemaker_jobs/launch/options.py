"""Command-line options shared by the commands of `neuron-sum aws`, and groups of them."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from neuron_sum.errors import AwsError

EndpointArgument = Annotated[
    str, typer.Argument(metavar="RUN|ENDPOINT", help="Run id or endpoint name, printed by `aws deploy`.")
]

RegionOption = Annotated[str | None, typer.Option(help="AWS region. Default: AWS_REGION, or the profile's region.")]
InstanceOption = Annotated[
    str, typer.Option(help="SageMaker instance type: ml.trn1.2xlarge, ml.trn1.32xlarge or a CPU type.")
]
IN_ORDER = "Several, separated by commas, are tried in this order if AWS has no capacity."
InstanceTypesOption = Annotated[
    str,
    typer.Option(help=f"SageMaker instance type: ml.trn1.2xlarge, ml.trn1.32xlarge or a CPU type. {IN_ORDER}"),
]
InstancesOption = Annotated[
    int, typer.Option(min=1, help="Number of instances; only ml.trn1.32xlarge supports more than one.")
]
MAX_HOURS = 24 * 365
DEFAULT_H, SHORTEST_H = 2.0, 0.25
"""Default and shortest lifetime of an endpoint in hours; an endpoint takes minutes to start."""
CapacityOption = Annotated[
    float,
    typer.Option(min=0, max=MAX_HOURS, help="Hours during which the types are tried again if AWS has no capacity."),
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

    instance: InstanceTypesOption = "ml.c7i.4xlarge"
    max_hours: HoursOption = 2.0
    capacity_wait_hours: CapacityOption = 0.0
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


@dataclass(frozen=True)
class TrainOptions(JobOptions):
    """Options of a training job."""

    instance: InstanceTypesOption = "ml.trn1.2xlarge"
    max_hours: HoursOption = 4.0
    instances: InstancesOption = 1
    encrypt_traffic: Annotated[
        bool, typer.Option("--encrypt-traffic", help="Encrypt the traffic between several instances, which is slower.")
    ] = False


@dataclass(frozen=True)
class TransformOptions:
    """Options of a transform job."""

    instance: Annotated[
        str,
        typer.Option(
            help=f"SageMaker instance type: a CPU type, or ml.inf2.xlarge, whose driver is not documented. {IN_ORDER}"
        ),
    ] = "ml.c7i.4xlarge"
    instances: Annotated[int, typer.Option(min=1, help="Number of instances; each processes whole input files.")] = 1
    max_hours: HoursOption = 2.0
    capacity_wait_hours: CapacityOption = 0.0
    image: Annotated[str | None, typer.Option(help="Image URI. Default: the newest image built by `aws image`.")] = None
    network_isolation: IsolatedOption = False
    expected_hours: ExpectedOption = None


@dataclass(frozen=True)
class EndpointOptions:
    """Options of an endpoint."""

    instance: Annotated[str, typer.Option(help=f"SageMaker instance type: ml.inf2.* or a CPU type. {IN_ORDER}")] = (
        "ml.inf2.xlarge"
    )
    instances: Annotated[int, typer.Option(min=1, help="Initial and minimum number of instances.")] = 1
    hours: Annotated[
        float | None,
        typer.Option(
            min=SHORTEST_H,
            max=MAX_HOURS,
            help=f"Hours after which EventBridge Scheduler deletes the endpoint. Default: {DEFAULT_H:g}.",
        ),
    ] = None
    keep: Annotated[bool, typer.Option("--keep", help="No expiry: you are billed until you delete it.")] = False
    max_instances: Annotated[
        int | None, typer.Option(min=1, help="Turn on autoscaling, up to this many instances.")
    ] = None
    invocations_per_instance: Annotated[
        float | None, typer.Option(min=1, help="Autoscaling target: requests per minute and instance.")
    ] = None
    network_isolation: IsolatedOption = False
    capacity_wait_hours: CapacityOption = 0.0
    capture: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100,
            metavar="PERCENT",
            help="Percentage of requests and answers that SageMaker stores in S3 for about a week, unredacted.",
        ),
    ] = None

    @property
    def lifetime_h(self) -> float | None:
        """The hours until the expiry; None without one."""
        return None if self.keep else self.hours or DEFAULT_H

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            AwsError: If the options are invalid; its hint names valid ones.
        """
        if self.keep and self.hours is not None:
            raise AwsError(
                f"--keep and --hours {self.hours:g} cannot be combined", "Use one of them; --keep sets no expiry."
            )
        if (self.max_instances is None) != (self.invocations_per_instance is None):
            raise AwsError(
                "autoscaling requires both --max-instances and --invocations-per-instance",
                "Use both, such as --max-instances 2 --invocations-per-instance 60 (requests per minute).",
            )
        if self.max_instances is not None and self.max_instances < self.instances:
            raise AwsError(
                f"--max-instances {self.max_instances} is less than --instances {self.instances}",
                f"Use --max-instances {self.instances} or more.",
            )
        if self.capture is not None and self.keep:
            raise AwsError(
                "--capture and --keep cannot be combined: requests are stored only for a limited time",
                "Use --hours instead of --keep.",
            )


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
