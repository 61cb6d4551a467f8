"""Kinds of resources that the commands create: how to list, describe and delete them.

A listed resource is one of neuron-sum's if its name and, where the kind supports tags, its tag match.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from neuron_sum.errors import PlatformError
from neuron_sum.platform.prices import find_price
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import NOT_CREATED, Refused, Unreached, ignore_missing
from sagemaker_jobs.aws.names import PREFIX, PROJECT, RUN_TAG, Run, owner_of, run_of
from sagemaker_jobs.launch.schedules import LATE_S, time_of
from sagemaker_jobs.stack.stack import Request

NAMESPACE, DIMENSION = "sagemaker", "sagemaker:variant:DesiredInstanceCount"
"""Service namespace and dimension of Application Auto Scaling for an endpoint's variant."""

TAGGED = ("endpoint", "endpoint-config", "model", "training-job", "transform-job")
"""Kinds with tags, which are also their names in ARNs of SageMaker."""

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


@dataclass(frozen=True)
class ResourceKind:
    """Kind of resource.

    Attributes:
        name: The kind's name in the ledger.
        list_names: Yields the names and runs of the resources that AWS lists, optionally of one run only.
        describe: Returns the current state of a resource; None if it is missing, or has ended and is free.
        delete: Deletes a resource, or stops one that cannot be deleted.
        paid: Whether it is billed by the hour; then it must be gone before the resources that it needs are deleted.
        needs: Kinds whose resources of the same run are kept while a resource of this kind may exist: those that it
            uses, and those that delete it on time.
    """

    name: str
    list_names: Callable[[Account, str | None], Iterator[tuple[str, str]]]
    describe: Callable[[Account, str, str], Resource | None]
    delete: Callable[[Account, str], object]
    paid: bool = False
    needs: tuple[str, ...] = ()

    def check_owner(self, account: Account, thing: Resource) -> None:
        """Raise unless a resource that only the ledger names has the name of its run and its tag.

        Raises:
            Refused: If neuron-sum did not create it.
            AwsError: If AWS cannot be reached.
        """
        ours = owner_of(thing.name) == thing.run
        if ours and self.name in TAGGED:
            ours = _tagged_run(account, account.site.arn("sagemaker", f"{self.name}/{thing.name}")) == thing.run
        if not ours:
            raise Refused(
                f"the ledger names {self.name} {thing.name}, which was not created by neuron-sum: kept",
                "remove its line from the ledger, whose path `neuron-sum aws status` prints",
                NOT_CREATED,
            )


def hours_since(then: datetime) -> float:
    """Return the hours since a time reported by AWS."""
    return max((datetime.now(timezone.utc) - then).total_seconds(), 0.0) / 3600


def _sagemaker_lister(
    operation: str, summaries: str, name_key: str, arn_key: str, states: tuple[str, ...] = ()
) -> Callable[[Account, str | None], Iterator[tuple[str, str]]]:
    """Return a function that lists SageMaker resources with neuron-sum's names and tags."""

    def list_names(account: Account, run: str | None) -> Iterator[tuple[str, str]]:
        prefix = f"{PREFIX}-" if run is None else f"{PREFIX}-{run}-"
        for status in [{"StatusEquals": state} for state in states] or [{}]:
            listing = account.pages("sagemaker", operation, summaries, NameContains=prefix, **status)
            for item in listing:
                if not _is_of(item[name_key], run):
                    continue
                owner = _tagged_run(account, item[arn_key])
                if owner is not None and run in (None, owner):
                    yield item[name_key], owner

    return list_names


def _tagged_run(account: Account, arn: str) -> str | None:
    tags = account.call("sagemaker", "list_tags", ResourceArn=arn)["Tags"]
    return next((tag["Value"] for tag in tags if tag["Key"] == RUN_TAG), None)


def _recognized(names: Iterator[str], run: str | None) -> Iterator[tuple[str, str]]:
    """Yield the names and runs of resources recognized by name only, because they have no tags."""
    for name in names:
        owner = run_of(name)
        if owner is not None and run in (None, owner):
            yield name, owner


