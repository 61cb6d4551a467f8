"""adapter_config.json of an adapter in PEFT's layout, read and checked without PEFT.

PEFT never sees the file, because it imports the module that `megatron_core` names. Keys go by an allow-list: those that
change the weights are supported or rejected by name, and a key that is not known here must have a neutral value.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import regex
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from neuron_sum.errors import ModelError, RunError
from neuron_sum.models.families import FAMILIES
from neuron_sum.models.gguf import PREFIX, is_gguf
from neuron_sum.recipes.schema import ModelConfig

CONFIG = "adapter_config.json"
LAYOUT_HINT = "use a folder in PEFT layout, such as adapter/ of a training run"
MERGE_HINT = "merge the adapter into its base with PEFT (merge_and_unload), and use that checkpoint"
BASE_HINT = "pass --base with the folder or hub id of the base model"
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
LARGEST_CONFIG = 1_000_000
"""Bytes of an adapter_config.json; a real one has a few thousand."""
PATTERN_SECONDS = 0.2
"""Time limit of a regular expression on one module name; a real one takes microseconds."""
NEUTRAL: tuple[object, ...] = (None, False, [], {})
"""Values with which a key that is not known here has no effect, as PEFT writes them for options that are not used."""
ALL_LINEAR = "all-linear"
DEFAULT_TARGETS = ["q", "v", "q_proj", "v_proj"]
"""The targets that PEFT chooses without target_modules, for T5 and the decoder-only families, which share no name."""
BASE_CLASSES = tuple(family.model_name for family in FAMILIES.values())
BASE_MODULES = tuple(family.module for family in FAMILIES.values())

Names = list[str] | str | None
Rank = Annotated[int, Field(ge=1)]
Value = TypeVar("Value", int, float)


class AutoMapping(BaseModel):
    """The class of the base, which PEFT names in place of a task_type; nothing imports it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    base_model_class: Annotated[str, AfterValidator(lambda name: _one_of(name, BASE_CLASSES))] | None = None
    parent_library: Annotated[str, AfterValidator(lambda name: _one_of(name, BASE_MODULES))] | None = None


class AdapterConfig(BaseModel):
    """The keys of adapter_config.json that all types of adapters share; any other key must have a neutral value."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, extra="allow")

    peft_type: str
    base_model_name_or_path: str | None = None
    revision: str | None = None
    task_type: Literal["SEQ_2_SEQ_LM", "CAUSAL_LM"] | None = None
    auto_mapping: AutoMapping | None = None
    inference_mode: bool = True
    peft_version: str | None = None


class LoraFile(AdapterConfig):
    """A LoRA adapter. The keys after `modules_to_save` matter only in training, or have a single supported value."""

    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: float
    target_modules: Names = None
    exclude_modules: Names = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: Names = None
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    modules_to_save: list[str] | None = None
    lora_dropout: float = 0.0
    # The others (pissa, olora, corda, loftq, …) also change the base weights.
    init_lora_weights: bool | Literal["gaussian", "orthogonal", "eva"] = True
    eva_config: dict[str, Any] | None = None
    bias: Literal["none"] = "none"
    megatron_core: Literal["megatron.core"] | None = None
    qalora_group_size: int = 16

    def rank(self, module: str) -> int:
        """The rank of a module, by its name in the base model."""
        return _by_pattern(self.rank_pattern or {}, module, self.r)

    def scale(self, module: str) -> float:
        """A module's scale: alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023, arXiv:2312.03732)."""
        alpha, rank = _by_pattern(self.alpha_pattern or {}, module, self.lora_alpha), self.rank(module)
        return alpha / rank**0.5 if self.use_rslora else alpha / rank

    def saves(self, module: str) -> bool:
        """Whether the adapter replaces all parameters of a module: its name, or that of one around it, ends so."""
        parts = module.split(".")
        around = [".".join(parts[: count + 1]) for count in range(len(parts))]
        return any(outer.endswith(name) for outer in around for name in self.modules_to_save or ())

    def targets(self, module: str, head: str, *, last_index: bool) -> bool:
        """Whether the adapter adapts a linear layer or an embedding, by PEFT's rules.

        Args:
            module: The layer's name in the base model.
            head: The name of the output layer, which `all-linear` does not include.
            last_index: Whether `layers_to_transform` refers to the last number in a module's name, as in PEFT 0.17,
                or to the first, as in PEFT 0.21.
        """
        if _is_named(self.exclude_modules, module):
            return False
        if any(f".{name}." in f".{module}." for name in self.modules_to_save or ()):
            return False
        targets = DEFAULT_TARGETS if self.target_modules is None else self.target_modules
        if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
            return module != head
        if not _is_named(targets, module) or isinstance(targets, str) or module in targets:
            return _is_named(targets, module)
        if self.layers_to_transform in (None, []):
            return True
        patterns = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern
        before = r"(?:.*\.)?" if last_index else r"(?:.*?\.)??"
        found = (_match(rf"{before}{pattern}\.(\d+)\..*", module) for pattern in patterns or [r"[^.]*"])
        index = next((int(match[1]) for match in found if match), None)
        chosen = self.layers_to_transform
        return index in chosen if isinstance(chosen, list) else index == chosen


