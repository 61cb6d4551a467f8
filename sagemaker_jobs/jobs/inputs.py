"""Input channels of a job: the recipe with the container's paths, and folders stored in S3 by their content's hash."""

import json
from fnmatch import fnmatchcase
from pathlib import Path

from neuron_sum import files
from neuron_sum.data.hub import DATA_SUFFIXES, PACKED_SUFFIXES
from neuron_sum.data.splits import split_files, split_of
from neuron_sum.errors import AwsError, DataError
from neuron_sum.models.gguf import folder_of, is_gguf
from neuron_sum.recipes.schema import Recipe, SplitFiles
from sagemaker_jobs.jobs.requests import CODE, DATA, ENTRY, INPUT, MODEL, RECIPE, WHEELHOUSE
from sagemaker_jobs.launch.channels import Channel, files_of, named
from sagemaker_jobs.stack.stack import Stack
from sagemaker_jobs.stack.template import Settings

LOCAL_FIELDS = {
    "data.path": DATA,
    "model.name_or_path": MODEL,
    "model.config": "config",
    "model.tokenizer": "tokenizer",
    "train.deepspeed": "deepspeed",
}
"""Fields of a recipe that may name a local path, and the channel that uploads it for the container."""

MODEL_FILES = (
    *("config.json", "generation_config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "vocab.json", "merges.txt"),
)
"""Patterns of the files of a model and its tokenizer, in a folder that may also contain others."""

HUB_FIELDS = ("data.path", "model.name_or_path", "model.tokenizer")


def channels(recipe: Recipe, scratch: Path, wheelhouse: Path | None, *, isolated: bool = False) -> list[Channel]:
    """All input channels of a training job.

    Args:
        recipe: The recipe, with paths of this machine.
        scratch: An empty folder for temporary files.
        wheelhouse: A folder of wheels; None: the image has all packages.
        isolated: Whether the container has no network; then nothing can be downloaded from a hub.

    Raises:
        DataError: If a path of the recipe does not exist.
        AwsError: If the recipe needs a hub, but the container has no network.
    """
    values = recipe.model_dump(mode="json")
    found = []
    for field, channel in LOCAL_FIELDS.items():
        section, key = field.split(".")
        value = values[section][key]
        if not isinstance(value, str):
            continue
        if is_gguf(value):
            value = folder_of(value)  # the container gets the converted folder
        path = Path(value)
        if path.is_absolute():
            if not path.exists():
                raise DataError(
                    f"{field}: {path} does not exist", "Use a local file or folder, or an id of the Hugging Face Hub."
                )
            found.append(Channel(channel, _used(path, section, recipe)))
            values[section][key] = f"{INPUT}/{channel}" + ("" if path.is_dir() else f"/{path.name}")
        elif field in HUB_FIELDS and isolated:
            raise no_way_to(field, value)
    written = scratch / "recipe.yaml"
    files.write_text(written, Recipe.model_validate_json(json.dumps(values)).to_yaml())
    return [*found, Channel(RECIPE, {"recipe.yaml": written}), *code_channels(wheelhouse)]


def reporting(recipe: Recipe, server: str | None, stack: Stack, *, isolated: bool = False) -> dict[str, str]:
    """The environment variables of a training job that reports to MLflow; empty if its recipe does not.

    MlflowConfig of CreateTrainingJob is not used: AWS does not document which variables a container gets.

    Args:
        recipe: The recipe.
        server: The ARN of an MLflow tracking server of SageMaker.
        stack: The stack with the role that reports.
        isolated: Whether the container has no network.

    Raises:
        AwsError: If the recipe and the server contradict each other, or the job cannot reach the server.
    """
    if "mlflow" not in recipe.train.report_to:
        if server is not None:
            raise AwsError(
                f"--mlflow {server}, but train.report_to does not contain mlflow",
                'Add "train.report_to=[mlflow]" to the command, or omit --mlflow.',
            )
        return {}
    if server is None:
        raise AwsError(
            "train.report_to contains mlflow, but the job has no server to report to",
            'Add --mlflow ARN of a tracking server of SageMaker, or "train.report_to=[]"; the losses are in the log.',
        )
    Settings(mlflow_servers=[server]).given(stack.site)
    stack.check_mlflow(server)
    if isolated:
        raise AwsError(
            "a job with --network-isolation cannot reach an MLflow server", "Omit --network-isolation or --mlflow."
        )
    return {"MLFLOW_TRACKING_URI": server}


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a model's folder that transformers and PEFT read, by name."""
    inside = [path for path in folder.iterdir() if path.is_file()]
    return named(folder, [path for path in inside if any(fnmatchcase(path.name, each) for each in MODEL_FILES)])


def _used(path: Path, section: str, recipe: Recipe) -> dict[str, Path]:
    """The files that the recipe reads of a path that it names; a folder may also contain others."""
    if path.is_file():
        return files_of(path)
    if section != "data":
        return model_files(path)
    if recipe.data.source != "hub":
        used, _ = split_files(path, recipe.data)
        return named(path, [file for split in used.values() for file in split])
    # `datasets` reads the files that the recipe, dataset_dict.json or the README name, or those that state a split, in
    # their names or folders, or else all of its formats.
    inside = {name: file for name, file in files_of(path).items() if _is_data(file)}
    stated = {name: file for name, file in inside.items() if any(map(split_of, Path(name).with_suffix("").parts))}
    described = {name: path / name for name in ("README.md", "dataset_dict.json") if (path / name).is_file()}
    configured = "README.md" in described and "configs:" in described["README.md"].read_text(errors="replace")
    named_elsewhere = configured or recipe.data.files != SplitFiles() or "dataset_dict.json" in described
    if not inside:
        raise DataError(
            f"data.path: {path} has no data files ({', '.join(DATA_SUFFIXES)})", "Use a folder that `datasets` reads."
        )
    return {**described, **(inside if named_elsewhere or not stated else stated)}


def _is_data(file: Path) -> bool:
    name = file.name.lower()
    packed = next((suffix for suffix in PACKED_SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(packed).endswith(DATA_SUFFIXES)


def code_channels(wheelhouse: Path | None) -> list[Channel]:
    """The channels of every job: the entry script of the container, and the wheels that it installs first.

    Args:
        wheelhouse: A folder of wheels; None: the image has all packages.

    Raises:
        AwsError: If the folder contains no wheels.
    """
    found = [Channel(CODE, {ENTRY: Path(__file__).with_name(ENTRY)})]
    if wheelhouse is not None:
        wheels = {path.name: path for path in sorted(wheelhouse.glob("*.whl"))}
        if not wheels:
            raise AwsError(f"{wheelhouse} contains no wheels", "Omit --wheelhouse to build the wheels.")
        found.append(Channel(WHEELHOUSE, wheels))
    return found


def no_way_to(field: str, value: str) -> AwsError:
    """The error if a container without a network needs files from a hub."""
    return AwsError(
        f"{field}={value} must be downloaded from a hub, but --network-isolation blocks all network access",
        f"Download it to this machine and use {field}=FOLDER.",
    )
