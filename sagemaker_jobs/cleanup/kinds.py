"""Every kind of thing that the commands make, in the order in which it is removed: how it is found, seen and ended.

What is listed by AWS counts as ours by its name and, where it can carry one, by its tag.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from neuron_sum.errors import PlatformError
from neuron_sum.platform.prices import find_price
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused, Unreached, ignore_missing
from sagemaker_jobs.aws.names import PREFIX, RUN_TAG, role_path, run_of
from sagemaker_jobs.launch.schedules import time_of

NAMESPACE, DIMENSION = "sagemaker", "sagemaker:variant:DesiredInstanceCount"
"""Of Application Auto Scaling, for an endpoint's variant."""

RUNNING = ("InProgress", "Stopping")
BUILDS_ASKED = 100
"""The most that one BatchGetBuilds or BatchGetProjects takes."""


@dataclass(frozen=True)
class Resource:
    """One thing in the account.

    Attributes:
        kind: As the ledger has it; or notebook-instance, studio-app.
        name: AWS's name for it.
        run: Whose it is; None for what is not ours.
        state: As AWS says.
        hours: Since it was made.
        instance: What it runs on; None for what costs nothing while it lies there.
        instances: How many.
        ends: When AWS ends it by itself, if it does.
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
        """By the shipped table; None where it has no price, 0 for what costs nothing."""
        if self.instance is None:
            return 0.0
        try:
            return find_price(self.instance).cost(1, self.instances)
        except PlatformError:
            return None

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "usd_per_hour": self.usd_per_hour}


@dataclass(frozen=True)
class ResourceKind:
    """One kind of thing.

    Attributes:
        name: As the ledger has it.
        listed: Names of ours that AWS lists, each with its run; of one run alone, where one is given.
        seen: One of them as it is now; None if it is not there, or has ended and costs nothing.
        end: Deletes it, or stops what cannot be deleted.
        paid: Whether it costs by the hour: it is waited for until it is gone, before anything it needs goes.
        needs: Kinds whose things of the same run stay while one of it may be there: what it works with, and what ends
            it at its time.
        of: What the ids of its runs begin with.
    """

    name: str
    listed: Callable[[Account, str | None], Iterator[tuple[str, str]]]
    seen: Callable[[Account, str, str], Resource | None]
    end: Callable[[Account, str], object]
    paid: bool = False
    needs: tuple[str, ...] = ()
    of: str = ""


def hours_since(then: datetime) -> float:
    """Hours between a time of AWS's and now."""
    return max((datetime.now(timezone.utc) - then).total_seconds(), 0.0) / 3600


def _sagemaker_list(
    operation: str, summaries: str, name_key: str, arn_key: str, states: tuple[str, ...] = ()
) -> Callable[[Account, str | None], Iterator[tuple[str, str]]]:
    """A listing of SageMaker's, told to be ours by name and tag."""

    def listed(account: Account, run: str | None) -> Iterator[tuple[str, str]]:
        begins = f"{PREFIX}-" if run is None else f"{PREFIX}-{run}-"
        for asked in [{"StatusEquals": state} for state in states] or [{}]:
            listing = account.pages("sagemaker", operation, summaries, NameContains=begins, **asked)
            for item in listing:
                if not item[name_key].startswith(begins):
                    continue
                tags = account.call("sagemaker", "list_tags", ResourceArn=item[arn_key])["Tags"]
                owner = next((tag["Value"] for tag in tags if tag["Key"] == RUN_TAG), None)
                if owner is not None and run in (None, owner):
                    yield item[name_key], owner

    return listed


def _named(names: Iterator[str], run: str | None) -> Iterator[tuple[str, str]]:
    """What is told to be ours by its name alone, for it carries no tags, or lies where only ours does."""
    for name in names:
        owner = run_of(name)
        if owner is not None and run in (None, owner):
            yield name, owner


def _described(
    kind: str, operation: str, key: str, state: Callable[[Mapping[str, Any]], str] = lambda _: "there"
) -> Callable[[Account, str, str], Resource | None]:
    def seen(account: Account, name: str, run: str) -> Resource | None:
        if (described := account.find("sagemaker", operation, **{key: name})) is None:
            return None
        return Resource(kind, name, run, state(described), hours_since(described["CreationTime"]))

    return seen


def _job_seen(kind: str, operation: str, noun: str, resources: str) -> Callable[[Account, str, str], Resource | None]:
    """A job while it runs: one that has ended is a record, which costs nothing."""

    def seen(account: Account, name: str, run: str) -> Resource | None:
        described = account.find("sagemaker", operation, **{f"{noun}Name": name})
        if described is None or described[f"{noun}Status"] not in RUNNING:
            return None
        used = described[resources]
        return Resource(
            kind,
            name,
            run,
            described.get("SecondaryStatus", described[f"{noun}Status"]),
            hours_since(described["CreationTime"]),
            used["InstanceType"],
            used["InstanceCount"],
        )

    return seen


