"""Creation, update, comparison and deletion of the stack; each can be interrupted and repeated."""

import json
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuron_sum import console
from neuron_sum.errors import AwsError, Interrupted
from neuron_sum.files import write_json
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused, ignore_missing
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.logs import LostContact, read_with_retry
from sagemaker_jobs.aws.names import AwsContext
from sagemaker_jobs.stack import storage
from sagemaker_jobs.stack import template as templates
from sagemaker_jobs.stack.stack import COMPLETE, NAME, REVIEW, Request, describe, foreign, parameters_of
from sagemaker_jobs.stack.template import Settings

SERVICE = "cloudformation"
BROKEN = ("ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "CREATE_FAILED", "DELETE_FAILED", "IMPORT_ROLLBACK_COMPLETE")
"""States of a stack that cannot be updated, only deleted: `deploy` creates it again with the same parameters."""
SCALING_SERVICE = "sagemaker.application-autoscaling.amazonaws.com"
QUIET_POLLS = 20
"""Maximum number of polls until CloudFormation reports the first event of an operation."""
UNCHANGED = ("didn't contain changes", "No updates are to be performed")


def deploy(account: Account, settings: Settings, *, every_s: float) -> tuple[str, dict[str, str]]:
    """Create the stack, or update it if its template or parameters differ.

    The parameters of a new stack are stored on this machine until it exists, so that a repetition after an interruption
    or a failure does not lose them.

    Args:
        account: The account and region.
        settings: The options of `aws setup`.
        every_s: Seconds between two polls.

    Returns:
        created, updated or unchanged; and the parameters of the stack.

    Raises:
        AwsError: If an option is invalid, CloudFormation fails, the stack, bucket or repository is not neuron-sum's, or
            another `aws setup` changes the stack at the same time.
    """
    settings.given(account.site)
    again = command(account)
    described = settled(account, again, every_s=every_s)
    status = None if described is None else described["StackStatus"]
    if status in ("UPDATE_ROLLBACK_FAILED", "IMPORT_ROLLBACK_FAILED"):
        reason = (described or {}).get("StackStatusReason", "no reason is known")
        raise AwsError(
            f"the stack {NAME} is {status}: {reason}",
            f"run aws cloudformation continue-update-rollback --stack-name {NAME} --region {account.region}",
        )
    previous = previous_parameters(account, described)
    parameters = settings.parameters(account.site, previous)
    if status not in COMPLETE:
        path = _unfinished(account)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, parameters)
    if described is not None and status in BROKEN:
        console.note(f"deleting the stack {NAME}, which is {status}, to create it again")
        delete(account, described, again, every_s=every_s)
    owned = previous if status in COMPLETE else {}
    for name, exists in storage.existing(account).items():
        parameters[name] = "false" if exists and owned.get(name) != "true" else "true"
    proposed = _propose(account, "UPDATE" if status in COMPLETE else "CREATE", parameters, again, every_s=every_s)
    if proposed is not None:
        _execute(account, proposed, parameters, again, every_s=every_s)
    storage.configure(account, parameters)
    forget(account)
    return "unchanged" if proposed is None else "updated" if status in COMPLETE else "created", parameters


def _execute(
    account: Account, proposed: Mapping[str, Any], parameters: Mapping[str, str], again: str, *, every_s: float
) -> None:
    """Execute a change set, and wait until the stack is complete.

    Raises:
        AwsError: If CloudFormation fails, or another `aws setup` changes the stack at the same time.
    """
    identity, selector = proposed["StackId"], {"StackName": NAME, "ChangeSetName": proposed["ChangeSetName"]}
    seen = {event["EventId"] for event in _events(account, identity)}
    other = AwsError(f"another `neuron-sum aws setup` has changed the stack {NAME}", f"run {again} again")
    with ignore_missing("InvalidChangeSetStatus"):  # after a lost reply it has been executed
        account.call(SERVICE, "execute_change_set", **selector)
    executed = account.find(SERVICE, "describe_change_set", **selector) or {}
    if executed.get("ExecutionStatus") not in ("EXECUTE_IN_PROGRESS", "EXECUTE_COMPLETE"):
        raise other
    after = follow(account, identity, again, every_s=every_s, seen=seen)
    if after["StackStatus"] not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
        raise AwsError(
            f"the stack {NAME} is {after['StackStatus']}: {first_failure(account, identity, seen)}",
            f"correct the cause and run {again} again",
        )
    if parameters_of(after) != parameters:
        raise other


