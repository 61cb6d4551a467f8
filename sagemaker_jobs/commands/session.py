"""Steps shared by the commands of `neuron-sum aws`: choosing the account, dry runs, starting a launch, Ctrl-C."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any, TypeVar

from neuron_sum import console
from neuron_sum.console import quote
from neuron_sum.errors import AwsError, Interrupted, MissingExtraError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import NoCapacity, Refused, add_cleanup_hint, is_shortage
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.logs import LostContact
from sagemaker_jobs.aws.names import ANY_ACCOUNT, AwsContext
from sagemaker_jobs.cleanup import rollback
from sagemaker_jobs.commands import tables
from sagemaker_jobs.commands.capacity import Attempt, Candidates
from sagemaker_jobs.commands.options import StartOptions
from sagemaker_jobs.endpoint.lifecycle import EndpointFailed
from sagemaker_jobs.launch import quotas
from sagemaker_jobs.launch.start import Launch
from sagemaker_jobs.launch.start import start as send
from sagemaker_jobs.stack.stack import Stack, find_stack, planned_stack, require_stack

Result = TypeVar("Result")
DEFAULT_REGION = "us-east-1"


def account_in(region: str | None, *, dry_run: bool = False, short_timeouts: bool = False) -> Account:
    """The account in a region; without one, in the environment's region, or in DEFAULT_REGION for a dry run."""
    if dry_run and region is None and _environments_region() is None:
        region = DEFAULT_REGION
    return Account(region, short_timeouts=short_timeouts)


def _environments_region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None


def account_or_none(region: str | None) -> Account | None:
    """The account if its credentials work; otherwise None, because a plan can use the shipped prices."""
    try:
        account = account_in(region)
        account.id  # noqa: B018 - one cheap call checks the credentials
    except (AwsError, MissingExtraError) as error:
        console.note(f"using the shipped price table: {error.message}")
        return None
    return account


def caller(start: StartOptions) -> tuple[Account | None, Stack]:
    """The account that starts resources, and its stack.

    Args:
        start: The options of the command.

    Returns:
        The account, or None in an offline dry run; and the stack, in a dry run as far as it is known.

    Raises:
        AwsError: If AWS does not accept the credentials, the region does not exist, or there is no stack.
    """
    if start.offline and start.dry_run:
        return None, planned_stack(offline_context(start.region))
    account = account_in(start.region, dry_run=start.dry_run)
    if not start.dry_run:
        return account, require_stack(account)
    try:
        stack = find_stack(account)
        return account, planned_stack(account.site) if stack is None else stack
    except AwsError as error:
        console.note(f"using the names of a new stack: {error.message}")
    try:
        return account, planned_stack(account.site)
    except AwsError:
        return account, planned_stack(AwsContext(ANY_ACCOUNT, account.region, account.partition))


def offline_context(region: str | None, account: str = ANY_ACCOUNT) -> AwsContext:
    """The context of a region without a request to AWS: boto3 knows its partition; without boto3 it is `aws`.

    Args:
        region: The region; None: the environment's, or DEFAULT_REGION.
        account: The account id, of twelve digits.

    Raises:
        AwsError: If the region does not exist.
    """
    region_name = region or _environments_region() or DEFAULT_REGION
    try:
        botocore, unknown = import_module("botocore.session"), import_module("botocore.exceptions").UnknownRegionError
    except ImportError:
        return AwsContext(account, region_name)
    session = botocore.Session(session_vars={"profile": (None, None, None, None)})  # AWS_PROFILE may not exist
    try:
        return AwsContext(account, region_name, str(session.get_partition_for_region(region_name)))
    except unknown as error:
        raise AwsError(f"unknown region {region_name!r}", "Use an AWS region, such as --region us-east-1.") from error


def carry_out(
    candidates: Candidates[Result],
    account: Account | None,
    start: StartOptions,
    *,
    detached: tuple[dict[str, Any], str] | None = None,
    roll_back: bool = False,
    ends: Callable[[Launch], str] | None = None,
) -> tuple[dict[str, Any], Result] | None:
    """Print the maximum cost of a launch, refuse it above the cap, send it, and follow it to its end.

    Args:
        candidates: The launch on each instance type; every one of them is priced and checked before any is sent.
        account: The target account; may be None only in a dry run.
        start: The options of the command.
        detached: The further fields for --json and the text after the start with --detach; None if the attempt's
            `follow` prints it.
        roll_back: Whether to roll back if AWS refuses a request; a failed endpoint is always rolled back.
        ends: Returns when AWS deletes what was started, for the message after Ctrl-C.

    Returns:
        The fields for --json and the result of `follow`; None after a dry run or with --detach.

    Raises:
        NoCapacity: If AWS has no free instances of any type.
        AwsError: If the maximum cost exceeds --max-usd, a quota is too small, AWS refuses, or what was started fails.
        Interrupted: After Ctrl-C.
    """
    attempts = [candidates.prepare(instance, 0) for instance in candidates.instances]
    if start.dry_run or account is None:
        _print_requests(attempts, start)
        return None
    for attempt in attempts:
        console.note_table(tables.plan_tables(attempt.plan, f"run {attempt.launch.run.id}")[0])
        attempt.plan.check(start.max_usd)
        quotas.check(account, (*attempt.launch.calls, *attempt.launch.later))

    def carried_out(attempt: Attempt[Result]) -> tuple[dict[str, Any], Result] | None:
        attempt.plan.check(start.max_usd)
        return _send(attempt, account, start, detached=detached, roll_back=roll_back, ends=ends)

    return candidates.first_available(carried_out, account.region)


