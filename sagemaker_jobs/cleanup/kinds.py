"""Kinds of resources that the commands create: how to list, describe and delete them.

A listed resource is one of neuron-sum's if its name and, where the kind supports tags, its tag match.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from neuron_sum.errors import PlatformError
from neuron_sum.platform.prices import find_price
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import NOT_CREATED, Refused, Unreached, ignore_missing
from sagemaker_jobs.aws.names import LOG_GROUP, PREFIX, PROJECT, RUN_TAG, TRANSFORM_LOG_GROUP, Run, owner_of, run_of
from sagemaker_jobs.launch.schedules import LATE_S, time_of
from sagemaker_jobs.stack.stack import Request

SCALING = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}
"""Identification of a variant's number of instances in Application Auto Scaling."""

RUNNING = ("InProgress", "Stopping")
ENDS_FORMAT = "%Y-%m-%dT%H:%M:%S%z"
RUN_VARIABLE = "NEURON_SUM_RUN"
"""Environment variable of a build that names its run: all builds have the stack's project."""


@dataclass(frozen=True)
class Resource:
    """Resource in the account.

    Attributes:
        kind: The kind as in the ledger, or notebook-instance or studio-app.
        name: The resource's name in AWS.
        run: The id of the run that owns the resource; None if neuron-sum did not create it.
        state: The state that AWS reports.
        hours: Hours since its creation.
        instance: The instance type; None if the resource is free.
        instances: The number of instances.
        ends: The time of its automatic deletion (UTC, ISO 8601); None if there is none.
    """

    kind: str
    name: str
    run: str | None
    state: str
    hours: float
    instance: str | None = None
    instances: int = 1
    ends: str | None = None

    @property
    def usd_per_hour(self) -> float | None:
        """The cost in USD per hour by the bundled price table; None if it has no price, 0 for free resources."""
        if self.instance is None:
            return 0.0
        try:
            return find_price(self.instance).cost(1, self.instances)
        except PlatformError:
            return None

    @property
    def overdue_since(self) -> datetime | None:
        """The time at which Scheduler should have deleted it; None if that is not over, or it is being deleted."""
        if self.ends is None or self.state == "Deleting":
            return None
        ends = datetime.strptime(self.ends, ENDS_FORMAT)
        return ends if ends + timedelta(seconds=LATE_S) < datetime.now(timezone.utc) else None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for --json."""
        return {**asdict(self), "usd_per_hour": self.usd_per_hour}


class Kind(ABC):
    """Kind of resource.

    Attributes:
        name: The kind's name in the ledger.
        paid: Whether it is billed by the hour; then it must be gone before the resources that it needs are deleted.
        needs: Kinds whose resources of the same run are kept while a resource of this kind may exist: those that it
            uses, and those that delete it on time.
        reads: The services and operations that list and describe resources.
    """

    name: str
    paid: bool = False
    needs: tuple[str, ...] = ()
    reads: tuple[tuple[str, str], ...]

    @abstractmethod
    def list_names(self, account: Account, run: str | None) -> Iterator[tuple[str, str]]:
        """Yield the names and runs of the resources that AWS lists, optionally of one run only."""

    @abstractmethod
    def describe(self, account: Account, name: str, run: str) -> Resource | None:
        """Return the current state of a resource; None if it is missing, or has ended and is free."""

    @abstractmethod
    def delete(self, account: Account, name: str) -> None:
        """Delete a resource, or stop one that cannot be deleted; not an error if it is gone or cannot end yet."""

    def tagged_run(self, account: Account, name: str) -> str | None:
        """Return the run in a resource's tag; for a kind without tags, that in its name."""
        return owner_of(name)

    def check_owner(self, account: Account, thing: Resource) -> None:
        """Raise unless a resource that only the ledger names has the name of its run and its tag.

        Raises:
            Refused: If neuron-sum did not create it.
            AwsError: If AWS cannot be reached.
        """
        if owner_of(thing.name) != thing.run or self.tagged_run(account, thing.name) != thing.run:
            raise Refused(
                f"the ledger names {self.name} {thing.name}, which was not created by neuron-sum: kept",
                f"remove its line from the ledger, whose path `{account.command('status')}` prints",
                NOT_CREATED,
            )


def hours_since(then: datetime) -> float:
    """Return the hours since a time reported by AWS."""
    return max((datetime.now(timezone.utc) - then).total_seconds(), 0.0) / 3600


def _is_of(name: str, run: str | None) -> bool:
    owner = run_of(name)
    return owner is not None and run in (None, owner)


