"""`neuron-sum aws …`: the group, and what its commands say."""

import json
import re
from typing import Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from neuron_sum.recipes.command import Overrides, RecipeArgument
from sagemaker_jobs.commands.batch import batch
from sagemaker_jobs.commands.endpoints import deploy, extend, invoke
from sagemaker_jobs.commands.image import image
from sagemaker_jobs.commands.jobs import compile_run, train
from sagemaker_jobs.commands.models import models
from sagemaker_jobs.commands.options import (
    BucketOption,
    CapOption,
    EveryOption,
    ExpectedOption,
    GroupOption,
    HoursOption,
    InstanceOption,
    InstancesOption,
    KeyOption,
    OfflineOption,
    ProjectionOption,
    RegionOption,
    RoleOption,
    RunArgument,
    SubnetOption,
    expected_of,
    isolation_of,
)
from sagemaker_jobs.commands.rehearse import rehearse

aws = typer.Typer(no_args_is_help=True, help="SageMaker: what a run costs, training jobs, and leaving nothing behind.")


@aws.command()
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    instance: InstanceOption = "ml.trn1.2xlarge",
    instances: InstancesOption = 1,
    max_hours: HoursOption = 4.0,
    endpoint_instance: Annotated[str, typer.Option(help="ml.inf2.xlarge, or a CPU.")] = "ml.inf2.xlarge",
    endpoint_hours: Annotated[
        float, typer.Option(min=0, help="An endpoint's life, which AWS's own scheduler ends; 0: no endpoint.")
    ] = 2.0,
    compile_instance: Annotated[str, typer.Option(help="A CPU or a Trainium instance.")] = "ml.c7i.4xlarge",
    compile_hours: Annotated[float, typer.Option(min=0, help="0: no compile.")] = 2.0,
    expected_hours: ExpectedOption = None,
    projection: ProjectionOption = None,
    max_usd: CapOption = None,
    region: RegionOption = None,
    offline: OfflineOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the requests that are priced, too.")] = False,
) -> None:
    """Price a recipe's life in AWS, at worst and as expected, before anything is started."""
    from neuron_sum.recipes.loading import load_recipe
    from sagemaker_jobs.aws.names import new_run
    from sagemaker_jobs.commands import session as terminal
    from sagemaker_jobs.commands import tables
    from sagemaker_jobs.cost import lifetime
    from sagemaker_jobs.cost import plan as planning

    resolved = load_recipe(recipe, overrides or [])
    expected_hours, expected_from = expected_of(expected_hours, projection, resolved, instance, instances)
    account = None if offline else terminal.account_or_none(region)
    site = terminal.unasked_site(region) if account is None else account.site
    requests = lifetime.planned_requests(
        new_run(resolved.name), site,
        train=(instance, instances, max_hours), compiling=(compile_instance, compile_hours),
        endpoint=(endpoint_instance, endpoint_hours),
    )  # fmt: skip
    made = lifetime.priced(requests, account, expected_hours, endpoint_hours, site.region)
    beside = planning.elsewhere(made, resolved)
    result = {
        "recipe": resolved.name, "region": site.region, **made.as_dict(), "expected_from": expected_from,
        "elsewhere": [vars(row) for row in beside],
        "published": [vars(row) for row in planning.published()],
        **({"requests": requests} if dry_run else {}),
    }  # fmt: skip
    shown = tables.plan_tables(made, f"{resolved.name} in {site.region}")
    if max_usd is not None and made.worst_usd > max_usd:
        console.note_table(shown[0])
    made.check(max_usd)
    extra = [terminal.as_json(requests)] if dry_run else []
    following = f"next: neuron-sum aws train {recipe} --instance {instance} --max-hours {max_hours:g}"
    told = [f"expected: {expected_from}"] if expected_from else []
    console.emit(result, *shown, *told, *tables.beside_tables(beside, planning.published()), *extra, following)


aws.command()(image)
aws.command()(train)
aws.command()(deploy)
aws.command()(extend)
aws.command()(invoke)
aws.command()(models)
aws.command("compile")(compile_run)
aws.command()(batch)
aws.command()(rehearse)