def _describer(
    kind: str, operation: str, key: str, state: Callable[[Mapping[str, Any]], str] = lambda _: "there"
) -> Callable[[Account, str, str], Resource | None]:
    def describe(account: Account, name: str, run: str) -> Resource | None:
        if (answer := account.find("sagemaker", operation, **{key: name})) is None:
            return None
        return Resource(kind, name, run, state(answer), hours_since(answer["CreationTime"]))

    return describe


def _job_describer(
    kind: str, operation: str, noun: str, resources: str
) -> Callable[[Account, str, str], Resource | None]:
    """Return a function that describes a job while it runs; an ended job is a free record."""

    def describe(account: Account, name: str, run: str) -> Resource | None:
        answer = account.find("sagemaker", operation, **{f"{noun}Name": name})
        if answer is None or answer[f"{noun}Status"] not in RUNNING:
            return None
        cluster = answer[resources]
        return Resource(
            kind,
            name,
            run,
            answer.get("SecondaryStatus", answer[f"{noun}Status"]),
            hours_since(answer["CreationTime"]),
            cluster["InstanceType"],
            cluster["InstanceCount"],
        )

    return describe


def _deleter(operation: str, key: str, *ignored: str) -> Callable[[Account, str], None]:
    """Return a function that deletes or stops a resource, and ignores that it has ended or cannot be deleted yet."""

    def delete(account: Account, name: str) -> None:
        with ignore_missing(*ignored):
            account.call("sagemaker", operation, **{key: name})

    return delete


def _describe_endpoint(account: Account, name: str, run: str) -> Resource | None:
    endpoint = account.find("sagemaker", "describe_endpoint", EndpointName=name)
    if endpoint is None:
        return None
    config = account.find("sagemaker", "describe_endpoint_config", EndpointConfigName=endpoint["EndpointConfigName"])
    variants = config["ProductionVariants"] if config else []  # somebody may have added one
    running = sum(each.get("CurrentInstanceCount") or 0 for each in endpoint.get("ProductionVariants") or [])
    types = sorted({each["InstanceType"] for each in variants if "InstanceType" in each})
    return Resource(
        "endpoint",
        name,
        run,
        endpoint["EndpointStatus"],
        hours_since(endpoint["CreationTime"]),
        " + ".join(types) or None,
        running or sum(each.get("InitialInstanceCount", 1) for each in variants) or 1,
        _expiry(account, name),
    )


def _expiry(account: Account, endpoint: str) -> str | None:
    """Return the time at which Scheduler deletes an endpoint (UTC, ISO 8601); None if it does not, or is unreadable."""
    try:
        schedule = account.call("scheduler", "get_schedule", Name=endpoint.removesuffix("endpoint") + "expiry")
        return _end(schedule)
    except (Refused, Unreached, KeyError):  # the search of schedules reports the error; deletion needs no time
        return None


def _end(schedule: Request) -> str | None:
    """The time of a schedule's first call; None if somebody removed it."""
    return f"{time_of(schedule):%Y-%m-%dT%H:%M:%SZ}" if "StartDate" in schedule else None


def _list_schedules(account: Account, run: str | None) -> Iterator[tuple[str, str]]:
    listing = account.pages("scheduler", "list_schedules", "Schedules", NamePrefix=f"{PREFIX}-")
    yield from _recognized((item["Name"] for item in listing), run)


def _describe_schedule(account: Account, name: str, run: str) -> Resource | None:
    if (schedule := account.find("scheduler", "get_schedule", Name=name)) is None:
        return None
    return Resource(
        "schedule",
        name,
        run,
        schedule["State"].lower(),
        hours_since(schedule["CreationDate"]),
        ends=_end(schedule),
    )


def _delete_schedule(account: Account, name: str) -> None:
    with ignore_missing():
        account.call("scheduler", "delete_schedule", Name=name)


def _list_scaling_targets(account: Account, run: str | None) -> Iterator[tuple[str, str]]:
    listing = account.pages(
        "application-autoscaling",
        "describe_scalable_targets",
        "ScalableTargets",
        ServiceNamespace=NAMESPACE,
        ScalableDimension=DIMENSION,
    )
    for target in listing:
        for _, owner in _recognized(iter([target["ResourceId"].split("/")[1]]), run):
            yield target["ResourceId"], owner


