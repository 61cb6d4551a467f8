"""Rotary positions in config.json: the keys of transformers 4 and 5, their values, and the context length."""

import math
from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from neuron_sum.errors import ModelError, RecipeError
from neuron_sum.models.checkpoint import is_number, shorten
from neuron_sum.models.families import sliding_window
from neuron_sum.recipes.schema import PromptTuningMethod, Recipe

ORIGINAL = "original_max_position_embeddings"
REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
"""The kinds of rotary positions, and the keys without which they cannot be computed."""
OPTIONAL: dict[str, tuple[str, ...]] = {
    "yarn": ("factor", ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "llama3": (ORIGINAL,),
    "longrope": ("factor", ORIGINAL, "attention_factor"),
}
LISTS = ("short_factor", "long_factor")
LENGTH_DEPENDENT = ("dynamic", "longrope")
"""The kinds that change with the length of the sequence, which static graphs do not support."""


def translate(values: dict[str, Any], source: str) -> None:
    """Replaces the keys of transformers 5 by those of transformers 4, after checking either.

    transformers 5 writes rope_parameters, which includes the base rope_theta; transformers 4 reads only rope_theta and
    rope_scaling.

    Args:
        values: The content of a decoder-only model's config.json, with its structure; changed.
        source: The file, for error messages.

    Raises:
        ModelError: For a kind, a key or a value with an unknown effect; names it.
    """
    new, old = values.pop("rope_parameters", None), values.pop("rope_scaling", None)
    key = "rope_scaling" if new is None else "rope_parameters"
    if new is not None and old is not None:
        raise _error(source, "rope_scaling", old, "rope_parameters exists, too", "remove one of the two keys")
    given = new if new is not None else old
    if given is None:
        _check_theta(values, source)
        _reject_original(values, "default", source)
        return
    if not isinstance(given, Mapping):
        raise _error(source, key, given, "an object is required")
    scaling = {name: value for name, value in given.items() if value is not None}
    kind = scaling.pop("rope_type", scaling.get("type", "default"))
    if scaling.pop("type", kind) != kind:
        raise _error(source, f"{key}.type", given["type"], f"it contradicts rope_type {kind!r}")
    if not isinstance(kind, str) or kind not in REQUIRED:
        raise _error(source, f"{key}.rope_type", kind, f"valid: {', '.join(REQUIRED)}")
    theta = scaling.pop("rope_theta", None)
    if theta is not None and values.setdefault("rope_theta", theta) != theta:
        raise _error(source, f"{key}.rope_theta", theta, f"it contradicts rope_theta = {values['rope_theta']}")
    _check_theta(values, source)
    if scaling.get("partial_rotary_factor") == 1:
        del scaling["partial_rotary_factor"]
    longest = values["max_position_embeddings"]
    if kind == "dynamic" and scaling.get(ORIGINAL) == longest:
        del scaling[ORIGINAL]  # transformers reads max_position_embeddings instead
    _check_keys(kind, scaling, key, source)
    if kind != "default":
        numbers = {name: float(value) for name, value in scaling.items() if type(value) is int and name != ORIGINAL}
        values["rope_scaling"] = {"rope_type": kind, **scaling, **numbers}  # transformers 4 warns about integers
    outside = values.get(ORIGINAL)
    if outside is not None and scaling.get(ORIGINAL, outside) != outside:
        raise _error(source, f"{key}.{ORIGINAL}", scaling[ORIGINAL], f"it contradicts {ORIGINAL} = {outside}")
    if kind in ("yarn", "llama3"):
        if new is not None and values.pop(ORIGINAL, None) is not None:  # transformers 5 prefers it
            values["rope_scaling"][ORIGINAL] = outside
        values["rope_scaling"].setdefault(ORIGINAL, longest)
    if kind == "yarn":
        values["rope_scaling"].setdefault("factor", max(1.0, longest / values["rope_scaling"][ORIGINAL]))
    if kind == "longrope":
        _translate_longrope(values, longest, key, source)
    else:
        _reject_original(values, kind, source)


def context_length(config: PretrainedConfig) -> int | None:
    """The longest sequence that a model was made for; None for T5, whose positions are relative.

    max_position_embeddings is the length before scaling for linear and dynamic, and the scaled length for the others.
    """
    longest: int | None = getattr(config, "max_position_embeddings", None)
    scaling = getattr(config, "rope_scaling", None)
    if longest is None or not scaling:
        return longest
    factor = scaling.get("factor") or 1.0
    if scaling["rope_type"] in ("linear", "dynamic"):
        return int(longest * factor)
    if scaling["rope_type"] == "yarn":
        return max(longest, int((scaling.get(ORIGINAL) or longest) * factor))
    return longest


def check_positions(config: PretrainedConfig, lengths: Mapping[str, int]) -> None:
    """Rejects sequences that are longer than the model's context or sliding window, before anything is computed.

    Up to its length, a sliding window leaves out nothing.

    Args:
        config: The configuration of the base model.
        lengths: The numbers of tokens that share a row of a decoder-only model, by the field that sets each.

    Raises:
        RecipeError: With the sum and the limit.
    """
    total, limits = sum(lengths.values()), dict[str, int]()
    if (positions := context_length(config)) is not None:
        limits[f"context of {positions:,} (max_position_embeddings)"] = positions
    if (window := sliding_window(config)) is not None:
        limits[f"sliding_window of {window:,}, beyond which it is not supported"] = window
    name, limit = min(limits.items(), key=lambda item: item[1], default=("", total))
    if total <= limit:
        return
    parts = " + ".join(f"{field} {count:,}" for field, count in lengths.items() if count)
    field, longest = max(lengths.items(), key=lambda item: item[1])
    fitting = limit - total + longest
    raise RecipeError(
        f"{parts} = {total:,} tokens exceed the model's {name}",
        f"lower {field} to at most {fitting:,}" if fitting > 0 else "lower these lengths",
    )


def training_lengths(recipe: Recipe) -> dict[str, int]:
    """The greatest lengths of a training example, by field."""
    method = recipe.method
    return {
        "method.num_virtual_tokens": method.num_virtual_tokens if isinstance(method, PromptTuningMethod) else 0,
        "data.max_source_length": recipe.data.max_source_length,
        "data.max_target_length": recipe.data.max_target_length,
    }


def generation_lengths(recipe: Recipe, soft_prompt_tokens: int) -> dict[str, int]:
    """The greatest lengths of a prompt and its summary, by field.

    Args:
        recipe: The recipe with the lengths.
        soft_prompt_tokens: The length of the trained soft prompt, or 0.
    """
    return {
        "method.num_virtual_tokens": soft_prompt_tokens,
        "data.max_source_length": recipe.data.max_source_length,
        "generate.max_new_tokens": recipe.generate.max_new_tokens,
    }


def _translate_longrope(values: dict[str, Any], longest: int, key: str, source: str) -> None:
    """Stores the original length where transformers 4 reads it, and the attention factor that transformers 5 computes.

    transformers 4 reads the original length only outside rope_scaling, and then ignores `factor`.
    """
    scaling = values["rope_scaling"]
    inside, outside = scaling.pop(ORIGINAL, None), values.get(ORIGINAL)
    if key == "rope_scaling" and inside not in (None, outside, longest):
        raise _error(
            source,
            f"{key}.{ORIGINAL}",
            inside,
            "transformers 4 ignores this key of longrope",
            f"move {ORIGINAL} out of rope_scaling",
        )
    original = outside or inside or longest
    values[ORIGINAL] = original
    factor = longest / original
    if key == "rope_parameters":
        factor = scaling.get("factor") or factor
    if "attention_factor" not in scaling:
        scaling["attention_factor"] = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    width = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    for name in LISTS:
        if len(scaling[name]) != width // 2:
            raise _error(source, f"{key}.{name}", scaling[name], f"{width // 2} factors are required")


def _check_keys(kind: str, scaling: Mapping[str, Any], key: str, source: str) -> None:
    missing = [name for name in REQUIRED[kind] if name not in scaling]
    if missing:
        raise ModelError(f"{source}: {key} of rope_type {kind!r} lacks {missing[0]}", "add the key")
    for name, value in scaling.items():
        if name not in (*REQUIRED[kind], *OPTIONAL.get(kind, ())):
            raise _error(
                source,
                f"{key}.{name}",
                value,
                f"nothing reads this key with rope_type {kind!r}",
                "use a model with one setting for all layers, or remove the key if it does not change the model",
            )
        if name in LISTS:
            valid = isinstance(value, list) and all(is_number(factor) and factor > 0 for factor in value)
        elif name == "truncate":
            valid = isinstance(value, bool)
        elif name in ("factor", ORIGINAL):
            valid = is_number(value) and 1 <= value < 2**31
        else:
            valid = is_number(value) and value > 0
        if not valid:
            raise _error(source, f"{key}.{name}", value, "the value is invalid")
    if kind == "llama3" and not scaling["low_freq_factor"] < scaling["high_freq_factor"]:
        raise _error(source, f"{key}.low_freq_factor", scaling["low_freq_factor"], "it must be below high_freq_factor")


def _reject_original(values: Mapping[str, Any], kind: str, source: str) -> None:
    if ORIGINAL in values:
        raise _error(source, ORIGINAL, values[ORIGINAL], f"nothing reads this key with rope_type {kind!r}")


def _check_theta(values: Mapping[str, Any], source: str) -> None:
    theta = values.get("rope_theta", 10000.0)
    if not is_number(theta) or theta <= 1:
        raise _error(source, "rope_theta", theta, "a number above 1 is required")


def _error(source: str, key: str, value: object, reason: str, hint: str | None = None) -> ModelError:
    return ModelError(f"{source}: {key} = {shorten(value)}: {reason}", hint or "use a model with default positions")
