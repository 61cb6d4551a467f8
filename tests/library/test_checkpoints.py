"""Foreign checkpoints: unknown keys, invalid values, damaged files and missing tensors are rejected by name."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from micro_models import LLAMA_CONFIG
from safetensors.torch import load_file, save_file

from neuron_sum.errors import ModelError, NeuronSumError
from neuron_sum.models.base import load_base, load_config, load_tokenizer
from neuron_sum.models.configs import FIXED, HARMLESS, make_config
from neuron_sum.recipes.schema import ModelConfig, TrainedTokenizer

T5 = {"model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
LLAMA = {**LLAMA_CONFIG, "max_position_embeddings": 64}
TEXTS = ["#Person1#: Hello, how are you?", "The quick brown fox jumps over the lazy dog."]
BASES = {"t5": T5, "llama": LLAMA}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small T5 and a small Llama with their tokenizers."""
    folders = {}
    for family, config in BASES.items():
        folder = tmp_path_factory.mktemp(family)
        recipe = ModelConfig(
            config={**config, "tie_word_embeddings": False}, tokenizer=TrainedTokenizer(vocab_size=300)
        )
        tokenizer = load_tokenizer(recipe, TEXTS)
        load_base(recipe, tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[family] = folder
    return folders


@pytest.fixture
def copy(saved: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    def copied(family: str, **config: Any) -> Path:
        folder = tmp_path / f"a {family}"
        shutil.copytree(saved[family], folder)
        edit(folder / "config.json", config)
        return folder

    return copied


def edit(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(folder: Path) -> Any:
    config = ModelConfig(name_or_path=str(folder))
    return load_base(config, load_tokenizer(config))


def rejected(folder: Path, *expected: str) -> str:
    with pytest.raises(NeuronSumError) as raised:
        load(folder)
    assert isinstance(raised.value, ModelError)
    assert all(text in raised.value.message for text in expected), raised.value.message
    assert "\n" not in raised.value.message
    return str(raised.value.hint)


# config.json

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


@pytest.mark.parametrize("family", BASES)
def test_the_configuration_of_transformers_4_is_unchanged(saved: dict[str, Path], family: str) -> None:
    values = json.loads((saved[family] / "config.json").read_text())
    config = make_config(values, "config.json").to_diff_dict()
    assert {key: value for key, value in values.items() if key not in HARMLESS} == {
        key: value for key, value in config.items() if key not in HARMLESS
    }


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


# Weights


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tensors: tensors.clear(), "contains no tensors"),
        (lambda tensors: tensors.pop(NORM), f"missing: {NORM}"),
        (lambda tensors: tensors.pop("lm_head.weight"), "missing: lm_head.weight"),
        (lambda tensors: tensors.update(extra=torch.ones(2)), "unexpected: extra"),
        (lambda tensors: tensors.update({NORM: torch.ones(5)}), f"{NORM} [5] instead of [32]"),
        (lambda tensors: tensors.update({NORM: torch.ones(32, dtype=torch.int8)}), "dtype I8"),
        (lambda tensors: tensors[NORM].fill_(float("nan")), NORM),
        (lambda tensors: tensors["lm_head.weight"][7, 3].fill_(float("inf")), "lm_head.weight"),
        (lambda tensors: tensors["lm_head.weight"][:2].copy_(torch.tensor([[torch.inf], [-torch.inf]])), "lm_head"),
    ],
)
def test_other_tensors_than_those_of_the_model_are_rejected(
    copy: Callable[..., Path], change: Callable[[dict[str, torch.Tensor]], object], expected: str
) -> None:
    folder = copy("llama")
    change_weights(folder, change)
    rejected(folder, str(folder), expected)


def test_large_finite_values_are_accepted(copy: Callable[..., Path]) -> None:
    folder = copy("llama")
    change_weights(folder, lambda tensors: tensors[NORM].fill_(3e38))
    assert torch.isinf(load(folder).model.norm.weight.sum())


def test_values_of_a_tied_parameter_must_be_equal(copy: Callable[..., Path]) -> None:
    folder = copy("t5", tie_word_embeddings=True)
    rejected(folder, "lm_head.weight differs from shared.weight", "ties")


