"""`neuron-sum aws train`: jobs of SageMaker's, started and followed to their end."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from neuron_sum import console
from neuron_sum.recipe_command import Overrides, RecipeArgument
from sagemaker_jobs.options import (
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
    from neuron_sum.recipe_loading import load_recipe
    from sagemaker_jobs import following, inputs, pricing, terminal, training
    from sagemaker_jobs.names import Run, new_run
    from sagemaker_jobs.wheelhouse import wheels_for

    resolved = load_recipe(recipe, overrides or [])
    isolation = isolation_of(kms_key, subnet, security_group, network_isolation)
    options = options_of(
        instance, instances, max_hours, max_wait_hours, bucket=bucket, role=role, image=image, isolation=isolation
    )
    account = None if offline and dry_run else terminal.account_in(region, dry_run=dry_run)
    where = account.region if account is not None else region or terminal.DEFAULT_REGION
    number = terminal.number_of(account, dry_run=dry_run)
    run, attempt = new_run(resolved.name), 1
    if resume is not None:
        if account is None or dry_run:
            run, attempt = Run(resume, resolved.name), 2
        else:
            run = training.find_run(account, resume)
            attempt = training.attempts_of(account, run) + 1
    with tempfile.TemporaryDirectory(prefix="neuron-sum-aws-") as scratch:
        wheels = wheels_for(wheelhouse, image, dry_run=dry_run)
        channels = inputs.channels(resolved, Path(scratch), wheels, isolation)
        launch = training.launch(
            run, resolved, options, channels, number, where, attempt=attempt,
            partition=terminal.partition_of(account),
        )  # fmt: skip
        [call] = launch.calls
        priced = pricing.priced({"training-job": call.request}, None if offline else account, expected_hours, 0)
        with terminal.stopping_leaves(run.id, call.name, where):
            ledger = terminal.begin(launch, priced, account, max_usd, dry_run=dry_run)
            if ledger is None or account is None:
                return
            console.note(f"started {call.name}; the ledger is {ledger.path}")
            told = {"run": run.id, "job": call.name, "region": where, "plan": priced.as_dict()}
            if detach:
                console.emit(told, f"started {call.name}\nnext: neuron-sum aws status {run.id} --follow")
                return
            job = following.follow(account, call.name, console.note, every_s=every, price=priced.items[-1].price)
    ledger.note("gone", "training-job", call.name, run.id)
    console.emit(
        {**told, "status": job.status, "seconds": job.seconds, "model": job.model},
        f"trained {run.id} in {console.duration(job.seconds)}: {job.model}\n"
        f"next: aws s3 cp {job.model} . ; neuron-sum aws down {run.id} removes the run's role",
    )
