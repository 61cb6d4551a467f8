"""How long a recipe's training is projected to take, from what `neuron-sum preflight RECIPE --json` printed."""

import json
from dataclasses import dataclass
from pathlib import Path

from neuron_sum.errors import AwsError
from neuron_sum.platform.matrix import INSTANCES
from neuron_sum.recipes.schema import Recipe

NOT_IN_IT = "downloads, compiling and saving are not in it"


@dataclass(frozen=True)
class Projection:
    """The expected case of a training.

    Attributes:
        hours: None where the preflight could not say, or the instance has no NeuronCores.
        why: What it rests on, or why there is none.
    """

    hours: float | None
    why: str


def training_hours(report: Path, recipe: Recipe, instance: str, instances: int) -> Projection:
    """The preflight's projected epoch, for all epochs or steps, spread over the cores of other instances.

    Args:
        report: A file with the preflight's JSON.
        recipe: What is trained; the report must be of one with its name.
        instance: On what.
        instances: On how many.

    Raises:
        AwsError: If the file is none of preflight's, or of another recipe.
    """
    remedy = f"neuron-sum preflight {recipe.name} --json > {report}"
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
        name, epoch = found["recipe"], found["training"]
        seconds, rows, of = epoch["projected_s"], epoch["rows"], INSTANCES[epoch["instance"]]
        share = epoch["assumed_share_of_peak"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AwsError(f"{report} is no report of the preflight ({type(error).__name__}: {error})", remedy) from error
    if name != recipe.name:
        raise AwsError(f"{report} is the preflight of {name}, and the recipe is {recipe.name}", remedy)
    if instance not in INSTANCES:
        return Projection(None, f"a projection is for Trainium, and {instance} has none")
    if seconds is None or not rows:
        return Projection(None, f"the preflight has no projection: {epoch['rows_are']}")
    cores = INSTANCES[instance].neuron_cores * instances
    train = recipe.train
    trained = rows * train.num_train_epochs
    if train.max_steps is not None:
        trained = train.max_steps * train.per_device_train_batch_size * train.gradient_accumulation_steps * cores
    hours = trained * seconds / rows * of.neuron_cores / cores / 3600
    return Projection(
        hours, f"{trained:,.0f} rows on {cores} cores at {share:.0%} of their peak rate, an assumption; {NOT_IN_IT}"
    )
