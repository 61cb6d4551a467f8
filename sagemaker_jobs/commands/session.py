"""Steps shared by the commands of `neuron-sum aws`: choosing the account, dry runs, starting a launch, Ctrl-C."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

from neuron_sum import console, files
from neuron_sum.errors import AwsError, Interrupted, MissingExtraError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import NoCapacity, Refused, add_cleanup_hint, is_shortage
from sagemaker_jobs.aws.logs import LostContact
from sagemaker_jobs.aws.names import ANY_ACCOUNT, AwsContext, Run
from sagemaker_jobs.cleanup import rollback
from sagemaker_jobs.commands import tables
from sagemaker_jobs.commands.capacity import Candidates
from sagemaker_jobs.cost import lifetime
from sagemaker_jobs.cost.plan import Plan
from sagemaker_jobs.endpoint.lifecycle import EndpointFailed
from sagemaker_jobs.launch import quotas
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.options import StartOptions
from sagemaker_jobs.launch.start import Launch
from sagemaker_jobs.launch.start import start as send
from sagemaker_jobs.stack.stack import Stack, find_stack, planned_stack, require_stack

Result = TypeVar("Result")
DEFAULT_REGION = "us-east-1"


def account_in(
    region: str | None, *, dry_run: bool = False, short_timeouts: bool = False, every_s: float = 15.0
) -> Account:
    """The account in a region; without one, in the environment's region, or in DEFAULT_REGION for a dry run."""
    if dry_run and region is None and _environments_region() is None:
        region = DEFAULT_REGION
    return Account(region, short_timeouts=short_timeouts, every_s=every_s)


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
    account = account_in(start.region, dry_run=start.dry_run, every_s=start.every)
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


@contextmanager
def only_start(account: Account, run: Run, stage: str) -> Iterator[None]:
    """Lets no other process on this machine start the same stage of a run.

    Both would use the same attempt number: one would take the other's resources for its own, or for leftovers.

    Args:
        account: The account and region.
        run: The run that is started.
        stage: train, compile, endpoint or batch.

    Raises:
        AwsError: If another process starts it; names the process.
    """
    name, ledger = run.name(stage), account.ledger.path
    with suppress(OSError):  # writing the ledger will report it
        ledger.parent.mkdir(parents=True, exist_ok=True)
    hint = "Wait until that command has started it, or end that command with Ctrl-C; then run this one again."
    with files.lock(f"the start of {name}", ledger.with_name(f"{ledger.stem}-{name}.lock"), AwsError, hint):
        yield


def carry_out(
    candidates: Candidates[Result], account: Account | None, start: StartOptions
) -> tuple[dict[str, Any], Result] | None:
    """Print the maximum cost of a launch, refuse it above the cap, send it, and follow it to its end.

    Args:
        candidates: The launch on each instance type; every one of them is priced and checked before any is sent.
        account: The target account; may be None only in a dry run.
        start: The options of the command.

    Returns:
        The fields for --json and the result of `follow`; None after a dry run or with --detach.

    Raises:
        NoCapacity: If AWS has no free instances of any type.
        AwsError: If the maximum cost exceeds --max-usd, a quota is too small, AWS refuses, or what was started fails.
        Interrupted: After Ctrl-C.
    """

    def priced(launch: Launch) -> Plan:
        pricing = None if start.offline else account
        expected, hours = candidates.expected_hours, candidates.hours
        return lifetime.priced(launch.all_calls, pricing, expected, hours, launch.stack.site.region)

    launches = [candidates.prepare(instance, 0) for instance in candidates.instances]
    if start.dry_run or account is None:
        _print_requests([(launch, priced(launch)) for launch in launches], start.max_usd)
        return None
    for launch in launches:
        plan = priced(launch)
        console.note_table(tables.plan_tables(plan, f"run {launch.run.id}")[0])
        plan.check(start.max_usd)
        quotas.check(account, launch.all_calls)

    def carried_out(launch: Launch) -> tuple[dict[str, Any], Result] | None:
        plan = priced(launch)
        plan.check(start.max_usd)
        return _send(candidates, launch, plan, account, start)

    return candidates.first_available(carried_out, account.region)


