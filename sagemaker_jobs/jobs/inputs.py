"""What a job reads: the recipe as the container will see it, and folders that go to S3 by the hash of their content."""

import json
from pathlib import Path

from neuron_sum import files
from neuron_sum.errors import AwsError, DataError
from neuron_sum.recipes.schema import Recipe
from sagemaker_jobs.aws.place import NetworkSecurity
from sagemaker_jobs.jobs.requests import CODE, DATA, ENTRY, INPUT, MODEL, RECIPE, WHEELHOUSE
from sagemaker_jobs.launch.channels import Channel, files_of

LOCAL_FIELDS = {
    "data.path": DATA,
    "model.name_or_path": MODEL,
    "model.config": "config",
    "model.tokenizer": "tokenizer",
    "train.deepspeed": "deepspeed",
}
"""Fields of a recipe that may name something on this disk, and the channel that takes it to the container."""

HUB_FIELDS = ("data.path", "model.name_or_path", "model.tokenizer")


def channels(recipe: Recipe, scratch: Path, wheelhouse: Path | None, isolation: NetworkSecurity) -> list[Channel]:
    """Everything that a training job reads.

    Args:
        recipe: As it holds on this machine.
        scratch: An empty folder for what is written on the way.
        wheelhouse: A folder of wheels; None: the image has everything.
        isolation: Without a network nothing can come from a hub.

    Raises:
        DataError: If a path of the recipe is not there.
        AwsError: If something would come from a hub, and there is no way to one.
    """
    values = recipe.model_dump(mode="json")
    found = []
    for field, channel in LOCAL_FIELDS.items():
        section, key = field.split(".")
        value = values[section][key]
        if not isinstance(value, str):
            continue
        path = Path(value)
        if path.is_absolute():
            if not path.exists():
                raise DataError(f"{field}: {path} is not there", "a folder or file on this machine, or a hub's id")
            found.append(Channel(channel, files_of(path)))
            values[section][key] = f"{INPUT}/{channel}" + ("" if path.is_dir() else f"/{path.name}")
        elif field in HUB_FIELDS and isolation.network_isolation:
            raise no_way_to(field, value)
    written = scratch / "recipe.yaml"
    files.write_text(written, Recipe.model_validate_json(json.dumps(values)).to_yaml())
    return [*found, Channel(RECIPE, {"recipe.yaml": written}), *code_channels(wheelhouse)]


def code_channels(wheelhouse: Path | None) -> list[Channel]:
    """What every job reads: the script that runs in the container, and the wheels that it installs first.

    Args:
        wheelhouse: A folder of wheels; None: the image has everything.

    Raises:
        AwsError: If there are no wheels in it.
    """
    found = [Channel(CODE, {ENTRY: Path(__file__).with_name(ENTRY)})]
    if wheelhouse is not None:
        wheels = {path.name: path for path in sorted(wheelhouse.glob("*.whl"))}
        if not wheels:
            raise AwsError(f"{wheelhouse} holds no wheels", "leave out --wheelhouse, and one is built")
        found.append(Channel(WHEELHOUSE, wheels))
    return found


def no_way_to(field: str, value: str) -> AwsError:
    """Why something of a hub's cannot be had in a container without a network."""
    return AwsError(
        f"{field}={value} comes from a hub, and --network-isolation leaves no way to one",
        f"download it here, and give the folder: {field}=FOLDER",
    )
