"""The content of config.json: known keys, their values, and the forms of transformers 4 and 5.

transformers keeps unknown keys as attributes that nothing reads. A newer library may compute something else with them,
so that the same weights would silently become another model. Therefore every key must be known.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.activations import ACT2FN

from neuron_sum.errors import ModelError, reading
from neuron_sum.models import rotary
from neuron_sum.models.checkpoint import is_number, shorten
from neuron_sum.models.families import FULL, SLIDING, Family, check_family

HARMLESS = {
    "_attn_implementation_autoset": "how attention is computed, not what",
    "_commit_hash": "the commit on the hub",
    "_from_model_config": "the origin of generation settings",
    "_name_or_path": "the previous location",
    "dtype": "the precision of the stored weights; they are loaded in fp32",
    "finetuning_task": "a label of a previous training",
    "gradient_checkpointing": "a setting of a previous training",
    "id2label": "for classification",
    "is_llama_config": "a mark of the exporter nanotron",
    "label2id": "for classification",
    "max_sequence_length": "the sequence length of a previous training",
    "n_positions": "the sequence length of T5's pretraining; its positions are relative",
    "name_or_path": "the previous location",
    "num_labels": "for classification",
    "output_past": "an old name of use_cache",
    "prefix": "a text that neuron-sum's prompt replaces",
    "problem_type": "for classification",
    "task_specific_params": "generation settings; those of the recipe are used",
    "tf_legacy_loss": "for TensorFlow",
    "tokenizer_class": "read from tokenizer_config.json",
    "torch_dtype": "the precision of the stored weights; they are loaded in fp32",
    "transformers.js_config": "for transformers.js",
    "transformers_version": "the version that wrote the file",
    "unsloth_fixed": "a mark of the trainer unsloth",
    "unsloth_version": "a mark of the trainer unsloth",
    "use_bfloat16": "for TPUs",
}
"""Keys without an effect on the model's results, and the reason."""

GENERATION = frozenset(PretrainedConfig._get_global_generation_defaults())
"""Generation settings, which old versions stored in config.json; those of the recipe are used."""

ATTENTION = dict.fromkeys(
    ("_attn_implementation", "_attn_implementation_internal", "attn_implementation"),
    ("eager", "sdpa", "flash_attention_2"),
)
"""Keys that choose how attention is computed, and their values that name no code on a hub (CVE-2026-4372)."""

FIXED: dict[str, tuple[object, ...]] = {
    **ATTENTION,
    "add_cross_attention": (False,),
    "attention_bias": (False,),
    "auto_map": (),
    "chunk_size_feed_forward": (0,),
    "cross_attention_hidden_size": (),
    "is_decoder": (False,),
    "layer_types": (),
    "mlp_bias": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "partial_rotary_factor": (1,),
    "pruned_heads": ({},),
    "quantization_config": (),
    "return_dict": (True,),
    "rope_interleaved": (False,),
    "sliding_window": (),
    "tie_encoder_decoder": (False,),
    "torchscript": (False,),
    "use_mrope": (False,),
    "use_sliding_window": (False,),
}
"""Keys that families do not support unless their configuration class has them, with the values of a plain model; null
is always one."""

LAYERS: dict[str, Any] = {"layer_types": [FULL], "no_rope_layers": [1], "sliding_window": 1}
"""Values of the type of keys that some configuration classes have without a default value."""

READ = {False: ("scale_decoder_outputs",), True: ("rope_parameters", "rope_scaling", rotary.ORIGINAL)}
"""Keys that transformers 5 writes, or that transformers reads although a configuration class does not name them; by
whether the family is decoder-only."""

STRUCTURE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "vocab_size")
"""Keys of decoder-only models whose default values other keys are checked with."""

LARGEST, MOST_LAYERS = 2**26, 1024
"""Limits of sizes and of layer counts; larger values are damage."""

UNKNOWN_HINT = (
    "a newer library may have written it: use a checkpoint saved by transformers 4, or remove the key from the file if "
    "it does not change the model"
)


