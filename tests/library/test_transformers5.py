"""Checkpoints and tokenizers that transformers 5 wrote give the same results as in transformers 5."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from micro_models import ROOT
from transformers5 import needs_transformers5, run_transformers5

from neuron_sum.errors import ModelError
from neuron_sum.models.base import load_base, load_tokenizer
from neuron_sum.recipes.schema import ModelConfig
from neuron_sum.runs.folder import open_run
from neuron_sum.runs.trained import load_weights

pytestmark = needs_transformers5

MODELS = [
    "t5-scaled",
    "t5-unscaled",
    "t5-own-head",
    *(
        f"llama-{name}"
        for name in (
            "theta",
            "linear",
            "dynamic",
            "yarn",
            "yarn-short",
            "llama3",
            "longrope",
            "tied",
            "bf16",
            "sharded",
        )
    ),
    "llama-resized",
    "mistral",
    "mistral-window",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "smollm3",
]
TOKENIZERS = ["t5-tokenizer", "llama-tokenizer", "t5-tokenizer-added", "llama-tokenizer-added", "backend"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, micro_run: Path) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("transformers5")
    code = (ROOT / "tests" / "support" / "transformers5_writer.py").read_text(encoding="utf-8")
    return folder, run_transformers5(code, folder, open_run(micro_run).weights)


def load(written: tuple[Path, dict[str, Any]], name: str) -> Any:
    folder, _ = written
    small = load_tokenizer(ModelConfig(name_or_path=str(folder / "backend")))
    small.get_vocab = lambda: {"</s>": 1}  # its ids are not used
    return load_base(ModelConfig(name_or_path=str(folder / name)), small)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_the_same_logits(written: tuple[Path, dict[str, Any]], name: str) -> None:
    model = load(written, name)
    expected = torch.tensor(written[1]["logits"][name])
    targets = {"decoder_input_ids": torch.tensor([[0, 5, 9]])} if model.config.model_type == "t5" else {}
    with torch.inference_mode():
        logits = model(input_ids=torch.arange(3, 51)[None], **targets).logits.flatten()
    assert torch.allclose(logits, expected, atol=1e-5)
    assert logits.std() > 0.01


def test_a_scaled_t5_with_a_separate_head_is_rejected_by_name(written: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(ModelError, match=r"lm_head\.weight differs from shared\.weight"):
        load(written, "t5-scaled-own-head")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_has_the_same_ids(written: tuple[Path, dict[str, Any]], tmp_path: Path, name: str) -> None:
    folder, result = written
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(folder / name)))
    assert [tokenizer(text)["input_ids"] for text in result["texts"]] == result["ids"][name]
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(ModelConfig(name_or_path=str(tmp_path)))
    assert [again(text)["input_ids"] for text in result["texts"]] == result["ids"][name]
    assert again.all_special_tokens == tokenizer.all_special_tokens


def test_a_trained_model_generates_the_same_ids(written: tuple[Path, dict[str, Any]]) -> None:
    folder, result = written
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["scale_decoder_outputs"] in (True, False)
    model, tokenizer = load_weights(folder / "run")
    inputs = (tokenizer(text, return_tensors="pt") for text in result["texts"])
    generated = [model.generate(**batch, max_new_tokens=12, do_sample=False)[0].tolist() for batch in inputs]
    assert generated == result["generated"]
