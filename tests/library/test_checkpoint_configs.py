"""config.json of foreign checkpoints: unknown keys and invalid values are rejected by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_configs import BASES, LLAMA

from neuron_sum.errors import ModelError
from neuron_sum.models.configs import FIXED, HARMLESS, make_config

FLAN_T5 = {
    "_name_or_path": "/x", "architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 768,
    "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5",
    "n_positions": 512, "num_decoder_layers": 12, "num_heads": 12, "num_layers": 12, "output_past": True,
    "pad_token_id": 0, "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
    "task_specific_params": {"summarization": {"early_stopping": True, "prefix": "summarize: "}},
    "tie_word_embeddings": False, "torch_dtype": "float32", "transformers_version": "4.23.1", "use_cache": True,
    "vocab_size": 32128,
}  # fmt: skip
TINY_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5632,
    "max_position_embeddings": 2048, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 22,
    "num_key_value_heads": 4, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.35.0", "use_cache": True,
    "vocab_size": 32000,
}  # fmt: skip
SMOL_LM2 = {
    "_name_or_path": "x", "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666,
    "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
    "rope_theta": 100000, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "transformers_version": "4.42.3",
    "use_cache": True, "vocab_size": 49152,
}  # fmt: skip


@pytest.mark.parametrize("published", [FLAN_T5, TINY_LLAMA, SMOL_LM2], ids=["flan-t5", "tinyllama", "smollm2"])
def test_published_configurations_are_accepted(published: dict[str, Any]) -> None:
    config = make_config(published, "config.json").to_dict()
    different = {key for key, value in published.items() if key not in HARMLESS and config.get(key) != value}
    assert different == set()


def test_real_configurations_are_accepted(shared_data: Path) -> None:
    for path in (shared_data / "configs").glob("*.json"):
        make_config(json.loads(path.read_text()), path.name)


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_every_key_of_the_installed_transformers_is_known(base: dict[str, Any]) -> None:
    written = make_config(base, "config.json").to_dict()
    assert make_config(written, "config.json").to_dict() == written


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **values}}


YARN = {"factor": 2.0, "original_max_position_embeddings": 32}
LISTS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
INVALID = [
    ("t5", {"flux_capacitor": 1}, "flux_capacitor"),
    ("llama", {"flux_capacitor": {"a": [1]}}, "flux_capacitor"),
    ("t5", {"flux_capacitor": False}, "flux_capacitor"),
    ("llama", {"mlp_scale": 1.5}, "mlp_scale"),
    ("t5", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
    ("llama", {"scale_decoder_outputs": False}, "scale_decoder_outputs"),
    ("t5", {"scale_decoder_outputs": 1}, "scale_decoder_outputs"),
    ("t5", {"scale_decoder_outputs": True}, "scale_decoder_outputs"),  # tie_word_embeddings is false
    ("t5", {"num_layers": "two"}, "num_layers"),
    ("t5", {"num_layers": -1}, "num_layers"),
    ("t5", {"num_layers": True}, "num_layers"),
    ("t5", {"num_layers": 10**9}, "num_layers"),
    ("t5", {"num_layers": None}, "num_layers"),
    ("t5", {"d_model": 0}, "d_model"),
    ("t5", {"d_model": 16.0}, "d_model"),
    ("t5", {"d_model": 10**4000}, "d_model"),
    ("t5", {"hidden_size": 17}, "hidden_size"),
    ("t5", {"dropout_rate": "0.1"}, "dropout_rate"),
    ("t5", {"dropout_rate": 1.5}, "dropout_rate"),
    ("t5", {"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon"),
    ("t5", {"layer_norm_epsilon": {"__float__": "Infinity"}}, "layer_norm_epsilon"),
    ("t5", {"feed_forward_proj": "gated-"}, "feed_forward_proj"),
    ("t5", {"feed_forward_proj": "a-b-c"}, "feed_forward_proj"),
    ("t5", {"feed_forward_proj": 3}, "feed_forward_proj"),
    ("t5", {"dense_act_fn": "softmagic"}, "softmagic"),
    ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder"),
    ("t5", {"is_decoder": True}, "is_decoder"),
    ("t5", {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ("t5", {"pad_token_id": "0"}, "pad_token_id"),
    ("t5", {"eos_token_id": ["1"]}, "eos_token_id"),
    ("t5", {"architectures": ["T5EncoderModel"]}, "architectures"),
    ("t5", {"architectures": "UMT5ForConditionalGeneration"}, "architectures"),
    ("t5", {"model_type": "umt5"}, "umt5"),
    ("t5", {"model_type": None}, "model_type"),
    ("t5", {"model_type": ["t5"]}, "model_type"),
    ("t5", {"tie_encoder_decoder": True}, "tie_encoder_decoder"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
    ("llama", {"model_type": "mixtral"}, "mixtral"),
    ("llama", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
    ("llama", {"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}, "auto_map"),
    *(
        (family, {key: value}, key)  # CVE-2026-4372: transformers 4.56 to 5.2 run code from a hub
        for family in BASES
        for key in ("_attn_implementation_internal", "_attn_implementation", "attn_implementation")
        for value in ("owner/kernel", "owner/kernel@main:function", "paged|owner/kernel", 1, {"": "owner/kernel"})
    ),
    ("llama", {"sliding_window": 128}, "sliding_window"),
    ("llama", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
    ("llama", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ("llama", {"return_dict": False}, "return_dict"),
    ("llama", {"torchscript": True}, "torchscript"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved"),
    ("llama", {"hidden_act": "softmagic"}, "hidden_act"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads"),
    ("llama", {"hidden_size": 30}, "hidden_size"),
    ("llama", {"head_dim": 7}, "head_dim"),
    ("llama", {"rope_theta": None}, "rope_theta"),
    ("llama", {"rope_theta": "1e4"}, "rope_theta"),
    ("llama", {"rope_theta": 0}, "rope_theta"),
    ("llama", {"original_max_position_embeddings": 32}, "original_max_position_embeddings"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
    ("llama", {"rope_parameters": {"chunked_attention": {"factor": 2.0}, "rope_type": "linear"}}, "lacks factor"),
    ("llama", rope("default", sliding_attention={"rope_theta": 1e4}), "sliding_attention"),
    ("llama", {"rope_parameters": [1]}, "rope_parameters"),
    ("llama", {"rope_parameters": {"rope_type": ["default"]}}, "rope_type"),
    ("llama", rope("su"), "'su'"),
    ("llama", rope("proportional", factor=2.0), "proportional"),
    ("llama", rope("default", factor=2.0), "factor"),
    ("llama", rope("default", partial_rotary_factor=0.5), "partial_rotary_factor"),
    ("llama", rope("linear"), "factor"),
    ("llama", rope("linear", factor="2"), "factor"),
    ("llama", rope("linear", factor=0.5), "factor"),
    ("llama", rope("linear", factor=float("inf")), "factor"),
    ("llama", rope("linear", factor=2.0, type="dynamic"), "type"),
    ("llama", rope("dynamic", factor=2.0, original_max_position_embeddings=32), "original_max_position_embeddings"),
    ("llama", rope("dynamic", factor=2.0, alpha=3.0), "alpha"),
    ("llama", rope("yarn", **YARN, beta_fast="a"), "beta_fast"),
    ("llama", rope("yarn", **YARN, truncate=1), "truncate"),
    ("llama", rope("yarn", **YARN, mrope_section=[1, 2]), "mrope_section"),
    ("llama", {**rope("yarn", **YARN), "original_max_position_embeddings": 16}, "original_max_position_embeddings"),
    ("llama", rope("llama3", factor=2.0, low_freq_factor=1.0), "high_freq_factor"),
    ("llama", rope("llama3", factor=2.0, low_freq_factor=4.0, high_freq_factor=1.0), "low_freq_factor"),
    ("llama", rope("longrope", **LISTS, short_mscale=1.0), "short_mscale"),
    ("llama", rope("longrope", short_factor=[1.0] * 3, long_factor=[1.0] * 4), "short_factor"),
    ("llama", rope("longrope", short_factor=[1.0] * 4, long_factor=["1"] * 4), "long_factor"),
    ("llama", {"rope_scaling": {"type": "longrope", **LISTS, "original_max_position_embeddings": 32}}, "original_max"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, **rope("default")}, "rope_scaling"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "factor"),
    ("llama", {"rope_theta": 5e5, **rope("default")}, "rope_theta"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "name"), INVALID)
def test_an_invalid_configuration_is_rejected_by_name(family: str, changes: dict[str, Any], name: str) -> None:
    base = {**BASES[family], "tie_word_embeddings": False}
    with pytest.raises(ModelError) as raised:
        make_config({**base, **changes}, "a/config.json")
    assert name in raised.value.message
    assert "a/config.json" in raised.value.message
    assert "\n" not in raised.value.message
    assert len(raised.value.message) < 250


@pytest.mark.parametrize(
    "changes",
    [
        {"new_key": None},
        dict.fromkeys(HARMLESS, "x"),
        {"max_length": 20, "num_beams": 4, "no_repeat_ngram_size": "x"},
        {"attn_implementation": "flash_attention_2", "_attn_implementation": "eager"},
        dict.fromkeys(FIXED),
        {"head_dim": None, "num_key_value_heads": None, "pad_token_id": None, "eos_token_id": [1, 2]},
        {"pad_token_id": -1, "rope_scaling": {"type": "linear", "factor": 2}},
    ],
)
def test_keys_without_an_effect_are_accepted(changes: dict[str, Any]) -> None:
    config = make_config({**LLAMA, **changes}, "config.json")
    assert config.hidden_size == LLAMA["hidden_size"]
    assert not hasattr(config, "new_key")