def _print_requests(planned: Sequence[tuple[Launch, Plan]], max_usd: float | None) -> None:
    """Print the requests of a dry run, which are those of the first instance type, and then of the others."""
    reports, blocks = [], []
    for launch, plan in planned:
        plan.check(max_usd)
        requests = launch.as_dicts()
        reports.append({"run": launch.run.id, "plan": plan.as_dict(), "requests": requests})
        blocks += [*tables.plan_tables(plan, "dry run: nothing was sent"), as_json(requests)]
    others = {"alternatives": reports[1:]} if len(reports) > 1 else {}
    console.emit({**reports[0], **others}, *blocks)


def _send(
    candidates: Candidates[Result], launch: Launch, plan: Plan, account: Account, start: StartOptions
) -> tuple[dict[str, Any], Result] | None:
    """Send a launch and follow it; the result is that of `carry_out`."""
    what, detached, ends = launch[candidates.kind].name, candidates.detached, candidates.ends
    until = None if ends is None else partial(ends, launch)
    try:
        with hint_at_follow(launch.run.id, what, account.region, until):
            try:
                with console.progress("uploaded bytes", sum(channel.size for channel in launch.channels)) as bar:
                    send(account, launch, bar.advance)
            except Refused as refused:
                clean = not candidates.roll_back or rollback.undo(account, launch, refused)
                if clean and is_shortage(f"{refused.code}: {refused.message}"):
                    raise NoCapacity(refused.message, refused.hint) from refused
                raise
            if candidates.is_single:
                candidates.started()
            console.note(f"started {what}; ledger: {account.ledger.path}")
            details = {"run": launch.run.id, "region": account.region, "plan": plan.as_dict()}
            if start.detach and detached is not None:
                console.emit({**details, **detached[0]}, detached[1])
                return None
            try:
                return details, candidates.follow(account, launch, plan[candidates.kind])
            except EndpointFailed as failed:
                clean = rollback.undo(account, launch, failed)
                if clean and failed.shortage:
                    raise NoCapacity(failed.message, failed.hint) from failed
                raise
    except NoCapacity:
        raise
    except AwsError as error:
        # LostContact only means that it can no longer be observed: cleaning up would stop it, so that error explains
        # how to follow it again. An endpoint is not followed: it expires.
        rolled_back = "rolled back)" in (error.hint or "")
        if not rolled_back and (ends is not None or not isinstance(error, LostContact)):
            add_cleanup_hint(error, launch.run.id, account.region)
        raise


@contextmanager
def hint_at_follow(run: str, what: str, region: str, ends: Callable[[], str] | None = None) -> Iterator[None]:
    """Keep what was started running on Ctrl-C and LostContact, and add how to follow it again and how to stop it.

    Args:
        run: The run that owns the resource.
        what: The name of the resource.
        region: The region of the resource.
        ends: Returns when AWS deletes an endpoint, which is not followed again.
    """
    status = console.command("aws", "status", run, follow=ends is None, region=region)
    down = console.command("aws", "down", run, region=region)
    try:
        yield
    except KeyboardInterrupt:
        billed = "keeps running and is billed" if ends is None else f"is billed, and {ends()}"
        look = "Inspect" if ends is not None else "Follow"
        raise Interrupted(
            f"stopped waiting for {what}; if it has started, it {billed}",
            f"{look} it with `{status}` or stop it with `{down}`.",
        ) from None
    except LostContact as error:
        if ends is None:
            hint = f"{error.hint}; " if error.hint else ""
            error.hint = f"{hint}{what} keeps running and is billed: follow it with `{status}` or stop it with `{down}`"
        raise


def emit_requests(details: Mapping[str, Any], calls: Iterable[Call], *text: Any) -> None:
    """Print the requests of a dry run.

    Args:
        details: Further fields for --json.
        calls: The calls, in order.
        text: Lines and tables before the requests.
    """
    requests = [call.as_dict() for call in calls]
    console.emit({**details, "requests": requests}, *text, as_json(requests))


def emit_reads(operations: Iterable[tuple[str, str]], text: str) -> None:
    """Print the services and operations that a command would call."""
    requests = [{"service": service, "operation": operation} for service, operation in operations]
    console.emit({"requests": requests}, text, as_json(requests))


def as_json(value: Any) -> str:
    """Indented JSON that people can read and copy."""
    return json.dumps(value, indent=2, ensure_ascii=False)
