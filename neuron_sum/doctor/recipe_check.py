"""Check a recipe on an instance type before it costs money: method, layout, memory, image and upstream bugs.

Base models in models/dimensions.py are checked without a hub.
"""

from typing import TYPE_CHECKING, Literal

from neuron_sum.console import size
from neuron_sum.doctor.machine_check import Check, retirements
from neuron_sum.doctor.upstream_bugs import UPSTREAM_BUGS, Case
from neuron_sum.errors import RecipeError
from neuron_sum.models.dimensions import base_config
from neuron_sum.models.families import head_dim
from neuron_sum.platform.drivers import SAGEMAKER_HOST_SOURCE, sagemaker_driver
from neuron_sum.platform.matrix import Instance, Platform
from neuron_sum.platform.support import FAMILIES_OF_STAGE, Stage, find_cell, remedy
from neuron_sum.recipes.schema import CompileConfig, Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from neuron_sum.models.base import ParameterCount

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


def check_recipe(recipe: Recipe, instance: Instance, platform: Platform, region: str | None = None) -> list[Check]:
    """Check a recipe on an instance type: method, memory, layout, driver, image, and upstream bugs that affect it.

    Args:
        recipe: The whole recipe.
        instance: The instance type: Trainium for training, Inferentia2 for compiled models.
        platform: The versions to run with.
        region: The AWS region for the full image name.

    Raises:
        NeuronSumError: If the base model's configuration is not available.
    """
    config = base_config(recipe.model)
    parameters = parameters_of(recipe, config)
    family, method = str(config.model_type), recipe.method.name
    stages: list[Stage] = [stage for stage, families in FAMILIES_OF_STAGE.items() if instance.family in families]
    checks = [_check_method(family, method, stage) for stage in stages]
    names = [name for stage in stages for name in find_cell(family, method, stage).retirements]
    checks += retirements(dict.fromkeys([*names, *platform.retirements]))
    if "train" in stages:
        checks += _check_training(recipe, config, parameters, instance)
    else:
        checks.append(_check_serving_memory(recipe, config, parameters, instance))
    checks += check_context(recipe, config)
    checks += _check_upstream_bugs(recipe, family, instance, "train" if "train" in stages else "compile")
    if driver := sagemaker_driver(instance.name, platform.drivers):
        checks.append(Check("driver", "note", driver, None, f"{platform.drivers.source}; {SAGEMAKER_HOST_SOURCE}"))
    return [*checks, _image(platform, "train" if "train" in stages else "serve", region)]


def parameters_of(recipe: Recipe, config: "PretrainedConfig") -> "ParameterCount":
    """The parameters of the model with its adapter, counted without allocating weights."""
    import torch

    from neuron_sum.models import adapters
    from neuron_sum.models import base as models

    with torch.device("meta"):
        base = models.model_class_of(config)(config)
        return models.count_parameters(adapters.attach(base, recipe.method, recipe.train.seed))


def _check_method(family: str, method: str, stage: Stage) -> Check:
    cell = find_cell(family, method, stage)
    name = f"{stage} {family} {method}"
    if cell.works is None:
        return Check(name, "note", f"no source states whether it works: {cell.note}", None, None)
    found = f"{cell.note} (evidence: {cell.evidence}; {cell.status})"
    if cell.works:
        return Check(name, "ok", found, None, cell.source)
    return Check(name, "blocks", found, remedy(cell), cell.source)


def check_context(recipe: Recipe, config: "PretrainedConfig") -> list[Check]:
    """Check that the model has positions for the recipe's lengths."""
    from neuron_sum.models.rotary import check_positions, training_lengths

    try:
        check_positions(config, training_lengths(recipe))
    except RecipeError as error:
        return [Check("context", "blocks", error.message, error.hint)]
    return []