def make_config(values: Mapping[str, Any], source: str) -> PretrainedConfig:
    """The configuration of transformers 4 with the meaning that its writer gave it.

    Args:
        values: The content of config.json.
        source: The file or field, for error messages.

    Raises:
        ModelError: For another model family, an unknown key, or an invalid or unsupported value; names it.
    """
    family = check_family(values, source)
    known, kept = _defaults(family), dict[str, Any]()
    for key, value in values.items():
        if key in HARMLESS or key in GENERATION or key in family.unread:
            continue
        if key not in known and value is not None:
            raise ModelError(f"{source}: unknown key {shorten(key)} = {shorten(value)}", UNKNOWN_HINT)
        plain = value is None and (known.get(key) is inspect.Parameter.empty or key in FIXED.keys() - LAYERS.keys())
        if key in known and not plain:
            _check_value(key, value, known, family, source)
            if key not in ATTENTION:
                kept[key] = value
    for alias, name in family.config_class.attribute_map.items():
        if kept.setdefault(name, kept.get(alias)) != kept.pop(alias, kept[name]):
            raise ModelError(f"{source}: {alias} = {values[alias]} contradicts {name} = {values[name]}")
        if kept[name] is None:
            del kept[name]
    if family.decoder_only:
        for key in STRUCTURE:
            kept.setdefault(key, known[key])
        _check_layers(kept, source)
        rotary.translate(kept, source)
        _translate_defaults(kept, known)
    else:
        _translate_head(kept, source)
    _check_structure(kept, family, source)
    with reading(source, ModelError):
        config = AutoConfig.for_model(**kept, **_origin(values))
    windowed = SLIDING in (getattr(config, "layer_types", None) or ())
    _require(not windowed or config.sliding_window is not None, "layer_types", [SLIDING], "a sliding_window", source)
    return config


def head_may_be_embedding(values: Mapping[str, Any]) -> bool:
    """Whether transformers 5 wrote a T5 whose head, if the weights lack it, is the unscaled embedding.

    Args:
        values: The content of config.json.
    """
    tied = values.get("tie_word_embeddings", True)
    return values.get("model_type") == "t5" and values.get("scale_decoder_outputs") is False and tied is True


def _translate_head(values: dict[str, Any], source: str) -> None:
    """Replaces scale_decoder_outputs: transformers 4 scales if and only if the head is tied to the embedding.

    transformers 5 always writes tie_word_embeddings = true for a T5; the weights tell whether the head is tied.
    """
    scaled, tied = values.pop("scale_decoder_outputs", None), values.get("tie_word_embeddings", True)
    if scaled and not tied:
        raise ModelError(
            f"{source}: scale_decoder_outputs = True with tie_word_embeddings = False: transformers 4.57 scales only "
            "tied heads",
            "use a T5 of an original architecture, such as google/flan-t5-base",
        )
    if scaled is not None:
        values["tie_word_embeddings"] = scaled


def _translate_defaults(values: dict[str, Any], known: Mapping[str, Any]) -> None:
    """Removes what a configuration class would take from its published model or would not compute itself."""
    if values.get("head_dim", 1) is None:
        del values["head_dim"]
    padding = known.get("pad_token_id", inspect.Parameter.empty)
    if "pad_token_id" not in values and isinstance(padding, int) and padding >= values["vocab_size"]:
        values["pad_token_id"] = None


def _defaults(family: Family) -> dict[str, Any]:
    """The keys that a family's configuration reads, with their default values; empty for those without one."""
    empty, own = inspect.Parameter.empty, _parameters(family.config_class)
    keys: dict[str, Any] = {"model_type": family.name}
    for config_class in (PretrainedConfig, family.config_class):
        for name, parameter in _parameters(config_class).items():
            keys[name] = empty if parameter.default is None else parameter.default
    keys |= {alias: keys[name] for alias, name in family.config_class.attribute_map.items()}
    keys |= dict.fromkeys((key for key in (*FIXED, *READ[family.decoder_only]) if key not in own), empty)
    if family.decoder_only:
        layers = {name: kind for name, kind in LAYERS.items() if name in own}
        return keys | layers | {"num_key_value_heads": 1, "head_dim": 1, rotary.ORIGINAL: 1}
    t5 = {"dense_act_fn": "relu", "is_gated_act": False, "num_decoder_layers": 6, "scale_decoder_outputs": True}
    return keys | t5


def _parameters(config_class: type[PretrainedConfig]) -> dict[str, inspect.Parameter]:
    """The keys that a configuration class names."""
    parameters = inspect.signature(config_class.__init__).parameters
    return {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) and name != "self"
    }


OPTIONAL = ("num_decoder_layers", "num_key_value_heads", "scale_decoder_outputs", rotary.ORIGINAL, *LAYERS)
"""Keys that may be null although `_defaults` gives them a type."""


