"""What the commands of `neuron-sum aws` have in common at the terminal: whose account, a dry run, Ctrl-C, a start."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from neuron_sum import console
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
    """The account in that region, or in the environment's; a dry run takes DEFAULT_REGION where there is none."""
    if dry_run and region is None and _environments_region() is None:
        region = DEFAULT_REGION
    return Account(region, short_timeouts=short_timeouts)


def _environments_region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None


def account_or_none(region: str | None) -> Account | None:
    """The account where it can be asked for prices; a plan needs none."""
    try:
        account = account_in(region)
        account.id  # noqa: B018 - one cheap call says whether the credentials hold
    except (AwsError, MissingExtraError) as error:
        console.note(f"prices are the shipped table's: {error.message}")
        return None
    return account


def caller(region: str | None, *, offline: bool, dry_run: bool) -> tuple[Account | None, AwsContext]:
    """Who is to start something, and where.

    Args:
        region: None for the environment's.
        offline: Ask AWS for no prices; a dry run then asks it nothing.
        dry_run: Credentials are welcome, and not needed.

    Returns:
        The account; None in a dry run that asks nothing. And where its things are, as far as that is known.

    Raises:
        AwsError: If AWS does not accept the credentials, or there is no such region.
    """
    if offline and dry_run:
        return None, unasked_site(region)
    account = account_in(region, dry_run=dry_run)
    try:
        return account, account.site
    except AwsError as error:
        if not dry_run:
            raise
        console.note(f"the account is shown as {ANY_ACCOUNT}: {error.message}")
        return account, AwsContext(ANY_ACCOUNT, account.region, account.partition)


def unasked_site(region: str | None, account: str = ANY_ACCOUNT) -> AwsContext:
    """A region's site without asking AWS: boto3 knows partitions; without it they are shown as in most regions.

    Args:
        region: None for the environment's, or DEFAULT_REGION.
        account: Twelve digits.

    Raises:
        AwsError: If there is no such region.
    """
    where = region or _environments_region() or DEFAULT_REGION
    try:
        botocore, unknown = import_module("botocore.session"), import_module("botocore.exceptions").UnknownRegionError
    except ImportError:
        return AwsContext(account, where)
    session = botocore.Session(session_vars={"profile": (None, None, None, None)})  # AWS_PROFILE may name none
    try:
        return AwsContext(account, where, str(session.get_partition_for_region(where)))
    except unknown as error:
        raise AwsError(f"no region {where!r}", "such as --region us-east-1") from error


def begin(
    made: Launch,
    plan: Plan,
    account: Account | None,
    max_usd: float | None,
    *,
    dry_run: bool,
    on_send: Callable[[Call], None] = lambda call: None,
) -> Ledger | None:
    """Shows what a launch costs at most, refuses it above the cap, and sends it.

    Args:
        made: What to send.
        plan: Its prices.
        account: Where; only a dry run goes without.
        max_usd: The cap.
        dry_run: Print every request instead, and send nothing.
        on_send: Called with each of the launch's main calls, as it is sent, just before each attempt.

    Returns:
        The ledger that it is in; None after a dry run, when the command is over.

    Raises:
        AwsError: If it may cost more, a quota is too small, or AWS refuses.
    """
    if dry_run or account is None:
        plan.check(max_usd)
        told = {"run": made.run.id, "plan": plan.as_dict(), "requests": made.as_dicts()}
        console.emit(told, *tables.plan_tables(plan, "dry run: nothing was sent"), as_json(made.as_dicts()))
        return None
    console.note_table(tables.plan_tables(plan, f"run {made.run.id}")[0])
    plan.check(max_usd)
    quotas.check(account, (*made.calls, *made.later))
    ledger = Ledger(made.place.site)
    with console.progress("uploaded bytes", sum(channel.size for channel in made.channels)) as bar:
        start(account, ledger, made, bar.advance, on_send)
    return ledger


@contextmanager
def stopping_leaves(run: str, what: str, region: str) -> Iterator[None]:
    """Ctrl-C leaves a job alone, and says how to come back and how to stop; an error says how to clean up.

    Where the error is only that a job cannot be seen any more, cleaning up would kill it: it says how to come back.
    """
    try:
        with coming_back(run, what, region):
            yield
    except LostContact:
        raise
    except AwsError as error:
        add_cleanup_hint(error, run, region)
        raise


@contextmanager
def coming_back(run: str, what: str, region: str) -> Iterator[None]:
    """Whatever ends the following of what goes on says how to come back to it, and how to stop it."""
    try:
        yield
    except KeyboardInterrupt:
        raise left_running(run, what) from None
    except LostContact as error:
        hint = f"{error.hint}; " if error.hint else ""
        error.hint = (
            f"{hint}{what} goes on and is paid: neuron-sum aws status {run} --follow --region {region} comes back to "
            f"it, neuron-sum aws down {run} --region {region} stops it"
        )
        raise


def left_running(run: str, what: str) -> Interrupted:
    """What Ctrl-C says."""
    return Interrupted(
        f"left {what} as it is; if it has started, it goes on and is paid",
        f"neuron-sum aws status {run} --follow comes back to it, neuron-sum aws down {run} stops it",
    )


def emit_reads(reads: tuple[tuple[str, str], ...]) -> None:
    """The dry run of a command that only asks.

    Args:
        reads: Service and operation of each call.
    """
    made = [{"service": service, "operation": operation} for service, operation in reads]
    console.emit({"requests": made}, "only reads:", as_json(made))


def as_json(value: Any) -> str:
    """For people to read and copy."""
    return json.dumps(value, indent=2, ensure_ascii=False)
