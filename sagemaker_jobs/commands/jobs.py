"""`neuron-sum aws train` and `aws compile`: start a SageMaker training job and follow it until it ends."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from neuron_sum import console
from neuron_sum.console import quote
from neuron_sum.errors import AwsError
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
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Id of a run to resume from its last checkpoint.")
    ] = None,
    bucket: BucketOption = None,
    role: RoleOption = None,
    image: ImageOption = None,
    wheelhouse: WheelhouseOption = None,
    kms_key: KeyOption = None,
    subnet: SubnetOption = None,
    security_group: GroupOption = None,
    network_isolation: IsolatedOption = False,
    encrypt_traffic: Annotated[
        bool, typer.Option("--encrypt-traffic", help="Encrypt the traffic between several instances, which is slower.")
    ] = False,
    region: RegionOption = None,
    expected_hours: ExpectedOption = None,
    detach: DetachOption = False,
    every: EveryOption = 15.0,
    offline: OfflineOption = False,
    dry_run: RequestsOption = False,
) -> None:
    """Train a recipe on SageMaker and follow the job until it ends."""
    from neuron_sum.recipes.loading import load_recipe
    from sagemaker_jobs.aws.names import Run, new_run
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.jobs import inputs, training
    from sagemaker_jobs.jobs.wheelhouse import wheels_for

    resolved = load_recipe(recipe, [*(overrides or []), *(sets or [])])
    isolation = isolation_of(kms_key, subnet, security_group, network_isolation)
    options = options_of(
        instance,
        instances,
        max_hours,
        max_wait_hours,
        bucket=bucket,
        role=role,
        image=image,
        isolation=isolation,
        encrypt_traffic=encrypt_traffic,
    )
    cache = resolved.train.neuron.cache_url or ""
    if cache.startswith("s3://") and role is None:
        raise AwsError(
            f"the role of the job may not use train.neuron.cache_url={cache}",
            "Omit it, because the job keeps its graphs with its checkpoints, or use --role with one that may use it.",
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
            metavar="SOURCE", help="Run id printed by `aws train`, s3://…/model.tar.gz, or the folder of a local run."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Changes to the run's recipe, such as compile.batch_sizes=[1,8]."
        ),
    ] = None,
    sets: SetOption = None,
    target: Annotated[
        Literal["cpu", "inf2", "trn1"], typer.Option(help="Hardware that the model will run on.")
    ] = "inf2",
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
    default_place = place_of(Run(source, ""), site, bucket=bucket)
    with tempfile.TemporaryDirectory(prefix="neuron-sum-aws-") as scratch:
        trained = compiling.find(
            source,
            None if dry_run else account,
            default_place,
            (*changes, f"compile.target={target}"),
            isolation,
            Path(scratch),
        )
        wheels = wheels_for(wheelhouse, image, dry_run=dry_run)
        launch = training.job_launch(
            trained.run,
            "compile",
            requests.compile_arguments(target, changes),
            options,
            [*trained.channels, *inputs.code_channels(wheels)],
            site,
            addresses=trained.addresses,
            hashes=trained.hashes,
            attempt=trained.attempt,
        )
        run = trained.run.id
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
                f"next: neuron-sum aws deploy {quote(run)}; neuron-sum aws down {quote(run)} removes the run's role"
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
    """Price a launch of one training job, send it, and follow the job until it ends.

    Args:
        launch: The requests to send.
        account: The target account; may be None only in a dry run.
        offline: Whether to use the shipped prices instead of the current price list.
        expected_hours: The expected run time in hours, if known.
        max_usd: The maximum cost in USD.
        detach: Whether to return without following the job.
        every: Seconds between status polls.
        dry_run: Whether to print every request instead of sending it.
        done: Called with the completed job; returns the text to print.

    Raises:
        AwsError: If the maximum cost exceeds `max_usd`, AWS refuses, or the job does not complete.
    """
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.cost import lifetime
    from sagemaker_jobs.jobs import follow as following

    [call] = launch.calls
    run, region = launch.run.id, launch.place.site.region
    cost_plan = lifetime.priced({"training-job": call.request}, None if offline else account, expected_hours, 0)
    with session.keep_running(run, call.name, region):
        ledger = session.begin(launch, cost_plan, account, max_usd, dry_run=dry_run)
        if ledger is None or account is None:
            return
        console.note(f"started {call.name}; ledger: {ledger.path}")
        details = {"run": run, "job": call.name, "region": region, "plan": cost_plan.as_dict()}
        if detach:
            console.emit(details, f"started {call.name}\nnext: neuron-sum aws status {quote(run)} --follow")
            return
        job = following.follow(
            account,
            call.name,
            every_s=every,
            price=cost_plan.items[-1].price,
            on_end=lambda job: ledger.note("gone", "training-job", job.name, run),
        )
    console.emit({**details, "status": job.status, "seconds": job.seconds, "model": job.model}, done(job))