def _ended(operation: str, key: str, *tolerated: str) -> Callable[[Account, str], None]:
    """Asks SageMaker to end something; what has ended by itself, or cannot be ended yet, is left to be seen again."""

    def end(account: Account, name: str) -> None:
        with ignore_missing(*tolerated):
            account.call("sagemaker", operation, **{key: name})

    return end


def _endpoint_seen(account: Account, name: str, run: str) -> Resource | None:
    endpoint = account.find("sagemaker", "describe_endpoint", EndpointName=name)
    if endpoint is None:
        return None
    config = account.find("sagemaker", "describe_endpoint_config", EndpointConfigName=endpoint["EndpointConfigName"])
    [variant] = config["ProductionVariants"] if config else [{}]
    running = next(iter(endpoint.get("ProductionVariants") or [{}]))
    count = running.get("CurrentInstanceCount") or variant.get("InitialInstanceCount", 1)
    return Resource(
        "endpoint",
        name,
        run,
        endpoint["EndpointStatus"],
        hours_since(endpoint["CreationTime"]),
        variant.get("InstanceType"),
        count,
        _expiry(account, name),
    )


def _expiry(account: Account, endpoint: str) -> str | None:
    """When Scheduler deletes an endpoint (UTC, ISO 8601); None if it does not, or does not say."""
    try:
        schedule = account.call("scheduler", "get_schedule", Name=endpoint.removesuffix("endpoint") + "expiry")
    except (Refused, Unreached):  # the schedules' own listing tells it: an endpoint is ended without knowing this
        return None
    return f"{time_of(schedule):%Y-%m-%dT%H:%M:%SZ}"


def _schedules(account: Account, run: str | None) -> Iterator[tuple[str, str]]:
    listing = account.pages("scheduler", "list_schedules", "Schedules", NamePrefix=f"{PREFIX}-")
    yield from _named((item["Name"] for item in listing), run)


def _schedule_seen(account: Account, name: str, run: str) -> Resource | None:
    if (schedule := account.find("scheduler", "get_schedule", Name=name)) is None:
        return None
    return Resource(
        "schedule",
        name,
        run,
        schedule["State"].lower(),
        hours_since(schedule["CreationDate"]),
        ends=f"{time_of(schedule):%Y-%m-%dT%H:%M:%SZ}",
    )


def _schedule_end(account: Account, name: str) -> None:
    with ignore_missing():
        account.call("scheduler", "delete_schedule", Name=name)


def _scaling_targets(account: Account, run: str | None) -> Iterator[tuple[str, str]]:
    listing = account.pages(
        "application-autoscaling",
        "describe_scalable_targets",
        "ScalableTargets",
        ServiceNamespace=NAMESPACE,
        ScalableDimension=DIMENSION,
    )
    for target in listing:
        for _, owner in _named(iter([target["ResourceId"].split("/")[1]]), run):
            yield target["ResourceId"], owner


def _scaling_seen(account: Account, name: str, run: str) -> Resource | None:
    targets = account.call(
        "application-autoscaling",
        "describe_scalable_targets",
        ServiceNamespace=NAMESPACE,
        ResourceIds=[name],
        ScalableDimension=DIMENSION,
    )["ScalableTargets"]
    return Resource("scaling-target", name, run, "there", hours_since(targets[0]["CreationTime"])) if targets else None


def _scaling_end(account: Account, name: str) -> None:
    """Its policies and their alarms go with it."""
    with ignore_missing():
        account.call(
            "application-autoscaling",
            "deregister_scalable_target",
            ServiceNamespace=NAMESPACE,
            ResourceId=name,
            ScalableDimension=DIMENSION,
        )


def _projects(account: Account, run: str | None) -> Iterator[tuple[str, str]]:
    names = [name for name in account.pages("codebuild", "list_projects", "projects") if _is_of(str(name), run)]
    for first in range(0, len(names), BUILDS_ASKED):
        some = account.call("codebuild", "batch_get_projects", names=names[first : first + BUILDS_ASKED])["projects"]
        for project in some:
            owner = next((tag["value"] for tag in project.get("tags", []) if tag["key"] == RUN_TAG), None)
            if owner is not None and run in (None, owner):
                yield project["name"], owner


def _is_of(name: str, run: str | None) -> bool:
    owner = run_of(name)
    return owner is not None and run in (None, owner)