def _describe_scaling(account: Account, name: str, run: str) -> Resource | None:
    targets = account.call(
        "application-autoscaling",
        "describe_scalable_targets",
        ServiceNamespace=NAMESPACE,
        ResourceIds=[name],
        ScalableDimension=DIMENSION,
    )["ScalableTargets"]
    return Resource("scaling-target", name, run, "there", hours_since(targets[0]["CreationTime"])) if targets else None


def _delete_scaling(account: Account, name: str) -> None:
    """Delete a scaling target, which also deletes its policies and their alarms."""
    with ignore_missing():
        account.call(
            "application-autoscaling",
            "deregister_scalable_target",
            ServiceNamespace=NAMESPACE,
            ResourceId=name,
            ScalableDimension=DIMENSION,
        )


def _is_of(name: str, run: str | None) -> bool:
    owner = run_of(name)
    return owner is not None and run in (None, owner)


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


def _running_builds(account: Account, run: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    return (pair for pair in builds_of(account, run) if pair[1]["buildStatus"] == "IN_PROGRESS")


def _list_builds(account: Account, run: str | None) -> Iterator[tuple[str, str]]:
    for owner, _ in _running_builds(account, run):
        yield Run(owner, "").name("build"), owner


def _describe_build(account: Account, name: str, run: str) -> Resource | None:
    for _, build in _running_builds(account, run):
        machine = build["environment"]["computeType"]
        phase = build.get("currentPhase", "IN_PROGRESS")
        return Resource("build", name, run, phase, hours_since(build["startTime"]), machine)
    return None


def _stop_build(account: Account, name: str) -> None:
    for _, build in _running_builds(account, run_of(name)):
        account.call("codebuild", "stop_build", id=build["id"])


_STOP_JOB = _deleter("stop_training_job", "TrainingJobName", "ValidationException")
"""AWS rejects a request to stop a job that has ended or is stopping as invalid."""

KINDS = {kind.name: kind for kind in (
    ResourceKind("scaling-target", _list_scaling_targets, _describe_scaling, _delete_scaling),
    ResourceKind(
        "endpoint", _sagemaker_lister("list_endpoints", "Endpoints", "EndpointName", "EndpointArn"), _describe_endpoint,
        # SageMaker refuses while it is Creating or Updating, so the request is repeated until it is gone.
        _deleter("delete_endpoint", "EndpointName", "ValidationException"), paid=True,
        needs=("endpoint-config", "model", "schedule"),
    ),
    ResourceKind(
        "training-job",
        _sagemaker_lister(
            "list_training_jobs", "TrainingJobSummaries", "TrainingJobName", "TrainingJobArn", RUNNING
        ),
        _job_describer("training-job", "describe_training_job", "TrainingJob", "ResourceConfig"), _STOP_JOB, paid=True,
    ),
    ResourceKind(
        "transform-job",
        _sagemaker_lister(
            "list_transform_jobs", "TransformJobSummaries", "TransformJobName", "TransformJobArn", RUNNING,
        ),
        _job_describer("transform-job", "describe_transform_job", "TransformJob", "TransformResources"),
        _deleter("stop_transform_job", "TransformJobName", "ValidationException"), paid=True,
        needs=("model", "schedule"),
    ),
    ResourceKind("build", _list_builds, _describe_build, _stop_build, paid=True),
    ResourceKind(
        "endpoint-config",
        _sagemaker_lister("list_endpoint_configs", "EndpointConfigs", "EndpointConfigName", "EndpointConfigArn"),
        _describer("endpoint-config", "describe_endpoint_config", "EndpointConfigName"),
        _deleter("delete_endpoint_config", "EndpointConfigName"),
    ),
    ResourceKind(
        "model", _sagemaker_lister("list_models", "Models", "ModelName", "ModelArn"),
        _describer("model", "describe_model", "ModelName"), _deleter("delete_model", "ModelName"),
    ),
    ResourceKind("schedule", _list_schedules, _describe_schedule, _delete_schedule),
)}  # fmt: skip
"""All kinds by name, in the order of deletion: scaling before its endpoint, so that no instance is added meanwhile, and
a schedule after the endpoint, which it deletes if this machine goes offline before."""
