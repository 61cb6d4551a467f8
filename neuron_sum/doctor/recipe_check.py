"""A recipe on an instance, before it is paid for: method, layout, memory, image, and the traps that concern it.

No hub is asked for the base models that models/dimensions.py has.
"""

from typing import TYPE_CHECKING, Literal

from neuron_sum.console import size
from neuron_sum.doctor.machine_check import Check, retirements
from neuron_sum.doctor.upstream_bugs import UPSTREAM_BUGS, Case
from neuron_sum.models.dimensions import base_config
from neuron_sum.platform.matrix import Instance, Platform
from neuron_sum.platform.support import FAMILIES_OF_STAGE, Stage, find_cell
from neuron_sum.recipes.schema import CompileConfig, Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from neuron_sum.models.base import ParameterCount

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


def check_recipe(recipe: Recipe, instance: Instance, platform: Platform, region: str | None = None) -> list[Check]:
    """Whether a recipe works on an instance: method, memory, layout, image; and the traps that concern it.

    Args:
        recipe: The whole recipe.
        instance: Trainium is asked to train, Inferentia2 to run what was compiled.
        platform: The versions it shall run with.
        region: Where, for the image's full name.

    Raises:
        NeuronSumError: If the base model's configuration cannot be had.
    """
    config = base_config(recipe.model)
    parameters = _parameters(recipe, config)
    family, method = str(config.model_type), recipe.method.name
    stages: list[Stage] = [stage for stage, families in FAMILIES_OF_STAGE.items() if instance.family in families]
    checks = [_check_method(family, method, stage) for stage in stages]
    names = [name for stage in stages for name in find_cell(family, method, stage).retirements]
    checks += retirements(dict.fromkeys([*names, *platform.retirements]))
    if "train" in stages:
        checks += _check_training(recipe, config, parameters, instance)
    else:
        checks.append(_check_serving_memory(recipe, config, parameters, instance))
    checks += _check_traps(recipe, family, instance, "train" if "train" in stages else "compile")
    return [*checks, _image(platform, "train" if "train" in stages else "serve", region)]


def _parameters(recipe: Recipe, config: "PretrainedConfig") -> "ParameterCount":
    """Counted on the model itself, with the adapter, of which no weight is made."""
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
        return Check(name, "note", f"no source says whether it works: {cell.note}", None, None)
    told = f"{cell.note} (evidence: {cell.evidence}; {cell.status})"
    if cell.works:
        return Check(name, "ok", told, None, cell.source)
    return Check(name, "blocks", told, "method=lora", cell.source)


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
    told = f"about {size(memory.core.memory)} of {size(memory.core_available)} ({memory.core.parts})"
    if recipe.train.shapes.plan == "packed" and recipe.train.shapes.sizes is None:
        told += f"; for rows of {longest}, and the data may choose longer ones: train.shapes.sizes sets them"
    if memory.core_fits:
        checks.append(Check("memory of a NeuronCore", "ok", told))
    else:
        checks.append(Check("memory of a NeuronCore", "blocks", told, memory.core_remedy))
    told = f"about {size(memory.host)} of {size(memory.host_available)} for {memory.processes} processes"
    if memory.host_fits:
        checks.append(Check("memory of the host", "ok", f"{told}; the compiler's own comes on top"))
    else:
        checks.append(Check("memory of the host", "blocks", told, memory.host_remedy))
    return checks


def _check_layout(recipe: Recipe, config: "PretrainedConfig", instance: Instance) -> list[Check]:
    """Backend, parallelism, and what NeuronTrainer has no part for."""
    from neuron_sum.training.neuron.limits import layout_faults, neuron_faults

    checks, train = [], recipe.train
    if train.backend == "torch":
        remedy = "train.backend=neuron" + (" train.shapes.plan=packed" if train.shapes.plan == "dynamic" else "")
        checks.append(Check("train.backend", "differs", "torch trains on the CPU of that instance", remedy))
    checks += [
        Check(fault.field, "blocks", fault.why, fault.remedy)
        for fault in [*neuron_faults(config, recipe), *layout_faults(train.neuron, instance.neuron_cores)]
        if fault.field != "method"  # the matrix's cell has told that
    ]
    if train.fsdp or train.deepspeed is not None:  # in a recipe for torch; with backend neuron it does not load
        checks.append(
            Check(
                "sharding",
                "blocks",
                "fsdp and deepspeed are torch's; NeuronTrainer has ZeRO-1 and tensor parallelism",
                "train.fsdp=false train.deepspeed=null",
            )
        )
    return checks


def _check_serving_memory(
    recipe: Recipe, config: "PretrainedConfig", parameters: "ParameterCount", instance: Instance
) -> Check:
    """Weights and the keys and values of the largest bucket, on one core; activations of one step are small beside."""
    compiled: CompileConfig = recipe.compile
    weights = parameters.all * DTYPE_BYTES[compiled.dtype]
    kv_bytes = DTYPE_BYTES[compiled.kv_dtype or ("fp32" if compiled.dtype == "fp32" else "bf16")]
    source = max(compiled.source_lens or (recipe.data.max_source_length,))
    target = compiled.target_len or recipe.generate.max_new_tokens
    batch, beams = max(compiled.batch_sizes), max(compiled.num_beams or (recipe.generate.num_beams,))
    if config.model_type == "t5":
        columns = config.num_decoder_layers * config.num_heads * config.d_kv * (beams * target + source)
    else:
        head = config.hidden_size // config.num_attention_heads
        columns = config.num_hidden_layers * config.num_key_value_heads * head * beams * (source + target)
    needed = weights + 2 * batch * columns * kv_bytes
    told = (
        f"about {size(needed)} of {size(instance.core_memory)} (weights {size(weights)} in {compiled.dtype}, keys and "
        f"values {size(needed - weights)} at batch {batch}, {beams} beams, {source} + {target} tokens)"
    )
    if needed <= instance.core_memory:
        return Check("memory of a NeuronCore", "ok", told)
    return Check("memory of a NeuronCore", "blocks", told, "compile.dtype=bf16, or smaller compile.batch_sizes")


def _check_traps(recipe: Recipe, family: str, instance: Instance, stage: Literal["train", "compile"]) -> list[Check]:
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
        Check(f"trap {trap.name}", "note", trap.problem, trap.handling, trap.source)
        for trap in UPSTREAM_BUGS
        if trap.affects(case)
    ]


def _image(platform: Platform, stage: str, region: str | None) -> Check:
    image = next(image for image in platform.registry_images if image.stage == stage)
    name = image.uri(region) if region else f"{image.repository}:{image.tag}"
    found = name if region else f"{name} (--region gives its full name)"
    return Check("image", "ok", found, None, image.source)
