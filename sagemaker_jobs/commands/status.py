"""`neuron-sum aws status`: the resources of a run or of an account, and following a job."""

from typing import Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.commands.options import EveryOption, RegionOption, RunArgument

_STATUS_READS = (
    ("sts", "get_caller_identity"), ("application-autoscaling", "describe_scalable_targets"),
    ("sagemaker", "list_endpoints"), ("sagemaker", "list_training_jobs"), ("sagemaker", "list_transform_jobs"),
    ("codebuild", "list_projects"), ("codebuild", "batch_get_projects"), ("codebuild", "list_builds_for_project"),
    ("codebuild", "batch_get_builds"), ("sagemaker", "list_endpoint_configs"), ("sagemaker", "list_models"),
    ("scheduler", "list_schedules"), ("iam", "list_roles"), ("sagemaker", "list_tags"),
    ("sagemaker", "describe_endpoint"), ("sagemaker", "describe_endpoint_config"),
    ("sagemaker", "describe_training_job"), ("sagemaker", "describe_transform_job"), ("sagemaker", "describe_model"),
    ("scheduler", "get_schedule"), ("iam", "get_role"), ("sagemaker", "list_notebook_instances"),
    ("sagemaker", "list_apps"),
)  # fmt: skip


def status(
    run: RunArgument = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for the run's job, with its log.")] = False,
    region: RegionOption = None,
    every: EveryOption = 15.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the requests; send nothing.")] = False,
) -> None:
    """List what of ours is there with age and cost an hour, and what else runs by the hour."""
    from sagemaker_jobs.aws.ledger import Ledger
    from sagemaker_jobs.aws.names import parse_run_id
    from sagemaker_jobs.cleanup import inventory
    from sagemaker_jobs.commands import session, tables
    from sagemaker_jobs.commands.image import emit_built
    from sagemaker_jobs.image import follow as builds
    from sagemaker_jobs.jobs import follow as following
    from sagemaker_jobs.jobs import training

    run = None if run is None else parse_run_id(run)
    if dry_run:
        session.emit_reads(_STATUS_READS)
        return
    account = session.account_in(region, short_timeouts=not follow)
    ledger = Ledger(account.site)
    if follow:
        if run is None:
            raise AwsError("--follow needs to know which run", "neuron-sum aws status RUN --follow")
        if run.startswith("image-") and (build := builds.of_run(account, run)) is not None:
            with session.coming_back(run, build, account.region):
                ended = builds.follow(account, build, console.note, every_s=every)
            emit_built(account, ledger, run, ended, {"run": run, "build": build, "region": account.region})
            return
        name, kind = training.last_job(account, run)
        with session.coming_back(run, name, account.region):
            job = following.follow(account, name, console.note, every_s=every, kind=kind)
        left = f"neuron-sum aws down {run} removes what the run has left"
        console.emit(
            {"run": run, "job": job.name, "status": job.status, "model": job.model, "output": job.output, "next": left},
            f"{job.name} completed: {job.output}\nnext: {left}",
        )
        return
    there = inventory.look(account, ledger, run)
    ours = there.things
    others, not_listed = ([], []) if run is not None else inventory.not_ours(account)
    for message in dict.fromkeys(refused.message for refused in [*there.refused, *not_listed]):
        console.warn(f"not all could be looked at: {message}")
    per_hour = sum(item.usd_per_hour or 0.0 for item in [*ours, *others])
    unknown = [f"{item.kind} {item.name}" for item in [*ours, *others] if item.usd_per_hour is None]
    in_all = (
        f"at least ${per_hour:.2f} an hour; no price known for {len(unknown)}"
        if unknown
        else (f"${per_hour:.2f} an hour in all")
    )
    told = [
        tables.found_table(ours, f"ours in {account.region}") if ours else f"nothing of ours runs in {account.region}",
        *([tables.found_table(others, "not ours, and paid by the hour")] if others else []),
        f"{in_all}; the ledger is {ledger.path}",
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
            "ledger": str(ledger.path),
        },
        *told,
    )
