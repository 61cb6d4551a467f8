"""`neuron-sum aws image`: build the serving image with CodeBuild and store it in the account's registry."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.image.build import BUILD_MINUTES, BUILDER
from sagemaker_jobs.launch.options import StartOptions, expand

if TYPE_CHECKING:
    from sagemaker_jobs.aws.account import Account
    from sagemaker_jobs.cost.plan import Item
    from sagemaker_jobs.launch.start import Launch


@expand
def image(
    start: StartOptions,
    target: Annotated[Literal["cpu", "inf2"], typer.Option(help="Hardware that the image will run on.")] = "cpu",
    context: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Build context written by `neuron-sum dockerfile`. Default: a new one.",
        ),
    ] = None,
    builder: Annotated[
        Literal["medium", "large"],
        typer.Option(help="CodeBuild machine: 4 CPUs and 8 GB (medium), or 8 CPUs and 16 GB (large)."),
    ] = BUILDER,
    max_minutes: Annotated[
        int, typer.Option(help="Maximum build time in minutes; CodeBuild stops the build afterwards.")
    ] = BUILD_MINUTES,
) -> None:
    """Build the serving image with CodeBuild and store it in an ECR repository; an existing image is not rebuilt."""
    from sagemaker_jobs.aws.names import new_run
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.commands.capacity import Candidates
    from sagemaker_jobs.image import build as images
    from sagemaker_jobs.image import follow as builds
    from sagemaker_jobs.image import registry

    account, stack = session.caller(start)
    with tempfile.TemporaryDirectory(prefix="neuron-sum-image-") as scratch:
        build_context = images.context(target, context, Path(scratch))
        tag = images.tag_of(target, build_context)
        if account is not None and not start.dry_run and (existing := registry.look(account, tag)) is not None:
            console.emit({**existing.as_dict(), "built": False}, f"{existing.uri} already exists: nothing to build")
            return
        archive = images.pack_context(build_context, Path(scratch) / images.ARCHIVE)
        run = new_run(f"image-{target}")
        launch = images.launch(run, stack, target, build_context, archive, builder=builder, max_minutes=max_minutes)
        name = launch["build"].name

        def follow(account: "Account", launch: "Launch", item: "Item") -> tuple[dict[str, Any], float]:
            identity = builds.started(account, run.id)
            built = builds.follow(account, identity, price=item.price)
            account.ledger.note("gone", "build", name, run.id)
            return built

        follow_command = console.command("aws", "status", run.id, follow=True, region=stack.site.region)
        detached = {"build": name}, f"started {name}\nnext: {follow_command}"
        candidates = Candidates("build", lambda *_: launch, follow, detached=detached)
        result = session.carry_out(candidates, account, start)
        if result is not None and account is not None:
            details, (build, seconds) = result
            emit_built(account, build, seconds, {**details, "build": build["id"]})


def emit_built(account: "Account", build: dict[str, Any], seconds: float, details: dict[str, Any]) -> None:
    """Print the image of a successful build, after checking that the repository has it.

    Args:
        account: The account that the build ran in.
        build: The build as `builds.follow` returns it.
        seconds: The duration of the build.
        details: Further fields of the --json output.

    Raises:
        AwsError: If the repository does not have the image.
    """
    from neuron_sum.platform.prices import ECR_SOURCE, ECR_USD_PER_GB_MONTH
    from sagemaker_jobs.aws.names import BUILD_LOG_GROUP, REPOSITORY
    from sagemaker_jobs.image import registry
    from sagemaker_jobs.image.build import TAG

    tag = {each["name"]: each["value"] for each in build["environment"]["environmentVariables"]}[TAG]
    image = registry.look(account, tag)
    if image is None:
        raise AwsError(
            f"{build['id']} succeeded, but {REPOSITORY} has no image {tag}",
            f"Run `{account.tail_command(BUILD_LOG_GROUP)}`.",
        )
    month = image.size / 1e9 * ECR_USD_PER_GB_MONTH
    console.emit(
        {
            **details,
            **image.as_dict(),
            "built": True,
            "minutes": round(seconds / 60, 1),
            "usd_per_month": round(month, 4),
        },
        f"built {image.uri} in {console.duration(seconds)}: {console.size(image.size)}, "
        f"${month:.2f} a month to store ({ECR_SOURCE})",
        f"{account.command('down', all=True, artifacts=True)} also deletes the image",
    )
