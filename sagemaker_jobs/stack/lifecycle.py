"""Creation, update, comparison and deletion of the stack; each can be interrupted and repeated."""

import json
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuron_sum import console
from neuron_sum.errors import AwsError, Interrupted, redacted
from neuron_sum.files import write_json
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused
from sagemaker_jobs.aws.logs import LostContact, read_with_retry
from sagemaker_jobs.aws.names import AwsContext
from sagemaker_jobs.stack import storage
from sagemaker_jobs.stack import template as templates
from sagemaker_jobs.stack.stack import COMPLETE, NAME, Request, describe, parameters_of
from sagemaker_jobs.stack.template import Settings

SERVICE = "cloudformation"
BROKEN = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED")
"""States of a stack that cannot be updated, only deleted: `deploy` creates it again with the same parameters."""
SCALING_SERVICE = "sagemaker.application-autoscaling.amazonaws.com"
UNCHANGED = "No updates are to be performed"
BUSY = "can not be updated"
"""CloudFormation's answers to UpdateStack: the same template and parameters, and another operation in progress."""


def deploy(account: Account, settings: Settings) -> tuple[str, dict[str, str]]:
    """Create the stack, or update it if its template or parameters differ.

    The parameters of a new stack are stored on this machine until it exists, so that a repetition after an interruption
    or a failure does not lose them.

    Args:
        account: The account and region.
        settings: The options of `aws setup`.

    Returns:
        created, updated or unchanged; and the parameters of the stack.

    Raises:
        AwsError: If an option is invalid, CloudFormation fails, the stack, bucket or repository is not neuron-sum's, or
            another `aws setup` changes the stack at the same time.
    """
    settings.given(account.site)
    again = account.command("setup")
    described = settled(account, again)
    status = None if described is None else described["StackStatus"]
    if status == "UPDATE_ROLLBACK_FAILED":
        reason = (described or {}).get("StackStatusReason", "no reason is known")
        raise AwsError(
            f"the stack {NAME} is {status}: {reason}",
            f"run aws cloudformation continue-update-rollback --stack-name {NAME} --region {account.region}",
        )
    previous = parameters_of(described) if described is not None else _unfinished_parameters(account)
    parameters = settings.parameters(account.site, previous)
    exists = status in COMPLETE
    if not exists:
        path = _unfinished(account)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, parameters)
    if described is not None and status in BROKEN:
        console.note(f"deleting the stack {NAME}, which is {status}, to create it again")
        delete(account, described, again)
    owned = previous if exists else {}
    for name, is_there in storage.existing(account).items():
        parameters[name] = "false" if is_there and owned.get(name) != "true" else "true"
    changed = _change(account, "update_stack" if exists else "create_stack", parameters, again)
    storage.configure(account, parameters)
    forget(account)
    return "unchanged" if not changed else "updated" if exists else "created", parameters


def _change(account: Account, operation: str, parameters: Mapping[str, str], again: str) -> bool:
    """Create or update the stack, and wait until it is complete; return whether anything changed.

    Raises:
        AwsError: If CloudFormation fails, or another `aws setup` changes the stack at the same time.
    """
    other = AwsError(f"another `neuron-sum aws setup` changes the stack {NAME}", f"run {again} again")
    request = request_of(account.site, parameters)
    try:
        identity = account.call(SERVICE, operation, **request)["StackId"]
    except Refused as refused:
        if UNCHANGED in refused.message:
            return False
        if BUSY in refused.message or refused.code == "AlreadyExistsException":
            raise other from refused
        raise
    after = follow(account, identity, again, token=request["ClientRequestToken"])
    if after["StackStatus"] not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
        raise _failure(account, after, again, request["ClientRequestToken"])
    if parameters_of(after) != parameters:
        raise other
    return True