def _propose(
    account: Account, kind: str, parameters: Mapping[str, str], again: str, *, every_s: float
) -> dict[str, Any] | None:
    """Create a change set and return its description; None if it has no changes.

    Its name is unique, so that two administrators do not execute each other's parameters. A stack whose first change
    set is rejected stays in REVIEW_IN_PROGRESS without resources, and the next `aws setup` continues with it.

    Raises:
        AwsError: If CloudFormation rejects the changes.
    """
    request = request_of(account.site, kind, parameters)
    selector = {"StackName": NAME, "ChangeSetName": request["ChangeSetName"]}
    try:
        account.call(SERVICE, "create_change_set", **request)
    except Refused as refused:
        if refused.code != "AlreadyExistsException":  # a lost reply was retried
            raise
    while True:
        found = read_with_retry(
            lambda: account.call(SERVICE, "describe_change_set", **selector), f"the change set of {NAME}", every_s
        )
        if found["Status"] not in ("CREATE_PENDING", "CREATE_IN_PROGRESS"):
            break
        time.sleep(every_s)
    if found["Status"] == "CREATE_COMPLETE":
        return {**found, "ChangeSetName": request["ChangeSetName"]}
    reason = str(found.get("StatusReason", "no reason is known"))
    unchanged = any(text in reason for text in UNCHANGED)
    if "EarlyValidation" in reason:
        events = account.pages(SERVICE, "describe_events", "OperationEvents", **selector)
        reasons = [event.get("ValidationStatusReason") for event in events if event.get("ValidationStatus") == "FAILED"]
        reason = "; ".join(filter(None, reasons)) or reason
    account.call(SERVICE, "delete_change_set", **selector)
    if unchanged:
        return None
    raise AwsError(
        f"CloudFormation rejected the changes of the stack {NAME}: {reason}", f"correct the cause and run {again} again"
    )


