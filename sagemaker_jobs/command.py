"""`neuron-sum aws …`: the group, and what its commands say."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError, Interrupted, MissingExtraError
from neuron_sum.recipe_command import Overrides, RecipeArgument
from sagemaker_jobs.options import (
    BucketOption,
    CapOption,
    EveryOption,
    ExpectedOption,
    GroupOption,
    HoursOption,
    ImageOption,
    InstanceOption,
    InstancesOption,
    IsolatedOption,
    KeyOption,
    OfflineOption,
    RegionOption,
    RoleOption,
    RunArgument,
    SpotOption,
    SubnetOption,
    isolation_of,
    options_of,
)

if TYPE_CHECKING:
    from sagemaker_jobs.account import Account
    from sagemaker_jobs.names import Run

aws = typer.Typer(no_args_is_help=True, help="SageMaker: what a run costs, training jobs, and leaving nothing behind.")

DEFAULT_REGION = "us-east-1"


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
    max_usd: CapOption = None,
    region: RegionOption = None,
    offline: OfflineOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the requests that are priced, too.")] = False,
) -> None:
    """Price a recipe's life in AWS, at worst and as expected, before anything is started."""
    from neuron_sum.recipe_loading import load_recipe
    from sagemaker_jobs import plan as planning
    from sagemaker_jobs import pricing, tables
    from sagemaker_jobs.names import new_run

    resolved = load_recipe(recipe, overrides or [])
    account = None if offline else _account_or_none(region)
    where = account.region if account is not None else region or DEFAULT_REGION
    requests = pricing.planned_requests(
        new_run(resolved.name), where,
        train=(instance, instances, max_hours), compiling=(compile_instance, compile_hours),
        endpoint=(endpoint_instance, endpoint_hours),
    )  # fmt: skip
    made = pricing.priced(requests, account, expected_hours, endpoint_hours)
    beside = planning.elsewhere(made, resolved)
    result = {
        "recipe": resolved.name, "region": where, **made.as_dict(),
        "elsewhere": [vars(row) for row in beside],
        "published": [vars(row) for row in planning.published()],
        **({"requests": requests} if dry_run else {}),
    }  # fmt: skip
    shown = tables.plan_tables(made, f"{resolved.name} in {where}")
    if max_usd is not None and made.worst_usd > max_usd:
        console.note_table(shown[0])
    made.check(max_usd)
    extra = [_json(requests)] if dry_run else []
    following = f"next: neuron-sum aws train {recipe} --instance {instance} --max-hours {max_hours:g}"
    console.emit(result, *shown, *tables.beside_tables(beside, planning.published()), *extra, following)


@aws.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    instance: InstanceOption = "ml.trn1.2xlarge",
    instances: InstancesOption = 1,
    max_hours: HoursOption = 4.0,
    max_wait_hours: SpotOption = None,
    max_usd: CapOption = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on from that run's last checkpoint.")] = None,
    bucket: BucketOption = None,
    role: RoleOption = None,
    image: ImageOption = None,
    wheelhouse: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Wheels for the image. Default: built now.")
    ] = None,
    kms_key: KeyOption = None,
    subnet: SubnetOption = None,
    security_group: GroupOption = None,
    network_isolation: IsolatedOption = False,
    region: RegionOption = None,
    expected_hours: ExpectedOption = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start the job and do not wait for it.")] = False,
    every: EveryOption = 15.0,
    offline: OfflineOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print every request; send and write nothing.")] = False,
) -> None:
    """Train a recipe on SageMaker, and follow the job to its end."""
    from neuron_sum.recipe_loading import load_recipe
    from sagemaker_jobs import following, inputs, pricing, tables, training
    from sagemaker_jobs.ledger import Ledger
    from sagemaker_jobs.names import Run, new_run

    resolved = load_recipe(recipe, overrides or [])
    isolation = isolation_of(kms_key, subnet, security_group, network_isolation)
    options = options_of(
        instance, instances, max_hours, max_wait_hours, bucket=bucket, role=role, image=image, isolation=isolation
    )
    account = None if offline and dry_run else _account(region, dry_run=dry_run)
    where = account.region if account is not None else region or DEFAULT_REGION
    number = _number(account, dry_run=dry_run)
    run, attempt = new_run(resolved.name), 1
    if resume is not None:
        if account is None or dry_run:
            run, attempt = Run(resume, resolved.name), 2
        else:
            run = training.find_run(account, resume)
            attempt = training.attempts_of(account, run) + 1
    with tempfile.TemporaryDirectory(prefix="neuron-sum-aws-") as scratch:
        wheels = wheelhouse or (None if dry_run or image is not None else _built_wheelhouse())
        channels = inputs.channels(resolved, Path(scratch), wheels, isolation)
        launch = training.launch(
            run, resolved, options, channels, number, where, attempt=attempt,
            partition=account.partition if account is not None else "aws",
        )  # fmt: skip
        priced = pricing.priced(
            {"training-job": launch.job_call.request}, None if offline else account, expected_hours, 0
        )
        if dry_run:
            priced.check(max_usd)
            if wheels is None and image is None:
                console.note("a real start builds a wheelhouse first, and uploads it as one more channel")
            made = {"run": run.id, "plan": priced.as_dict(), "requests": launch.as_dicts()}
            console.emit(made, *tables.plan_tables(priced, "dry run: nothing was sent"), _json(launch.as_dicts()))
            return
        assert account is not None  # only a dry run goes without
        console.note_table(tables.plan_tables(priced, f"run {run.id}")[0])
        priced.check(max_usd)
        ledger = Ledger(number, where)
        with _stopping_leaves(run, launch.job_call.name, where):
            with console.progress("uploaded bytes", sum(channel.size for channel in launch.channels)) as bar:
                name = training.start(account, ledger, launch, bar.advance)
            console.note(f"started {name}; the ledger is {ledger.path}")
            told = {"run": run.id, "job": name, "region": where, "plan": priced.as_dict()}
            if detach:
                console.emit(told, f"started {name}\nnext: neuron-sum aws status {run.id} --follow")
                return
            job = following.follow(account, name, console.note, every_s=every, price=priced.items[-1].price)
    ledger.note("gone", "training-job", name, run.id)
    console.emit(
        {**told, "status": job.status, "seconds": job.seconds, "model": job.model},
        f"trained {run.id} in {console.duration(job.seconds)}: {job.model}\n"
        f"next: aws s3 cp {job.model} . ; neuron-sum aws down {run.id} removes the run's role",
    )


