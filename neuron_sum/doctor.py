"""This machine against the platform matrix, and a recipe against an instance: what fits, what differs, what to do.

Nothing is changed and nothing is fetched, but for the configuration of a base model that published.py does not have.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from neuron_sum.console import size
from neuron_sum.errors import PlatformError
from neuron_sum.machine import Machine
from neuron_sum.published import PUBLISHED
from neuron_sum.recipe import CompileConfig, LoraMethod, ModelConfig, Recipe, TrainConfig, TrainedTokenizer
from neuron_sum.stack import INSTANCES, NEURON_INDEX, PLATFORMS, Instance, Platform
from neuron_sum.support import FAMILIES_OF_STAGE, RETIREMENTS, Stage, find_cell
from neuron_sum.traps import TRAPS, Case

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from neuron_sum.models import ParameterCount

Verdict = Literal["ok", "note", "differs", "blocks"]
DISK_NEEDED = 20 * 10**9
"""torch's CUDA libraries, a base model, two checkpoints of it."""
DTYPE_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        verdict: ok; note: worth knowing; differs: from the platform's row, may work; blocks: will not work.
        found: What was found.
        remedy: What to run or change; None where there is nothing to do.
        source: Where the knowledge comes from, where it is not this machine.
    """

    name: str
    verdict: Verdict
    found: str
    remedy: str | None = None
    source: str | None = None


def raise_if_blocked(checks: Iterable[Check]) -> None:
    """Ends with an error where something will not work.

    Raises:
        PlatformError: Naming every check that blocks.
    """
    blocking = [check for check in checks if check.verdict == "blocks"]
    if blocking:
        names = ", ".join(check.name for check in blocking)
        remedies = "; ".join(check.remedy for check in blocking if check.remedy)
        raise PlatformError(f"{len(blocking)} of the checks block: {names}", remedies or None)


# This machine


def distributions() -> list[str]:
    """Every package that the matrix has a version of."""
    wanted = ["neuron-sum", "optimum-neuron", "torch-xla"]
    for platform in PLATFORMS:
        wanted += [*platform.pins, *platform.vendor_pins]
    return list(dict.fromkeys(wanted))


def nearest_platform(machine: Machine) -> Platform:
    """The row that most of the installed packages agree with; of equals, the newest."""
    return max(PLATFORMS, key=lambda platform: len(platform.pins) - len(_differences(machine, platform.pins)))


def check_machine(machine: Machine, platform: Platform) -> list[Check]:
    """What this machine is, beside a row of the matrix."""
    return [
        Check("machine", "ok", f"{machine.instance or 'no EC2 instance'}: {machine.cores} cores, {machine.cpu}"),
        Check("memory", "ok", f"{size(machine.free_memory)} free of {size(machine.memory)}"),
        _check_disk(machine),
        _check_python(machine, platform),
        _check_packages(machine, platform),
        *_check_neuron(machine, platform),
        _check_server(machine, platform),
        _check_compiler(machine),
        *_retirements(platform.retirements),
    ]


def _check_disk(machine: Machine) -> Check:
    if machine.free_disk >= DISK_NEEDED:
        return Check("disk", "ok", f"{size(machine.free_disk)} free here")
    return Check("disk", "note", f"{size(machine.free_disk)} free here", f"room for {size(DISK_NEEDED)}, or less to do")


def _check_python(machine: Machine, platform: Platform) -> Check:
    minor = ".".join(machine.python.split(".")[:2])
    if minor in platform.python:
        return Check("python", "ok", machine.python)
    wanted = " or ".join(platform.python)
    return Check(
        "python", "blocks", f"{machine.python}; the row has {wanted}", f"python{platform.python[-1]} -m venv .venv"
    )


def _check_packages(machine: Machine, platform: Platform) -> Check:
    differing = _differences(machine, platform.pins)
    same = f"{len(platform.pins) - len(differing)} of {len(platform.pins)} as in {platform.name}"
    if not differing:
        return Check("packages", "ok", same)
    missing = any(machine.packages.get(name) is None for name in differing)
    return Check(
        "packages", "blocks" if missing else "differs", f"{same}; {_told(machine, differing)}", _pip(differing)
    )


def _check_neuron(machine: Machine, platform: Platform) -> list[Check]:
    """Devices, driver, AWS's packages and optimum-neuron: all needed where there is a device, none elsewhere."""
    wanted = {**platform.vendor_pins, "optimum-neuron": platform.optimum_neuron}
    installed = [name for name in platform.vendor_pins if machine.packages.get(name) is not None]
    differing = _differences(machine, wanted)
    checks = []
    if machine.neuron_devices == 0:
        checks.append(
            Check(
                "neuron", "note", "no Neuron device: everything runs on this machine's CPU",
                "`neuron-sum doctor RECIPE --instance ml.trn1.2xlarge` checks a recipe for one that has them",
            )
        )  # fmt: skip
        if machine.packages.get("torch-xla") is not None:
            checks.append(Check("torch-xla", "note", f"{machine.packages['torch-xla']}, with no device to use"))
        if not installed:
            return checks
    else:
        checks.append(Check("neuron", "ok", f"{machine.neuron_devices} chips"))
        checks.append(_check_driver(machine, platform))
    if differing:
        verdict: Verdict = "blocks" if machine.neuron_devices else "differs"
        remedy = _pip(differing, f"--extra-index-url={NEURON_INDEX} ")
        checks.append(Check("neuron packages", verdict, _told(machine, differing), remedy, platform.source))
    else:
        checks.append(Check("neuron packages", "ok", f"as in {platform.name}"))
    return checks


