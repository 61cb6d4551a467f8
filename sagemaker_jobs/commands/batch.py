"""`neuron-sum aws batch`: SageMaker Batch Transform over JSON Lines, for inputs too large for an endpoint."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.launch.options import StartOptions, TransformOptions, expand

if TYPE_CHECKING:
    from sagemaker_jobs.aws.account import Account
    from sagemaker_jobs.batch.transform import Answers
    from sagemaker_jobs.cost.plan import Item
    from sagemaker_jobs.jobs.follow import Job
    from sagemaker_jobs.launch.start import Launch


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
    options: TransformOptions,
    output: Annotated[Path | None, typer.Option(help="Folder for the answers. Default: RUN-batch.")] = None,
) -> None:
    """Summarize files of dialogues with a SageMaker batch transform, without an endpoint."""
    from sagemaker_jobs.aws.names import new_run
    from sagemaker_jobs.batch import inputs as batch_texts
    from sagemaker_jobs.batch import transform as batches
    from sagemaker_jobs.cleanup import rollback
    from sagemaker_jobs.cleanup.kinds import TRANSFORM
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.commands.capacity import Candidates, instance_types
    from sagemaker_jobs.endpoint import sources as endpoint_sources
    from sagemaker_jobs.image import registry
    from sagemaker_jobs.jobs import follow as following

    types = instance_types(options.instance, detach=start.detach, wait_hours=options.capacity_wait_hours)
    account, stack = session.caller(start)
    reader = None if start.dry_run else account
    inputs = batch_texts.find_texts(texts, reader, stack)
    model = endpoint_sources.find_source(source, reader, stack)
    target = endpoint_sources.common_target([batches.image_target(model, each) for each in types], types)
    if target == "inf2":
        console.warn(
            f"the Neuron driver of SageMaker's hosts of transform jobs on {options.instance} is not documented, and "
            "may be too old for the image: try a small input first"
        )
    run = model.run or new_run("batch")
    attempt = 1
    image = options.image
    if image is None:
        image = (
            registry.newest_image(reader, target)
            if reader is not None
            else registry.image_uri(stack.site, f"{target}-newest")
        )
    image = registry.pin(reader, stack, image)
    with ExitStack() as starting:
        if reader is not None and model.run is not None:
            starting.enter_context(session.only_start(reader, run, "batch"))
            attempt = rollback.clear_leftovers(reader, run, batches.PARTS, kept=batches.last_job(reader, run))
        folder = output or Path(run.name("batch", attempt).removeprefix("neuron-sum-"))
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise AwsError(
                f"{folder} already exists and is not an empty folder", "Choose another folder with --output."
            )

        def prepare(instance: str, failures: int) -> "Launch":
            chosen = replace(options, instance=instance)
            return batches.launch(run, attempt + failures, model, inputs, chosen, image, stack)

        def follow(account: "Account", launch: "Launch", item: "Item") -> "tuple[Job, Answers]":
            finished = following.follow(account, item.name, price=item.price, kind=TRANSFORM, launch=launch)
            return finished, batches.fetch(account, launch, inputs, folder)

        job = prepare(types[0], 0)["transform-job"]
        address = job.request["TransformOutput"]["S3OutputPath"]
        text = (
            f"started {job.name}; it writes its answers to {address}\n"
            f"next: {console.command('aws', 'status', run.id, region=stack.site.region)}; "
            f"{console.command('aws', 'down', run.id, region=stack.site.region)} also removes its model"
        )
        candidates = Candidates(
            "transform-job",
            prepare,
            follow,
            types,
            options.capacity_wait_hours,
            expected_hours=options.expected_hours,
            hours=options.max_hours,
            detached=({"job": job.name, "answers": address}, text),
            roll_back=True,
            started=starting.close,
        )
        result = session.carry_out(candidates, account, start)
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