@aws.command()
def status(
    run: RunArgument = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for the run's job, with its log.")] = False,
    region: RegionOption = None,
    every: EveryOption = 15.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the requests; send nothing.")] = False,
) -> None:
    """List what of ours is there with age and cost an hour, and what else runs by the hour."""
    from sagemaker_jobs.aws.ledger import Ledger
    from sagemaker_jobs.aws.names import run_meant
    from sagemaker_jobs.cleanup import inventory
    from sagemaker_jobs.commands import session as terminal
    from sagemaker_jobs.commands import tables
    from sagemaker_jobs.image import build as images
    from sagemaker_jobs.image import follow as builds
    from sagemaker_jobs.jobs import follow as following
    from sagemaker_jobs.jobs import training

    run = None if run is None else run_meant(run)
    if dry_run:
        terminal.emit_reads(_STATUS_READS)
        return
    account = terminal.account_in(region)
    ledger = Ledger(account.site)
    if follow:
        if run is None:
            raise AwsError("--follow needs to know which run", "neuron-sum aws status RUN --follow")
        if run.startswith("image-") and (build := builds.of_run(account, run)) is not None:
            with terminal.coming_back(run, build, account.region):
                ended = builds.follow(account, build, console.note, every_s=every)
            images.emit_built(account, ledger, run, ended, {"run": run, "build": build, "region": account.region})
            return
        name, kind = training.last_job(account, run)
        with terminal.coming_back(run, name, account.region):
            job = following.follow(account, name, console.note, every_s=every, kind=kind)
        left = f"neuron-sum aws down {run} removes what the run has left"
        console.emit(
            {"run": run, "job": job.name, "status": job.status, "model": job.model, "output": job.output, "next": left},
            f"{job.name} completed: {job.output}\nnext: {left}",
        )
        return
    account.hurry()
    there = inventory.look(account, ledger, run)
    ours = there.things
    others, not_listed = ([], []) if run is not None else inventory.not_ours(account)
    for message in dict.fromkeys(refused.message for refused in [*there.refused, *not_listed]):
        console.warn(f"not all could be looked at: {message}")
    per_hour = sum(item.usd_per_hour or 0.0 for item in [*ours, *others])
    unknown = [f"{item.kind} {item.name}" for item in [*ours, *others] if item.usd_per_hour is None]
    in_all = f"at least ${per_hour:.2f} an hour; no price known for {len(unknown)}" if unknown else (
        f"${per_hour:.2f} an hour in all"
    )  # fmt: skip
    told = [
        tables.found_table(ours, f"ours in {account.region}") if ours else f"nothing of ours runs in {account.region}",
        *([tables.found_table(others, "not ours, and paid by the hour")] if others else []),
        f"{in_all}; the ledger is {ledger.path}",
    ]
    console.emit(
        {
            "account": account.id, "region": account.region, "ours": [item.as_dict() for item in ours],
            "not_ours": [item.as_dict() for item in others],
            "usd_per_hour": None if unknown else round(per_hour, 4), "usd_per_hour_at_least": round(per_hour, 4),
            "no_price_known": unknown, "ledger": str(ledger.path),
        },
        *told,
    )  # fmt: skip


@aws.command()
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
    from sagemaker_jobs.aws.names import run_meant
    from sagemaker_jobs.cleanup import artifacts as storage
    from sagemaker_jobs.cleanup import down as clearing
    from sagemaker_jobs.commands import session as terminal
    from sagemaker_jobs.commands import tables

    run = None if run is None else run_meant(run)
    if run is not None and everything:
        raise AwsError(f"both run {run!r} and --all", "give one of the two")
    if run is None and not everything and not check:
        raise AwsError("no run", "neuron-sum aws down RUN, or --all for every run of the account in this region")
    account = terminal.account_in(region)
    ledger = Ledger(account.site)
    own = account.site.bucket
    where = bucket or own
    account.hurry()
    if run is not None:
        clearing.check_known(account, ledger, where, run)
    if check or dry_run:
        remaining = clearing.left(account, ledger, run)
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
    remaining = clearing.left(account, ledger, run)
    if remaining:
        listing = ", ".join(f"{item.kind} {item.name}" for item in remaining)
        raise AwsError(f"still there: {listing}", f"neuron-sum aws down {run or '--all'}, once more")
    what = "deleted" if artifacts else "kept (--artifacts deletes them)"
    console.emit(
        {
            "removed": [item.as_dict() for item in removed],
            "artifacts": [each.as_dict() for each in kept], "artifacts_deleted": artifacts,
            "stays": stays,
        },
        f"removed {len(removed)}; nothing of {run or 'ours'} is left in {account.region}",
        *(f"{what}: {each}" for each in kept),
        *(f"stays: {each}" for each in stays),
    )  # fmt: skip


@aws.command()
def iam(
    account_id: Annotated[str | None, typer.Option("--account", help="Default: that of the credentials.")] = None,
    bucket: BucketOption = None,
    region: RegionOption = None,
    role: RoleOption = None,
    kms_key: KeyOption = None,
    subnet: SubnetOption = None,
    security_group: GroupOption = None,
    reads: Annotated[
        list[str] | None,
        typer.Option(metavar="S3", help="An address of yours, s3://…, that commands are given; may be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="The same: this command changes nothing.")] = False,
) -> None:
    """Print the least-privilege policies of every role, and of whoever runs these commands."""
    from sagemaker_jobs.aws.caller_policy import MANAGED_POLICY, caller_policy
    from sagemaker_jobs.aws.policies import role_policies
    from sagemaker_jobs.commands import session as terminal

    site = terminal.account_in(region).site if account_id is None else terminal.unasked_site(region, account_id)
    isolation = isolation_of(kms_key, subnet, security_group, False)
    isolation.check()
    name, theirs = bucket or site.bucket, reads or []
    if wrong := [address for address in theirs if not re.match("s3://[^/]", address)]:
        raise AwsError(f"--reads {wrong[0]} is no address in S3", "--reads s3://BUCKET/PREFIX/")
    made = {
        "roles": role_policies(site, name, isolation, theirs),
        "caller": caller_policy(site, name, kms_key=kms_key, role_arn=role, reads=theirs),
    }
    if (length := len(json.dumps(made["caller"], separators=(",", ":")))) > MANAGED_POLICY:
        console.warn(
            f"the caller's policy has {length:,} characters, and a managed policy may have {MANAGED_POLICY:,}: "
            "attach its statements as two"
        )
    console.emit(made, terminal.as_json(made))


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
