"""`neuron-sum aws rehearse`: an AWS run on this machine, from the data to an answered request."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError, Interrupted
from neuron_sum.recipes.command import Overrides, RecipeArgument, SetOption
from sagemaker_jobs.launch.options import RequestsOption, WheelhouseOption

if TYPE_CHECKING:
    from rich.table import Table

    from neuron_sum.recipes.schema import Recipe
    from sagemaker_jobs.rehearsal.rehearsal import Rehearsal

MARK = ".neuron-sum-rehearsal"
"""A file that marks a folder created by a rehearsal, which a later rehearsal may therefore empty."""


def rehearse(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    sets: SetOption = None,
    instance: Annotated[str, typer.Option(help="SageMaker instance type in the requests; must be a CPU type.")] = (
        "ml.c7i.4xlarge"
    ),
    wheelhouse: WheelhouseOption = None,
    keep_files: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder to keep all files in. Default: all files are deleted.")
    ] = None,
    no_namespace: Annotated[
        bool, typer.Option("--no-namespace", help="Use folders in the layout of /opt/ml instead of a real /opt/ml.")
    ] = False,
    dry_run: RequestsOption = False,
) -> None:
    """Run the requests of a launch on this machine, in the container's layout: train, kill, resume, compile, serve."""
    from neuron_sum.recipes.loading import load_recipe
    from sagemaker_jobs.rehearsal.rehearsal import Rehearsal

    if instance.startswith(("ml.trn", "ml.inf")):
        raise AwsError(
            f"--instance {instance} has Neuron devices, but a rehearsal runs on the CPU",
            "Omit --instance; to check what depends on the devices, run `neuron-sum preflight RECIPE`.",
        )
    changes = [*(overrides or []), *(sets or [])]
    resolved = load_recipe(recipe, changes)

    def again(*further: str) -> str:
        options = {"wheelhouse": wheelhouse, "keep_files": keep_files, "no_namespace": no_namespace, "dry_run": dry_run}
        return console.command("aws", "rehearse", recipe, *changes, *further, instance=instance, **options)

    if "mlflow" in resolved.train.report_to:
        raise AwsError(
            "train.report_to contains mlflow, but a rehearsal has no network",
            f"Run `{again('train.report_to=[]')}`.",
        )
    if resolved.train.backend == "neuron":
        raise AwsError(
            f"{resolved.name} has train.backend=neuron, which requires Neuron devices",
            f"Run `{again('train.backend=torch')}` to rehearse the rest.",
        )
    if dry_run:
        _print_requests(resolved, instance, wheelhouse)
        return
    begun = time.monotonic()
    folder = (
        Path(tempfile.mkdtemp(prefix="neuron-sum-rehearsal-")) if keep_files is None else _prepare_folder(keep_files)
    )
    rehearsal = Rehearsal(resolved, folder.resolve(), instance)
    kept_text = f"all files are in {keep_files}" if keep_files is not None else "all files are deleted"
    try:
        rehearsal.run(wheelhouse, namespaces=not no_namespace)
    except KeyboardInterrupt:
        stage = rehearsal.stages[-1].name if rehearsal.stages else "the start"
        raise Interrupted(
            f"stopped while rehearsing {stage}; {rehearsal.count_processes()} of its processes still run; {kept_text}",
            f"Run `{again()}` to start again.",
        ) from None
    finally:
        _clean_up(rehearsal, keep=keep_files is not None)
    console.emit(
        {
            "recipe": resolved.name,
            "seconds": round(time.monotonic() - begun, 1),
            "stages": [vars(stage) for stage in rehearsal.stages],
            "scores": rehearsal.scores,
            "dialogue": rehearsal.dialogue,
            "summary": rehearsal.summary,
            "needs_aws": rehearsal.unproven,
            "kept": str(keep_files) if keep_files is not None else None,
        },
        *_tables(rehearsal),
        f"rehearsed {resolved.name} in {console.duration(time.monotonic() - begun)}; {kept_text}",
        f"next: {console.command('aws', 'plan', recipe, *changes)}",
    )


def _print_requests(recipe: "Recipe", instance: str, wheelhouse: Path | None) -> None:
    """Print the requests that a rehearsal would run; nothing is started, built or kept."""
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.jobs import inputs
    from sagemaker_jobs.rehearsal.rehearsal import Rehearsal

    if wheelhouse is None:
        console.note("an actual rehearsal first builds neuron-sum's wheel and passes it to the jobs as another channel")
    with tempfile.TemporaryDirectory(prefix="neuron-sum-rehearsal-") as scratch:
        channels = inputs.channels(recipe, Path(scratch), wheelhouse, isolated=False)
        launches = Rehearsal(recipe, Path(scratch), instance).launches(channels, inputs.code_channels(wheelhouse))
    summary = "dry run: nothing was started; the second job resumes the training that the first was killed in"
    details = {"recipe": recipe.name, "run": launches[0].run.id}
    session.emit_requests(details, [call for launch in launches for call in launch.calls], summary)


def _prepare_folder(folder: Path) -> Path:
    """Create the caller's folder, or empty it if an earlier rehearsal created it.

    Raises:
        AwsError: If the folder contains other files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = list(folder.iterdir())
    if entries and not (folder / MARK).is_file():
        raise AwsError(
            f"{folder} contains files that no rehearsal created", "Choose an empty or new folder with --keep-files."
        )
    for path in entries:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()
    (folder / MARK).touch()
    return folder


def _clean_up(rehearsal: "Rehearsal", *, keep: bool) -> None:
    """Run the last stage, even after an error: delete the folder and check that no process still runs."""
    from sagemaker_jobs.rehearsal.rehearsal import Stage

    begun = time.monotonic()
    if not keep:
        shutil.rmtree(rehearsal.folder, ignore_errors=True)
    processes, folder_exists = rehearsal.count_processes(), rehearsal.folder.exists() and not keep
    if processes or folder_exists:
        console.warn(
            f"{processes} processes of the rehearsal still run" if processes else f"{rehearsal.folder} still exists"
        )
    result = "none of its processes runs" + ("" if keep else "; its folder was deleted")
    skipped = "see the warning" if processes or folder_exists else None
    rehearsal.stages.append(Stage("down", result, skipped, time.monotonic() - begun))


def _tables(rehearsal: "Rehearsal") -> "list[Table | str]":
    tested = console.table("tested here", "seconds", "result")
    for stage in rehearsal.stages:
        result = f"NOT REHEARSED: {stage.skipped}" if stage.skipped else stage.seen
        tested.add_row(stage.name, f"{stage.seconds:.1f}", result)
    untested = console.table("not tested; needs AWS", "reason")
    for name, reason in rehearsal.unproven.items():
        untested.add_row(name, reason)
    tested.columns[2].justify = untested.columns[1].justify = "left"
    return [tested, "", untested, ""]