class _SageMakerKind(Kind):
    """Kind of SageMaker resource, whose operations and fields all contain its noun.

    Args:
        noun: The noun, such as EndpointConfig.
    """

    end = "delete"
    summaries = "s"
    states: tuple[dict[str, str], ...] = ({},)

    def __init__(self, noun: str) -> None:
        self.noun, self.snake = noun, re.sub(r"(?<!^)(?=[A-Z])", "_", noun).lower()
        self.name = self.snake.replace("_", "-")
        self.reads = tuple(("sagemaker", each) for each in (f"list_{self.snake}s", f"describe_{self.snake}"))

    def list_names(self, account: Account, run: str | None) -> Iterator[tuple[str, str]]:
        prefix = f"{PREFIX}-" if run is None else f"{PREFIX}-{run}-"
        for state in self.states:
            listing = account.pages(
                "sagemaker", f"list_{self.snake}s", self.noun + self.summaries, NameContains=prefix, **state
            )
            for name in (item[f"{self.noun}Name"] for item in listing):
                if _is_of(name, run) and (owner := self.tagged_run(account, name)) and run in (None, owner):
                    yield name, owner

    def find(self, account: Account, name: str) -> dict[str, Any] | None:
        """Return the response of the describing operation; None if the resource does not exist."""
        return account.find("sagemaker", f"describe_{self.snake}", **{f"{self.noun}Name": name})

    def describe(self, account: Account, name: str, run: str) -> Resource | None:
        if (found := self.find(account, name)) is None:
            return None
        return Resource(self.name, name, run, "there", hours_since(found["CreationTime"]))

    def delete(self, account: Account, name: str) -> None:
        # SageMaker refuses to delete an endpoint that is Creating or Updating, and to stop a job that has ended, as
        # invalid; the request is repeated until the resource is gone.
        with ignore_missing(*(["ValidationException"] if self.paid else [])):
            account.call("sagemaker", f"{self.end}_{self.snake}", **{f"{self.noun}Name": name})

    def tagged_run(self, account: Account, name: str) -> str | None:
        arn = account.site.arn("sagemaker", f"{self.name}/{name}")
        tags = account.call("sagemaker", "list_tags", ResourceArn=arn)["Tags"]
        return next((tag["Value"] for tag in tags if tag["Key"] == RUN_TAG), None)


class JobKind(_SageMakerKind):
    """Kind of SageMaker job, an ended one of which is a free record.

    Args:
        noun: TrainingJob, which also compiles, or TransformJob.
        resources: The field of the instances in the description.
        log_group: The log group in CloudWatch.
        needs: The kinds that a running job needs.
    """

    paid = True
    end = "stop"
    summaries = "Summaries"
    states = tuple({"StatusEquals": state} for state in RUNNING)

    def __init__(self, noun: str, resources: str, log_group: str, needs: tuple[str, ...] = ()) -> None:
        super().__init__(noun)
        self.resources, self.log_group, self.needs = resources, log_group, needs

    def describe(self, account: Account, name: str, run: str) -> Resource | None:
        """Return the current state of a job; None if it is missing or has ended."""
        found = self.find(account, name)
        if found is None or found[f"{self.noun}Status"] not in RUNNING:
            return None
        state, cluster = found.get("SecondaryStatus", found[f"{self.noun}Status"]), found[self.resources]
        hours = hours_since(found["CreationTime"])
        return Resource(self.name, name, run, state, hours, cluster["InstanceType"], cluster["InstanceCount"])


class _EndpointKind(_SageMakerKind):
    """Endpoints, with the instances of their variants and the time of their expiry."""

    paid = True
    needs = ("endpoint-config", "model", "schedule")

    def describe(self, account: Account, name: str, run: str) -> Resource | None:
        endpoint = self.find(account, name)
        if endpoint is None:
            return None
        config = CONFIG.find(account, endpoint["EndpointConfigName"])
        variants = variants_of(config or {})  # somebody may have added one
        running = sum(each.get("CurrentInstanceCount") or 0 for each in variants_of(endpoint))
        types = sorted({each["InstanceType"] for each in variants if "InstanceType" in each})
        return Resource(
            self.name,
            name,
            run,
            endpoint["EndpointStatus"],
            hours_since(endpoint["CreationTime"]),
            " + ".join(types) or ("unknown" if config is None else None),
            running or sum(each.get("InitialInstanceCount", 1) for each in variants) or 1,
            _expiry(account, name),
        )


def variants_of(described: Request) -> list[dict[str, Any]]:
    """The production and shadow variants in the description of an endpoint or of its configuration."""
    return [*(described.get("ProductionVariants") or []), *(described.get("ShadowProductionVariants") or [])]


def _expiry(account: Account, endpoint: str) -> str | None:
    """Return the time at which Scheduler deletes an endpoint (UTC, ISO 8601); None if it does not, or is unreadable."""
    try:
        return _end(account.call("scheduler", "get_schedule", Name=endpoint.removesuffix("endpoint") + "expiry"))
    except (Refused, Unreached, KeyError):  # the search of schedules reports the error; deletion needs no time
        return None