def _check_training(
    recipe: Recipe, config: "PretrainedConfig", parameters: "ParameterCount", instance: Instance
) -> list[Check]:
    from neuron_sum.data.shapes import longest_row
    from neuron_sum.models.base import is_decoder_only
    from neuron_sum.training.neuron.memory import neuron_memory

    longest = longest_row(recipe, decoder_only=is_decoder_only(config))
    checks = _check_layout(recipe, config, instance)
    memory = neuron_memory(
        config,
        parameters,
        longest,
        recipe.train,
        processes=instance.neuron_cores,
        core_available=instance.core_memory,
        host_available=instance.host_memory,
    )
    found = f"about {size(memory.core.memory)} of {size(memory.core_available)} ({memory.core.parts})"
    if recipe.train.shapes.plan == "packed" and recipe.train.shapes.sizes is None:
        found += f"; for rows of {longest}; the data may choose longer ones unless train.shapes.sizes is set"
    if memory.core_fits:
        checks.append(Check("memory of a NeuronCore", "ok", found))
    else:
        checks.append(Check("memory of a NeuronCore", "blocks", found, memory.core_remedy))
    found = f"about {size(memory.host)} of {size(memory.host_available)} for {memory.processes} processes"
    if memory.host_fits:
        checks.append(Check("memory of the host", "ok", f"{found}, without the compiler"))
    else:
        checks.append(Check("memory of the host", "blocks", found, memory.host_remedy))
    return checks


def _check_layout(recipe: Recipe, config: "PretrainedConfig", instance: Instance) -> list[Check]:
    """Check the backend, parallelism, and settings that NeuronTrainer does not support."""
    from neuron_sum.training.neuron.limits import layout_faults, neuron_faults

    checks, train = [], recipe.train
    if train.backend == "torch":
        remedy = "train.backend=neuron" + (" train.shapes.plan=packed" if train.shapes.plan == "dynamic" else "")
        checks.append(Check("train.backend", "differs", "torch trains on the CPU of that instance", remedy))
    checks += [
        Check(fault.field, "blocks", fault.reason, fault.remedy)
        for fault in [*neuron_faults(config, recipe), *layout_faults(train.neuron, instance.neuron_cores)]
        if fault.field != "method"  # reported by _check_method
    ]
    if train.fsdp or train.deepspeed is not None:  # only for torch; a recipe with backend neuron rejects them
        checks.append(
            Check(
                "sharding",
                "blocks",
                "fsdp and deepspeed require the torch backend; NeuronTrainer has ZeRO-1 and tensor parallelism",
                "train.fsdp=false train.deepspeed=null",
            )
        )
    return checks


def _check_serving_memory(
    recipe: Recipe, config: "PretrainedConfig", parameters: "ParameterCount", instance: Instance
) -> Check:
    """Weights, keys and values of the largest bucket on one core; the activations of a step are small in comparison."""
    compiled: CompileConfig = recipe.compile
    weights = parameters.all * DTYPE_BYTES[compiled.dtype]
    kv_bytes = DTYPE_BYTES[compiled.kv_dtype or ("fp32" if compiled.dtype == "fp32" else "bf16")]
    source = max(compiled.source_lens or (recipe.data.max_source_length,))
    target = compiled.target_len or recipe.generate.max_new_tokens
    batch, beams = max(compiled.batch_sizes), max(compiled.num_beams or (recipe.generate.num_beams,))
    if config.is_encoder_decoder:
        columns = config.num_decoder_layers * config.num_heads * config.d_kv * (beams * target + source)
    else:
        columns = config.num_hidden_layers * config.num_key_value_heads * head_dim(config) * beams * (source + target)
    needed = weights + 2 * batch * columns * kv_bytes
    found = (
        f"about {size(needed)} of {size(instance.core_memory)} (weights {size(weights)} in {compiled.dtype}, keys and "
        f"values {size(needed - weights)} at batch {batch}, {beams} beams, {source} + {target} tokens)"
    )
    if needed <= instance.core_memory:
        return Check("memory of a NeuronCore", "ok", found)
    return Check("memory of a NeuronCore", "blocks", found, "compile.dtype=bf16, or smaller compile.batch_sizes")


def _check_upstream_bugs(
    recipe: Recipe, family: str, instance: Instance, stage: Literal["train", "compile"]
) -> list[Check]:
    case = Case(
        family=family,
        method=recipe.method.name,
        stage=stage,
        instance=instance,
        gradient_checkpointing=recipe.train.gradient_checkpointing,
        dtype=recipe.compile.dtype,
        num_beams=max(recipe.compile.num_beams or (recipe.generate.num_beams,)),
    )
    return [
        Check(f"trap {bug.name}", "note", bug.problem, bug.handling, bug.source)
        for bug in UPSTREAM_BUGS
        if bug.affects(case)
    ]


def _image(platform: Platform, stage: str, region: str | None) -> Check:
    image = next(image for image in platform.registry_images if image.stage == stage)
    name = image.uri(region) if region else f"{image.repository}:{image.tag}"
    found = name if region else f"{name} (use --region for the full name)"
    return Check("image", "ok", found, None, image.source)