@aws.command()
def status(
    run: RunArgument = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for the run's job, with its log.")] = False,
    region: RegionOption = None,
    every: EveryOption = 15.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the requests; send nothing.")] = False,
) -> None:
    """List what of ours is there with age and cost an hour, and what else runs by the hour."""
    from sagemaker_jobs import following, inventory, tables, training
    from sagemaker_jobs.ledger import Ledger

    if dry_run:
        _emit_reads(_STATUS_READS)
        return
    account = _account(region)
    ledger = Ledger(account.id, account.region)
    if follow:
        if run is None:
            raise AwsError("--follow needs to know which run", "neuron-sum aws status RUN --follow")
        name = training.last_job(account, run)
        try:
            job = following.follow(account, name, console.note, every_s=every)
        except KeyboardInterrupt:
            raise _left_running(run, name) from None
        console.emit({"run": run, "job": job.name, "status": job.status, "model": job.model},
                     f"{job.name} completed: {job.model}")  # fmt: skip
        return
    ours = [*inventory.running_jobs(account, ledger, run), *inventory.roles(account, ledger, run)]
    others = [] if run is not None else inventory.not_ours(account)
    per_hour = sum(item.usd_per_hour or 0.0 for item in [*ours, *others])
    told = [
        tables.found_table(ours, f"ours in {account.region}") if ours else f"nothing of ours runs in {account.region}",
        *([tables.found_table(others, "not ours, and paid by the hour")] if others else []),
        f"${per_hour:.2f} an hour in all; the ledger is {ledger.path}",
    ]
    console.emit(
        {
            "account": account.id, "region": account.region, "ours": [item.as_dict() for item in ours],
            "not_ours": [item.as_dict() for item in others], "usd_per_hour": round(per_hour, 4),
            "ledger": str(ledger.path),
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
    from sagemaker_jobs import down as clearing
    from sagemaker_jobs import tables
    from sagemaker_jobs.ledger import Ledger
    from sagemaker_jobs.names import bucket_name

    if run is not None and everything:
        raise AwsError(f"both run {run!r} and --all", "give one of the two")
    if run is None and not everything and not check:
        raise AwsError("no run", "neuron-sum aws down RUN, or --all for every run of the account in this region")
    account = _account(region)
    ledger = Ledger(account.id, account.region)
    own = bucket_name(account.id, account.region)
    where = bucket or own
    if check or dry_run:
        remaining = clearing.left(account, ledger, run)
        kept = clearing.stored(account, where, run)
        told = {"left": [item.as_dict() for item in remaining], "artifacts": [each.as_dict() for each in kept]}
        if check and remaining:
            listing = ", ".join(f"{item.kind} {item.name}" for item in remaining)
            raise AwsError(f"something of ours is left: {listing}", f"neuron-sum aws down {run or '--all'}")
        told_left = tables.found_table(remaining, "would be removed") if remaining else "nothing of ours is left"
        console.emit(told, told_left, *map(str, kept))
        return
    removed = clearing.remove(account, ledger, run, console.note, every_s=every)
    kept = clearing.stored(account, where, run)
    if artifacts:
        clearing.remove_artifacts(account, ledger, where, run, whole_bucket=where == own)
    remaining = clearing.left(account, ledger, run)
    if remaining:
        listing = ", ".join(f"{item.kind} {item.name}" for item in remaining)
        raise AwsError(f"still there: {listing}", f"neuron-sum aws down {run or '--all'}, once more")
    what = "deleted" if artifacts else "kept (--artifacts deletes them)"
    console.emit(
        {
            "removed": [item.as_dict() for item in removed],
            "artifacts": [each.as_dict() for each in kept], "artifacts_deleted": artifacts,
        },
        f"removed {len(removed)}; nothing of {run or 'ours'} is left in {account.region}",
        *(f"{what}: {each}" for each in kept),
    )  # fmt: skip


@aws.command()
def iam(
    account_id: Annotated[str | None, typer.Option("--account", help="Default: that of the credentials.")] = None,
    bucket: BucketOption = None,
    region: RegionOption = None,
    kms_key: KeyOption = None,
    subnet: SubnetOption = None,
    security_group: GroupOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="The same: this command changes nothing.")] = False,
) -> None:
    """Print the least-privilege policies of the job's role and of whoever runs these commands."""
    from sagemaker_jobs import iam as policies
    from sagemaker_jobs.names import bucket_name

    account = None if account_id is not None else _account(region)
    number = account_id or (account.id if account is not None else "")
    where = account.region if account is not None else region or DEFAULT_REGION
    isolation = isolation_of(kms_key, subnet, security_group, False)
    isolation.check()
    name, partition = bucket or bucket_name(number, where), account.partition if account is not None else "aws"
    made = {
        "role": {
            "trust": policies.trust_policy(number),
            "policy": policies.job_policy(number, where, name, isolation=isolation, partition=partition),
        },
        "caller": policies.caller_policy(number, where, name, partition=partition),
    }
    console.emit(made, _json(made))


