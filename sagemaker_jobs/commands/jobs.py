"""`neuron-sum aws train` and `aws compile`: start a SageMaker training job and follow it until it ends."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from neuron_sum import console
from neuron_sum.recipes.command import Overrides, RecipeArgument, SetOption
from sagemaker_jobs.launch.options import JobOptions, StartOptions, TrainOptions, expand

if TYPE_CHECKING:
    from sagemaker_jobs.aws.account import Account
    from sagemaker_jobs.cost.plan import Item
    from sagemaker_jobs.jobs.follow import Job
    from sagemaker_jobs.launch.start import Launch
    from sagemaker_jobs.stack.stack import Stack


@expand
def train(
    recipe: RecipeArgument,
    job: TrainOptions,
    start: StartOptions,
    overrides: Overrides = None,
    sets: SetOption = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Id of a run to resume from its last checkpoint.")
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(metavar="ARN", help="MLflow tracking server of SageMaker, for train.report_to=[mlflow]."),
    ] = None,
) -> None:
    """Train a recipe on SageMaker and follow the job until it ends."""
    from neuron_sum.recipes.loading import load_recipe
    from sagemaker_jobs.aws.names import Run, new_run
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.commands.capacity import instance_types
    from sagemaker_jobs.jobs import inputs, training
    from sagemaker_jobs.jobs.wheelhouse import wheels_for

    resolved = load_recipe(recipe, [*(overrides or []), *(sets or [])])
    types = instance_types(job.instance, detach=start.detach, wait_hours=job.capacity_wait_hours)
    account, stack = session.caller(start)
    environment = inputs.reporting(resolved, mlflow, stack, isolated=job.network_isolation)
    image = _image(job, None if start.dry_run else account, stack)
    run, attempt = new_run(resolved.name), 1
    with ExitStack() as starting, tempfile.TemporaryDirectory(prefix="neuron-sum-aws-") as scratch:
        if resume is not None:
            if account is None or start.dry_run:
                run, attempt = Run(resume, resolved.name), 2
            else:
                run = training.find_run(account, resume)
                starting.enter_context(session.only_start(account, run, "train"))
                attempt = training.next_attempt(account, run)
        wheels = wheels_for(job.wheelhouse, job.image, dry_run=start.dry_run, report_to=resolved.train.report_to)
        channels = inputs.channels(resolved, Path(scratch), wheels, isolated=job.network_isolation)

        def launch(instance: str, failures: int) -> "Launch":
            chosen, number = replace(job, instance=instance, image=image), attempt + failures
            return training.launch(run, resolved, chosen, channels, stack, attempt=number, environment=environment)

        carry_out(
            launch,
            types,
            account,
            start,
            job,
            lambda ended: (
                f"trained {run.id} in {console.duration(ended.seconds)}: {ended.model}\n"
                f"next: {console.command('aws', 'compile', run.id, region=stack.site.region)}"
            ),
            starting.close,
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
) -> None:
    """Compile a trained run on SageMaker into the model.tar.gz that an endpoint loads."""
    from sagemaker_jobs.aws.names import Run, is_run_id
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.commands.capacity import instance_types
    from sagemaker_jobs.endpoint.sources import INSTANCES
    from sagemaker_jobs.jobs import compiling, inputs, requests, training
    from sagemaker_jobs.jobs.wheelhouse import wheels_for

    changes = (*(overrides or ()), *(sets or ()))
    types = instance_types(job.instance, detach=start.detach, wait_hours=job.capacity_wait_hours)
    account, stack = session.caller(start)
    image = _image(job, None if start.dry_run else account, stack)
    with ExitStack() as starting, tempfile.TemporaryDirectory(prefix="neuron-sum-aws-") as scratch:
        if account is not None and not start.dry_run and is_run_id(source):
            starting.enter_context(session.only_start(account, Run(source, ""), "compile"))
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
                replace(job, instance=instance, image=image),
                [*trained.channels, *inputs.code_channels(wheels)],
                stack,
                addresses=trained.addresses,
                hashes=trained.hashes,
                attempt=trained.attempt + failures,
            )

        def done(ended: "Job") -> str:
            text = f"compiled {trained.run.id} for {target} in {console.duration(ended.seconds)}: {ended.model}"
            if target not in INSTANCES:
                return text
            options = {"instance": INSTANCES[target], "region": stack.site.region}
            return f"{text}\nnext: {console.command('aws', 'deploy', trained.run.id, **options)}"

        carry_out(launch, types, account, start, job, done, starting.close)


def _image(job: JobOptions, account: "Account | None", stack: "Stack") -> str:
    """The image of a job, by its digest."""
    from sagemaker_jobs.image import registry
    from sagemaker_jobs.jobs.requests import training_image

    return registry.pin(account, stack, job.image or training_image(stack.site.region))


def carry_out(
    prepare: "Callable[[str, int], Launch]",
    types: tuple[str, ...],
    account: "Account | None",
    start: StartOptions,
    options: JobOptions,
    done: "Callable[[Job], str]",
    started: Callable[[], object] = lambda: None,
) -> None:
    """Price, send and follow a training job on the first instance type for which AWS has capacity.

    Args:
        prepare: Returns the launch on an instance type, after a number of failed attempts.
        types: The instance types, in order of preference.
        account: The target account; may be None only in a dry run.
        start: The options of the command.
        options: The options of the job.
        done: Returns the text for the completed job.
        started: Called after the job was created, if no other attempt can follow.

    Raises:
        AwsError: If the launch is rejected, or the job does not complete.
        Interrupted: After Ctrl-C.
    """
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.commands.capacity import Candidates
    from sagemaker_jobs.jobs import follow as following

    def follow(account: "Account", launch: "Launch", item: "Item") -> "Job":
        return following.follow(account, item.name, price=item.price, launch=launch)

    first = prepare(types[0], 0)
    name = first["training-job"].name
    follow_command = console.command("aws", "status", first.run.id, follow=True, region=first.stack.site.region)
    detached = {"job": name}, f"started {name}\nnext: {follow_command}"
    candidates = Candidates(
        "training-job",
        prepare,
        follow,
        types,
        options.capacity_wait_hours,
        expected_hours=options.expected_hours,
        detached=detached,
        started=started,
    )
    result = session.carry_out(candidates, account, start)
    if result is not None:
        details, job = result
        instance = job.described["ResourceConfig"]["InstanceType"]
        ended = {"instance": instance, "status": job.status, "seconds": job.seconds, "model": job.model}
        console.emit({**details, "job": job.name, **ended}, done(job))
