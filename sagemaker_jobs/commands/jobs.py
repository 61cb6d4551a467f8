"""`neuron-sum aws train` and `aws compile`: start a SageMaker training job and follow it until it ends."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from neuron_sum import console
from neuron_sum.console import quote
from neuron_sum.recipes.command import Overrides, RecipeArgument, SetOption
from sagemaker_jobs.commands.options import (
    CapacityOption,
    HoursOption,
    InstancesOption,
    InstanceTypesOption,
    JobOptions,
    StartOptions,
    expand,
)

if TYPE_CHECKING:
    from sagemaker_jobs.aws.account import Account
    from sagemaker_jobs.jobs.follow import Job
    from sagemaker_jobs.jobs.training import Options
    from sagemaker_jobs.launch.start import Launch
    from sagemaker_jobs.stack.stack import Stack


@expand
def train(
    recipe: RecipeArgument,
    job: JobOptions,
    start: StartOptions,
    overrides: Overrides = None,
    sets: SetOption = None,
    instance: InstanceTypesOption = "ml.trn1.2xlarge",
    instances: InstancesOption = 1,
    max_hours: HoursOption = 4.0,
    capacity_wait_hours: CapacityOption = 0.0,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Id of a run to resume from its last checkpoint.")
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(metavar="ARN", help="MLflow tracking server of SageMaker, for train.report_to=[mlflow]."),
    ] = None,
    encrypt_traffic: Annotated[
        bool, typer.Option("--encrypt-traffic", help="Encrypt the traffic between several instances, which is slower.")
    ] = False,
) -> None:
    """Train a recipe on SageMaker and follow the job until it ends."""
    from neuron_sum.recipes.loading import load_recipe
    from sagemaker_jobs.aws.names import Run, new_run
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.commands.capacity import instance_types
    from sagemaker_jobs.jobs import inputs, training
    from sagemaker_jobs.jobs.wheelhouse import wheels_for

    resolved = load_recipe(recipe, [*(overrides or []), *(sets or [])])
    types = instance_types(instance, detach=start.detach, wait_hours=capacity_wait_hours)
    account, stack = session.caller(start)
    environment = inputs.reporting(resolved, mlflow, stack, isolated=job.network_isolation)
    options = _options(
        types[0], instances, max_hours, job, None if start.dry_run else account, stack, encrypt_traffic=encrypt_traffic
    )
    run, attempt = new_run(resolved.name), 1
    if resume is not None:
        if account is None or start.dry_run:
            run, attempt = Run(resume, resolved.name), 2
        else:
            run = training.find_run(account, resume)
            attempt = training.next_attempt(account, run)
    with tempfile.TemporaryDirectory(prefix="neuron-sum-aws-") as scratch:
        wheels = wheels_for(job.wheelhouse, job.image, dry_run=start.dry_run, report_to=resolved.train.report_to)
        channels = inputs.channels(resolved, Path(scratch), wheels, isolated=job.network_isolation)

        def launch(instance: str, failures: int) -> "Launch":
            chosen = replace(options, instance=instance)
            return training.launch(
                run, resolved, chosen, channels, stack, attempt=attempt + failures, environment=environment
            )

        _carry_out(
            launch,
            types,
            capacity_wait_hours,
            account,
            start,
            job.expected_hours,
            lambda ended: (
                f"trained {run.id} in {console.duration(ended.seconds)}: {ended.model}\n"
                f"next: neuron-sum aws compile {run.id}"
            ),
        )


@expand
def compile_run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Run id printed by `aws train`, s3://…/model.tar.gz, or the folder of a local run."
        ),
    ],
    job: JobOptions,
    start: StartOptions,
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
    instance: InstanceTypesOption = "ml.c7i.4xlarge",
    max_hours: HoursOption = 2.0,
    capacity_wait_hours: CapacityOption = 0.0,
) -> None:
    """Compile a trained run on SageMaker into the model.tar.gz that an endpoint loads."""
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.commands.capacity import instance_types
    from sagemaker_jobs.jobs import compiling, inputs, requests, training
    from sagemaker_jobs.jobs.wheelhouse import wheels_for

    changes = (*(overrides or ()), *(sets or ()))
    types = instance_types(instance, detach=start.detach, wait_hours=capacity_wait_hours)
    account, stack = session.caller(start)
    options = _options(types[0], 1, max_hours, job, None if start.dry_run else account, stack)
    with tempfile.TemporaryDirectory(prefix="neuron-sum-aws-") as scratch:
        trained = compiling.find(
            source,
            None if start.dry_run else account,
            stack,
            (*changes, f"compile.target={target}"),
            Path(scratch),
            isolated=job.network_isolation,
        )
        wheels = wheels_for(job.wheelhouse, job.image, dry_run=start.dry_run)

        def launch(instance: str, failures: int) -> "Launch":
            return training.job_launch(
                trained.run,
                "compile",
                requests.compile_arguments(target, changes),
                replace(options, instance=instance),
                [*trained.channels, *inputs.code_channels(wheels)],
                stack,
                addresses=trained.addresses,
                hashes=trained.hashes,
                attempt=trained.attempt + failures,
            )

        _carry_out(
            launch,
            types,
            capacity_wait_hours,
            account,
            start,
            job.expected_hours,
            lambda ended: (
                f"compiled {trained.run.id} for {target} in {console.duration(ended.seconds)}: {ended.model}\n"
                f"next: neuron-sum aws deploy {quote(trained.run.id)}"
            ),
        )


def _options(
    instance: str,
    instances: int,
    max_hours: float,
    job: JobOptions,
    account: "Account | None",
    stack: "Stack",
    *,
    encrypt_traffic: bool = False,
) -> "Options":
    from sagemaker_jobs.image import registry
    from sagemaker_jobs.jobs.requests import training_image
    from sagemaker_jobs.jobs.training import Options

    return Options(
        instance=instance,
        instances=instances,
        max_runtime_s=round(max_hours * 3600),
        max_wait_s=None if job.max_wait_hours is None else round(job.max_wait_hours * 3600),
        image=registry.pin(account, stack, job.image or training_image(stack.site.region)),
        network_isolation=job.network_isolation,
        encrypt_traffic=encrypt_traffic,
    )


def _carry_out(
    prepare: "Callable[[str, int], Launch]",
    types: tuple[str, ...],
    wait_hours: float,
    account: "Account | None",
    start: StartOptions,
    expected_hours: float | None,
    done: "Callable[[Job], str]",
) -> None:
    """Price, send and follow a training job on the first instance type for which AWS has capacity.

    Args:
        prepare: Returns the launch on an instance type, after a number of failed attempts.
        types: The instance types, in order of preference.
        wait_hours: The hours during which they are tried again.
        account: The target account; may be None only in a dry run.
        start: The options of the command.
        expected_hours: The expected hours; None if unknown.
        done: Returns the text for the completed job.
    """
    from sagemaker_jobs.aws.ledger import Ledger
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.commands.capacity import Attempt, Candidates
    from sagemaker_jobs.cost import lifetime
    from sagemaker_jobs.jobs import follow as following

    def attempt(instance: str, failures: int) -> "Attempt[Job]":
        launch = prepare(instance, failures)
        name = launch["training-job"].name
        plan = lifetime.priced(launch.requests, None if start.offline else account, expected_hours)

        def follow(account: "Account", ledger: Ledger) -> "Job":
            def note_end(job: "Job") -> None:
                ledger.note("gone", "training-job", job.name, launch.run.id)

            price = plan["training-job"].price
            return following.follow(account, name, every_s=start.every, price=price, on_end=note_end)

        return Attempt(launch, plan, name, follow)

    first = prepare(types[0], 0)
    name = first["training-job"].name
    detached = {"job": name}, f"started {name}\nnext: neuron-sum aws status {quote(first.run.id)} --follow"
    result = session.carry_out(Candidates(attempt, types, wait_hours), account, start, detached=detached)
    if result is not None:
        details, job = result
        instance = job.described["ResourceConfig"]["InstanceType"]
        ended = {"instance": instance, "status": job.status, "seconds": job.seconds, "model": job.model}
        console.emit({**details, "job": job.name, **ended}, done(job))
