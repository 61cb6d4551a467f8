"""Model families: facts that agree with transformers, published configurations, and rejections before loading."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers
from in_process import neuron_sum
from micro_models import LLAMA_CONFIG, MICRO_LLAMA, ROOT
from tiny_families import KINDS, WINDOW, made, values_of

from compile.graphs.layers import GraphOptions
from compile.graphs.static import eager_runtime, static_model, weights
from compile.source import open_source
from neuron_sum.artifact import Bucket, SpecialTokens
from neuron_sum.data.sources import load_dataset
from neuron_sum.doctor.recipe_check import check_recipe
from neuron_sum.errors import ModelError, RecipeError
from neuron_sum.models.adapter_config import AutoMapping
from neuron_sum.models.base import load_config
from neuron_sum.models.configs import HARMLESS, make_config
from neuron_sum.models.families import FAMILIES, biases, family_of, head_dim, rotated_layers, sliding_window
from neuron_sum.models.rotary import check_positions
from neuron_sum.platform import support
from neuron_sum.platform.matrix import INSTANCES, PLATFORMS
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import GenerateConfig, ModelConfig
from neuron_sum.runs.folder import open_run
from neuron_sum.runs.merge import merge
from neuron_sum.runs.trained import load_trained, load_weights
from neuron_sum.runtimes.generation import StepGenerator
from neuron_sum.runtimes.hugging_face import TransformersGenerator
from neuron_sum.training.neuron.limits import neuron_faults
from neuron_sum.training.train import train

QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
    "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
MISTRAL = {
    "architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.42.0", "use_cache": True,
    "vocab_size": 32768,
}  # fmt: skip
SMOLLM3 = {
    "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": None,
    "eos_token_id": 128012, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 11008, "layer_types": ["full_attention"] * 36, "max_position_embeddings": 65536,
    "max_window_layers": 28, "mlp_bias": False, "model_type": "smollm3", "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4,
    "pad_token_id": 128004, "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000.0,
    "sliding_window": None, "torch_dtype": "bfloat16", "transformers_version": "4.53.0.dev0", "use_cache": False,
    "use_sliding_window": False, "vocab_size": 128256,
}  # fmt: skip
LLAMA3 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
PUBLISHED = {
    "qwen2.5": QWEN2,
    "qwen2.5-long": {**QWEN2, "rope_scaling": {"type": "yarn", "factor": 4.0,
                                               "original_max_position_embeddings": 32768}},
    "qwen2.5-coder": {**QWEN2, "sliding_window": 32768, "use_mrope": False},
    "qwen3": QWEN3,
    "mistral-0.1": MISTRAL,
    "mistral-0.3": {**MISTRAL, "sliding_window": None},
    "mistral-nemo": {**MISTRAL, "hidden_size": 5120, "head_dim": 128, "sliding_window": None},
    "smollm3": SMOLLM3,
    "llama-3.2": LLAMA3,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_accepted(name: str) -> None:
    published = PUBLISHED[name]
    config = make_config(published, "config.json")
    family = family_of(config)
    written = config.to_dict()
    plain = {"rope_scaling", "sliding_window", *HARMLESS, *family.unread}
    assert {key for key, value in published.items() if key not in plain and written.get(key) != value} == set()
    assert sliding_window(config) == (4096 if name == "mistral-0.1" else None)
    assert (config.num_attention_heads * head_dim(config) == config.hidden_size) == (
        name not in ("qwen3", "mistral-nemo")
    )
    assert make_config(json.loads(config.to_json_string(use_diff=False)), "config.json").to_dict() == written


@pytest.mark.parametrize("kind", KINDS)
def test_the_facts_of_a_family_agree_with_its_model(kind: str) -> None:
    model = made(kind)
    config, names = model.config, {name for name, _ in model.named_parameters()}
    layer, expected = "model.layers.0", biases(config)
    for module, biased in (
        *((f"{layer}.self_attn.{part}_proj", expected.qkv) for part in "qkv"),
        (f"{layer}.self_attn.o_proj", expected.out),
        *((f"{layer}.mlp.{part}_proj", expected.mlp) for part in ("gate", "up", "down")),
    ):
        assert (f"{module}.bias" in names) == biased, module
    assert (f"{layer}.self_attn.q_norm.weight" in names) == family_of(config).qk_norm
    attentions = [block.self_attn for block in model.model.layers]
    assert [bool(getattr(attention, "use_rope", True)) for attention in attentions] == rotated_layers(config)
    assert {attention.head_dim for attention in attentions} == {head_dim(config)}
    linear = {name.rpartition(".")[2] for name, part in model.named_modules() if type(part).__name__ == "Linear"}
    assert linear == {*family_of(config).lora_targets, "lm_head"}


def test_every_family_is_a_class_of_transformers_and_has_a_row_for_neuron() -> None:
    for name, family in FAMILIES.items():
        assert family.config_class.model_type == name
        assert family.model_class.__module__ == family.module
        assert AutoMapping(base_model_class=family.model_name, parent_library=family.module)
        assert support.find_cell(name, "full", "compile")


INVALID = [
    ("mistral", {"sliding_window": 0}, "sliding_window = 0"),
    ("mistral", {"sliding_window": "long"}, "sliding_window = 'long'"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    ("mistral", {"attention_bias": True}, "attention_bias = True"),
    ("mistral", {"use_sliding_window": True}, "use_sliding_window"),
    ("qwen2", {"attention_bias": True}, "attention_bias = True"),
    ("qwen2", {"use_mrope": True}, "use_mrope"),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
    ("qwen2", {"layer_types": ["full_attention", "full_attention", "chunked_attention"]}, "layer_types"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "layer_types"),  # use_sliding_window is false
    ("qwen2", {"layer_types": "full_attention"}, "layer_types"),
    ("qwen2", {"max_window_layers": -1}, "max_window_layers"),
    ("qwen3", {"head_dim": None}, "head_dim"),
    ("qwen3", {"qk_layernorm": True}, "qk_layernorm"),
    ("qwen3", {"architectures": ["Qwen3ForSequenceClassification"]}, "Qwen3ForSequenceClassification"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": [1, 0, 2]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": [True, False, True]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": 3}, "no_rope_layers"),
    ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval"),
    ("smollm2", {"no_rope_layers": [1, 1, 0]}, "no_rope_layers"),
    ("smollm2", {"sliding_window": 4}, "sliding_window"),
    ("smollm2", {"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "name"), INVALID)
def test_an_invalid_key_of_a_family_is_rejected_by_name(kind: str, changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ModelError) as raised:
        make_config(values_of(kind, **changes), "a/config.json")
    assert name in raised.value.message and "a/config.json" in raised.value.message
    assert "\n" not in raised.value.message and len(raised.value.message) < 250


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen2", {"max_window_layers": 0}),
        ("qwen2", {"use_sliding_window": None, "sliding_window": None, "layer_types": None}),
        ("qwen2", {"layer_types": ["full_attention"] * 3}),
        ("mistral", {"attention_bias": False, "mlp_bias": False, "rope_scaling": None}),
        ("smollm3", {"no_rope_layers": [1, 1, 0, 1]}),
        ("smollm3", {"no_rope_layers": None, "layer_types": None, "sliding_window": None}),
    ],
)
def test_values_without_an_effect_are_accepted(kind: str, changes: dict[str, Any]) -> None:
    assert make_config(values_of(kind, **changes), "config.json").model_type == KINDS[kind]["model_type"]


UNSUPPORTED = [
    "gemma2",
    "phi3",
    "gpt2",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "bart",
    "mt5",
    "umt5",
    "mistral3",
    "",
    None,
    ["llama"],
]
COMMANDS = (
    ("train", "tiny", "model={name_or_path: MODEL, config: null, tokenizer: null}", "--output", "RUN"),
    ("compile", "MODEL", "--recipe", "tiny"),
    ("evaluate", "MODEL", "--recipe", "tiny"),
    ("summarize", "MODEL", "README", "--recipe", "tiny"),
)


@pytest.mark.parametrize("model_type", UNSUPPORTED)
def test_another_family_is_rejected_with_the_valid_ones(model_type: object) -> None:
    with pytest.raises(ModelError) as raised:
        make_config({"model_type": model_type}, "config.json")
    assert (
        f"model_type {model_type!r}, which is not supported; valid: t5 (T5, FLAN-T5), llama (" in raised.value.message
    )
    assert all(name in raised.value.message for name in FAMILIES)
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_every_command_rejects_another_family_before_it_loads_anything(tmp_path: Path, command: Sequence[str]) -> None:
    """The folder has neither a tokenizer nor weights, whose absence would be the next error."""
    model, run = tmp_path / "model", tmp_path / "run"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "gemma"}')
    places = {"MODEL": str(model), "RUN": str(run), "README": str(ROOT / "README.md")}
    words = [re.sub("|".join(places), lambda found: places[found[0]], word) for word in command]
    result = neuron_sum(*words)
    assert result.exit_code == ModelError.exit_code, result.output
    assert "has model_type 'gemma', which is not supported; valid: t5" in result.stderr
    assert not run.exists()


@pytest.mark.parametrize(("kind", "window"), [("mistral", WINDOW), ("qwen2-window", WINDOW), ("qwen2", None)])
def test_sequences_beyond_a_sliding_window_are_rejected(kind: str, window: int | None) -> None:
    config = make_config(values_of(kind), "config.json")
    check_positions(config, {"data.max_source_length": WINDOW - 20, "data.max_target_length": 20})
    lengths = {"data.max_source_length": WINDOW - 20, "data.max_target_length": 21}
    if window is None:
        check_positions(config, lengths)
        return
    with pytest.raises(
        RecipeError, match=r"= 81 tokens exceed the model's sliding_window of 80, beyond which"
    ) as raised:
        check_positions(config, lengths)
    assert "data.max_source_length to at most 59" in str(raised.value.hint)


def test_a_window_that_is_longer_than_the_context_is_not_named() -> None:
    config = make_config(values_of("mistral", max_position_embeddings=64), "config.json")
    with pytest.raises(RecipeError, match=r"exceed the model's context of 64"):
        check_positions(config, {"data.max_source_length": 90})


@pytest.mark.parametrize(
    ("kind", "method", "words"),
    [
        ("mistral", "lora", "no class for training this family"),
        ("qwen2", "full", "train.backend=torch, or a model of t5, llama, qwen3"),
        ("smollm3", "full", "no class for training this family"),
        ("qwen3", "prompt_tuning", "method=lora"),
        ("llama-biases", "full", "attention_bias: optimum-neuron 0.4.5 leaves out"),
        ("qwen3-window", "full", "sliding_window = 80: optimum-neuron 0.4.5 has none"),
        ("smollm2", "full", None),
        ("llama3", "lora", None),
        ("qwen3", "full", None),
        ("qwen3", "lora", None),
    ],
)
def test_the_neuron_backend_names_what_its_classes_lack(kind: str, method: str, words: str | None) -> None:
    recipe = load_recipe("tiny", [f"method={method}"])
    faults = neuron_faults(make_config(values_of(kind), "config.json"), recipe)
    said = [f"{fault.field}: {fault.reason}; {fault.remedy}" for fault in faults]
    assert not said if words is None else any(words in line for line in said), said


@pytest.mark.parametrize("kind", KINDS)
def test_doctor_states_for_every_family_what_works(kind: str) -> None:
    values = values_of(kind)
    overrides = [f"model.config={json.dumps(values)}", "data.max_source_length=40", "data.max_target_length=30"]
    recipe = load_recipe("tiny", ["method=lora", *overrides])
    for instance, stages in (("ml.trn1.2xlarge", ["train"]), ("ml.inf2.xlarge", ["compile", "serve"])):
        checks = {check.name: check for check in check_recipe(recipe, INSTANCES[instance], PLATFORMS[0])}
        for stage in stages:
            works = support.find_cell(values["model_type"], "lora", stage).works
            check = checks[f"{stage} {values['model_type']} lora"]
            assert (check.verdict == "ok") == works
            assert works or " or a model of t5, llama, " in str(check.remedy)


def test_a_model_that_neuron_cannot_train_is_rejected_before_its_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuron_sum.training.neuron.backend import NeuronBackend

    monkeypatch.setattr(NeuronBackend, "check", lambda *_: None)
    (tmp_path / "config.json").write_text(json.dumps(values_of("smollm3")))
    recipe = load_recipe(
        "tiny", [f"model={{name_or_path: '{tmp_path}'}}", "train.backend=neuron", "train.shapes.plan=fixed"]
    )
    with pytest.raises(RecipeError, match="no class for training this family"):
        train(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("family", "method", "changes"),
    [
        ("mistral", "lora", {"sliding_window": 256}),
        ("qwen2", "full", {"tie_word_embeddings": True}),
        ("qwen3", "lora", {"head_dim": 16}),
        ("smollm3", "full", {"no_rope_layer_interval": 2}),
    ],
)
def test_a_family_trains_packed_and_generates_the_same_tokens_everywhere(
    tmp_path: Path, family: str, method: str, changes: dict[str, Any]
) -> None:
    config = {**LLAMA_CONFIG, "model_type": family, "initializer_range": 0.2, **changes}
    (tmp_path / "micro.yaml").write_text(MICRO_LLAMA.replace("config: null", f"config: {json.dumps(config)}"))
    overrides = [f"method={method}", "train.shapes.plan=packed", "train.max_steps=2", "train.learning_rate=0.01"]
    recipe = load_recipe(str(tmp_path / "micro.yaml"), overrides)
    train(recipe, tmp_path / "run")
    model, tokenizer = load_trained(open_run(tmp_path / "run"))
    texts = [example.dialogue for example in load_dataset(recipe.data)["test"]][:3]
    prompts = [row.input_ids for row in recipe.prompt.resolve().encode(tokenizer, texts, 192)]
    asked = GenerateConfig(max_new_tokens=8, num_beams=2)
    expected = TransformersGenerator(model, tokenizer, 3).generate(prompts, asked)
    if method == "lora":
        merge(tmp_path / "run", tmp_path / "merged")
        merged, _ = load_weights(tmp_path / "merged")
        assert type(merged).__name__ == FAMILIES[family].model_name
        assert TransformersGenerator(merged, tokenizer, 3).generate(prompts, asked) == expected
    compiled, _ = open_source(tmp_path / "run", None, []).load_for_compile()
    static = static_model(compiled.config, GraphOptions(source_len=192, target_len=8))
    tokens = SpecialTokens(pad=tokenizer.pad_token_id, ends=(tokenizer.eos_token_id,), decoder_start=None)
    bucket = Bucket(batch=3, source_len=192, target_len=8)
    runtime = eager_runtime(static, weights(static, compiled.state_dict()), [bucket], (2,), tokens)
    assert StepGenerator(runtime).generate(prompts, asked) == expected


def test_a_random_smollm3_needs_no_padding_id_of_the_published_vocabulary() -> None:
    values = {key: value for key, value in values_of("smollm3").items() if key != "pad_token_id"}
    config = load_config(ModelConfig(config=values, tokenizer="unused"))
    assert config.pad_token_id is None
    assert transformers.SmolLM3ForCausalLM(config)