def request_of(site: AwsContext, kind: str, parameters: Mapping[str, str]) -> Request:
    """Return a CreateChangeSet request with a unique name.

    Args:
        site: The account and region of the stack.
        kind: CREATE or UPDATE.
        parameters: All parameters of the template.
    """
    return {
        "StackName": NAME,
        "ChangeSetName": f"{NAME}-{secrets.token_hex(6)}",
        "ChangeSetType": kind,
        "TemplateBody": json.dumps(templates.render(site, parameters)),
        "Parameters": [{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()],
        "Capabilities": ["CAPABILITY_NAMED_IAM"],
    }


def command(account: Account, *options: str) -> str:
    """Return the command that repeats a setup, for hints; settings are kept without their options."""
    return " ".join(("neuron-sum aws setup", *options, "--region", account.region))


def settled(account: Account, again: str, *, every_s: float) -> dict[str, Any] | None:
    """Return the description of the stack, after waiting for an operation in progress; None if there is no stack.

    Raises:
        AwsError: If the stack is not neuron-sum's, or a request fails.
    """
    described = describe(account)
    if described is None:
        return None
    if described["StackStatus"] == REVIEW:
        if not all(each["ChangeSetName"].startswith(f"{NAME}-") for each in _change_sets(account)):
            raise foreign(account)
        return described
    if not in_progress(described):
        return described
    console.note(f"the stack {NAME} is {described['StackStatus']}: waiting")
    after = follow(account, described["StackId"], again, every_s=every_s)
    return None if after["StackStatus"] == "DELETE_COMPLETE" else after


def in_progress(described: Mapping[str, Any]) -> bool:
    """Whether CloudFormation is changing the stack."""
    return str(described["StackStatus"]).endswith("_IN_PROGRESS")


def previous_parameters(account: Account, described: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the parameters of the stack; without any resources, those of an unfinished `aws setup`, with a note."""
    if described is not None and described["StackStatus"] != REVIEW:
        return parameters_of(dict(described))
    found: dict[str, str] = {}
    if (path := _unfinished(account)).exists():
        found = json.loads(path.read_text(encoding="utf-8"))
    elif described is not None and (names := [each["ChangeSetName"] for each in _change_sets(account)]):
        selector = {"StackName": NAME, "ChangeSetName": names[-1]}
        found = parameters_of(account.find(SERVICE, "describe_change_set", **selector) or {})
    if set_ := {name: value for name, value in found.items() if value not in ("", "true", "false")}:
        listing = ", ".join(f"{name}={value}" for name, value in set_.items())
        console.note(f"continuing with the settings of an unfinished setup: {listing}; an empty option removes one")
    return found


def _change_sets(account: Account) -> list[dict[str, Any]]:
    return list(account.pages(SERVICE, "list_change_sets", "Summaries", StackName=NAME))


def _unfinished(account: Account) -> Path:
    """The file with the parameters of a stack that is being created."""
    return Ledger(account.site).path.with_suffix(".setup.json")


def forget(account: Account) -> None:
    """Delete the parameters of an unfinished setup from this machine."""
    _unfinished(account).unlink(missing_ok=True)


def delete(account: Account, described: Mapping[str, Any], again: str, *, every_s: float) -> None:
    """Delete the stack; the bucket and the repository are retained unless this stack's creation failed.

    Args:
        account: The account and region.
        described: The description of the stack.
        again: The command that continues after an interruption.
        every_s: Seconds between two polls.

    Raises:
        AwsError: If CloudFormation fails.
    """
    identity = described["StackId"]
    seen = {event["EventId"] for event in _events(account, identity)}
    account.call(SERVICE, "delete_stack", StackName=identity)
    after = follow(account, identity, again, every_s=every_s, seen=seen)
    if after["StackStatus"] != "DELETE_COMPLETE":
        raise AwsError(
            f"the stack {NAME} is {after['StackStatus']}: {first_failure(account, identity, seen)}",
            f"correct the cause and run {again} again",
        )


def follow(
    account: Account, identity: str, again: str, *, every_s: float, seen: set[str] | None = None
) -> dict[str, Any]:
    """Wait until CloudFormation has changed the stack, print its events, and return the description.

    Args:
        account: The account and region.
        identity: The stack's id, which is also valid after its deletion.
        again: The command that waits again, for the hint after Ctrl-C.
        every_s: Seconds between two polls.
        seen: The ids of earlier events, which are not printed: the operation has not ended before it has an event.

    Raises:
        AwsError: If CloudFormation cannot be reached any more; the error names `again`.
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
            if (begun and not in_progress(found)) or found["StackStatus"] == "DELETE_COMPLETE":
                return dict(found)
            time.sleep(every_s)
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
    before = parameters_of(dict(described))
    after = settings.parameters(account.site, before)
    wanted = templates.render(account.site, after)
    found = [
        f"template: {section} {name}"
        for section in ("Conditions", "Resources", "Outputs")
        for name in sorted({*present.get(section, {}), *wanted[section]})
        if present.get(section, {}).get(name) != wanted[section].get(name)
    ]
    found += [
        f"parameter {name}: {before.get(name, '')!r} instead of {value!r}"
        for name, value in after.items()
        if before.get(name, "") != value
    ]
    return found + storage.differences(account, after)


def _events(account: Account, identity: str) -> list[dict[str, Any]]:
    """The stack's events, the newest first."""
    return list(account.pages(SERVICE, "describe_stack_events", "StackEvents", StackName=identity))
