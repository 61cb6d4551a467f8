"""`neuron-sum aws down`: deletes the resources of a run or of all runs."""

from typing import Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.launch.options import EveryOption, RegionOption, RunArgument


def down(
    run: RunArgument = None,
    everything: Annotated[bool, typer.Option("--all", help="Delete every run in this account and region.")] = False,
    artifacts: Annotated[
        bool, typer.Option("--artifacts", help="Also delete trained models, checkpoints, inputs and logs.")
    ] = False,
    captured: Annotated[bool, typer.Option("--captured", help="Also delete captured requests.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Delete nothing; exit with 14 if any resource remains.")
    ] = False,
    region: RegionOption = None,
    every: EveryOption = 5.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the resources; delete nothing.")] = False,
) -> None:
    """Stop and delete the resources of a run; trained models are kept unless you pass --artifacts."""
    from sagemaker_jobs.aws.names import CAPTURED, parse_run_id
    from sagemaker_jobs.cleanup import artifacts as storage
    from sagemaker_jobs.cleanup import down as clearing
    from sagemaker_jobs.cleanup import inventory
    from sagemaker_jobs.cleanup.registered import known_entries
    from sagemaker_jobs.commands import session, tables

    run = None if run is None else parse_run_id(run, region)
    if run is not None and everything:
        raise AwsError(f"run {run!r} and --all cannot be combined", "Use one of them.")
    if run is None and not everything and not check:
        raise AwsError(
            "missing argument RUN",
            f"Run `{console.command('aws', 'down', 'RUN', region=region)}`, or use --all for every run in this region.",
        )
    account = session.account_in(region, short_timeouts=True, every_s=every)
    if check or dry_run:
        if run is not None:
            clearing.check_known(account, run)
        remaining = clearing.remaining_resources(account, run)
        stored, entries = storage.stored(account, run), known_entries(account, run)
        report = {
            "left": [item.as_dict() for item in remaining],
            "artifacts": [each.as_dict() for each in stored],
            "registered": [entry.as_dict() for entry in entries],
        }
        if check and remaining:
            listing = ", ".join(f"{item.kind} {item.name}" for item in remaining)
            raise AwsError(f"resources remain: {listing}", f"Run `{account.command('down', run or '--all')}`.")
        shown = tables.resource_table(remaining, "would be removed") if remaining else "no resources remain"
        console.emit(report, shown, *map(str, stored), *(f"stays: {entry}" for entry in entries))
        return
    removed = clearing.delete(
        account, inventory.look(account, run)
    )  # before all other requests, because it ends what is billed
    if run is not None and not removed:
        clearing.check_known(account, run)
    stored, entries = storage.stored(account, run), known_entries(account, run)
    deleted = stored if artifacts else [each for each in stored if captured and f"/{CAPTURED}" in each.address]
    skipped = storage.remove_artifacts(deleted)
    remaining = clearing.remaining_resources(account, run)
    if remaining:
        listing = ", ".join(f"{item.kind} {item.name}" for item in remaining)
        again = account.command("down", run or "--all", artifacts=artifacts, captured=captured)
        raise AwsError(f"resources remain: {listing}", f"Run `{again}` again.")
    kept = [each for each in stored if each not in deleted]
    console.emit(
        {
            "removed": [item.as_dict() for item in removed],
            "artifacts": [each.as_dict() for each in (stored if artifacts else kept)],
            "artifacts_deleted": artifacts,
            "stays": skipped,
            "registered": [entry.as_dict() for entry in entries],
        },
        f"removed {len(removed)}; no resources of {run or 'any run'} remain in {account.region}",
        *(f"deleted: {each}" for each in deleted),
        *(f"kept (--artifacts deletes them): {each}" for each in kept),
        *(f"not deleted: {each}" for each in skipped),
        *(f"stays: {entry}" for entry in entries),
    )
