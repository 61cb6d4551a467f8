"""Creation, update, comparison and deletion of the stack; each can be interrupted and repeated."""

import json
import time
from collections.abc import Mapping
from typing import Any

from neuron_sum import console
from neuron_sum.errors import AwsError, Interrupted
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused, ignore_missing
from sagemaker_jobs.aws.logs import read_with_retry
from sagemaker_jobs.aws.names import AwsContext
from sagemaker_jobs.stack import template as templates
from sagemaker_jobs.stack.stack import COMPLETE, NAME, REVIEW, Request, change_set, describe, parameters_of
from sagemaker_jobs.stack.template import Settings

SERVICE = "cloudformation"
BROKEN = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED", REVIEW)
"""States of a stack that cannot be updated, only deleted: `deploy` creates it again with the same parameters."""
SCALING_SERVICE = "sagemaker.application-autoscaling.amazonaws.com"
QUIET_POLLS = 20
"""Maximum number of polls until CloudFormation reports the first event of an operation."""
UNCHANGED = ("didn't contain changes", "No updates are to be performed")


def deploy(account: Account, settings: Settings, *, every_s: float) -> str:
    """Create the stack, or update it if its template or parameters differ.

    Args:
        account: The account and region.
        settings: The options of `aws setup`.
        every_s: Seconds between two polls.

    Returns:
        created, updated or unchanged.

    Raises:
        AwsError: If an option is invalid, CloudFormation fails, or the stack is not neuron-sum's.
    """
    settings.given(account.site)
    described = settled(account, every_s=every_s)
    previous = previous_parameters(account, described)
    parameters = settings.parameters(account.site, previous)
    if described is not None and described["StackStatus"] == "UPDATE_ROLLBACK_FAILED":
        raise AwsError(
            f"the stack {NAME} is UPDATE_ROLLBACK_FAILED: {described.get('StackStatusReason', 'no reason is known')}",
            f"run aws cloudformation continue-update-rollback --stack-name {NAME} --region {account.region}",
        )
    if described is not None and described["StackStatus"] in BROKEN:
        console.note(f"deleting the stack {NAME}, which is {described['StackStatus']}, to create it again")
        delete(account, described, every_s=every_s)
        described = None
    kind = "CREATE" if described is None else "UPDATE"
    if not _propose(account, kind, parameters, every_s=every_s):
        return "unchanged"
    seen = set() if described is None else {event["EventId"] for event in _events(account, described["StackId"])}
    with ignore_missing("InvalidChangeSetStatus"):  # a lost reply was retried
        account.call(SERVICE, "execute_change_set", StackName=NAME, ChangeSetName=NAME)
    stack = describe(account)
    assert stack is not None  # the change set exists only with its stack
    after = follow(account, stack["StackId"], every_s=every_s, seen=seen)
    if after["StackStatus"] not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
        raise AwsError(
            f"the stack {NAME} is {after['StackStatus']}: {first_failure(account, stack['StackId'], seen)}",
            "correct the cause and run neuron-sum aws setup again",
        )
    return f"{kind.lower()}d"


def _propose(account: Account, kind: str, parameters: Mapping[str, str], *, every_s: float) -> bool:
    """Create the change set; return whether it has changes.

    ImportExistingResources adopts a bucket and a repository that an earlier deletion of the stack retained.
    """
    if kind == "UPDATE":  # an interrupted update may have left one
        account.call(SERVICE, "delete_change_set", StackName=NAME, ChangeSetName=NAME)
    try:
        account.call(SERVICE, "create_change_set", **request_of(account.site, kind, parameters))
    except Refused as refused:
        if not refused.taken:  # a lost reply was retried
            raise
    while True:
        found = read_with_retry(lambda: change_set(account), f"the change set {NAME}", every_s)
        if found is None or found["Status"] not in ("CREATE_PENDING", "CREATE_IN_PROGRESS"):
            break
        time.sleep(every_s)
    if found is not None and found["Status"] == "CREATE_COMPLETE":
        return True
    reason = "it was deleted" if found is None else str(found.get("StatusReason", "no reason is known"))
    account.call(SERVICE, "delete_change_set", StackName=NAME, ChangeSetName=NAME)
    if any(text in reason for text in UNCHANGED):
        return False
    raise AwsError(f"CloudFormation rejected the changes of the stack {NAME}: {reason}", "correct the options")