def _end(schedule: Request) -> str | None:
    """The time of a schedule's first call; None if somebody removed it."""
    return f"{time_of(schedule):%Y-%m-%dT%H:%M:%SZ}" if "StartDate" in schedule else None


class _ScheduleKind(Kind):
    """Schedules, which cannot have tags."""

    name = "schedule"
    reads = (("scheduler", "list_schedules"), ("scheduler", "get_schedule"))

    def list_names(self, account: Account, run: str | None) -> Iterator[tuple[str, str]]:
        for item in account.pages("scheduler", "list_schedules", "Schedules", NamePrefix=f"{PREFIX}-"):
            if _is_of(item["Name"], run):
                yield item["Name"], owner_of(item["Name"]) or ""

    def describe(self, account: Account, name: str, run: str) -> Resource | None:
        if (found := account.find("scheduler", "get_schedule", Name=name)) is None:
            return None
        hours = hours_since(found["CreationDate"])
        return Resource(self.name, name, run, found["State"].lower(), hours, ends=_end(found))

    def delete(self, account: Account, name: str) -> None:
        with ignore_missing():
            account.call("scheduler", "delete_schedule", Name=name)


class _ScalingKind(Kind):
    """Scaling targets; deleting one also deletes its policies and their alarms."""

    name = "scaling-target"
    service = "application-autoscaling"
    reads = ((service, "describe_scalable_targets"),)

    def list_names(self, account: Account, run: str | None) -> Iterator[tuple[str, str]]:
        for target in account.pages(self.service, "describe_scalable_targets", "ScalableTargets", **SCALING):
            name = target["ResourceId"]
            if (owner := owner_of(name)) is not None and run in (None, owner):
                yield name, owner

    def describe(self, account: Account, name: str, run: str) -> Resource | None:
        request = {"ResourceIds": [name], **SCALING}
        found = account.call(self.service, "describe_scalable_targets", **request)["ScalableTargets"]
        return Resource(self.name, name, run, "there", hours_since(found[0]["CreationTime"])) if found else None

    def delete(self, account: Account, name: str) -> None:
        with ignore_missing():
            account.call(self.service, "deregister_scalable_target", ResourceId=name, **SCALING)


def builds_of(account: Account, run: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the run and the description of builds, the newest first; CodeBuild describes 100 at once.

    Args:
        account: The account and region.
        run: The only run whose builds to include; None for all runs.

    Raises:
        AwsError: If the request fails.
    """
    with ignore_missing():  # the project does not exist without the stack
        answer = account.call("codebuild", "list_builds_for_project", projectName=PROJECT, sortOrder="DESCENDING")
        found = account.call("codebuild", "batch_get_builds", ids=answer["ids"])["builds"] if answer["ids"] else []
        for build in sorted(found, key=lambda each: answer["ids"].index(each["id"])):
            variables = build["environment"].get("environmentVariables", [])
            owner = next((each["value"] for each in variables if each["name"] == RUN_VARIABLE), None)
            if owner is not None and run in (None, owner):
                yield owner, build


class _BuildKind(Kind):
    """Running builds."""

    name = "build"
    paid = True
    reads = (("codebuild", "list_builds_for_project"), ("codebuild", "batch_get_builds"))

    def _running(self, account: Account, run: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
        return (pair for pair in builds_of(account, run) if pair[1]["buildStatus"] == "IN_PROGRESS")

    def list_names(self, account: Account, run: str | None) -> Iterator[tuple[str, str]]:
        for owner, _ in self._running(account, run):
            yield Run(owner, "").name("build"), owner

    def describe(self, account: Account, name: str, run: str) -> Resource | None:
        for _, build in self._running(account, run):
            phase, machine = build.get("currentPhase", "IN_PROGRESS"), build["environment"]["computeType"]
            return Resource(self.name, name, run, phase, hours_since(build["startTime"]), machine)
        return None

    def delete(self, account: Account, name: str) -> None:
        for _, build in self._running(account, run_of(name)):
            account.call("codebuild", "stop_build", id=build["id"])


CONFIG = _SageMakerKind("EndpointConfig")
TRAINING = JobKind("TrainingJob", "ResourceConfig", LOG_GROUP)
TRANSFORM = JobKind("TransformJob", "TransformResources", TRANSFORM_LOG_GROUP, ("model", "schedule"))
ALL: tuple[Kind, ...] = (
    *(_ScalingKind(), _EndpointKind("Endpoint"), TRAINING, TRANSFORM),
    *(_BuildKind(), CONFIG, _SageMakerKind("Model"), _ScheduleKind()),
)
KINDS = {kind.name: kind for kind in ALL}
"""All kinds by name, in the order of deletion: scaling before its endpoint, so that no instance is added meanwhile, and
a schedule after the endpoint, which it deletes if this machine goes offline before."""
