"""`neuron-sum aws down`: deletes the resources of a run or of all runs."""

from typing import Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.commands.options import BucketOption, EveryOption, RegionOption, RunArgument


def down(
    run: RunArgument = None,
    everything: Annotated[bool, typer.Option("--all", help="Every run's, in this account and region.")] = False,
    artifacts: Annotated[
        bool, typer.Option("--artifacts", help="Delete trained models, checkpoints, inputs and logs, too.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Remove nothing; exit with 14 if something is left.")] = False,
    bucket: BucketOption = None,
    region: RegionOption = None,
    every: EveryOption = 5.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed; remove nothing.")] = False,
) -> None:
    """Stop and delete what was made; what was trained stays unless --artifacts."""
    from sagemaker_jobs.aws.ledger import Ledger
    from sagemaker_jobs.aws.names import parse_run_id
    from sagemaker_jobs.cleanup import artifacts as storage
    from sagemaker_jobs.cleanup import down as clearing
    from sagemaker_jobs.commands import session, tables

    run = None if run is None else parse_run_id(run)
    if run is not None and everything:
        raise AwsError(f"both run {run!r} and --all", "give one of the two")
    if run is None and not everything and not check:
        raise AwsError("no run", "neuron-sum aws down RUN, or --all for every run of the account in this region")
    account = session.account_in(region, short_timeouts=True)
    ledger = Ledger(account.site)
    own = account.site.bucket
    where = bucket or own
    if run is not None:
        clearing.check_known(account, ledger, where, run)
    if check or dry_run:
        remaining = clearing.remaining_resources(account, ledger, run)
        kept = storage.stored(account, where, run)
        told = {"left": [item.as_dict() for item in remaining], "artifacts": [each.as_dict() for each in kept]}
        if check and remaining:
            listing = ", ".join(f"{item.kind} {item.name}" for item in remaining)
            raise AwsError(f"something of ours is left: {listing}", f"neuron-sum aws down {run or '--all'}")
        told_left = tables.found_table(remaining, "would be removed") if remaining else "nothing of ours is left"
        console.emit(told, told_left, *map(str, kept))
        return
    removed = clearing.remove(account, ledger, run, console.note, every_s=every)
    kept = storage.stored(account, where, run)
    stays = storage.remove_artifacts(account, ledger, where, run, whole_bucket=where == own) if artifacts else []
    remaining = clearing.remaining_resources(account, ledger, run)
    if remaining:
        listing = ", ".join(f"{item.kind} {item.name}" for item in remaining)
        raise AwsError(f"still there: {listing}", f"neuron-sum aws down {run or '--all'}, once more")
    what = "deleted" if artifacts else "kept (--artifacts deletes them)"
    console.emit(
        {
            "removed": [item.as_dict() for item in removed],
            "artifacts": [each.as_dict() for each in kept],
            "artifacts_deleted": artifacts,
            "stays": stays,
        },
        f"removed {len(removed)}; nothing of {run or 'ours'} is left in {account.region}",
        *(f"{what}: {each}" for each in kept),
        *(f"stays: {each}" for each in stays),
    )