def _project_seen(account: Account, name: str, run: str) -> Resource | None:
    found = account.call("codebuild", "batch_get_projects", names=[name])["projects"]
    return Resource("build-project", name, run, "there", hours_since(found[0]["created"])) if found else None


def _builds(account: Account, run: str | None) -> Iterator[tuple[str, str]]:
    for project, owner in _projects(account, run):
        newest = account.pages("codebuild", "list_builds_for_project", "ids", projectName=project)
        for identity in newest:
            yield str(identity), owner


def _build_seen(account: Account, name: str, run: str) -> Resource | None:
    found = account.call("codebuild", "batch_get_builds", ids=[name])["builds"]
    if not found or found[0]["buildStatus"] != "IN_PROGRESS":
        return None
    [build] = found
    return Resource(
        "build",
        name,
        run,
        build.get("currentPhase", "IN_PROGRESS"),
        hours_since(build["startTime"]),
        build["environment"]["computeType"],
    )


def _roles(account: Account, run: str | None) -> Iterator[tuple[str, str]]:
    listing = account.pages("iam", "list_roles", "Roles", PathPrefix=role_path(account.region))
    yield from _named((role["RoleName"] for role in listing), run)


def _role_seen(account: Account, name: str, run: str) -> Resource | None:
    if (answer := account.find("iam", "get_role", RoleName=name)) is None:
        return None
    return Resource("role", name, run, "there", hours_since(answer["Role"]["CreateDate"]))


def _role_end(account: Account, name: str) -> None:
    """A role must be bare before it can go; what somebody attached to it by hand is detached, not deleted."""
    with ignore_missing():  # another clean-up was faster
        for policy in list(account.pages("iam", "list_role_policies", "PolicyNames", RoleName=name)):
            account.call("iam", "delete_role_policy", RoleName=name, PolicyName=policy)
        for attached in list(account.pages("iam", "list_attached_role_policies", "AttachedPolicies", RoleName=name)):
            account.call("iam", "detach_role_policy", RoleName=name, PolicyArn=attached["PolicyArn"])
        account.call("iam", "delete_role", RoleName=name)


_STOPPED = _ended("stop_training_job", "TrainingJobName", "ValidationException")
"""AWS says that a request to stop what has ended, or stops already, is not valid."""

KINDS = (
    ResourceKind("scaling-target", _scaling_targets, _scaling_seen, _scaling_end),
    ResourceKind(
        "endpoint", _sagemaker_list("list_endpoints", "Endpoints", "EndpointName", "EndpointArn"), _endpoint_seen,
        # Not while it is Creating or Updating: it is asked again until it is gone.
        _ended("delete_endpoint", "EndpointName", "ValidationException"), paid=True,
        needs=("endpoint-config", "model", "schedule", "role"),
    ),
    ResourceKind(
        "training-job",
        _sagemaker_list(
            "list_training_jobs", "TrainingJobSummaries", "TrainingJobName", "TrainingJobArn", RUNNING
        ),
        _job_seen("training-job", "describe_training_job", "TrainingJob", "ResourceConfig"), _STOPPED, paid=True,
        needs=("role",),
    ),
    ResourceKind(
        "transform-job",
        _sagemaker_list(
            "list_transform_jobs", "TransformJobSummaries", "TransformJobName", "TransformJobArn", RUNNING,
        ),
        _job_seen("transform-job", "describe_transform_job", "TransformJob", "TransformResources"),
        _ended("stop_transform_job", "TransformJobName", "ValidationException"), paid=True,
        needs=("model", "schedule", "role"),
    ),
    ResourceKind(
        "build", _builds, _build_seen, lambda account, name: account.call("codebuild", "stop_build", id=name),
        paid=True, needs=("build-project", "role"), of="image-",
    ),
    ResourceKind(
        "endpoint-config",
        _sagemaker_list("list_endpoint_configs", "EndpointConfigs", "EndpointConfigName", "EndpointConfigArn"),
        _described("endpoint-config", "describe_endpoint_config", "EndpointConfigName"),
        _ended("delete_endpoint_config", "EndpointConfigName"),
    ),
    ResourceKind(
        "model", _sagemaker_list("list_models", "Models", "ModelName", "ModelArn"),
        _described("model", "describe_model", "ModelName"), _ended("delete_model", "ModelName"),
    ),
    # After the endpoint: until that is gone, this is what ends it if this machine goes away.
    ResourceKind("schedule", _schedules, _schedule_seen, _schedule_end),
    ResourceKind(
        "build-project", _projects, _project_seen,
        lambda account, name: account.call("codebuild", "delete_project", name=name),
    ),
    ResourceKind("role", _roles, _role_seen, _role_end),
)  # fmt: skip
"""In the order of their removal. A bucket and a repository hold artifacts: artifacts.py."""
