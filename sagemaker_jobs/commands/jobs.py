"""`neuron-sum aws train` and `aws compile`: training jobs of SageMaker's, started and followed to their end."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from neuron_sum import console
from neuron_sum.recipes.command import Overrides, RecipeArgument, SetOption
from sagemaker_jobs.commands.options import (
    BucketOption,
    CapOption,
    DetachOption,
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
    RequestsOption,
    RoleOption,
    SpotOption,
    SubnetOption,
    WheelhouseOption,
    isolation_of,
    options_of,
)

if TYPE_CHECKING:
    from sagemaker_jobs.aws.account import Account
    from sagemaker_jobs.jobs.follow import Job
    from sagemaker_jobs.launch.start import Launch


def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    sets: SetOption = None,
    instance: InstanceOption = "ml.trn1.2xlarge",
    instances: InstancesOption = 1,
    max_hours: HoursOption = 4.0,
    max_wait_hours: SpotOption = None,
    max_usd: CapOption = None,
    resume: Annotated[str | None, typer.Option(metavar="RUN", help="Go on from that run's last checkpoint.")] = None,
    bucket: BucketOption = None,
    role: RoleOption = None,
    image: ImageOption = None,
    wheelhouse: WheelhouseOption = None,
    kms_key: KeyOption = None,
    subnet: SubnetOption = None,
    security_group: GroupOption = None,
    network_isolation: IsolatedOption = False,
    region: RegionOption = None,
    expected_hours: ExpectedOption = None,
    detach: DetachOption = False,
    every: EveryOption = 15.0,
    offline: OfflineOption = False,
    dry_run: RequestsOption = False,
) -> None:
    """Train a recipe on SageMaker, and follow the job to its end."""
    from neuron_sum.recipes.loading import load_recipe
    from sagemaker_jobs.aws.names import Run, new_run
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.jobs import inputs, training
    from sagemaker_jobs.jobs.wheelhouse import wheels_for

    resolved = load_recipe(recipe, [*(overrides or []), *(sets or [])])
    isolation = isolation_of(kms_key, subnet, security_group, network_isolation)
    options = options_of(
        instance, instances, max_hours, max_wait_hours, bucket=bucket, role=role, image=image, isolation=isolation
    )
    account, site = session.caller(region, offline=offline, dry_run=dry_run)
    run, attempt = new_run(resolved.name), 1
    if resume is not None:
        if account is None or dry_run:
            run, attempt = Run(resume, resolved.name), 2
        else:
            run = training.find_run(account, resume)
            attempt = training.next_attempt(account, run)
    with tempfile.TemporaryDirectory(prefix="neuron-sum-aws-") as scratch:
        wheels = wheels_for(wheelhouse, image, dry_run=dry_run)
        channels = inputs.channels(resolved, Path(scratch), wheels, isolation)
        launch = training.launch(run, resolved, options, channels, site, attempt=attempt)
        _send_and_follow(
            launch,
            account,
            offline=offline,
            expected_hours=expected_hours,
            max_usd=max_usd,
            detach=detach,
            every=every,
            dry_run=dry_run,
            done=lambda job: (
                f"trained {run.id} in {console.duration(job.seconds)}: {job.model}\n"
                f"next: neuron-sum aws compile {run.id}; neuron-sum aws down {run.id} removes the run's role"
            ),
        )


def compile_run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A run trained here (as `aws train` printed it), s3://…/model.tar.gz, or a folder."
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, such as compile.batch_sizes=[1,8].")
    ] = None,
    sets: SetOption = None,
    target: Annotated[Literal["cpu", "inf2", "trn1"], typer.Option(help="Where it will run.")] = "inf2",
    instance: InstanceOption = "ml.c7i.4xlarge",
    max_hours: HoursOption = 2.0,
    max_wait_hours: SpotOption = None,
    max_usd: CapOption = None,
    bucket: BucketOption = None,
    role: RoleOption = None,
    image: ImageOption = None,
    wheelhouse: WheelhouseOption = None,
    kms_key: KeyOption = None,
    subnet: SubnetOption = None,
    security_group: GroupOption = None,
    network_isolation: IsolatedOption = False,
    region: RegionOption = None,
    expected_hours: ExpectedOption = None,
    detach: DetachOption = False,
    every: EveryOption = 15.0,
    offline: OfflineOption = False,
    dry_run: RequestsOption = False,
) -> None:
    """Compile a trained run on SageMaker into the model.tar.gz that an endpoint loads."""
    from sagemaker_jobs.aws.names import Run
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.jobs import compiling, inputs, requests, training
    from sagemaker_jobs.jobs.wheelhouse import wheels_for
    from sagemaker_jobs.launch.start import place_of

    changes = (*(overrides or ()), *(sets or ()))
    isolation = isolation_of(kms_key, subnet, security_group, network_isolation)
    options = options_of(
        instance, 1, max_hours, max_wait_hours, bucket=bucket, role=role, image=image, isolation=isolation
    )
    account, site = session.caller(region, offline=offline, dry_run=dry_run)
    usual = place_of(Run(source, ""), site, bucket=bucket)
    with tempfile.TemporaryDirectory(prefix="neuron-sum-aws-") as scratch:
        found = compiling.find(
            source,
            None if dry_run else account,
            usual,
            (*changes, f"compile.target={target}"),
            isolation,
            Path(scratch),
        )
        wheels = wheels_for(wheelhouse, image, dry_run=dry_run)
        launch = training.job_launch(
            found.run,
            "compile",
            requests.compile_arguments(target, changes),
            options,
            [*found.channels, *inputs.code_channels(wheels)],
            site,
            addresses=found.addresses,
            attempt=found.attempt,
        )
        run = found.run.id
        _send_and_follow(
            launch,
            account,
            offline=offline,
            expected_hours=expected_hours,
            max_usd=max_usd,
            detach=detach,
            every=every,
            dry_run=dry_run,
            done=lambda job: (
                f"compiled {run} for {target} in {console.duration(job.seconds)}: {job.model}\n"
                f"next: neuron-sum aws deploy {run}; neuron-sum aws down {run} removes the run's role"
            ),
        )


def _send_and_follow(
    launch: "Launch",
    account: "Account | None",
    *,
    offline: bool,
    expected_hours: float | None,
    max_usd: float | None,
    detach: bool,
    every: float,
    dry_run: bool,
    done: "Callable[[Job], str]",
) -> None:
    """A launch of one training job, priced, sent, and followed to its end.

    Args:
        launch: What to send.
        account: Where; only a dry run goes without.
        offline: Ask AWS for no prices.
        expected_hours: What somebody expects.
        max_usd: The cap.
        detach: Do not follow it.
        every: Seconds between two looks.
        dry_run: Print every request instead.
        done: What to tell people of the completed job.

    Raises:
        AwsError: If it may cost more, AWS refuses, or the job does not complete.
    """
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.cost import lifetime
    from sagemaker_jobs.jobs import follow as following

    [call] = launch.calls
    run, region = launch.run.id, launch.place.site.region
    priced = lifetime.priced({"training-job": call.request}, None if offline else account, expected_hours, 0)
    with session.stopping_leaves(run, call.name, region):
        ledger = session.begin(launch, priced, account, max_usd, dry_run=dry_run)
        if ledger is None or account is None:
            return
        console.note(f"started {call.name}; the ledger is {ledger.path}")
        told = {"run": run, "job": call.name, "region": region, "plan": priced.as_dict()}
        if detach:
            console.emit(told, f"started {call.name}\nnext: neuron-sum aws status {run} --follow")
            return
        job = following.follow(
            account,
            call.name,
            console.note,
            every_s=every,
            price=priced.items[-1].price,
            on_end=lambda job: ledger.note("gone", "training-job", job.name, run),
        )
    console.emit({**told, "status": job.status, "seconds": job.seconds, "model": job.model}, done(job))