def _check_driver(machine: Machine, platform: Platform) -> Check:
    """A driver works with older runtimes, a runtime not with an older driver."""
    wanted = platform.system_packages["aws-neuronx-dkms"]
    remedy = f"sudo apt-get install aws-neuronx-dkms={wanted}, or newer"
    source = "AWS Neuron documentation, neuron-runtime/nrt-troubleshoot.rst: a driver serves older runtimes"
    if machine.driver is None:
        return Check("driver", "blocks", "devices, and no driver that tells its version", remedy, source)
    if _numbers(machine.driver) < _numbers(wanted):
        return Check("driver", "blocks", f"{machine.driver}, older than the row's {wanted}", remedy, source)
    return Check("driver", "ok", f"{machine.driver}; the row's is {wanted}", None, source)


def _check_server(machine: Machine, platform: Platform) -> Check:
    missing = [tool for tool in ("java", "mvn", "git") if tool not in machine.tools]
    install = f"apt-get install openjdk-{platform.java}-jdk-headless maven git"
    if missing:
        return Check("server", "note", f"no {', '.join(missing)}: `neuron-sum serve` is built with them", install)
    if machine.java != platform.java:
        return Check("server", "differs", f"Java {machine.java}; the row has {platform.java}", install)
    return Check("server", "ok", f"Java {machine.java}, Maven, git")


def _check_compiler(machine: Machine) -> Check:
    if "g++" in machine.tools:
        return Check("c++ compiler", "ok", "g++")
    return Check("c++ compiler", "note", "none: `neuron-sum compile` needs one", "apt-get install g++")


def _differences(machine: Machine, wanted: Mapping[str, str]) -> dict[str, str]:
    """What is wanted and not there in that version; a local part such as +cpu does not count."""
    return {
        name: version for name, version in wanted.items() if (machine.packages.get(name) or "").split("+")[0] != version
    }


def _told(machine: Machine, differing: Mapping[str, str]) -> str:
    return ", ".join(
        f"{name} {machine.packages.get(name) or 'missing'} ({wanted})" for name, wanted in differing.items()
    )


def _pip(differing: Mapping[str, str], options: str = "") -> str:
    return f"pip install {options}" + " ".join(f"'{name}=={version}'" for name, version in differing.items())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())


