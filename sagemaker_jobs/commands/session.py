"""Steps shared by the commands of `neuron-sum aws`: choosing the account, dry runs, starting a launch, Ctrl-C."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from neuron_sum import console
from neuron_sum.console import quote
from neuron_sum.errors import AwsError, Interrupted, MissingExtraError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import add_cleanup_hint
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.logs import LostContact
from sagemaker_jobs.aws.names import ANY_ACCOUNT, AwsContext
from sagemaker_jobs.commands import tables
from sagemaker_jobs.cost.plan import Plan
from sagemaker_jobs.launch import quotas
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.start import Launch, start

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


def caller(region: str | None, *, offline: bool, dry_run: bool) -> tuple[Account | None, AwsContext]:
    """The account that starts resources, and its context.

    Args:
        region: The region; None: the environment's.
        offline: Whether to use the shipped prices; a dry run then sends AWS no request at all.
        dry_run: Whether this is a dry run, which works without credentials.

    Returns:
        The account, or None in an offline dry run; and its region and account id, as far as they are known.

    Raises:
        AwsError: If AWS does not accept the credentials, or the region does not exist.
    """
    if offline and dry_run:
        return None, offline_context(region)
    account = account_in(region, dry_run=dry_run)
    try:
        return account, account.site
    except AwsError as error:
        if not dry_run:
            raise
        console.note(f"using {ANY_ACCOUNT} as the account id: {error.message}")
        return account, AwsContext(ANY_ACCOUNT, account.region, account.partition)


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


def begin(
    launch: Launch,
    plan: Plan,
    account: Account | None,
    max_usd: float | None,
    *,
    dry_run: bool,
    on_send: Callable[[Call], None] = lambda call: None,
) -> Ledger | None:
    """Print the maximum cost of a launch, refuse it above the cap, and send it.

    Args:
        launch: The requests to send.
        plan: The cost plan of the launch.
        account: The target account; may be None only in a dry run.
        max_usd: The maximum cost in USD.
        dry_run: Whether to print every request instead of sending it.
        on_send: Called with each of the launch's main calls just before each attempt to send it.

    Returns:
        The ledger that records the launch; None after a dry run, when the command is finished.

    Raises:
        AwsError: If the maximum cost exceeds `max_usd`, a quota is too small, or AWS refuses.
    """
    if dry_run or account is None:
        plan.check(max_usd)
        report = {"run": launch.run.id, "plan": plan.as_dict(), "requests": launch.as_dicts()}
        console.emit(report, *tables.plan_tables(plan, "dry run: nothing was sent"), as_json(launch.as_dicts()))
        return None
    console.note_table(tables.plan_tables(plan, f"run {launch.run.id}")[0])
    plan.check(max_usd)
    quotas.check(account, (*launch.calls, *launch.later))
    ledger = Ledger(launch.place.site)
    with console.progress("uploaded bytes", sum(channel.size for channel in launch.channels)) as bar:
        start(account, ledger, launch, bar.advance, on_send)
    return ledger


@contextmanager
def keep_running(run: str, what: str, region: str) -> Iterator[None]:
    """Keep a job running on Ctrl-C and print how to follow and stop it; add to an error how to clean up.

    LostContact only means that the job can no longer be observed. Cleaning up would stop the job, so that error
    explains how to follow it again.
    """
    try:
        with hint_at_follow(run, what, region):
            yield
    except LostContact:
        raise
    except AwsError as error:
        add_cleanup_hint(error, run, region)
        raise


@contextmanager
def hint_at_follow(run: str, what: str, region: str) -> Iterator[None]:
    """Add to Ctrl-C and LostContact how to follow the resource again and how to stop it."""
    try:
        yield
    except KeyboardInterrupt:
        raise left_running(run, what) from None
    except LostContact as error:
        hint = f"{error.hint}; " if error.hint else ""
        error.hint = (
            f"{hint}{what} keeps running and is billed: follow it with "
            f"`neuron-sum aws status {quote(run)} --follow --region {quote(region)}` or stop it with "
            f"`neuron-sum aws down {quote(run)} --region {quote(region)}`"
        )
        raise


def left_running(run: str, what: str) -> Interrupted:
    """The error after Ctrl-C."""
    return Interrupted(
        f"stopped waiting for {what}; if it has started, it keeps running and is billed",
        f"Follow it with `neuron-sum aws status {quote(run)} --follow` or stop it with "
        f"`neuron-sum aws down {quote(run)}`.",
    )


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