def request_of(site: AwsContext, parameters: Mapping[str, str]) -> Request:
    """Return a CreateStack or UpdateStack request; a repetition after a lost reply is recognized by its token.

    Args:
        site: The account and region of the stack.
        parameters: All parameters of the template.
    """
    return {
        "StackName": NAME,
        "TemplateBody": json.dumps(templates.render(site, parameters)),
        "Parameters": [{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()],
        "Capabilities": ["CAPABILITY_NAMED_IAM"],
        "ClientRequestToken": f"{NAME}-{secrets.token_hex(6)}",
    }


def settled(account: Account, again: str) -> dict[str, Any] | None:
    """Return the description of the stack, after waiting for an operation in progress; None if there is no stack.

    Raises:
        AwsError: If the stack is not neuron-sum's, or a request fails.
    """
    described = describe(account)
    if described is None or not in_progress(described):
        return described
    console.note(f"the stack {NAME} is {described['StackStatus']}: waiting")
    after = follow(account, described["StackId"], again)
    return None if after["StackStatus"] == "DELETE_COMPLETE" else after


def in_progress(described: Mapping[str, Any]) -> bool:
    """Whether CloudFormation is changing the stack."""
    return str(described["StackStatus"]).endswith("_IN_PROGRESS")


def _unfinished(account: Account) -> Path:
    """The file with the parameters of a stack that is being created."""
    return account.ledger.path.with_suffix(".setup.json")


def _unfinished_parameters(account: Account) -> dict[str, str]:
    """Return the parameters of an unfinished setup, with a note."""
    if not (path := _unfinished(account)).exists():
        return {}
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    if set_ := {name: value for name, value in found.items() if value not in ("", "true", "false")}:
        listing = ", ".join(f"{name}={value}" for name, value in set_.items())
        console.note(f"continuing with the settings of an unfinished setup: {listing}; an empty option removes one")
    return found


def forget(account: Account) -> None:
    """Delete the parameters of an unfinished setup from this machine."""
    _unfinished(account).unlink(missing_ok=True)


def delete(account: Account, described: Mapping[str, Any], again: str) -> None:
    """Delete the stack; the bucket and the repository are retained unless this stack's creation failed.

    Args:
        account: The account and region.
        described: The description of the stack.
        again: The command that continues after an interruption.

    Raises:
        AwsError: If CloudFormation fails.
    """
    identity, token = described["StackId"], f"{NAME}-{secrets.token_hex(6)}"
    account.call(SERVICE, "delete_stack", StackName=identity, ClientRequestToken=token)
    after = follow(account, identity, again, token=token)
    if after["StackStatus"] != "DELETE_COMPLETE":
        raise _failure(account, after, again, token)


def follow(account: Account, identity: str, again: str, *, token: str | None = None) -> dict[str, Any]:
    """Wait until CloudFormation has changed the stack, print its events, and return the description.

    Args:
        account: The account and region.
        identity: The stack's id, which is also valid after its deletion.
        again: The command that waits again, for the hint after Ctrl-C.
        token: The token of the operation, which has not ended before it has an event; None for one in progress.

    Raises:
        AwsError: If CloudFormation cannot be reached any more; the error names `again`.
        Interrupted: After Ctrl-C.
    """
    printed = set() if token is not None else {event["EventId"] for event in _events(account, identity)}
    try:
        while True:
            found = read_with_retry(
                account,
                lambda: account.call(SERVICE, "describe_stacks", StackName=identity)["Stacks"][0],
                f"the stack {NAME}",
            )
            events = _events(account, identity, token)
            for event in reversed(events):
                if event["EventId"] not in printed:
                    printed.add(event["EventId"])
                    reason = f": {event['ResourceStatusReason']}" if event.get("ResourceStatusReason") else ""
                    console.note(f"{event['LogicalResourceId']}: {event['ResourceStatus']}{reason}")
            if (events and not in_progress(found)) or found["StackStatus"] == "DELETE_COMPLETE":
                return dict(found)
            time.sleep(account.every_s)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped waiting for the stack {NAME}; CloudFormation continues",
            f"Run `{again}` to wait for it.",
        ) from None
    except LostContact as error:
        error.hint = f"{error.hint}; CloudFormation continues: run {again} to wait for it"
        raise


def create_scaling_role(account: Account) -> None:
    """Create the service-linked role of autoscaling, which an account has once, so that callers need no right to it.

    The stack is complete without it, so a failure is a warning.
    """
    try:
        account.call("iam", "create_service_linked_role", AWSServiceName=SCALING_SERVICE)
    except AwsError as error:
        if isinstance(error, Refused) and (error.taken or "has been taken" in error.message):
            return
        console.warn(
            f"endpoints with autoscaling need a role that was not created: {error.message}; "
            f"run aws iam create-service-linked-role --aws-service-name {SCALING_SERVICE}"
        )


def _failure(account: Account, after: Mapping[str, Any], again: str, token: str) -> AwsError:
    """The error of an operation, with the resource that failed first, and the reason."""
    first = "CloudFormation reports no reason"
    for event in _events(account, after["StackId"], token):
        reason = event.get("ResourceStatusReason", "")
        if event["ResourceStatus"].endswith("_FAILED") and "cancelled" not in reason:
            first = f"{event['LogicalResourceId']} {event['ResourceStatus']}: {reason}"
    return AwsError(f"the stack {NAME} is {after['StackStatus']}: {first}", f"correct the cause and run {again} again")


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
    before = parameters_of(described)
    after = settings.parameters(account.site, before)
    wanted = templates.render(account.site, after)
    found = [
        f"template: {section} {name}"
        for section in ("Conditions", "Resources")
        for name in sorted({*present.get(section, {}), *wanted[section]})
        if present.get(section, {}).get(name) != wanted[section].get(name)
    ]
    found += [
        f"parameter {name}: {before.get(name, '')!r} instead of {value!r}"
        for name, value in after.items()
        if before.get(name, "") != value
    ]
    return found + storage.differences(account, after)


def _events(account: Account, identity: str, token: str | None = None) -> list[dict[str, Any]]:
    """The stack's events, the newest first; with a token only those of its operation."""
    found = account.pages(SERVICE, "describe_stack_events", "StackEvents", StackName=identity)
    return [
        {**event, "ResourceStatusReason": redacted(event.get("ResourceStatusReason", ""))}
        for event in found
        if token in (None, event.get("ClientRequestToken"))
    ]