def _print_requests(attempts: Sequence[Attempt[Any]], start: StartOptions) -> None:
    """Print the requests of a dry run, which are those of the first instance type, and then of the others."""
    reports, blocks = [], []
    for attempt in attempts:
        attempt.plan.check(start.max_usd)
        requests = attempt.launch.as_dicts()
        reports.append({"run": attempt.launch.run.id, "plan": attempt.plan.as_dict(), "requests": requests})
        blocks += [*tables.plan_tables(attempt.plan, "dry run: nothing was sent"), as_json(requests)]
    others = {"alternatives": reports[1:]} if len(reports) > 1 else {}
    console.emit({**reports[0], **others}, *blocks)


def _send(
    attempt: Attempt[Result],
    account: Account,
    start: StartOptions,
    *,
    detached: tuple[dict[str, Any], str] | None,
    roll_back: bool,
    ends: Callable[[Launch], str] | None,
) -> tuple[dict[str, Any], Result] | None:
    """Send a launch and follow it; the arguments and the result are those of `carry_out`."""
    launch, ledger = attempt.launch, Ledger(attempt.launch.stack.site)
    with _explained(launch, account.region, attempt.what, ends):
        try:
            with console.progress("uploaded bytes", sum(channel.size for channel in launch.channels)) as bar:
                send(account, ledger, launch, bar.advance)
        except Refused as refused:
            clean = not roll_back or rollback.undo(account, launch, refused, every_s=start.every)
            if clean and is_shortage(f"{refused.code}: {refused.message}"):
                raise NoCapacity(refused.message, refused.hint) from refused
            raise
        console.note(f"started {attempt.what}; ledger: {ledger.path}")
        details = {"run": launch.run.id, "region": account.region, "plan": attempt.plan.as_dict()}
        if start.detach and detached is not None:
            console.emit({**details, **detached[0]}, detached[1])
            return None
        try:
            return details, attempt.follow(account, ledger)
        except EndpointFailed as failed:
            clean = rollback.undo(account, launch, failed, every_s=start.every)
            if clean and failed.shortage:
                raise NoCapacity(failed.message, failed.hint) from failed
            raise


@contextmanager
def _explained(launch: Launch, region: str, what: str, ends: Callable[[Launch], str] | None) -> Iterator[None]:
    """Keep what was started running on Ctrl-C, and print how to follow and stop it; add to an error how to clean up.

    LostContact only means that it can no longer be observed: cleaning up would stop it, so that error explains how to
    follow it again. An endpoint is not followed: it expires.
    """
    run = launch.run.id
    try:
        with hint_at_follow(run, what, region) if ends is None else nullcontext():
            yield
    except KeyboardInterrupt:
        if ends is None:
            raise
        raise Interrupted(
            f"stopped waiting for {what}; if it started, it is billed, and {ends(launch)}",
            f"Inspect it with `neuron-sum aws status {quote(run)}` or delete it now with "
            f"`neuron-sum aws down {quote(run)}`.",
        ) from None
    except NoCapacity:
        raise
    except AwsError as error:
        rolled_back = "rolled back)" in (error.hint or "")
        if not rolled_back and (ends is not None or not isinstance(error, LostContact)):
            add_cleanup_hint(error, run, region)
        raise


@contextmanager
def hint_at_follow(run: str, what: str, region: str) -> Iterator[None]:
    """Add to Ctrl-C and LostContact how to follow the resource again and how to stop it."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped waiting for {what}; if it has started, it keeps running and is billed",
            f"Follow it with `neuron-sum aws status {quote(run)} --follow` or stop it with "
            f"`neuron-sum aws down {quote(run)}`.",
        ) from None
    except LostContact as error:
        hint = f"{error.hint}; " if error.hint else ""
        error.hint = (
            f"{hint}{what} keeps running and is billed: follow it with "
            f"`neuron-sum aws status {quote(run)} --follow --region {quote(region)}` or stop it with "
            f"`neuron-sum aws down {quote(run)} --region {quote(region)}`"
        )
        raise


def emit_reads(reads: tuple[tuple[str, str], ...]) -> None:
    """Print the requests of a read-only command.

    Args:
        reads: The service and operation of each call.
    """
    requests = [{"service": service, "operation": operation} for service, operation in reads]
    console.emit({"requests": requests}, "read-only requests:", as_json(requests))


def as_json(value: Any) -> str:
    """Indented JSON that people can read and copy."""
    return json.dumps(value, indent=2, ensure_ascii=False)
