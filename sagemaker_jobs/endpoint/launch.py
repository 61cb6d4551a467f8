"""Launch of an endpoint: the expiry schedule, then model, configuration and endpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.names import Run, run_prefix
from sagemaker_jobs.endpoint import requests as endpoint_requests
from sagemaker_jobs.endpoint.sources import ARCHIVE, Source
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.schedules import times_after
from sagemaker_jobs.launch.start import Copy, Launch
from sagemaker_jobs.stack.stack import Stack


@dataclass(frozen=True)
class EndpointOptions:
    """The command-line options of an endpoint.

    Attributes:
        instance: The instance type.
        instances: The initial and minimum number of instances.
        hours: The hours until the expiry; None: no expiry.
        most: The maximum number of instances; None: no autoscaling.
        invocations: The autoscaling target in requests per minute and instance.
        network_isolation: Whether the container has no network access.
    """

    instance: str
    instances: int = 1
    hours: float | None = 2.0
    most: int | None = None
    invocations: float | None = None
    network_isolation: bool = False

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            AwsError: If the options are invalid; its hint names valid ones.
        """
        if (self.most is None) != (self.invocations is None):
            raise AwsError(
                "autoscaling requires both --max-instances and --invocations-per-instance",
                "Use both, such as --max-instances 2 --invocations-per-instance 60 (requests per minute).",
            )
        if self.most is not None and self.most < self.instances:
            raise AwsError(
                f"--max-instances {self.most} is less than --instances {self.instances}",
                f"Use --max-instances {self.instances} or more.",
            )


def models_prefix(run: Run) -> str:
    """The S3 key prefix of the models of a multi-model endpoint."""
    return f"{run_prefix(run)}models/"


def launch(
    run: Run,
    sources: Sequence[Source],
    hosting: EndpointOptions,
    image: str,
    stack: Stack,
    *,
    now: datetime,
    multi_model: bool = False,
) -> Launch:
    """The launch of an endpoint; sends nothing.

    Args:
        run: A new run, or the run that compiled the model.
        sources: The models to serve; exactly one unless `multi_model`.
        hosting: The options of the endpoint.
        image: The full name of the image, which `registry.pin` returned.
        stack: The stack with the bucket and the roles.
        now: The current time, for a dry run; otherwise the hours count from when the schedule is sent.
        multi_model: Whether each request names its model.

    Raises:
        AwsError: If SageMaker would refuse the endpoint, or its role may not read a model.
    """
    hosting.check()
    addresses = [source.address_in(stack) for source in sources]
    stack.check_readable(addresses)
    copies: tuple[Copy, ...] = ()
    [*_, data] = addresses
    if multi_model:
        copies = tuple(
            Copy(address, f"{models_prefix(run)}{source.name}{ARCHIVE}")
            for source, address in zip(sources, addresses, strict=True)
        )
        data = f"s3://{stack.bucket}/{models_prefix(run)}"
    calls: list[Call] = []
    if hosting.hours is not None:
        # The uploads may take longer than the requested hours, so the hours count from when the schedule is sent.
        expiring = expiry(run, stack, at=now + timedelta(hours=hosting.hours))
        calls = [replace(expiring, late=partial(times_after, hosting.hours))]
    model = endpoint_requests.create_model(
        run,
        stack,
        image=image,
        model_data=data,
        environment={} if multi_model else sources[0].environment,
        role=stack.endpoint_role,
        network_isolation=hosting.network_isolation,
        multi_model=multi_model,
    )
    config = endpoint_requests.create_endpoint_config(
        run, stack, instance=hosting.instance, instances=hosting.instances, hours=hosting.hours
    )
    calls += [
        Call("sagemaker", "create_model", model, "model", run.name("model")),
        Call("sagemaker", "create_endpoint_config", config, "endpoint-config", run.name("config")),
        Call("sagemaker", "create_endpoint", endpoint_requests.create_endpoint(run), "endpoint", run.name("endpoint")),
    ]
    return Launch(
        run,
        stack,
        tuple(calls),
        tuple(source.channel for source in sources if source.channel is not None),
        copies,
        _scaling_calls(run, hosting),
    )


def expiry(run: Run, stack: Stack, *, at: datetime) -> Call:
    """The call that creates the expiry of a run's endpoint.

    Args:
        run: The run that owns the endpoint.
        stack: The stack with the role of schedules.
        at: The time of the expiry, with its time zone.
    """
    request = endpoint_requests.create_expiry(run, stack, at=at)
    return Call("scheduler", "create_schedule", request, "schedule", run.name("expiry"))


def unpaid_names(run: Run) -> dict[str, str]:
    """The resources that remain after an expiry, by kind, because the schedule deletes only the endpoint."""
    return {
        "scaling-target": endpoint_requests.scaling_target(run),
        "endpoint-config": run.name("config"),
        "model": run.name("model"),
        "schedule": run.name("expiry"),
    }


def _scaling_calls(run: Run, hosting: EndpointOptions) -> tuple[Call, ...]:
    if hosting.most is None or hosting.invocations is None:
        return ()
    service, name = "application-autoscaling", endpoint_requests.scaling_target(run)
    return (
        Call(
            service,
            "register_scalable_target",
            endpoint_requests.register_scaling(run, least=hosting.instances, most=hosting.most),
            "scaling-target",
            name,
        ),
        Call(service, "put_scaling_policy", endpoint_requests.put_scaling(run, invocations=hosting.invocations)),
    )
