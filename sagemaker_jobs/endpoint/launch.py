"""Launch of an endpoint: roles, then the expiry schedule, then model, configuration and endpoint."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial

from neuron_sum.errors import AwsError
from sagemaker_jobs.aws import policies
from sagemaker_jobs.aws.names import AwsContext, Run
from sagemaker_jobs.aws.place import NetworkSecurity, Request, run_prefix
from sagemaker_jobs.endpoint import requests as endpoint_requests
from sagemaker_jobs.endpoint.sources import ARCHIVE, Source
from sagemaker_jobs.launch.bucket import bucket_calls
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.roles import role_calls
from sagemaker_jobs.launch.schedules import time_of, times_after
from sagemaker_jobs.launch.start import Copy, Launch, encryption_of, place_of

ENDPOINT_POLICY = "endpoint"
"""Name of the endpoint's policy in its role, which the run's jobs may share with their own policy."""


@dataclass(frozen=True)
class EndpointOptions:
    """The command-line options of an endpoint.

    Attributes:
        instance: The instance type.
        instances: The initial and minimum number of instances.
        hours: The hours until the expiry; None: no expiry.
        most: The maximum number of instances; None: no autoscaling.
        invocations: The autoscaling target in requests per minute and instance.
        bucket: The name of an existing bucket; None: a new one.
        role_arn: The ARN of an existing role; None: a new one.
        isolation: The encryption and network settings.
        expiry_role_arn: The ARN of an existing role for the scheduler; None: a new one.
    """

    instance: str
    instances: int = 1
    hours: float | None = 2.0
    most: int | None = None
    invocations: float | None = None
    bucket: str | None = None
    role_arn: str | None = None
    isolation: NetworkSecurity = field(default_factory=NetworkSecurity)
    expiry_role_arn: str | None = None

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            AwsError: If the options are invalid; its hint names valid ones.
        """
        self.isolation.check()
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
    site: AwsContext,
    *,
    now: datetime,
    multi_model: bool = False,
) -> Launch:
    """The launch of an endpoint; sends nothing.

    Args:
        run: A new run, or the run that compiled the model.
        sources: The models to serve; exactly one unless `multi_model`.
        hosting: The options of the endpoint.
        image: The full name of the image.
        site: The target account and region.
        now: The current time, for a dry run; otherwise the hours count from when the schedule is sent.
        multi_model: Whether each request names its model.

    Raises:
        AwsError: If SageMaker would refuse the endpoint.
    """
    hosting.check()
    place = place_of(run, site, bucket=hosting.bucket, role_arn=hosting.role_arn)
    addresses = [source.address_in(place) for source in sources]
    copies: tuple[Copy, ...] = ()
    [*_, data] = addresses
    if multi_model:
        copies = tuple(
            Copy(address, f"{models_prefix(run)}{source.name}{ARCHIVE}")
            for source, address in zip(sources, addresses, strict=True)
        )
        data = f"s3://{place.bucket}/{models_prefix(run)}"
    roles: tuple[Call, ...] = ()
    if hosting.role_arn is None:
        policy = policies.endpoint_policy(run, site, [data], image=image, isolation=hosting.isolation)
        roles = role_calls(run, site.region, policies.trust_policy(site.account), policy, policy_name=ENDPOINT_POLICY)
    calls: list[Call] = []
    if hosting.hours is not None:
        expiring = expiry(run, site, at=now + timedelta(hours=hosting.hours), role_arn=hosting.expiry_role_arn)
        # The uploads may take longer than the requested hours, so the hours count from when the schedule is sent.
        schedule = replace(expiring.schedule, late=partial(times_after, hosting.hours))
        roles, calls = (*roles, *expiring.role_calls), [schedule]
    model = endpoint_requests.create_model(
        run,
        place,
        image=image,
        model_data=data,
        environment={} if multi_model else sources[0].environment,
        isolation=hosting.isolation,
        multi_model=multi_model,
    )
    config = endpoint_requests.create_endpoint_config(
        run, instance=hosting.instance, instances=hosting.instances, isolation=hosting.isolation, hours=hosting.hours
    )
    calls += [
        Call("sagemaker", "create_model", model, "model", run.name("model")),
        Call("sagemaker", "create_endpoint_config", config, "endpoint-config", run.name("config")),
        Call("sagemaker", "create_endpoint", endpoint_requests.create_endpoint(run), "endpoint", run.name("endpoint")),
    ]
    return Launch(
        run,
        place,
        tuple(calls),
        tuple(source.channel for source in sources if source.channel is not None),
        () if hosting.bucket else bucket_calls(place, hosting.isolation.kms_key),
        roles,
        encryption_of(hosting.isolation),
        copies,
        _scaling_calls(run, hosting),
    )


@dataclass(frozen=True)
class Expiry:
    """The expiry of an endpoint.

    Attributes:
        role_calls: The calls that create the scheduler's role; empty for an existing role.
        schedule: The call that creates the schedule.
    """

    role_calls: tuple[Call, ...]
    schedule: Call


def expiry(run: Run, site: AwsContext, *, at: datetime, role_arn: str | None = None) -> Expiry:
    """The expiry of a run's endpoint.

    Args:
        run: The run that owns the endpoint.
        site: The target account and region.
        at: The time of the expiry, with its time zone.
        role_arn: The ARN of an existing role for the scheduler; None: a new one.
    """
    kind = "expiry-role"
    request = endpoint_requests.create_expiry(run, at=at, role_arn=role_arn or site.role_arn(run.name(kind)))
    trust, policy = policies.scheduler_trust(site.account), policies.expiry_policy(run, site)
    return Expiry(
        () if role_arn else role_calls(run, site.region, trust, policy, kind),
        Call("scheduler", "create_schedule", request, "schedule", run.name("expiry")),
    )


def unpaid_names(run: Run) -> dict[str, str]:
    """The resources that remain after an expiry, by kind, because the schedule deletes only the endpoint."""
    return {
        "scaling-target": endpoint_requests.scaling_target(run),
        "endpoint-config": run.name("config"),
        "model": run.name("model"),
        "schedule": run.name("expiry"),
    }


def requests_of(launched: Launch) -> dict[str, Request]:
    """The requests of a launch by the kind of resource they create, for computing prices."""
    return {call.kind: call.request for call in (*launched.calls, *launched.later) if call.kind is not None}


def end_of(calls: Iterable[Call]) -> datetime | None:
    """The time (UTC) at which AWS deletes an endpoint; None if it never does.

    Args:
        calls: The planned calls, followed by those that were sent: the last schedule counts.
    """
    ends = [time_of(call.request) for call in calls if call.kind == "schedule"]
    return ends[-1] if ends else None


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
