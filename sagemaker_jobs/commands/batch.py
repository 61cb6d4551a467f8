"""`neuron-sum aws batch`: SageMaker Batch Transform over JSON Lines, for inputs too large for an endpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.commands.options import (
    IN_ORDER,
    CapacityOption,
    ExpectedOption,
    HoursOption,
    IsolatedOption,
    StartOptions,
    expand,
)

if TYPE_CHECKING:
    from sagemaker_jobs.aws.account import Account
    from sagemaker_jobs.aws.ledger import Ledger
    from sagemaker_jobs.batch.transform import Answers
    from sagemaker_jobs.jobs.follow import Job


@expand
def batch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A run compiled by `aws compile`, s3://…/model.tar.gz, or a local model.tar.gz."
        ),
    ],
    texts: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help='JSON Lines of {"inputs": "a dialogue"}: a .jsonl file, a folder, s3://….'
        ),
    ],
    start: StartOptions,
    output: Annotated[Path | None, typer.Option(help="Folder for the answers. Default: RUN-batch.")] = None,
    instance: Annotated[
        str,
        typer.Option(
            help=f"SageMaker instance type: a CPU type, or ml.inf2.xlarge, whose driver is not documented. {IN_ORDER}"
        ),
    ] = "ml.c7i.4xlarge",
    instances: Annotated[int, typer.Option(min=1, help="Number of instances; each processes whole input files.")] = 1,
    max_hours: HoursOption = 2.0,
    capacity_wait_hours: CapacityOption = 0.0,
    image: Annotated[
        str | None, typer.Option(help="Image URI. Default: the newest image built by `aws image`.")
    ] = None,
    network_isolation: IsolatedOption = False,
    expected_hours: ExpectedOption = None,
) -> None:
    """Summarize files of dialogues with a SageMaker batch transform, without an endpoint."""
    from datetime import datetime, timezone

    from sagemaker_jobs.aws.ledger import Ledger
    from sagemaker_jobs.aws.names import new_run
    from sagemaker_jobs.batch import inputs as batch_texts
    from sagemaker_jobs.batch import transform as batches
    from sagemaker_jobs.batch.requests import output_address
    from sagemaker_jobs.cleanup import rollback
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.commands.capacity import Attempt, Candidates, instance_types
    from sagemaker_jobs.cost import lifetime
    from sagemaker_jobs.endpoint import sources as endpoint_sources
    from sagemaker_jobs.image import registry
    from sagemaker_jobs.jobs import follow as following

    types = instance_types(instance, detach=start.detach, wait_hours=capacity_wait_hours)
    account, stack = session.caller(start)
    reader = None if start.dry_run else account
    inputs = batch_texts.find_texts(texts, reader, stack)
    model = endpoint_sources.find_source(source, reader, stack)
    target = endpoint_sources.common_target([batches.image_target(model, each) for each in types], types)
    if target == "inf2":
        console.warn(
            f"the Neuron driver of SageMaker's hosts of transform jobs on {instance} is not documented, and may be too "
            "old for the image: try a small input first"
        )
    run = model.run or new_run("batch")
    attempt = 1 if reader is None or model.run is None else batches.attempts_of(reader, run) + 1
    if image is None:
        image = (
            registry.newest_image(reader, target)
            if reader is not None
            else registry.image_uri(stack.site, f"{target}-newest")
        )
    image = registry.pin(reader, stack, image)
    folder = output or Path(run.name("batch", attempt).removeprefix("neuron-sum-"))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AwsError(f"{folder} already exists and is not an empty folder", "Choose another folder with --output.")
    if reader is not None and model.run is not None:
        rollback.clear_leftovers(reader, Ledger(stack.site), run, batches.unpaid_names(run, attempt))

    def prepare(instance: str, failures: int) -> "Attempt[tuple[Job, Answers]]":
        options = batches.Options(instance, instances, max_hours, network_isolation)
        now = datetime.now(timezone.utc)
        launch = batches.launch(run, attempt + failures, model, inputs, options, image, stack, now)
        plan = lifetime.priced(launch.requests, None if start.offline else account, expected_hours, max_hours)
        job = launch["transform-job"]

        def follow(account: "Account", ledger: "Ledger") -> "tuple[Job, Answers]":
            finished = following.follow(
                account,
                job.name,
                every_s=start.every,
                price=plan["transform-job"].price,
                kind=following.TRANSFORM,
                on_end=lambda _: batches.clear(account, ledger, launch),
            )
            return finished, batches.fetch(account, launch, inputs, folder)

        return Attempt(launch, plan, job.name, follow)

    name, address = run.name("batch", attempt), output_address(run, stack, attempt)
    detached = {"job": name, "answers": address}
    text = (
        f"started {name}; it writes its answers to {address}\n"
        f"next: neuron-sum aws status {run.id}; neuron-sum aws down {run.id} also removes its model"
    )
    candidates = Candidates(prepare, types, capacity_wait_hours)
    result = session.carry_out(candidates, account, start, detached=(detached, text), roll_back=True)
    if result is None:
        return
    details, (finished, answers) = result
    if answers.errors:
        console.warn(
            f"{len(answers.errors):,} of {answers.lines:,} lines have an error instead of a summary; the first is: "
            f"{answers.errors[0]}"
        )
    console.emit(
        {
            **details,
            "job": finished.name,
            "answers": finished.output,
            "instance": finished.described["TransformResources"]["InstanceType"],
            "status": finished.status,
            "seconds": finished.seconds,
            "files": [str(path) for path in answers.files],
            "lines": answers.lines,
            "errors": len(answers.errors),
        },
        f"{answers.lines:,} answers in {console.duration(finished.seconds)}: {folder} and {finished.output}",
    )
