"""Base models, tokenizers and adapters: parameter counts, file formats, and rejected inputs."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, DataCollatorForSeq2Seq

from neuron_sum.data.encoding import encode
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import ModelError
from neuron_sum.models import adapters
from neuron_sum.models import base as models
from neuron_sum.models.families import FAMILIES
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import (
    DataConfig,
    FullMethod,
    LoraMethod,
    Method,
    ModelConfig,
    PromptTuningMethod,
    TrainedTokenizer,
)
from neuron_sum.runs.folder import open_run
from neuron_sum.runs.merge import merge
from neuron_sum.runs.trained import load_trained
from neuron_sum.training.train import train

T5 = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXAMPLES = load_dataset(DataConfig())["validation"]
TEXTS = [text for example in EXAMPLES for text in (example.dialogue, *example.references)]


def small(config: dict[str, object]) -> ModelConfig:
    return ModelConfig(config=config, tokenizer=TrainedTokenizer(vocab_size=400))


def batch(model: object, tokenizer: object) -> dict[str, torch.Tensor]:
    encoded = encode(
        EXAMPLES[:3],
        tokenizer,
        load_recipe("tiny").prompt.resolve(),
        DataConfig(),
        decoder_only=models.is_decoder_only(model.config),
    )
    features = [{name: list(ids) for name, ids in feature.items()} for feature in encoded.features]
    return dict(DataCollatorForSeq2Seq(tokenizer)(features))


@pytest.mark.parametrize(
    ("size", "everything", "lora"),
    [("small", 76_961_152, 1_376_256), ("base", 247_577_856, 3_538_944), ("large", 783_150_080, 9_437_184)],
)
def test_parameter_counts_of_flan_t5(shared_data: Path, size: str, everything: int, lora: int) -> None:
    values = json.loads((shared_data / "configs" / f"flan-t5-{size}.json").read_text())
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        model = models.model_class_of(config)(config)
        assert models.count_parameters(model) == models.ParameterCount(everything, everything)
        count = models.count_parameters(adapters.attach(model, LoraMethod(), seed=0))
    assert count == models.ParameterCount(lora, everything + lora)
    if size == "base":
        assert str(count) == "3,538,944 of 251,116,800 parameters are trainable (1.41 %)"


def test_a_soft_prompt_trains_exactly_its_vectors() -> None:
    tokenizer = models.load_tokenizer(small(T5), TEXTS)
    tuned = adapters.attach(models.load_base(small(T5), tokenizer), PromptTuningMethod(num_virtual_tokens=100), seed=0)
    assert models.count_parameters(tuned).trainable == 100 * 32


@pytest.mark.parametrize("config", [T5, LLAMA], ids=["t5", "llama"])
def test_lora_adapts_the_default_projections_of_the_family(config: dict[str, object]) -> None:
    tokenizer = models.load_tokenizer(small(config), TEXTS)
    tuned = adapters.attach(models.load_base(small(config), tokenizer), LoraMethod(r=4), seed=0)
    touched = {name.split(".lora_A")[0].rsplit(".", 1)[1] for name, p in tuned.named_parameters() if "lora_A" in name}
    assert touched == set(FAMILIES[str(config["model_type"])].lora_targets)


def test_lora_on_missing_layers_is_rejected() -> None:
    tokenizer = models.load_tokenizer(small(T5), TEXTS)
    with pytest.raises(ModelError, match="target_modules"):
        adapters.attach(models.load_base(small(T5), tokenizer), LoraMethod(target_modules=("nope",)), seed=0)


def test_random_weights_depend_on_the_seed_and_keep_the_global_random_state() -> None:
    tokenizer = models.load_tokenizer(small(T5), TEXTS)
    state = torch.random.get_rng_state()
    one, same = (models.load_base(small(T5), tokenizer) for _ in range(2))
    other = models.load_base(small(T5).model_copy(update={"seed": 1}), tokenizer)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_t5_is_loaded_unchanged(tmp_path: Path, tied: bool) -> None:
    """transformers 5 writes tie_word_embeddings=true for a false value, and 4.57 then loads a different model."""
    config = small({**T5, "tie_word_embeddings": tied})
    tokenizer = models.load_tokenizer(config, TEXTS)
    model = models.load_base(config, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).get("tie_word_embeddings", True) is tied
    saved = ModelConfig(name_or_path=str(tmp_path))
    again = models.load_base(saved, models.load_tokenizer(saved))
    with torch.inference_mode():
        inputs = batch(model, tokenizer)
        assert torch.equal(model(**inputs).logits, again(**inputs).logits)


@pytest.mark.parametrize(
    ("family", "file"), [("t5", "t5/spiece.model"), ("llama", "llama/tokenizer.model")], ids=["t5", "llama"]
)
def test_a_sentencepiece_file_tokenizes_as_sentencepiece_does(shared_data: Path, family: str, file: str) -> None:
    import sentencepiece

    path = shared_data / "tokenizers" / file
    tokenizer = models.load_tokenizer(ModelConfig(config={"model_type": family}, tokenizer=str(path)))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for example in EXAMPLES[:20]:
        assert tokenizer(example.dialogue, add_special_tokens=False)["input_ids"] == reference.encode(example.dialogue)
    assert tokenizer.pad_token is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_trained_tokenizer_keeps_tags_whole_and_knows_all_of_ascii() -> None:
    tokenizer = models.load_tokenizer(ModelConfig(config=T5, tokenizer=TrainedTokenizer(vocab_size=600)), TEXTS)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.tokenize("#Person1#: the") == ["▁#Person1#", ":", "▁the"]
    odd = "Zyx{q}|~^ 0987 @&%$"
    assert tokenizer.decode(tokenizer(odd)["input_ids"], skip_special_tokens=True) == odd


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ModelConfig(name_or_path="no/such-model"), "no/such-model"),
        (
            ModelConfig(config={"model_type": "bert"}, tokenizer=TrainedTokenizer()),
            "model_type 'bert', which is not supported; valid: t5",
        ),
        (ModelConfig(config="/nowhere/config.json", tokenizer=TrainedTokenizer()), "/nowhere/config.json"),
        (ModelConfig(config=T5, tokenizer="/nowhere/spiece.model"), "spiece.model"),
        (ModelConfig(config={**T5, "vocab_size": 7}, tokenizer=TrainedTokenizer(vocab_size=400)), "entries"),
    ],
)
def test_invalid_models_are_rejected(config: ModelConfig, expected: str) -> None:
    with pytest.raises(ModelError, match=expected) as raised:
        models.load_base(config, models.load_tokenizer(config, TEXTS))
    assert raised.value.exit_code == 5


@pytest.mark.parametrize("method", [LoraMethod(r=4, lora_dropout=0.0), PromptTuningMethod(num_virtual_tokens=5)])
@pytest.mark.parametrize("config", [T5, LLAMA], ids=["t5", "llama"])
def test_a_saved_adapter_is_loaded_without_trainable_weights(
    tmp_path: Path, config: dict[str, object], method: Method
) -> None:
    tokenizer = models.load_tokenizer(small(config), TEXTS)
    tuned = adapters.attach(models.load_base(small(config), tokenizer), method, seed=0)
    tuned.peft_config["default"].base_model_name_or_path = str(tmp_path)
    models.load_base(small(config), tokenizer).config.save_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    tuned.eval().save_pretrained(tmp_path / "adapter")
    again = adapters.load_adapter(models.load_base(small(config), tokenizer), tmp_path / "adapter")
    assert models.count_parameters(again).trainable == 0
    inputs = batch(again, tokenizer)
    with torch.inference_mode():
        assert torch.equal(tuned(**inputs).logits, again(**inputs).logits)
        base = models.load_base(small(config), tokenizer)(**inputs).logits
        assert not torch.allclose(base, again(**inputs).logits[:, -base.shape[1] :], atol=1e-3)


def test_a_merged_lora_run_generates_the_same_summaries(tmp_path: Path, micro_lora_run: Path) -> None:
    difference = merge(micro_lora_run, tmp_path / "merged")
    assert 0 <= difference < 1e-4
    adapted, tokenizer = load_trained(open_run(micro_lora_run))
    assert isinstance(adapted, PeftModel)
    merged = models.load_base(ModelConfig(name_or_path=str(tmp_path / "merged")), tokenizer)
    base = load_file(micro_lora_run / "base" / "model.safetensors")
    merged_weights = load_file(tmp_path / "merged" / "model.safetensors")
    changed = [name for name, value in merged_weights.items() if not torch.equal(value, base[name])]
    assert changed
    assert all(name.split(".")[-2] in ("q", "v") for name in changed)
    inputs = batch(merged, tokenizer)
    with torch.inference_mode():
        assert torch.allclose(adapted(**inputs).logits, merged(**inputs).logits, atol=1e-4)
    with pytest.raises(ModelError, match="already exists"):
        merge(micro_lora_run, tmp_path / "merged")


def test_a_merge_that_changes_the_logits_is_rejected(micro_lora_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, _ = load_trained(open_run(micro_lora_run))
    unloaded = type(adapted.base_model).unload  # a merge that omits the adapter
    monkeypatch.setattr(type(adapted.base_model), "merge_and_unload", unloaded)
    with pytest.raises(ModelError, match="logits differ"):
        adapters.merge(adapted)


def test_runs_without_lora_cannot_be_merged(tmp_path: Path, micro: Path, micro_run: Path) -> None:
    with pytest.raises(ModelError, match="has no adapter"):
        merge(micro_run, tmp_path / "merged")
    train(load_recipe(str(micro), ["method=prompt_tuning", "train.max_steps=2"]), tmp_path / "soft")
    with pytest.raises(ModelError, match="it changes no weights"):
        merge(tmp_path / "soft", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_for_another_base_is_rejected(micro_lora_run: Path, tmp_path: Path) -> None:
    tokenizer = models.load_tokenizer(small(T5), TEXTS)
    with pytest.raises(ModelError, match="does not fit"):
        adapters.load_adapter(models.load_base(small({**T5, "d_model": 64}), tokenizer), micro_lora_run / "adapter")
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        adapters.load_adapter(models.load_base(small(T5), tokenizer), tmp_path)


def test_method_full_returns_the_model_itself() -> None:
    tokenizer = models.load_tokenizer(small(T5), TEXTS)
    model = models.load_base(small(T5), tokenizer)
    assert adapters.attach(model, FullMethod(), seed=0) is model