EMBEDDINGS = {"t5": "shared.weight", "llama": "model.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("t5", "shared.weight"),
        ("t5", "lm_head.weight"),
        ("t5", "encoder.embed_tokens.weight"),
        ("t5", "decoder.embed_tokens.weight"),
        ("llama", "model.embed_tokens.weight"),
        ("llama", "lm_head.weight"),
    ],
)
def test_one_name_of_a_tied_parameter_is_sufficient(copy: Callable[..., Path], family: str, name: str) -> None:
    folder = copy(family, tie_word_embeddings=True)
    embedding = load_file(folder / "model.safetensors")[EMBEDDINGS[family]]

    def keep_one(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[EMBEDDINGS[family]], tensors["lm_head.weight"]
        tensors[name] = embedding

    change_weights(folder, keep_one)
    model = load(folder)
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model(input_ids=torch.tensor([[3, 4]]), labels=torch.tensor([[3, 1]]))


def test_an_adapter_beside_the_weights_is_rejected_by_name(copy: Callable[..., Path], saved: dict[str, Path]) -> None:
    """transformers would load the base that the adapter names instead."""
    folder = copy("llama")
    config = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": str(saved["llama"])}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert "remove adapter_config.json" in rejected(folder, str(folder / "adapter_config.json"))


@pytest.mark.parametrize("family", EMBEDDINGS)
def test_a_missing_embedding_is_an_error(copy: Callable[..., Path], family: str) -> None:
    folder = copy(family)
    change_weights(folder, lambda tensors: tensors.pop(EMBEDDINGS[family]))
    rejected(folder, "missing", EMBEDDINGS[family])


def test_rotary_buffers_of_old_checkpoints_are_accepted(copy: Callable[..., Path]) -> None:
    folder = copy("llama")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_weights(folder, lambda tensors: tensors.update({name: torch.ones(4)}))
    load(folder)


def test_shards_must_be_complete_and_match_the_index(copy: Callable[..., Path]) -> None:
    folder = copy("llama")
    load(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    load(folder)
    content = json.loads(index.read_text())
    shard = content["weight_map"][NORM]

    edit(index, {"weight_map": {**content["weight_map"], "extra": shard}})
    rejected(folder, "different tensors: extra")
    edit(index, {"weight_map": {**content["weight_map"], NORM: "../model.safetensors"}})
    rejected(folder, "../model.safetensors")
    edit(index, {"weight_map": [1]})
    rejected(folder, "weight_map")
    edit(index, {"weight_map": content["weight_map"]})
    (folder / shard).unlink()
    rejected(folder, shard)


@pytest.mark.parametrize("family", BASES)
def test_the_printed_command_converts_bin_weights(copy: Callable[..., Path], family: str) -> None:
    folder = copy(family)
    expected = load(folder)
    expected.save_pretrained(folder, safe_serialization=False)
    (folder / "model.safetensors").unlink(missing_ok=True)
    hint = rejected(folder, "model.safetensors", ".bin")
    python, option, code = shlex.split(hint.partition("convert them: ")[2])
    assert (python, option) == ("python", "-c")
    exec(code, {})
    model = load(folder)
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), model.parameters(), strict=True))


def test_a_folder_without_weights_is_rejected(copy: Callable[..., Path]) -> None:
    folder = copy("t5")
    (folder / "model.safetensors").unlink()
    hint = rejected(folder, "contains neither model.safetensors")
    assert "python" not in hint


# Damaged files

DAMAGE = {
    "empty": b"",
    "truncated": None,
    "not JSON": b"<html>404</html>",
    "another type": b"[1, 2]",
    "a number": b"7",
    "lone surrogate": b'{"model_type": "\\ud800", "eos_token": "\\ud800", "model": "\\ud800"}',
    "deep nesting": b"[" * 100_000,
    "deep objects": b'{"a":' * 50_000,
    "5,000 digits": b'{"vocab_size": ' + b"7" * 5_000 + b"}",
    "not UTF-8": b'{"model_type": "\xff"}',
    "binary": bytes(range(256)) * 10,
}
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [*FILES, "model.safetensors"])
def test_a_damaged_file_is_named(copy: Callable[..., Path], name: str, damage: str) -> None:
    folder = copy("llama")
    path = folder / name
    content = DAMAGE[damage]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    rejected(folder, name)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tokenizer.json", {"model": {"type": "BPE"}}),
        ("tokenizer.json", {"model": {"type": "Unknown"}}),
        ("tokenizer.json", {"added_tokens": 7}),
        ("tokenizer.json", {"added_tokens": [{"id": -1}]}),
        ("tokenizer.json", {"pre_tokenizer": {"type": "FromTransformers9"}}),
        ("tokenizer_config.json", {"eos_token": 7}),
        ("tokenizer_config.json", {"unk_token": "<unk>" * 4_000}),
        ("tokenizer_config.json", {"model_max_length": [[]]}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("tokenizer_config.json", {"tokenizer_class": "NoSuchTokenizer"}),
        ("tokenizer_config.json", {"tokenizer_class": 7}),
        ("tokenizer_config.json", {"extra_special_tokens": [7]}),
        ("tokenizer_config.json", {"backend": "tokenizers", "pad_token": ["<pad>"]}),
        ("generation_config.json", {"max_length": {"a": 1}, "num_beams": []}),
    ],
)
def test_wrong_types_are_rejected_or_without_effect(
    copy: Callable[..., Path], name: str, changes: dict[str, Any]
) -> None:
    folder = copy("llama")
    edit(folder / name, changes)
    try:
        load(folder)
    except ModelError as error:
        assert str(folder) in error.message
        assert "\n" not in error.message