def request_of(site: AwsContext, kind: str, parameters: Mapping[str, str]) -> Request:
    """Return the CreateChangeSet request.

    Args:
        site: The account and region of the stack.
        kind: CREATE or UPDATE.
        parameters: All parameters of the template.
    """
    return {
        "StackName": NAME,
        "ChangeSetName": NAME,
        "ChangeSetType": kind,
        "TemplateBody": json.dumps(templates.render(site)),
        "Parameters": [{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()],
        "Capabilities": ["CAPABILITY_NAMED_IAM"],
        "ImportExistingResources": True,
    }


def settled(account: Account, *, every_s: float) -> dict[str, Any] | None:
    """Return the description of the stack, after waiting for an operation in progress; None if there is no stack.

    Raises:
        AwsError: If the stack is not neuron-sum's, or a request fails.
    """
    described = describe(account)
    if described is None or described["StackStatus"] == REVIEW or not in_progress(described):
        return described
    console.note(f"the stack {NAME} is {described['StackStatus']}: waiting")
    after = follow(account, described["StackId"], every_s=every_s)
    return None if after["StackStatus"] == "DELETE_COMPLETE" else after


def in_progress(described: Mapping[str, Any]) -> bool:
    """Whether CloudFormation is changing the stack."""
    return str(described["StackStatus"]).endswith("_IN_PROGRESS")


def previous_parameters(account: Account, described: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the parameters of the stack, or those of its first change set."""
    if described is None:
        return {}
    if described["StackStatus"] == REVIEW:
        return parameters_of(change_set(account) or {})
    return parameters_of(dict(described))


def delete(account: Account, described: Mapping[str, Any], *, every_s: float) -> None:
    """Delete the stack; the bucket and the repository are retained unless this stack's creation failed.

    Args:
        account: The account and region.
        described: The description of the stack.
        every_s: Seconds between two polls.

    Raises:
        AwsError: If CloudFormation fails.
    """
    identity = described["StackId"]
    seen = {event["EventId"] for event in _events(account, identity)}
    account.call(SERVICE, "delete_stack", StackName=NAME)
    after = follow(account, identity, every_s=every_s, seen=seen)
    if after["StackStatus"] != "DELETE_COMPLETE":
        raise AwsError(
            f"the stack {NAME} is {after['StackStatus']}: {first_failure(account, identity, seen)}",
            "correct the cause and run the command again",
        )


def follow(account: Account, identity: str, *, every_s: float, seen: set[str] | None = None) -> dict[str, Any]:
    """Wait until CloudFormation has changed the stack, print its events, and return the description.

    Args:
        account: The account and region.
        identity: The stack's id, which is valid after its deletion, too.
        every_s: Seconds between two polls.
        seen: The ids of earlier events, which are not printed: the operation has not ended before it has an event.

    Raises:
        AwsError: If CloudFormation cannot be reached any more.
        Interrupted: After Ctrl-C.
    """
    printed = set(seen) if seen is not None else {event["EventId"] for event in _events(account, identity)}
    before, polls = len(printed), 0
    try:
        while True:
            polls += 1
            found = read_with_retry(
                lambda: account.call(SERVICE, "describe_stacks", StackName=identity)["Stacks"][0],
                f"the stack {NAME}",
                every_s,
            )
            for event in reversed(_events(account, identity)):
                if event["EventId"] not in printed:
                    printed.add(event["EventId"])
                    reason = f": {event['ResourceStatusReason']}" if event.get("ResourceStatusReason") else ""
                    console.note(f"{event['LogicalResourceId']}: {event['ResourceStatus']}{reason}")
            begun = seen is None or len(printed) > before or polls > QUIET_POLLS
            if begun and not in_progress(found):
                return dict(found)
            time.sleep(every_s)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped waiting for the stack {NAME}; CloudFormation continues",
            "Run `neuron-sum aws setup` again to wait for it.",
        ) from None


def create_scaling_role(account: Account) -> None:
    """Create the service-linked role of autoscaling, which an account has once, so that callers need no right to it.

    Raises:
        AwsError: If AWS refuses.
    """
    try:
        account.call("iam", "create_service_linked_role", AWSServiceName=SCALING_SERVICE)
    except Refused as refused:
        if not refused.taken and "has been taken" not in refused.message:
            raise


def first_failure(account: Account, identity: str, seen: set[str]) -> str:
    """Return the resource that failed first, and the reason."""
    for event in reversed(_events(account, identity)):
        reason = event.get("ResourceStatusReason", "")
        if event["EventId"] not in seen and event["ResourceStatus"].endswith("_FAILED") and "cancelled" not in reason:
            return f"{event['LogicalResourceId']} {event['ResourceStatus']}: {reason}"
    return "CloudFormation reports no reason"


def differences(account: Account, described: Mapping[str, Any], settings: Settings) -> list[str]:
    """Return how the stack differs from this version's template and the given options; empty if it does not.

    Args:
        account: The account and region.
        described: The description of the stack.
        settings: The options of `aws setup`.

    Raises:
        AwsError: If an option is invalid, or a request fails.
    """
    if described["StackStatus"] not in COMPLETE:
        return [f"the stack is {described['StackStatus']}"]
    import yaml

    body = account.call(SERVICE, "get_template", StackName=NAME)["TemplateBody"]
    present = yaml.safe_load(body) if isinstance(body, str) else json.loads(json.dumps(body))
    wanted = templates.render(account.site)
    found = [
        f"template: {section} {name}"
        for section in sorted({*present, *wanted} - {"AWSTemplateFormatVersion", "Description", "Metadata"})
        for name in sorted({*present.get(section, {}), *wanted.get(section, {})})
        if present.get(section, {}).get(name) != wanted.get(section, {}).get(name)
    ]
    before = parameters_of(dict(described))
    after = settings.parameters(account.site, before)
    return found + [
        f"parameter {name}: {before.get(name, '')!r} instead of {value!r}"
        for name, value in after.items()
        if before.get(name, "") != value
    ]


def _events(account: Account, identity: str) -> list[dict[str, Any]]:
    """The stack's events, the newest first."""
    return list(account.pages(SERVICE, "describe_stack_events", "StackEvents", StackName=identity))