def _retirements(names: Iterable[str]) -> list[Check]:
    checks = []
    for name in names:
        retirement = RETIREMENTS[name]
        since = f"{retirement.status} since {retirement.since} (SDK {retirement.release})"
        found = f"{retirement.what}: {since}; {retirement.means}"
        checks.append(Check(name, "note", found, None, retirement.source))
    return checks


# A recipe on an instance


@dataclass(frozen=True)
class Layout:
    """How a recipe spreads over NeuronCores."""

    backend: str
    tensor_parallel_size: int
    zero_1: bool


def layout_of(train: TrainConfig) -> Layout:
    """The layout, with upstream's smallest for what the recipe's model has no field for."""
    values = train.model_dump()
    return Layout(
        backend=train.backend,
        tensor_parallel_size=values.get("tensor_parallel_size") or 1,
        zero_1=bool(values.get("zero_1")),
    )


def own_instance(machine: Machine) -> str:
    """The instance that a recipe is checked for where none is named: this one.

    Raises:
        PlatformError: If this is no Neuron instance.
    """
    if machine.instance is None or f"ml.{machine.instance}" not in INSTANCES:
        raise PlatformError(
            "this machine is no Trainium or Inferentia2 instance",
            "--instance ml.trn1.2xlarge names one; `neuron-sum train RECIPE --dry-run` estimates for this machine",
        )
    return machine.instance


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
    config = _config(recipe.model)
    parameters = _parameters(recipe, config)
    family, method = str(config.model_type), recipe.method.name
    stages: list[Stage] = [stage for stage, families in FAMILIES_OF_STAGE.items() if instance.family in families]
    checks = [_check_method(family, method, stage) for stage in stages]
    names = [name for stage in stages for name in find_cell(family, method, stage).retirements]
    checks += _retirements(dict.fromkeys([*names, *platform.retirements]))
    if "train" in stages:
        checks += _check_training(recipe, config, parameters, instance)
    else:
        checks.append(_check_serving_memory(recipe, config, parameters, instance))
    checks += _check_traps(recipe, family, instance, "train" if "train" in stages else "compile")
    return [*checks, _image(platform, "train" if "train" in stages else "serve", region)]


def _config(model: ModelConfig) -> "PretrainedConfig":
    """The base model's configuration: published dimensions where they are known, so that no hub is asked."""
    from transformers import AutoConfig

    from neuron_sum.models import load_config

    if model.name_or_path in PUBLISHED:
        values = dict(PUBLISHED[str(model.name_or_path)])
        return AutoConfig.for_model(values.pop("model_type"), **values)
    config = load_config(model)
    if isinstance(model.tokenizer, TrainedTokenizer) and not (
        isinstance(model.config, dict) and "vocab_size" in model.config
    ):
        config.vocab_size = model.tokenizer.vocab_size
    return config


def _parameters(recipe: Recipe, config: "PretrainedConfig") -> "ParameterCount":
    """Counted on the model itself, with the adapter, of which no weight is made."""
    import torch

    from neuron_sum import adapters, models

    with torch.device("meta"):
        base = models.model_class_of(config)(config)
        return models.count_parameters(adapters.attach(base, recipe.method, recipe.train.seed))


def _check_method(family: str, method: str, stage: Stage) -> Check:
    cell = find_cell(family, method, stage)
    name = f"{stage} {family} {method}"
    if cell.works is None:
        return Check(name, "note", f"no source says whether it works: {cell.note}", None, None)
    told = f"{cell.note} (seen: {cell.seen}; {cell.status})"
    if cell.works:
        return Check(name, "ok", told, None, cell.source)
    return Check(name, "blocks", told, "method=lora", cell.source)