# Tokenizers


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", "contains neither tokenizer.json nor spiece.model"),
        ("nowhere", "neither a folder nor a hub id"),
        ("a file", "neither a folder nor a hub id"),
        ("a/b/c\ud800", "neither a folder nor a hub id"),
    ],
)
def test_a_missing_checkpoint_is_named(tmp_path: Path, source: str, expected: str) -> None:
    (tmp_path / "a file").write_text("x")
    config = ModelConfig(name_or_path=str(tmp_path / source))
    with pytest.raises(ModelError, match=expected):
        load_tokenizer(config)
    with pytest.raises(ModelError, match=r"contains no config\.json" if not source else expected):
        load_config(config)


def test_a_tokenizer_without_an_end_token_is_rejected(copy: Callable[..., Path]) -> None:
    folder = copy("llama")
    edit(folder / "tokenizer_config.json", {"eos_token": None})
    (folder / "special_tokens_map.json").unlink()
    rejected(folder, "no eos_token")


def test_a_tokenizer_without_its_settings_has_the_special_tokens_of_its_map(copy: Callable[..., Path]) -> None:
    folder = copy("llama")
    expected = load_tokenizer(ModelConfig(name_or_path=str(folder)))
    alone = ModelConfig(name_or_path=str(folder), tokenizer=str(folder / "tokenizer"))
    (folder / "tokenizer").mkdir()
    for name in ("tokenizer.json", "special_tokens_map.json"):
        shutil.copy(folder / name, folder / "tokenizer")
    tokenizer = load_tokenizer(alone)
    assert (tokenizer(TEXTS)["input_ids"], tokenizer.eos_token_id) == (
        expected(TEXTS)["input_ids"],
        expected.eos_token_id,
    )
    (folder / "tokenizer" / "special_tokens_map.json").unlink()
    only = folder / "tokenizer" / "tokenizer.json"
    for name, kind in (("tokenizer.json", "its tokenizer.json"), ("tokenizer.model", "its SentencePiece model")):
        only = only.rename(only.with_name(name))
        with pytest.raises(ModelError, match=f"has no tokenizer_config.json beside {kind}") as error:
            load_tokenizer(alone)
        assert "copy the tokenizer_config.json" in str(error.value.hint)


def test_a_tokenizer_may_not_be_larger_than_the_embedding_but_smaller(copy: Callable[..., Path]) -> None:
    folder = copy("llama")
    config = ModelConfig(name_or_path=str(folder))
    tokenizer = load_tokenizer(config)
    model = load_base(config, tokenizer)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)
    rejected(folder, f"ids up to {len(tokenizer) - 1}", "embedding")
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    model.save_pretrained(folder)
    assert load(folder).config.vocab_size > len(tokenizer)


def test_a_list_of_extra_special_tokens_is_read(copy: Callable[..., Path]) -> None:
    folder = copy("llama")
    ids = load_tokenizer(ModelConfig(name_or_path=str(folder)))(TEXTS[0])["input_ids"]
    edit(folder / "tokenizer_config.json", {"extra_special_tokens": ["<s>"], "tokenizer_class": "TokenizersBackend"})
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(folder)))
    assert tokenizer(TEXTS[0])["input_ids"] == ids
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        load_tokenizer(ModelConfig(name_or_path=str(folder)))
