"""What the parts of the AWS server of the tests share: whose account it is, and what a test tells it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moto.core.exceptions import JsonRESTError

if TYPE_CHECKING:
    from aws_runner import Runner

ACCOUNT, REGION = "123456789012", "us-east-1"


def _summarized(line: str) -> str:
    """As our container answers to application/jsonlines: a line, and its end."""
    return json.dumps({"summary_text": f"of {len(json.loads(line)['inputs'])} characters", "truncated": False}) + "\n"


@dataclass
class Script:
    """What the account is like and what happens to a job; a test changes it.

    Attributes:
        runner: What really runs training jobs; None: they only end, as the next four say.
        looks: How often a job is seen running before it ends; None: it runs until it is stopped.
        end: How it ends.
        reason: Why, if it fails.
        log: Its lines.
        prices: USD an hour by instance and component, as the Price List has them; None: the list cannot be asked.
        refusals: AWS's answer to an operation instead of its effect: (code, message, status).
        quotas: By name, as Service Quotas has them; None: it cannot be asked.
        transformed: What a container answers to a line of a transform's input.
        roles_unknown: How often a role that is there cannot be assumed yet.
        endpoint_looks: How often an endpoint is seen Creating; None: it stays so.
        endpoint_end: InService or Failed.
        build_end: SUCCEEDED, FAILED, TIMED_OUT or FAULT; its reason and log are a job's.
        serving: The URL of a real server for each endpoint, or target model.
        notebooks, apps: What else runs in the account.
    """

    runner: "Runner | None" = None
    looks: int | None = 2
    end: str = "Completed"
    reason: str = ""
    log: tuple[str, ...] = ()
    prices: dict[tuple[str, str], list[float]] | None = None
    refusals: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    quotas: dict[str, float] | None = None
    transformed: Callable[[str], str] = _summarized
    roles_unknown: int = 0
    endpoint_looks: int | None = 2
    endpoint_end: str = "InService"
    build_end: str = "SUCCEEDED"
    serving: dict[str, str] = field(default_factory=dict)
    apps: list[dict[str, Any]] = field(default_factory=list)


def refuse(code: str, message: str) -> JsonRESTError:
    """AWS's answer with status 400."""
    return JsonRESTError(code, message)