def _check_value(key: str, value: Any, known: Mapping[str, Any], family: Family, source: str) -> None:
    """Rejects an unsupported value, or one of another type than the default."""
    default, own = known[key], _parameters(family.config_class)
    if key in FIXED and key not in own:
        if value is not None and value not in FIXED[key]:
            valid = ", ".join(repr(item) for item in (*FIXED[key], None))
            raise ModelError(
                f"{source}: {key} = {shorten(value)} is not supported; valid: {valid}", "use a plain model"
            )
        return
    # Qwen3's width of a head is 128 unless the file has another one; the other classes compute it from null.
    optional = key in OPTIONAL or (key == "head_dim" and getattr(own.get(key), "default", None) is None)
    if key.endswith("_token_id"):
        ids = value if isinstance(value, list) and key == "eos_token_id" else [value]
        valid_ids = all(item is None or (isinstance(item, int) and not isinstance(item, bool)) for item in ids)
        _require(valid_ids and all(abs(item or 0) < LARGEST for item in ids), key, value, "a token id", source)
    elif default is inspect.Parameter.empty or (value is None and optional):
        return
    elif isinstance(default, bool):
        _require(isinstance(value, bool), key, value, "true or false", source)
    elif isinstance(default, int):
        least, most = int(key != "max_window_layers"), MOST_LAYERS if "layers" in key else LARGEST
        valid_int = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        _require(valid_int, key, value, f"an integer from {least} to {most}", source)
    elif isinstance(default, float):
        probability = is_number(value) and ("dropout" not in key or 0 <= value < 1)
        _require(probability, key, value, "a number from 0 to 1" if "dropout" in key else "a finite number", source)
    elif isinstance(default, str):
        _require(isinstance(value, str), key, value, "a text", source)
    elif isinstance(default, list):
        _require(isinstance(value, list), key, value, "a list with an entry for each layer", source)


def _check_layers(values: Mapping[str, Any], source: str) -> None:
    """Rejects lists that do not have one known entry for each layer of a decoder-only model."""
    layers = values["num_hidden_layers"]
    kinds, rotated = values.get("layer_types"), values.get("no_rope_layers")
    if kinds is not None:
        expected = f"{layers} entries, each {FULL} or {SLIDING}"
        _require(
            len(kinds) == layers and all(kind in (FULL, SLIDING) for kind in kinds),
            "layer_types",
            kinds,
            expected,
            source,
        )
    if rotated is not None:
        valid = len(rotated) >= layers and all(type(item) is int and item in (0, 1) for item in rotated)
        _require(valid, "no_rope_layers", rotated, f"at least {layers} entries, each 0 or 1", source)


def _check_structure(values: Mapping[str, Any], family: Family, source: str) -> None:
    """Rejects what the family's architecture cannot be, and classes of other models."""
    for name in _list(values.get("architectures")):
        valid = (family.model_name, *family.old_names)
        _require(name in valid, "architectures", name, f"one of {', '.join(valid)}", source)
    if family.decoder_only:
        key, activation = "hidden_act", values.get("hidden_act", "silu")
    else:
        key = "feed_forward_proj"
        activation = values.get("dense_act_fn") or values.get(key, "relu").removeprefix("gated-")
    _require(activation in ACT2FN, key, activation, "an activation function of transformers", source)
    given = values.get("is_encoder_decoder", not family.decoder_only)
    _require(given is not family.decoder_only, "is_encoder_decoder", given, str(not family.decoder_only), source)
    if family.decoder_only:
        heads, width = values["num_attention_heads"], values["hidden_size"]
        own = _parameters(family.config_class)
        groups = values.get("num_key_value_heads", own["num_key_value_heads"].default) or heads
        _require(heads % groups == 0, "num_key_value_heads", groups, f"a divisor of {heads} heads", source)
        head = values.get("head_dim") or getattr(own.get("head_dim"), "default", None)
        _require(head is not None or width % heads == 0, "hidden_size", width, f"a multiple of {heads} heads", source)
        head = head or width // heads
        _require(head % 2 == 0, "head_dim", head, "an even number", source)


def _require(valid: bool, key: str, value: object, expected: str, source: str) -> None:
    if not valid:
        raise ModelError(f"{source}: {key} = {shorten(value)} is invalid; expected {expected}", "correct the file")


def _list(value: object) -> Iterator[object]:
    yield from value if isinstance(value, list) else [] if value is None else [value]


def _origin(values: Mapping[str, Any]) -> dict[str, Any]:
    """The location and commit of a configuration, which transformers stores in it."""
    return {key: values[key] for key in ("name_or_path", "_commit_hash") if values.get(key) is not None}
