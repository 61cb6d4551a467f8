"""Compile jobs: find the trained run, its recipe and the files to upload."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neuron_sum import console, files
from neuron_sum.errors import AwsError, DataError, RecipeError
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import FullMethod, Recipe
from neuron_sum.runs.contents import RUN_FILES
from neuron_sum.runs.folder import RunFolder, open_run
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused
from sagemaker_jobs.aws.names import Run, bucket_and_key, new_run
from sagemaker_jobs.jobs import training
from sagemaker_jobs.jobs.follow import Job
from sagemaker_jobs.jobs.inputs import model_files, no_way_to
from sagemaker_jobs.jobs.requests import MODEL, RECIPE, TRAINED
from sagemaker_jobs.launch.channels import Channel, files_of
from sagemaker_jobs.stack.stack import Stack

LEFT_HERE = (
    *("checkpoints", "tensorboard", "evaluation", "merged", "artifacts", "log.jsonl"),
    *("mlflow.json", "mlflow.db", "mlflow.db-journal"),
)
"""Names in a run's folder that a compile job does not read."""

CHANGEABLE = ("compile.", "generate.", "serve.", "data.max_source_length", "data.long", "data.merge_until")
"""Prefixes of the keys that an override may change; the rest of the recipe determined the training."""


@dataclass(frozen=True)
class Trained:
    """A trained run to compile.

    Attributes:
        run: The run that owns the compile job.
        attempt: The attempt number, from 1.
        channels: The channels to upload.
        addresses: The S3 addresses of channels that already exist.
        hashes: The SHA-256 of those that were uploaded for the training job.
    """

    run: Run
    attempt: int = 1
    channels: Sequence[Channel] = ()
    addresses: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)


def find(
    source: str,
    account: Account | None,
    stack: Stack,
    overrides: Sequence[str],
    scratch: Path,
    *,
    isolated: bool = False,
) -> Trained:
    """Resolve SOURCE.

    Args:
        source: The folder of a finished local run, the S3 address of a training job's model.tar.gz, or a run id.
        account: The account that has the run; None in a dry run, which prints the default address instead.
        stack: The stack with the bucket, for a dry run.
        overrides: Changes to the run's recipe; checked if the recipe can be read.
        scratch: A folder for a downloaded recipe.
        isolated: Whether the container has no network; then nothing can be downloaded from a hub.

    Raises:
        RunError: If a folder is not a finished run.
        RecipeError: If an override is invalid.
        AwsError: If the run does not exist, or none of its training jobs has completed.
    """
    if fixed := [override for override in overrides if not override.startswith(CHANGEABLE)]:
        raise RecipeError(
            f"{fixed[0]!r} changes a setting that the run was trained with",
            f"Change only {', '.join(CHANGEABLE)}, such as compile.batch_sizes=[1,8].",
        )
    if source.startswith("s3://"):
        if not all(bucket_and_key(source)) or not source.endswith(".tar.gz"):
            raise AwsError(
                f"{source} is not the address of a model.tar.gz",
                "Use s3://BUCKET/…/model.tar.gz from the last output line of the training job.",
            )
        load_recipe("tiny", overrides)  # checks keys and types; the job checks the values with the run's recipe
        return Trained(new_run(_name_of(source)), addresses={TRAINED: source})
    if Path(source).is_dir():
        return _local(Path(source), overrides, isolated)
    if account is None:
        load_recipe("tiny", overrides)
        run = Run(source, "")
        console.note(
            "an actual start asks AWS for the address of the run's model; this is the address of the first attempt"
        )
        return Trained(run, addresses={TRAINED: stack.model(run, "train")})
    return _in_account(source, account, overrides, isolated, scratch)


def _in_account(run_id: str, account: Account, overrides: Sequence[str], isolated: bool, scratch: Path) -> Trained:
    run = training.find_run(account, run_id)
    attempt = training.next_attempt(account, run, "compile")
    job = training.newest(account, run, "train")
    addresses = {TRAINED: job.model or ""}
    # An adapter's base from a local folder is in the training job's channel; one from a hub is downloaded again.
    if MODEL in job.channels:
        addresses[MODEL] = job.channels[MODEL]
    recipe = _recipe_of(job, account, overrides, scratch)
    if recipe is not None and MODEL not in addresses:
        _check_way(recipe, isolated)
    hashes = {name: sha256 for name, sha256 in job.hashes.items() if name in addresses}
    return Trained(run, attempt, addresses=addresses, hashes=hashes)


def _recipe_of(job: Job, account: Account, overrides: Sequence[str], scratch: Path) -> Recipe | None:
    """The recipe of a training job; None if it was deleted."""
    if RECIPE not in job.channels:
        return None
    try:
        text = account.read(f"{job.channels[RECIPE].rstrip('/')}/recipe.yaml")
    except Refused as refused:
        console.note(f"the overrides will be checked by the job: {refused.message}")
        return None
    written = scratch / "trained.yaml"
    files.write_text(written, text.decode())
    return load_recipe(str(written), overrides)


def _local(path: Path, overrides: Sequence[str], isolated: bool) -> Trained:
    run = open_run(path)
    recipe = load_recipe(str(run.recipe_path), overrides)
    run_files = {
        name: file
        for name, file in files_of(path).items()
        if (first := name.split("/")[0]) in RUN_FILES and first not in LEFT_HERE
    }
    return Trained(new_run(recipe.name), channels=(Channel(TRAINED, run_files), *_base_of(run, recipe, isolated)))


def _base_of(run: RunFolder, recipe: Recipe, isolated: bool) -> list[Channel]:
    """The channel of an adapter's base model that is stored on this machine, outside the run's folder."""
    if isinstance(recipe.method, FullMethod) or run.base.is_dir():
        return []
    origin = Path(run.model_source())
    if not origin.is_absolute():
        _check_way(recipe, isolated)
        return []
    if not origin.is_dir():
        raise DataError(
            f"the adapter's base model {origin} does not exist",
            "Restore the folder, or train from a model id of the Hugging Face Hub.",
        )
    return [Channel(MODEL, model_files(origin))]


def _check_way(recipe: Recipe, isolated: bool) -> None:
    """Refuse an adapter whose base model is only on a hub if the container has no network."""
    name = recipe.model.name_or_path
    if isolated and name and not name.startswith("/") and not isinstance(recipe.method, FullMethod):
        raise no_way_to("model.name_or_path", name)


def _name_of(address: str) -> str:
    """A readable name from an S3 address; SageMaker writes JOB/output/model.tar.gz."""
    parts = [part for part in address.removeprefix("s3://").split("/")[1:-1] if part != "output"]
    return parts[-1] if parts else "model"
