"""`neuron-sum aws image`: build the serving image with CodeBuild and store it in the account's registry."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.commands.options import (
    BucketOption,
    CapOption,
    DetachOption,
    EveryOption,
    KeyOption,
    OfflineOption,
    RegionOption,
    RequestsOption,
    RoleOption,
)
from sagemaker_jobs.image.build import BUILD_MINUTES, BUILDER

if TYPE_CHECKING:
    from sagemaker_jobs.aws.account import Account
    from sagemaker_jobs.aws.ledger import Ledger


def image(
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
    max_usd: CapOption = None,
    bucket: BucketOption = None,
    role: RoleOption = None,
    kms_key: KeyOption = None,
    region: RegionOption = None,
    detach: DetachOption = False,
    every: EveryOption = 15.0,
    offline: OfflineOption = False,
    dry_run: RequestsOption = False,
) -> None:
    """Build the serving image with CodeBuild and store it in an ECR repository; an existing image is not rebuilt."""
    from sagemaker_jobs.aws.names import new_run
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.cost import plan as planning
    from sagemaker_jobs.image import build as images
    from sagemaker_jobs.image import follow as builds
    from sagemaker_jobs.image import registry

    options = images.Options(target, builder, max_minutes, bucket, role, kms_key)
    account, site = session.caller(region, offline=offline, dry_run=dry_run)
    with tempfile.TemporaryDirectory(prefix="neuron-sum-image-") as scratch:
        build_context = images.context(target, context, Path(scratch))
        tag = images.tag_of(target, build_context)
        if account is not None and not dry_run and (existing := registry.look(account, tag)) is not None:
            console.emit({**existing.as_dict(), "built": False}, f"{existing.uri} already exists: nothing to build")
            return
        archive = images.pack_context(build_context, Path(scratch) / images.ARCHIVE)
        run = new_run(f"image-{target}")
        launch = images.launch(run, options, build_context, archive, site)
        cost_plan = planning.build_plan(launch.calls[1].request, site.region)
        with session.keep_running(run.id, launch.calls[1].name, site.region):
            ledger = session.begin(launch, cost_plan, account, max_usd, dry_run=dry_run)
            if ledger is None or account is None:
                return
            identity = builds.started(account, run.id, every)
            console.note(f"started {identity}; ledger: {ledger.path}")
            details = {"run": run.id, "build": identity, "region": site.region, "plan": cost_plan.as_dict()}
            if detach:
                console.emit(details, f"started {identity}\nnext: neuron-sum aws status {run.id} --follow")
                return
            build = builds.follow(account, identity, every_s=every, price=cost_plan.items[-1].price)
            emit_built(account, ledger, run.id, build, details)


def emit_built(account: "Account", ledger: "Ledger", run: str, build: dict[str, Any], details: dict[str, Any]) -> None:
    """Print the image of a successful build, after checking that the repository has it, and clean up the build.

    Args:
        account: The account that the build ran in.
        ledger: The ledger of that account.
        run: The id of the run that owns the build.
        build: The build as `builds.follow` returns it.
        details: Further fields of the --json output.

    Raises:
        AwsError: If the repository does not have the image, or AWS refuses the cleanup.
    """
    from neuron_sum.platform.prices import ECR_SOURCE, ECR_USD_PER_GB_MONTH
    from sagemaker_jobs.aws.names import BUILD_LOGS, REPOSITORY
    from sagemaker_jobs.image import follow as builds
    from sagemaker_jobs.image import registry
    from sagemaker_jobs.image.build import TAG

    environment = {each["name"]: each["value"] for each in build["environment"]["environmentVariables"]}
    tag = environment[TAG]
    image = registry.look(account, tag)
    if image is None:
        raise AwsError(
            f"{build['projectName']} succeeded, but {REPOSITORY} has no image {tag}",
            f"Run `aws logs tail {BUILD_LOGS}{build['projectName']}`.",
        )
    builds.clear(account, ledger, run)
    month = image.size / 1e9 * ECR_USD_PER_GB_MONTH
    console.emit(
        {
            **details,
            **image.as_dict(),
            "built": True,
            "minutes": round(builds.minutes(build), 1),
            "usd_per_month": round(month, 4),
        },
        f"built {image.uri} in {console.duration(60 * builds.minutes(build))}: {console.size(image.size)}, "
        f"${month:.2f} a month to store ({ECR_SOURCE})",
        "the build's project and role were deleted; neuron-sum aws down --all --artifacts also deletes the image",
    )
