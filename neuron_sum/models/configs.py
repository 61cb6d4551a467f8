"""The content of config.json: known keys, their values, and the forms of transformers 4 and 5.

transformers keeps unknown keys as attributes that nothing reads. A newer library may compute something else with them,
so that the same weights would silently become another model. Therefore every key must be known.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import AutoConfig, LlamaConfig, PretrainedConfig, T5Config
from transformers.activations import ACT2FN

from neuron_sum.errors import ModelError, reading
from neuron_sum.models import rotary
from neuron_sum.models.checkpoint import is_number, shorten

SEQ2SEQ, DECODER_ONLY = "t5", "llama"
FAMILIES = (SEQ2SEQ, DECODER_ONLY)
"""The model_type values of transformers that every stage supports."""

CLASSES: dict[str, type[PretrainedConfig]] = {SEQ2SEQ: T5Config, DECODER_ONLY: LlamaConfig}
ARCHITECTURES = {
    SEQ2SEQ: ("T5ForConditionalGeneration", "T5WithLMHeadModel"),
    DECODER_ONLY: ("LlamaForCausalLM", "LLaMAForCausalLM"),
}
"""The names of the supported classes, including those of old versions."""

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
    "auto_map": (),
    "chunk_size_feed_forward": (0,),
    "cross_attention_hidden_size": (),
    "is_decoder": (False,),
    "layer_types": (),
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
    "use_sliding_window": (False,),
}
"""Keys of models that are not supported, with the values of a plain model; null is always one."""

TRANSLATED = {SEQ2SEQ: ("scale_decoder_outputs",), DECODER_ONLY: ("rope_parameters", rotary.ORIGINAL)}
"""Keys that transformers 5 writes, or that transformers reads although its configuration class does not name them."""

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
    model_type = values.get("model_type")
    if model_type not in FAMILIES:
        raise ModelError(
            f"{source} has model_type {shorten(model_type)}; valid: {', '.join(FAMILIES)}",
            "use T5, FLAN-T5, Llama or TinyLlama",
        )
    known, kept = _defaults(model_type), {}
    for key, value in values.items():
        if key in HARMLESS or key in GENERATION:
            continue
        if key not in known and value is not None:
            raise ModelError(f"{source}: unknown key {shorten(key)} = {shorten(value)}", UNKNOWN_HINT)
        if key in known and not (value is None and known[key] is inspect.Parameter.empty):
            _check_value(key, value, known[key], source)
            if key not in ATTENTION:
                kept[key] = value
    for alias, name in CLASSES[model_type].attribute_map.items():
        if kept.setdefault(name, kept.get(alias)) != kept.pop(alias, kept[name]):
            raise ModelError(f"{source}: {alias} = {values[alias]} contradicts {name} = {values[name]}")
        if kept[name] is None:
            del kept[name]
    if model_type == SEQ2SEQ:
        _translate_head(kept, source)
    else:
        rotary.translate(kept, source)
    _check_structure(kept, source)
    with reading(source, ModelError):
        return AutoConfig.for_model(**kept, **_origin(values))


def head_may_be_embedding(values: Mapping[str, Any]) -> bool:
    """Whether transformers 5 wrote a T5 whose head, if the weights lack it, is the unscaled embedding.

    Args:
        values: The content of config.json.
    """
    tied = values.get("tie_word_embeddings", True)
    return values.get("model_type") == SEQ2SEQ and values.get("scale_decoder_outputs") is False and tied is True


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


def _defaults(model_type: str) -> dict[str, Any]:
    """The keys that a family's configuration reads, with their default values; empty for those without one."""
    empty = inspect.Parameter.empty
    keys: dict[str, Any] = {"model_type": model_type}
    for config_class in (PretrainedConfig, CLASSES[model_type]):
        for name, parameter in inspect.signature(config_class.__init__).parameters.items():
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) and name != "self":
                keys[name] = empty if parameter.default is None else parameter.default
    keys |= {alias: keys[name] for alias, name in CLASSES[model_type].attribute_map.items()}
    keys |= dict.fromkeys((*FIXED, *TRANSLATED[model_type]), empty)
    if model_type == SEQ2SEQ:
        keys |= {"dense_act_fn": "relu", "is_gated_act": False, "num_decoder_layers": 6, "scale_decoder_outputs": True}
    else:
        keys |= {"num_key_value_heads": 1, "head_dim": 1, rotary.ORIGINAL: 1}
    return keys


OPTIONAL = ("num_decoder_layers", "num_key_value_heads", "head_dim", "scale_decoder_outputs", rotary.ORIGINAL)
"""Keys that may be null although `_defaults` gives them a type."""


def _check_value(key: str, value: Any, default: object, source: str) -> None:
    """Rejects an unsupported value, or one of another type than the default."""
    if key in FIXED:
        if value is not None and value not in FIXED[key]:
            valid = ", ".join(repr(item) for item in (*FIXED[key], None))
            raise ModelError(
                f"{source}: {key} = {shorten(value)} is not supported; valid: {valid}", "use a plain model"
            )
        return
    if key.endswith("_token_id"):
        ids = value if isinstance(value, list) and key == "eos_token_id" else [value]
        valid_ids = all(item is None or (isinstance(item, int) and not isinstance(item, bool)) for item in ids)
        _require(valid_ids and all(abs(item or 0) < LARGEST for item in ids), key, value, "a token id", source)
    elif default is inspect.Parameter.empty or (value is None and key in OPTIONAL):
        return
    elif isinstance(default, bool):
        _require(isinstance(value, bool), key, value, "true or false", source)
    elif isinstance(default, int):
        most = MOST_LAYERS if "layers" in key else LARGEST
        valid_int = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
        _require(valid_int, key, value, f"an integer from 1 to {most}", source)
    elif isinstance(default, float):
        probability = is_number(value) and ("dropout" not in key or 0 <= value < 1)
        _require(probability, key, value, "a number from 0 to 1" if "dropout" in key else "a finite number", source)
    elif isinstance(default, str):
        _require(isinstance(value, str), key, value, "a text", source)


def _check_structure(values: Mapping[str, Any], source: str) -> None:
    """Rejects what the family's architecture cannot be, and classes of other models."""
    model_type = values["model_type"]
    for name in _list(values.get("architectures")):
        valid = ARCHITECTURES[model_type]
        _require(name in valid, "architectures", name, f"one of {', '.join(valid)}", source)
    activation = values.get("hidden_act", "silu")
    if model_type == SEQ2SEQ:
        activation = values.get("dense_act_fn") or values.get("feed_forward_proj", "relu").removeprefix("gated-")
    key = "hidden_act" if model_type == DECODER_ONLY else "feed_forward_proj"
    _require(activation in ACT2FN, key, activation, "an activation function of transformers", source)
    encoder_decoder = model_type == SEQ2SEQ
    given = values.get("is_encoder_decoder", encoder_decoder)
    _require(given is encoder_decoder, "is_encoder_decoder", given, str(encoder_decoder), source)
    if model_type == DECODER_ONLY:
        heads = values.get("num_attention_heads", 32)
        groups = values.get("num_key_value_heads") or heads
        _require(heads % groups == 0, "num_key_value_heads", groups, f"a divisor of {heads} heads", source)
        width = values.get("hidden_size", 4096)
        head = values.get("head_dim")
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
