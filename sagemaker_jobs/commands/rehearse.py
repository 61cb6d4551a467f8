"""`neuron-sum aws rehearse`: the life of a run in AWS, from data to an answered request, on this machine."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError, Interrupted
from neuron_sum.recipes.command import Overrides, RecipeArgument, SetOption
from sagemaker_jobs.commands.options import RequestsOption, WheelhouseOption

if TYPE_CHECKING:
    from rich.table import Table

    from neuron_sum.recipes.schema import Recipe
    from sagemaker_jobs.rehearsal.rehearsal import Rehearsal

MARK = ".neuron-sum-rehearsal"
"""In a folder that a rehearsal made, and so may empty."""


def rehearse(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    sets: SetOption = None,
    instance: Annotated[str, typer.Option(help="Of the requests; a CPU's, for its work is done here.")] = (
        "ml.c7i.4xlarge"
    ),
    wheelhouse: WheelhouseOption = None,
    keep_files: Annotated[
        Path | None, typer.Option(file_okay=False, help="Keep everything there. Default: nothing is kept.")
    ] = None,
    no_namespace: Annotated[
        bool, typer.Option("--no-namespace", help="Folders of the same shape in place of a real /opt/ml.")
    ] = False,
    dry_run: RequestsOption = False,
) -> None:
    """Run a launch's own requests here, in the container's layout: train, kill, resume, compile, serve, clear up."""
    from neuron_sum.recipes.loading import load_recipe
    from sagemaker_jobs.rehearsal.rehearsal import Rehearsal

    if instance.startswith(("ml.trn", "ml.inf")):
        raise AwsError(
            f"{instance} has Neuron devices, which a rehearsal has not",
            "leave --instance out; doctor and the compiler check what is the devices' own: neuron-sum preflight RECIPE",
        )
    resolved = load_recipe(recipe, [*(overrides or []), *(sets or [])])
    if resolved.train.backend == "neuron":
        raise AwsError(
            f"{resolved.name} has train.backend=neuron, which needs Neuron devices",
            f"neuron-sum aws rehearse {recipe} train.backend=torch rehearses the rest",
        )
    if dry_run:
        _print_requests(resolved, instance, wheelhouse)
        return
    begun = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="neuron-sum-rehearsal-")) if keep_files is None else _emptied(keep_files)
    rehearsal = Rehearsal(resolved, folder.resolve(), instance)
    kept = f"everything is in {keep_files}" if keep_files is not None else "nothing is kept"
    try:
        rehearsal.run(wheelhouse, namespaces=not no_namespace)
    except KeyboardInterrupt:
        stage = rehearsal.stages[-1].name if rehearsal.stages else "the start"
        raise Interrupted(
            f"stopped while rehearsing {stage}; {rehearsal.left()} of its processes run; {kept}",
            f"neuron-sum aws rehearse {recipe} begins anew",
        ) from None
    finally:
        _down(rehearsal, keep=keep_files is not None)
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
        f"{resolved.name} from data to nothing left in {console.duration(time.monotonic() - begun)}; {kept}",
        f"next: neuron-sum aws plan {recipe}",
    )


def _print_requests(recipe: "Recipe", instance: str, wheelhouse: Path | None) -> None:
    """What a rehearsal would run: nothing is started, built or kept."""
    from sagemaker_jobs.aws.place import NetworkSecurity
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.jobs import inputs
    from sagemaker_jobs.rehearsal.rehearsal import Rehearsal

    if wheelhouse is None:
        console.note("a real rehearsal builds our own wheel first, and gives it to the jobs as one more channel")
    with tempfile.TemporaryDirectory(prefix="neuron-sum-rehearsal-") as scratch:
        channels = inputs.channels(recipe, Path(scratch), wheelhouse, NetworkSecurity())
        launches = Rehearsal(recipe, Path(scratch), instance).launches(channels, inputs.code_channels(wheelhouse))
    made = [call.as_dict() for launch in launches for call in launch.calls]
    told = "dry run: nothing was started; the second job goes on with what the first was killed in"
    console.emit({"recipe": recipe.name, "run": launches[0].run.id, "requests": made}, told, session.as_json(made))


def _emptied(folder: Path) -> Path:
    """The caller's folder, without what an earlier rehearsal left there.

    Raises:
        AwsError: If it holds anything else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = list(folder.iterdir())
    if there and not (folder / MARK).is_file():
        raise AwsError(f"{folder} holds other things than a rehearsal's", "--keep-files with a new folder")
    for path in there:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()
    (folder / MARK).touch()
    return folder


def _down(rehearsal: "Rehearsal", *, keep: bool) -> None:
    """The last stage, whatever came before it."""
    from sagemaker_jobs.rehearsal.rehearsal import Stage

    begun = time.monotonic()
    if not keep:
        shutil.rmtree(rehearsal.folder, ignore_errors=True)
    left, there = rehearsal.left(), rehearsal.folder.exists() and not keep
    if left or there:
        console.warn(f"{left} processes of the rehearsal still run" if left else f"{rehearsal.folder} is still there")
    what = "no process of it runs" + ("" if keep else ", its folder is gone")
    skipped = "see the warning" if left or there else None
    rehearsal.stages.append(Stage("down", what, skipped, time.monotonic() - begun))


def _tables(rehearsal: "Rehearsal") -> "list[Table | str]":
    proven = console.table("proven here", "seconds", "what was seen")
    for stage in rehearsal.stages:
        shown = f"NOT REHEARSED: {stage.skipped}" if stage.skipped else stage.seen
        proven.add_row(stage.name, f"{stage.seconds:.1f}", shown)
    missing = console.table("not proven; needs AWS", "what")
    for name, what in rehearsal.unproven.items():
        missing.add_row(name, what)
    proven.columns[2].justify = missing.columns[1].justify = "left"
    return [proven, "", missing, ""]
