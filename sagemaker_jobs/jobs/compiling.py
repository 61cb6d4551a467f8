"""A trained run as a compile job: where the run is, what is uploaded for it, and which recipe it has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neuron_sum import console, files
from neuron_sum.errors import AwsError, DataError, RecipeError
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import FullMethod, Recipe
from neuron_sum.runs.folder import RUN_FILES, RunFolder, open_run
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused
from sagemaker_jobs.aws.names import Run, new_run
from sagemaker_jobs.aws.place import Destination, NetworkSecurity
from sagemaker_jobs.jobs import training
from sagemaker_jobs.jobs.inputs import no_way_to
from sagemaker_jobs.jobs.requests import MODEL, RECIPE, TRAINED
from sagemaker_jobs.launch.channels import Channel, files_of

LEFT_HERE = ("checkpoints", "tensorboard", "evaluation", "merged", "artifacts", "log.jsonl")
"""Of a run's own names: what no compile reads."""

CHANGEABLE = ("compile.", "generate.", "serve.", "data.max_source_length")
"""What an override may change; the rest of a recipe is what the run was trained by."""


@dataclass(frozen=True)
class Trained:
    """What is compiled.

    Attributes:
        run: Whose the job is.
        attempt: From 1.
        channels: What is uploaded of it.
        addresses: S3 addresses of channels that are there.
    """

    run: Run
    attempt: int = 1
    channels: Sequence[Channel] = ()
    addresses: Mapping[str, str] = field(default_factory=dict)


def find(
    given: str,
    account: Account | None,
    place: Destination | None,
    overrides: Sequence[str],
    isolation: NetworkSecurity,
    scratch: Path,
) -> Trained:
    """What SOURCE means.

    Args:
        given: A finished run's folder here, the S3 address of a training job's model.tar.gz, or a run in the account.
        account: To ask for such a run; None in a dry run, which then shows where it usually is.
        place: Where such a run usually is; for a dry run.
        overrides: Of the run's recipe; checked where that can be read.
        isolation: Without a network nothing can come from a hub.
        scratch: For a recipe that is fetched.

    Raises:
        RunError: If a folder is no finished run.
        RecipeError: If an override does not hold.
        AwsError: If there is no such run, or none of its trainings has completed.
    """
    _check_overrides(overrides)
    if given.startswith("s3://"):
        check_archive(given)
        load_recipe("tiny", overrides)  # the keys and their types; the values are seen beside the run's own, there
        return Trained(new_run(_name_of(given)), addresses={TRAINED: given})
    if Path(given).is_dir():
        return _local(Path(given), overrides, isolation)
    if account is None:
        load_recipe("tiny", overrides)
        run = Run(given, "")
        console.note(
            "a real start asks AWS where the run's model is; shown is where the first attempt of train puts it"
        )
        usual = f"{place.output(run)}/{run.name('train')}/output/model.tar.gz" if place is not None else ""
        return Trained(run, addresses={TRAINED: usual})
    return _in_account(given, account, overrides, isolation, scratch)


def check_archive(address: str) -> None:
    """Refuses an S3 address that is no archive's.

    Raises:
        AwsError: With what it should be.
    """
    bucket, _, key = address.removeprefix("s3://").partition("/")
    if not bucket or not key.endswith(".tar.gz"):
        raise AwsError(f"{address} is no model.tar.gz", "s3://BUCKET/…/model.tar.gz, as the job's last line says")


def newest(account: Account, run: Run, stage: str) -> dict[str, object]:
    """The description of the newest job of a run's stage that has completed.

    Raises:
        AwsError: If none has.
    """
    names = training.jobs_of(account, run, stage, StatusEquals="Completed")
    if not names:
        others = training.attempts_of(account, run, stage)
        had = f"none of its {others} jobs has" if others else "it has had no such job"
        what = "RECIPE" if stage == "train" else run.id
        raise AwsError(
            f"no {stage} job of run {run.id} has completed: {had}",
            f"neuron-sum aws {stage} {what}; neuron-sum aws status {run.id} --follow says how one ends",
        )
    return account.call("sagemaker", "describe_training_job", TrainingJobName=names[0])


def _in_account(
    given: str, account: Account, overrides: Sequence[str], isolation: NetworkSecurity, scratch: Path
) -> Trained:
    run = training.find_run(account, given)
    attempt = training.next_attempt(account, run, "compile")
    job = training.Described(newest(account, run, "train"))
    addresses = {TRAINED: job.model}
    # The base of an adapter that came from a folder is where training found it; what came from a hub is loaded anew.
    if MODEL in job.channels:
        addresses[MODEL] = job.channels[MODEL]
    recipe = _recipe_of(job, account, overrides, scratch)
    if recipe is not None and MODEL not in addresses:
        _check_way(recipe, isolation)
    return Trained(run, attempt, addresses=addresses)


def _recipe_of(job: "training.Described", account: Account, overrides: Sequence[str], scratch: Path) -> Recipe | None:
    """The recipe that a job was trained by; None where it was removed since."""
    if RECIPE not in job.channels:
        return None
    bucket, _, prefix = job.channels[RECIPE].removeprefix("s3://").partition("/")
    try:
        text = account.read(bucket, f"{prefix.rstrip('/')}/recipe.yaml")
    except Refused as refused:
        console.note(f"the overrides are checked by the job itself: {refused.message}")
        return None
    written = scratch / "trained.yaml"
    files.write_text(written, text.decode())
    return load_recipe(str(written), overrides)


def _local(path: Path, overrides: Sequence[str], isolation: NetworkSecurity) -> Trained:
    run = open_run(path)
    recipe = load_recipe(str(run.recipe_path), overrides)
    there = {
        name: file
        for name, file in files_of(path).items()
        if (first := name.split("/")[0]) in RUN_FILES and first not in LEFT_HERE
    }
    return Trained(new_run(recipe.name), channels=(Channel(TRAINED, there), *_base_of(run, recipe, isolation)))


def _base_of(run: RunFolder, recipe: Recipe, isolation: NetworkSecurity) -> list[Channel]:
    """An adapter's base that lies on this machine, outside the run."""
    if isinstance(recipe.method, FullMethod) or run.base.is_dir():
        return []
    origin = Path(run.model_source())
    if not origin.is_absolute():
        _check_way(recipe, isolation)
        return []
    if not origin.is_dir():
        raise DataError(f"the adapter's base {origin} is not there", "put it there again, or train from a hub's id")
    return [Channel(MODEL, files_of(origin))]


def _check_way(recipe: Recipe, isolation: NetworkSecurity) -> None:
    """Refuses an adapter whose base only a hub has, for a container without a network."""
    name = recipe.model.name_or_path
    if isolation.network_isolation and name and not name.startswith("/") and not isinstance(recipe.method, FullMethod):
        raise no_way_to("model.name_or_path", name)


def _check_overrides(overrides: Sequence[str]) -> None:
    for override in overrides:
        if not override.startswith(CHANGEABLE):
            raise RecipeError(
                f"{override!r} changes what the run was trained by",
                f"a compile may change {', '.join(CHANGEABLE)}: compile.batch_sizes=[1,8]",
            )


def _name_of(address: str) -> str:
    """Something of an address that tells people which it is: SageMaker's own is JOB/output/model.tar.gz."""
    parts = [part for part in address.removeprefix("s3://").split("/")[1:-1] if part != "output"]
    return parts[-1] if parts else "model"
