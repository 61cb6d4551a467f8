"""`neuron-sum aws status`: list the resources of a run or an account, or follow a job."""

from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.names import EXPIRY_QUEUE
from sagemaker_jobs.launch.options import EveryOption, RegionOption, RunArgument

if TYPE_CHECKING:
    from sagemaker_jobs.aws.account import Account

OTHER_READS = (
    *(("sts", "get_caller_identity"), ("sagemaker", "list_tags"), ("sagemaker", "list_notebook_instances")),
    *(
        ("sagemaker", "list_apps"),
        ("sqs", "get_queue_url"),
        ("sqs", "get_queue_attributes"),
        ("sqs", "receive_message"),
    ),
)
"""The requests of `status` besides those of each kind."""


def status(
    run: RunArgument = None,
    follow: Annotated[bool, typer.Option("--follow", help="Follow the run's job and its log until it ends.")] = False,
    region: RegionOption = None,
    every: EveryOption = 15.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the requests; send nothing.")] = False,
) -> None:
    """List neuron-sum's resources with age and hourly cost, and other resources billed by the hour."""
    from sagemaker_jobs.aws.names import parse_run_id
    from sagemaker_jobs.cleanup import inventory
    from sagemaker_jobs.cleanup.kinds import KINDS
    from sagemaker_jobs.commands import session, tables
    from sagemaker_jobs.commands.image import emit_built
    from sagemaker_jobs.image import follow as builds
    from sagemaker_jobs.jobs import follow as following
    from sagemaker_jobs.jobs import training

    run = None if run is None else parse_run_id(run, region)
    if dry_run:
        reads = [*OTHER_READS, *(read for kind in KINDS.values() for read in kind.reads)]
        session.emit_reads(reads, "read-only requests:")
        return
    account = session.account_in(region, short_timeouts=not follow, every_s=every)
    if follow:
        if run is None:
            raise AwsError(
                "missing argument RUN for --follow", f"Run `{account.command('status', 'RUN', follow=True)}`."
            )
        if run.startswith("image-") and (build := builds.of_run(account, run)) is not None:
            with session.hint_at_follow(run, build, account.region):
                finished, seconds = builds.follow(account, build)
            emit_built(account, finished, seconds, {"run": run, "build": build, "region": account.region})
            return
        name, kind = training.last_job(account, run)
        with session.hint_at_follow(run, name, account.region):
            job = following.follow(account, name, kind=kind)
        next_step = f"{account.command('down', run)} removes the run's remaining resources"
        console.emit(
            {
                "run": run,
                "job": job.name,
                "status": job.status,
                "model": job.model,
                "output": job.output,
                "next": next_step,
            },
            f"{job.name} completed: {job.output}\nnext: {next_step}",
        )
        return
    found = inventory.look(account, run)
    ours = found.things
    others, not_listed = ([], []) if run is not None else inventory.not_ours(account)
    for message in dict.fromkeys(refused.message for refused in [*found.refused, *not_listed]):
        console.warn(f"the list is incomplete: {message}")
    overdue = [(item, since) for item in ours if item.kind == "endpoint" and (since := item.overdue_since) is not None]
    for item, since in overdue:
        console.warn(
            f"{item.name} should have been deleted at {since:%Y-%m-%d %H:%M} UTC and is still billed; "
            f"run `{account.command('down', item.run or item.name)}`"
        )
    rejected = _rejected(account, {item.name for item in ours if item.kind == "schedule"})
    per_hour = sum(item.usd_per_hour or 0.0 for item in [*ours, *others])
    unknown = [f"{item.kind} {item.name}" for item in [*ours, *others] if item.usd_per_hour is None]
    total = (
        f"at least ${per_hour:.2f} an hour; no price known for {len(unknown)}"
        if unknown
        else (f"${per_hour:.2f} an hour in total")
    )
    lines = [
        tables.resource_table(ours, f"neuron-sum's resources in {account.region}")
        if ours
        else f"no neuron-sum resources in {account.region}",
        *([tables.resource_table(others, "other resources billed by the hour")] if others else []),
        f"{total}; ledger: {account.ledger.path}",
    ]
    console.emit(
        {
            "account": account.id,
            "region": account.region,
            "ours": [item.as_dict() for item in ours],
            "not_ours": [item.as_dict() for item in others],
            "usd_per_hour": None if unknown else round(per_hour, 4),
            "usd_per_hour_at_least": round(per_hour, 4),
            "no_price_known": unknown,
            "overdue": [item.name for item, _ in overdue],
            "rejected_calls": rejected,
            "ledger": str(account.ledger.path),
        },
        *lines,
    )


def _rejected(account: "Account", schedules: set[str]) -> dict[str, str]:
    """Warn about schedules whose calls AWS rejects; return the reason by the schedule's name."""
    from sagemaker_jobs.aws.names import run_of
    from sagemaker_jobs.launch.schedules import rejected_calls

    try:
        count, found = rejected_calls(account)
    except AwsError as error:
        console.note(f"rejected calls of schedules not read: {error.message}")
        return {}
    reasons = {name: reason for name, reason in found.items() if name in schedules}
    for name, reason in reasons.items():
        console.warn(
            f"AWS rejected calls of the schedule {name}: {reason} (the queue {EXPIRY_QUEUE} has {count} rejected "
            f"calls; if the resource is gone, `{account.command('down', run_of(name) or name)}` deletes its schedule)"
        )
    return reasons
