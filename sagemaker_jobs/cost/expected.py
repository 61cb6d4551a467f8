"""Projected training time of a recipe, from the output of `neuron-sum preflight RECIPE --json`."""

import json
from pathlib import Path

from neuron_sum.console import quote
from neuron_sum.errors import AwsError
from neuron_sum.platform.matrix import INSTANCES
from neuron_sum.recipes.schema import Recipe

NOT_INCLUDED = "without downloads, compiling and saving"


def training_hours(
    report: Path, recipe: Recipe, instance: str, instances: int, preflight: str
) -> tuple[float | None, str]:
    """Return the projected time of all epochs or steps, scaled from the preflight's epoch to the given instances.

    Args:
        report: The file with the preflight's JSON.
        recipe: The recipe to train, whose name must be that in the report.
        instance: The instance type.
        instances: The number of instances.
        preflight: The command that prints a report of this recipe, for errors.

    Returns:
        The hours, or None if the preflight has no projection, or the instance has no NeuronCores; and the assumptions,
        or the reason why there is no projection.

    Raises:
        AwsError: If the file is not a preflight report, or is for another recipe.
    """
    remedy = f"run {preflight} > {quote(report)}"
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
        name, epoch = content["recipe"], content["training"]
        seconds, rows, measured = epoch["projected_s"], epoch["rows"], INSTANCES[epoch["instance"]]
        share = epoch["assumed_share_of_peak"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AwsError(f"{report} is not a preflight report ({type(error).__name__}: {error})", remedy) from error
    if name != recipe.name:
        raise AwsError(f"{report} is the preflight report of {name}, but the recipe is {recipe.name}", remedy)
    if instance not in INSTANCES:
        return None, f"projections are for Trainium, which {instance} does not have"
    if seconds is None or not rows:
        return None, f"the preflight has no projection: {epoch['rows_are']}"
    cores = INSTANCES[instance].neuron_cores * instances
    train = recipe.train
    trained = rows * train.num_train_epochs
    if train.max_steps is not None:
        trained = train.max_steps * train.per_device_train_batch_size * train.gradient_accumulation_steps * cores
    hours = trained * seconds / rows * measured.neuron_cores / cores / 3600
    return (hours, f"{trained:,.0f} rows on {cores} cores at an assumed {share:.0%} of their peak rate, {NOT_INCLUDED}")