_STATUS_READS = (
    ("sts", "get_caller_identity"), ("sagemaker", "list_training_jobs"), ("sagemaker", "list_tags"),
    ("sagemaker", "describe_training_job"), ("iam", "list_roles"), ("sagemaker", "list_notebook_instances"),
    ("sagemaker", "list_apps"),
)  # fmt: skip


def _emit_reads(reads: tuple[tuple[str, str], ...]) -> None:
    made = [{"service": service, "operation": operation} for service, operation in reads]
    console.emit({"requests": made}, "only reads:", _json(made))


def _account(region: str | None, *, dry_run: bool = False) -> "Account":
    from sagemaker_jobs.account import Account

    if dry_run and region is None and not os.environ.get("AWS_REGION") and not os.environ.get("AWS_DEFAULT_REGION"):
        region = DEFAULT_REGION
    return Account(region)


def _account_or_none(region: str | None) -> "Account | None":
    """The account where it can be asked for prices; a plan needs none."""
    try:
        account = _account(region)
        account.id  # noqa: B018 - one cheap call says whether the credentials hold
    except (AwsError, MissingExtraError) as error:
        console.note(f"prices are the shipped table's: {error.message}")
        return None
    return account


def _number(account: "Account | None", *, dry_run: bool) -> str:
    """The account's twelve digits; in a dry run without credentials, ones that stand for them."""
    from sagemaker_jobs.pricing import ANY_ACCOUNT

    if account is not None:
        try:
            return account.id
        except AwsError as error:
            if not dry_run:
                raise
            console.note(f"the account is shown as {ANY_ACCOUNT}: {error.message}")
    return ANY_ACCOUNT


def _built_wheelhouse() -> Path:
    from neuron_sum import __version__, files
    from sagemaker_jobs import wheelhouse

    folder = files.cache_folder() / "wheelhouse" / __version__
    folder.parent.mkdir(parents=True, exist_ok=True)
    return wheelhouse.build(folder)


@contextmanager
def _stopping_leaves(run: "Run", job: str, region: str) -> Iterator[None]:
    """Ctrl-C leaves the job alone, and says how to come back and how to stop; an error says how to clean up."""
    try:
        yield
    except KeyboardInterrupt:
        raise _left_running(run.id, job) from None
    except AwsError as error:
        if error.hint is None or "aws down" not in error.hint:
            hint = f"{error.hint}; " if error.hint else ""
            error.hint = f"{hint}neuron-sum aws down {run.id} --region {region} removes what was made"
        raise


def _left_running(run: str, job: str) -> Interrupted:
    return Interrupted(
        f"left {job} as it is; if it has started, it goes on and is paid",
        f"neuron-sum aws status {run} --follow comes back to it, neuron-sum aws down {run} stops it",
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
