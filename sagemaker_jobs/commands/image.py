"""`neuron-sum aws image`: the serving image, built where a machine with Docker is, and kept in the account."""

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
    target: Annotated[Literal["cpu", "inf2"], typer.Option(help="Where the image will run.")] = "cpu",
    context: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="As `neuron-sum dockerfile` wrote it. Default: written now."),
    ] = None,
    builder: Annotated[
        Literal["medium", "large"], typer.Option(help="CodeBuild's machine: 4 CPUs and 8 GB, or 8 and 16.")
    ] = BUILDER,
    max_minutes: Annotated[
        int, typer.Option(help="The build is stopped after so long, whatever it does.")
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
    """Build the serving image with CodeBuild into a repository of the account; what is there is not built again."""
    from sagemaker_jobs.aws.names import new_run
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.cost import plan as planning
    from sagemaker_jobs.image import build as images
    from sagemaker_jobs.image import follow as builds
    from sagemaker_jobs.image import registry

    options = images.Options(target, builder, max_minutes, bucket, role, kms_key)
    account, site = session.caller(region, offline=offline, dry_run=dry_run)
    with tempfile.TemporaryDirectory(prefix="neuron-sum-image-") as scratch:
        found = images.context(target, context, Path(scratch))
        tag = images.tag_of(target, found)
        if account is not None and not dry_run and (there := registry.look(account, tag)) is not None:
            console.emit({**there.as_dict(), "built": False}, f"{there.uri} is there already: nothing to build")
            return
        archive = images.archived(found, Path(scratch) / images.ARCHIVE)
        run = new_run(f"image-{target}")
        launch = images.launch(run, options, found, archive, site)
        priced = planning.build_plan(launch.calls[1].request, site.region)
        with session.stopping_leaves(run.id, launch.calls[1].name, site.region):
            ledger = session.begin(launch, priced, account, max_usd, dry_run=dry_run)
            if ledger is None or account is None:
                return
            identity = builds.started(account, run.id, console.note, every)
            console.note(f"started {identity}; the ledger is {ledger.path}")
            told = {"run": run.id, "build": identity, "region": site.region, "plan": priced.as_dict()}
            if detach:
                console.emit(told, f"started {identity}\nnext: neuron-sum aws status {run.id} --follow")
                return
            build = builds.follow(account, identity, console.note, every_s=every, price=priced.items[-1].price)
            emit_built(account, ledger, run.id, build, told)


def emit_built(account: "Account", ledger: "Ledger", run: str, build: dict[str, Any], told: dict[str, Any]) -> None:
    """Shows the image of a build that succeeded, and clears up after it; what is shown is in the repository.

    Args:
        account: Where.
        ledger: Of it.
        run: Whose build.
        build: As `builds.follow` gives it.
        told: What --json says besides.

    Raises:
        AwsError: If the image is not there after all, or AWS refuses the clearing up.
    """
    from neuron_sum.platform.prices import ECR_SOURCE, ECR_USD_PER_GB_MONTH
    from sagemaker_jobs.aws.names import BUILD_LOGS, REPOSITORY
    from sagemaker_jobs.image import follow as builds
    from sagemaker_jobs.image import registry
    from sagemaker_jobs.image.build import TAG

    environment = {each["name"]: each["value"] for each in build["environment"]["environmentVariables"]}
    tag = environment[TAG]
    there = registry.look(account, tag)
    if there is None:
        raise AwsError(
            f"{build['projectName']} succeeded, and {REPOSITORY} has no image {tag}",
            f"aws logs tail {BUILD_LOGS}{build['projectName']}",
        )
    builds.clear(account, ledger, run)
    month = there.size / 1e9 * ECR_USD_PER_GB_MONTH
    console.emit(
        {
            **told,
            **there.as_dict(),
            "built": True,
            "minutes": round(builds.minutes(build), 1),
            "usd_per_month": round(month, 4),
        },
        f"built {there.uri} in {console.duration(60 * builds.minutes(build))}: {console.size(there.size)}, "
        f"${month:.2f} a month to keep ({ECR_SOURCE})",
        "the build's project and role are gone; neuron-sum aws down --all --artifacts deletes the image, too",
    )
