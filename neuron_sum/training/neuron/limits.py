"""Recipes that optimum-neuron does not support: the common list with which `train` fails and `doctor` warns.

Importing this module does not import optimum-neuron.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PretrainedConfig

from neuron_sum.models.base import is_decoder_only
from neuron_sum.models.families import biases, family_of, sliding_window
from neuron_sum.models.rotary import LENGTH_DEPENDENT
from neuron_sum.platform.support import find_cell, remedy
from neuron_sum.recipes.schema import LoraMethod, NeuronConfig, Recipe


@dataclass(frozen=True)
class Fault:
    """One reason why a recipe cannot be trained or saved.

    Attributes:
        field: The field of the recipe with the unsupported value.
        reason: The value, and the reason why it is not supported.
        remedy: The override that fixes it.
    """

    field: str
    reason: str
    remedy: str


def neuron_faults(config: PretrainedConfig, recipe: Recipe) -> list[Fault]:
    """Everything in a recipe that optimum-neuron cannot train or save with this model.

    Args:
        config: The base model's configuration.
        recipe: The whole recipe; its backend may be torch.
    """
    decoder_only, method, neuron = is_decoder_only(config), recipe.method, recipe.train.neuron
    cell = find_cell(config.model_type, method.name, "train")
    faults = []
    if cell.works is False:
        faults.append(Fault("method", f"{method.name} of {config.model_type}: {cell.note}", remedy(cell)))
    if decoder_only and find_cell(config.model_type, "full", "train").works:
        faults += [Fault("model", reason, "train.backend=torch") for reason in _differences(config)]
    if decoder_only and isinstance(method, LoraMethod):
        supported = family_of(config).lora_targets
        if method.target_modules is not None and set(method.target_modules) != set(supported):
            faults.append(
                Fault(
                    "method.target_modules",
                    "optimum-neuron 0.4.5 can train other targets of this family but cannot consolidate them; use all "
                    f"seven: {', '.join(supported)}",
                    "method.target_modules=null",
                )
            )
    if decoder_only and recipe.data.claims is not None:
        faults.append(
            Fault(
                "data.claims",
                "the rows of several claims about one dialogue were not tested with optimum-neuron",
                "train.backend=torch",
            )
        )
    if not decoder_only and neuron.tensor_parallel_size > 1:
        faults.append(
            Fault(
                "train.neuron.tensor_parallel_size",
                f"{neuron.tensor_parallel_size}: T5 supports only data parallel training, because upstream splits only "
                "models for which it has a custom class",
                "train.neuron.tensor_parallel_size=1",
            )
        )
    if not decoder_only and neuron.zero_1:
        faults.append(
            Fault(
                "train.neuron.zero_1",
                "not supported for T5, where it has not been tested",
                "train.neuron.zero_1=false",
            )
        )
    return faults


def _differences(config: PretrainedConfig) -> Iterator[str]:
    """What the classes of optimum-neuron 0.4.5 ignore or reject in a decoder-only model."""
    for name in biases(config).names():
        yield f"{name}: optimum-neuron 0.4.5 leaves out the biases of the projections"
    if (window := sliding_window(config)) is not None:
        yield f"sliding_window = {window}: optimum-neuron 0.4.5 has none"
    kind = (getattr(config, "rope_scaling", None) or {}).get("rope_type")
    if kind in LENGTH_DEPENDENT:
        yield f"rope_scaling {kind}: it changes with the length of a row, a graph has fixed positions"


def layout_faults(neuron: NeuronConfig, processes: int) -> list[Fault]:
    """Faults of a layout for this number of processes, each with a separate NeuronCore.

    Args:
        neuron: The recipe's train.neuron section.
        processes: The number of processes that train together.
    """
    size = neuron.tensor_parallel_size
    if processes % size == 0:
        return []
    return [
        Fault(
            "train.neuron.tensor_parallel_size",
            f"{size} does not divide {processes}, the number of processes and their NeuronCores",
            f"train.neuron.tensor_parallel_size={math.gcd(size, processes)}",
        )
    ]
