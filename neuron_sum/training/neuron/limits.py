"""What optimum-neuron cannot do with a recipe: the one list that `train` refuses by and `doctor` warns by.

Importing this imports nothing of optimum-neuron.
"""

import math
from dataclasses import dataclass

from transformers import PretrainedConfig

from neuron_sum.models.adapters import LORA_TARGETS
from neuron_sum.models.base import DECODER_ONLY, is_decoder_only
from neuron_sum.platform.support import find_cell
from neuron_sum.recipes.schema import LoraMethod, NeuronConfig, Recipe


@dataclass(frozen=True)
class Fault:
    """One thing that cannot be trained, or not saved.

    Attributes:
        field: The recipe's field that asks for it.
        why: Why not.
        remedy: The override that mends it.
    """

    field: str
    why: str
    remedy: str


def neuron_faults(config: PretrainedConfig, recipe: Recipe) -> list[Fault]:
    """Everything in a recipe that optimum-neuron cannot train with this model, or cannot save.

    Args:
        config: The base model's configuration.
        recipe: The whole recipe; its backend may still be torch.
    """
    decoder_only, method, neuron = is_decoder_only(config), recipe.method, recipe.train.neuron
    cell = find_cell(config.model_type, method.name, "train")
    faults = []
    if cell.works is False:
        faults.append(Fault("method", f"{method.name}: {cell.note}", "method=lora"))
    if decoder_only and isinstance(method, LoraMethod):
        wanted = LORA_TARGETS[DECODER_ONLY]
        if method.target_modules is not None and set(method.target_modules) != set(wanted):
            faults.append(
                Fault(
                    "method.target_modules",
                    "optimum-neuron 0.4.5 trains other targets of a Llama, but cannot put them together again; it "
                    f"takes all seven: {', '.join(wanted)}",
                    "method.target_modules=null",
                )
            )
    if not decoder_only and neuron.tensor_parallel_size > 1:
        faults.append(
            Fault(
                "train.neuron.tensor_parallel_size",
                f"{neuron.tensor_parallel_size}: a T5 is trained data parallel only, for upstream splits models with a "
                "class of its own alone",
                "train.neuron.tensor_parallel_size=1",
            )
        )
    if not decoder_only and neuron.zero_1:
        faults.append(
            Fault(
                "train.neuron.zero_1",
                "not for T5, where nobody has shown that it trains right",
                "train.neuron.zero_1=false",
            )
        )
    return faults


def layout_faults(neuron: NeuronConfig, processes: int) -> list[Fault]:
    """What is wrong with a layout for so many processes, each with a NeuronCore of its own.

    Args:
        neuron: The recipe's train.neuron section.
        processes: How many train together.
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