class PromptTuningFile(AdapterConfig):
    """A soft prompt. The keys after `num_virtual_tokens` matter only in training."""

    peft_type: Literal["PROMPT_TUNING"]
    num_virtual_tokens: int = Field(ge=1, le=1000)
    token_dim: int | None = None
    num_transformer_submodules: Literal[1, 2] | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    prompt_tuning_init: str | None = None
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None


TYPES: Mapping[str, type[LoraFile] | type[PromptTuningFile]] = {
    "LORA": LoraFile,
    "PROMPT_TUNING": PromptTuningFile,
}


def is_adapter(folder: Path) -> bool:
    """Whether a folder contains an adapter's configuration."""
    return (folder / CONFIG).is_file()


def nested_hint(folder: Path) -> str | None:
    """A hint that names the adapters in subfolders: PEFT's folder of a named adapter, or a hub cache."""
    patterns = (f"*/{CONFIG}", f"*/*/{CONFIG}")
    found = sorted(str(path.parent) for pattern in patterns for path in folder.glob(pattern)) if folder.is_dir() else []
    return f"use the folder of an adapter: {', '.join(found[:3])}" if found else None


def read_config(folder: Path) -> LoraFile | PromptTuningFile:
    """Reads and checks adapter_config.json.

    Raises:
        ModelError: For another type of adapter, or a key or value that is not supported.
    """
    from neuron_sum.models.checkpoint import read_object

    path = regular_file(folder, CONFIG)
    if path.stat().st_size > LARGEST_CONFIG:
        raise ModelError(f"{path} is larger than {LARGEST_CONFIG:,} bytes", LAYOUT_HINT)
    values = read_object(path)
    kind = values.get("peft_type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise ModelError(f"{path}: peft_type = {kind!r} is not supported; valid: {', '.join(TYPES)}", MERGE_HINT)
    try:
        config = TYPES[kind].model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        missing = first["type"] == "missing"
        fault = "is missing" if missing else f"= {values[key]!r:.80} is not supported ({first['msg']})"
        raise ModelError(f"{path}: {key} {fault}", MERGE_HINT) from error
    for key, value in (config.model_extra or {}).items():
        if not any(value is neutral or (value == neutral and type(value) is type(neutral)) for neutral in NEUTRAL):
            raise ModelError(f"{path}: {key[:80]} = {value!r:.80} is not supported", MERGE_HINT)
    return config


def base_of(folder: Path, name: str | None = None) -> ModelConfig:
    """The base model of an adapter.

    Args:
        folder: The folder of the adapter.
        name: A folder or a hub id in place of the one that its adapter_config.json names.

    Raises:
        ModelError: If neither names one, or the one named is neither a folder nor a hub id.
    """
    config = read_config(folder)
    chosen = config.base_model_name_or_path if name is None else name
    if not chosen:
        raise ModelError(f"{folder / CONFIG} names no base model", BASE_HINT)
    if Path(chosen).is_dir():
        return ModelConfig(name_or_path=str(Path(chosen).resolve()))
    if is_gguf(chosen):
        if name is None and not chosen.startswith(PREFIX):
            raise ModelError(f"{folder / CONFIG} names the GGUF file {chosen!r:.200} as its base", BASE_HINT)
        return ModelConfig(name_or_path=chosen)
    if not HUB_ID.fullmatch(chosen):
        origin = "--base" if name is not None else f"{folder / CONFIG}: base_model_name_or_path"
        raise ModelError(f"{origin} = {chosen!r} is neither a folder nor a hub id", BASE_HINT)
    return ModelConfig(name_or_path=chosen, revision=config.revision if name is None else None)


def check_unused_base(name: str | ModelConfig | None, source: Path) -> None:
    """Rejects the option --base for a source that is not an adapter, because it would have no effect.

    Raises:
        RunError: If a base is named.
    """
    if name is not None:
        raise RunError(f"--base is for adapters, and {source} is not an adapter's folder", "remove --base")


def regular_file(folder: Path, name: str) -> Path:
    """A file of an adapter.

    Raises:
        ModelError: If it is missing, or not a regular file.
    """
    path = folder / name
    if not path.is_file():  # opening a pipe or a device would block this thread
        state = f"{name} is not a file" if path.exists() else f"it contains no {name}"
        raise ModelError(f"{folder} is not an adapter: {state}", nested_hint(folder) or LAYOUT_HINT)
    return path


def _one_of(name: str, valid: tuple[str, ...]) -> str:
    if name not in valid:
        raise ValueError(f"valid: {', '.join(valid)}")
    return name


def _is_named(names: Names, module: str) -> bool:
    """Whether a regular expression matches a module's name, or one of the names equals it or its end."""
    if isinstance(names, str):
        return bool(names) and _match(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def _by_pattern(patterns: Mapping[str, Value], module: str, default: Value) -> Value:
    """The value of the first regular expression that matches the end of a module's name."""
    return next((value for key, value in patterns.items() if _match(rf"(.*\.)?({key})", module)), default)


def _match(pattern: str, text: str) -> Any:
    return regex.fullmatch(pattern, text, timeout=PATTERN_SECONDS)
