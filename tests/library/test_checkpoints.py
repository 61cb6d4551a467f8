"""Foreign checkpoints: damaged files, missing tensors and unusable tokenizers are rejected by name."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_configs import BASES
from safetensors.torch import load_file, save_file

from neuron_sum.errors import ModelError, NeuronSumError
from neuron_sum.models.base import load_base, load_config, load_tokenizer
from neuron_sum.models.configs import HARMLESS, make_config
from neuron_sum.recipes.schema import ModelConfig, TrainedTokenizer

TEXTS = ["#Person1#: Hello, how are you?", "The quick brown fox jumps over the lazy dog."]


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


@pytest.mark.parametrize("family", BASES)
def test_the_configuration_of_transformers_4_is_unchanged(saved: dict[str, Path], family: str) -> None:
    values = json.loads((saved[family] / "config.json").read_text())
    config = make_config(values, "config.json").to_diff_dict()
    assert {key: value for key, value in values.items() if key not in HARMLESS} == {
        key: value for key, value in config.items() if key not in HARMLESS
    }


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