def _check_training(
    recipe: Recipe, config: "PretrainedConfig", parameters: "ParameterCount", instance: Instance
) -> list[Check]:
    from neuron_sum.models import is_decoder_only
    from neuron_sum.training.base import ShapePlan
    from neuron_sum.training.estimate import estimate_neuron

    layout, train, data = layout_of(recipe.train), recipe.train, recipe.data
    checks = [*_check_layout(recipe, layout, str(config.model_type), instance)]
    one_row = data.max_source_length + data.max_target_length if is_decoder_only(config) else data.max_source_length
    expected = estimate_neuron(
        config, parameters, ShapePlan(one_row, data.max_target_length), train, instance,
        tensor_parallel_size=layout.tensor_parallel_size, zero_1=layout.zero_1,
    )  # fmt: skip
    core = expected.core
    told = (
        f"about {size(core.memory)} of {size(expected.core_available)} (weights {size(core.weights)}, gradients "
        f"{size(core.gradients)}, optimizer {size(core.optimizer)}, activations {size(core.activations)})"
    )
    if core.memory <= expected.core_available:
        checks.append(Check("memory of a NeuronCore", "ok", told))
    else:
        remedy = core.remedy(expected.core_available, train) or _smaller(train, layout, str(config.model_type))
        checks.append(Check("memory of a NeuronCore", "blocks", told, remedy))
    told = f"about {size(expected.host)} of {size(expected.host_available)} for {expected.processes} processes"
    if expected.host <= expected.host_available:
        checks.append(Check("memory of the host", "ok", f"{told}; the compiler's own comes on top"))
    else:
        checks.append(Check("memory of the host", "blocks", told, "a larger instance, or a smaller model"))
    return checks


def _smaller(train: TrainConfig, layout: Layout, family: str) -> str:
    """What makes a model fit of which not one example does."""
    if family == "llama" and layout.tensor_parallel_size == 1 and "tensor_parallel_size" in type(train).model_fields:
        return "train.tensor_parallel_size=2, or method=lora"
    return "method=lora, or a smaller model" if train.gradient_checkpointing else "train.gradient_checkpointing=true"


def _check_layout(recipe: Recipe, layout: Layout, family: str, instance: Instance) -> list[Check]:
    """Backend, parallelism, and what NeuronTrainer has no part for."""
    checks, size_ = [], layout.tensor_parallel_size
    if layout.backend == "torch":
        checks.append(
            Check("train.backend", "differs", "torch trains on the CPU of that instance", "train.backend=neuron")
        )
    if size_ > 1 and family == "t5":
        checks.append(
            Check(
                "train.tensor_parallel_size", "blocks", f"{size_}: upstream splits models with a class of its own only",
                "train.tensor_parallel_size=1",
            )
        )  # fmt: skip
    if instance.neuron_cores % size_:
        checks.append(
            Check(
                "train.tensor_parallel_size", "blocks", f"{size_} does not divide {instance.neuron_cores} NeuronCores",
                "train.tensor_parallel_size=2",
            )
        )  # fmt: skip
    if recipe.train.fsdp or recipe.train.deepspeed is not None:
        checks.append(
            Check(
                "sharding", "blocks", "fsdp and deepspeed are torch's; NeuronTrainer has ZeRO-1 and tensor parallelism",
                "train.fsdp=false train.deepspeed=null",
            )
        )  # fmt: skip
    targets = set(recipe.method.target_modules or ()) if isinstance(recipe.method, LoraMethod) else set()
    if family == "llama" and targets and targets < _all_targets(family):
        checks.append(
            Check(
                "method.target_modules", "blocks", "fewer than all seven projections cannot be consolidated",
                "method.target_modules=null",
            )
        )  # fmt: skip
    return checks


def _all_targets(family: str) -> set[str]:
    from neuron_sum.adapters import LORA_TARGETS

    return set(LORA_TARGETS[family])


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
        Check(f"trap {trap.name}", "note", trap.happens, trap.handled, trap.source)
        for trap in TRAPS
        if trap.concerns(case)
    ]


def _image(platform: Platform, stage: str, region: str | None) -> Check:
    image = next(image for image in platform.registry_images if image.stage == stage)
    name = image.uri(region) if region else f"{image.repository}:{image.tag}"
    found = name if region else f"{name} (--region gives its full name)"
    return Check("image", "ok", found, None, image.source)
