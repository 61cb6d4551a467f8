"""Shared state of the AWS test server: its account, and the script of a test."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moto.core.exceptions import JsonRESTError

if TYPE_CHECKING:
    from aws_runner import Runner

ACCOUNT, REGION = "123456789012", "us-east-1"


def _summarized(line: str) -> str:
    """The container's answer for application/jsonlines: a line with its end."""
    return json.dumps({"summary_text": f"of {len(json.loads(line)['inputs'])} characters", "truncated": False}) + "\n"


@dataclass
class Script:
    """The state of the account and the course of a job; a test changes it.

    Attributes:
        runner: The runner of training jobs; None: jobs only end, as the next four attributes define.
        shortages: The number of launches for which AWS has no capacity, by instance type.
        shortage_at: create: the request is rejected; start: the job or endpoint fails; wait: a spot job waits in vain.
        launched: The instance type of each launch so far.
        looks: The number of times a job is described as running before it ends; None: it runs until it is stopped.
        end: The job's final status.
        reason: The failure reason.
        log: The job's log lines.
        log_variant: The variant of an endpoint whose container writes them.
        prices: USD per hour by instance and component, as in the Price List; None: the list is unavailable.
        refusals: The answer of AWS to an operation instead of its effect: (code, message, status).
        quotas: The account's quotas by name, as ListServiceQuotas returns them: without those that have only a default;
            None: the service is unavailable.
        default_quotas: The defaults of all quotas of AWS by name.
        package_failure: The reason for which a model package fails; empty: it does not.
        builds: The number of builds that CodeBuild runs at once.
        throttled_every: Every n-th call is throttled; None: none is.
        transformed: A container's answer to a line of a transform's input.
        policies: The policies of the caller; None: everything is allowed.
        stacks: CloudFormation's stacks.
        stack_looks: The number of times a stack is described before its operation ends.
        stack_failures: The reason for which a resource of a stack cannot be changed, by its logical id.
        stack_rollback: The state of a stack whose creation failed.
        bucket_policies: The policies of buckets that stacks created, by name.
        budgets: The budgets, by name.
        spent: The actual spend that budgets report, in USD.
        costs: The costs of a day by Cost Explorer's name of the service, in USD.
        upload_s: The billed seconds of a job after its run time.
        receipt: The receipt.json that a job with a Neuron device has written at its end; None: it has written none.
        scaling_role_unknown: The number of times that the service-linked role of autoscaling cannot be assumed yet.
        scaling_alarms_unknown: The number of times that this role cannot create the alarms of a policy yet.
        still_taken: The names of deleted resources that the next create request cannot have yet.
        unseen: The names of models and configurations that the next reader does not find yet.
        deleting_looks: The number of times a deleted endpoint is still described.
        endpoint_looks: The number of times an endpoint is described as Creating; None: it stays so.
        endpoint_end: InService or Failed.
        build_end: SUCCEEDED, FAILED, TIMED_OUT or FAULT; its reason and log are those of a job.
        serving: The URL of a real server for each endpoint, target model, or shadow variant (ENDPOINT/VARIANT).
        notebooks, apps: Other running resources of the account.
    """

    runner: "Runner | None" = None
    shortages: dict[str, int] = field(default_factory=dict)
    shortage_at: str = "start"
    launched: list[str] = field(default_factory=list)
    looks: int | None = 2
    end: str = "Completed"
    reason: str = ""
    log: tuple[str, ...] = ()
    log_variant: str = "main"
    prices: dict[tuple[str, str], list[float]] | None = None
    refusals: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    quotas: dict[str, float] | None = None
    default_quotas: dict[str, float] = field(default_factory=dict)
    builds: int = 1
    package_failure: str = ""
    throttled_every: int | None = None
    transformed: Callable[[str], str] = _summarized
    policies: list[dict[str, Any]] | None = None
    stacks: list[Any] = field(default_factory=list)
    stack_looks: int = 1
    stack_failures: dict[str, str] = field(default_factory=dict)
    stack_rollback: str = "ROLLBACK_COMPLETE"
    bucket_policies: dict[str, Any] = field(default_factory=dict)
    budgets: dict[str, Any] = field(default_factory=dict)
    spent: float = 0.0
    costs: dict[str, float] = field(default_factory=dict)
    upload_s: int = 60
    receipt: dict[str, Any] | None = None
    scaling_role_unknown: int = 1
    scaling_alarms_unknown: int = 1
    unseen: set[str] = field(default_factory=set)
    still_taken: set[str] = field(default_factory=set)
    deleting_looks: int = 1
    endpoint_looks: int | None = 2
    endpoint_end: str = "InService"
    build_end: str = "SUCCEEDED"
    serving: dict[str, str] = field(default_factory=dict)
    apps: list[dict[str, Any]] = field(default_factory=list)

    def lacks(self, instance: str) -> bool:
        """Whether AWS has no capacity for a launch on an instance type, which is counted."""
        self.launched.append(instance)
        left = self.shortages.get(instance, 0)
        self.shortages[instance] = max(left - 1, 0)
        if left and self.shortage_at == "create":
            raise refuse("CapacityError", NO_CAPACITY.removeprefix("CapacityError: "))
        return left > 0


NO_CAPACITY = (
    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type."
)
"""The failure reason of a job (DIAGNijmegen/rse-grand-challenge#2631)."""


def refuse(code: str, message: str) -> JsonRESTError:
    """An error answer of AWS with status 400."""
    return JsonRESTError(code, message)
