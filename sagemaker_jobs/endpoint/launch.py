"""An endpoint as a list of calls: roles, then the schedule that ends it, then model, configuration and endpoint."""

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
"""Beside a role's other policy, for a run's jobs and its endpoint may have the same role."""


@dataclass(frozen=True)
class EndpointOptions:
    """What the command line says about an endpoint.

    Attributes:
        instance: The instance type.
        instances: How many at first, and at least.
        hours: Until its expiry; None: there is none.
        most: How many it may become; None: no autoscaling.
        invocations: Requests a minute and instance, at which there are more of them.
        bucket: The caller's own; None: one is made.
        role_arn: The caller's own; None: one is made.
        isolation: Encryption and network.
        expiry_role_arn: The caller's own, for the scheduler; None: one is made.
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
        """Refuses what cannot be meant.

        Raises:
            AwsError: With what is allowed.
        """
        self.isolation.check()
        if (self.most is None) != (self.invocations is None):
            raise AwsError(
                "autoscaling needs both how many instances, and when there are more of them",
                "--max-instances 2 --invocations-per-instance 60 (requests a minute)",
            )
        if self.most is not None and self.most < self.instances:
            raise AwsError(f"--max-instances {self.most} is less than --instances {self.instances}", "raise it")


def models_prefix(run: Run) -> str:
    """The keys of what a multi-model endpoint serves begin so."""
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
    """Everything that is to be sent; sends nothing.

    Args:
        run: A new one, or the one that compiled what is served.
        sources: What is served; one, unless `multi_model`.
        hosting: How.
        image: Its full name.
        site: Where.
        now: For a dry run; its life is counted from when the schedule is sent.
        multi_model: Whether a request names the model that it is for.

    Raises:
        AwsError: If SageMaker would refuse it.
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
        # An upload may take longer than the life that is asked for, which begins when nothing but calls is left.
        schedule = replace(expiring.schedule, late=partial(times_after, hosting.hours))
        roles, calls = (*roles, *expiring.role_calls), [schedule]
    model = endpoint_requests.create_model(
        run, place, image=image, model_data=data, environment={}, isolation=hosting.isolation, multi_model=multi_model
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
    """What ends an endpoint.

    Attributes:
        role_calls: That make the role with which the scheduler does it; none for the caller's own.
        schedule: The call that makes the schedule.
    """

    role_calls: tuple[Call, ...]
    schedule: Call


def expiry(run: Run, site: AwsContext, *, at: datetime, role_arn: str | None = None) -> Expiry:
    """The end of a run's endpoint.

    Args:
        run: Whose.
        site: Where.
        at: When, with its time zone.
        role_arn: The caller's own, for the scheduler; None: one is made.
    """
    kind = "expiry-role"
    request = endpoint_requests.create_expiry(run, at=at, role_arn=role_arn or site.role_arn(run.name(kind)))
    trust, policy = policies.scheduler_trust(site.account), policies.expiry_policy(run, site)
    return Expiry(
        () if role_arn else role_calls(run, site.region, trust, policy, kind),
        Call("scheduler", "create_schedule", request, "schedule", run.name("expiry")),
    )


def unpaid_names(run: Run) -> dict[str, str]:
    """What an expired endpoint leaves, by kind: the schedule ends the endpoint alone."""
    return {
        "scaling-target": endpoint_requests.scaling_target(run),
        "endpoint-config": run.name("config"),
        "model": run.name("model"),
        "schedule": run.name("expiry"),
    }


def requests_of(made: Launch) -> dict[str, Request]:
    """A launch's requests by the kind of what they make; prices are read from these."""
    return {call.kind: call.request for call in (*made.calls, *made.later) if call.kind is not None}


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
