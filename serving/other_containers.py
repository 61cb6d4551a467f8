"""`neuron-sum package --container`: packing for the containers of others, with notes and the lines to print."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuron_sum import console
from neuron_sum.artifact import Artifact, is_artifact, open_artifact
from neuron_sum.errors import ArtifactError, RecipeError
from neuron_sum.platform.containers import CONTAINERS, VLLM
from neuron_sum.platform.matrix import ENDED_CONTAINERS
from neuron_sum.recipes.schema import Recipe
from neuron_sum.runs.fingerprint import open_trained
from serving import neuronx_container, vllm_container


def pack_vllm(path: Path, target: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Pack a run or an artifact for Hugging Face's vLLM image.

    Args:
        path: The folder of the run or artifact.
        target: The archive to write.
        overrides: Changes to the recipe of a run.

    Returns:
        The fields for --json, and the lines to print.

    Raises:
        NeuronSumError: If the container cannot serve the model.
    """
    image = CONTAINERS[VLLM]
    source = open_artifact(path) if is_artifact(path) else open_trained(path)
    if isinstance(source, Artifact) and (warning := source.manifest.quality_warning):
        console.warn(f"{path}: {warning}; run `{console.command('compile', 'verify', path)}`")
    check_long(source.recipe, VLLM)
    packed = vllm_container.write_archive(source, target, overrides)
    if not packed.precompiled:
        console.note(
            "the image compiles this checkpoint when it starts, unless Hugging Face's public cache has its graphs: the "
            "endpoint needs the internet, and memory for the compiler; to avoid both, run "
            f"`{console.command('compile', path, set=overrides, target='inf2')}` and package the artifact"
        )
    name = f"{image.repository}:{image.tag}"
    details = {"image": name, "environment": packed.environment, "precompiled": packed.precompiled}
    return details, [
        f"image: {name}",
        *(f"{key}={value}" for key, value in packed.environment.items()),
        f"next: {console.command('aws', 'deploy', target, image=VLLM)}",
    ]


def pack_djl(path: Path, target: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Pack a run for the last DJL container with Neuron.

    Args:
        path: The folder of the run.
        target: The archive to write.
        overrides: Values of --set, which this container does not have.

    Returns:
        The fields for --json, and the lines to print.

    Raises:
        NeuronSumError: If the container cannot serve the model.
    """
    container = neuronx_container.CONTAINER
    if overrides:
        raise RecipeError(f"--set has no effect: {container} does not read the `serve` section", "omit --set")
    if is_artifact(path):
        raise ArtifactError(
            f"{path} is a compiled artifact; {container} compiles the model itself",
            f"run `{console.command('package', 'RUN', container=container)}` with the folder of the run",
        )
    run, ended = open_trained(path), ENDED_CONTAINERS[container]
    check_long(run.recipe, container)
    settings = neuronx_container.write_archive(run, target)
    console.warn(f"the software in {ended.name} has not been supported since {ended.ended} ({ended.ended_source})")
    prompt = run.recipe.prompt.resolve().template
    details = {
        "image": ended.name,
        "ended": ended.ended,
        "ended_source": ended.ended_source,
        "properties": settings,
        "prompt": prompt,
    }
    return details, [
        settings.rstrip(),
        f"image: {ended.name}; send whole prompts as inputs, in the form {prompt!r}",
    ]


def check_long(recipe: Recipe, container: str) -> None:
    """Checks that the endpoint need not split long dialogues.

    Args:
        recipe: The recipe of the model.
        container: The name of the container.

    Raises:
        RecipeError: If the recipe has data.long `merge`.
    """
    if recipe.data.long == "merge":
        raise RecipeError(
            f"data.long = 'merge': {container} does not split long dialogues into pieces",
            "run `neuron-sum compile RUN`, then `neuron-sum package ARTIFACT` for neuron-sum's container",
        )
