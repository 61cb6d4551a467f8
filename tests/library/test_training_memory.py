"""The estimate of a training run's memory, compared with measured peaks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from micro_models import ROOT
from transformers import LlamaConfig, T5Config

from neuron_sum.data.layouts import Shape
from neuron_sum.models.base import ParameterCount
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.training.estimate.activations import activation_bytes
from neuron_sum.training.estimate.memory import PROCESS_BYTES, device_memory

SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
PARAMETERS, ADAPTER = 134_515_008, 4_884_480
SMALL = {
    "model_type": "llama",
    "vocab_size": 8000,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("method", "bf16", "logits", "measured"),
    [
        ("lora", True, 152, 2.87e9),
        ("lora", False, 170, 3.39e9),
        ("full", True, 170, 4.69e9),
        ("full", False, 170, 4.38e9),
    ],
)
def test_the_estimate_is_within_a_quarter_of_a_measured_run(
    method: str, bf16: bool, logits: int, measured: float
) -> None:
    """Runs of `smollm2-lora` on 16 and 32 dialogues of DialogSum, whose longest row has 517 tokens."""
    recipe = load_recipe("smollm2-lora", [*(["method=full"] if method == "full" else []), f"train.bf16={bf16}"])
    count = ParameterCount(PARAMETERS, PARAMETERS)
    if method == "lora":
        count = ParameterCount(ADAPTER, PARAMETERS + ADAPTER)
    estimate = device_memory(SMOLLM2_135M, count, Shape(517, logits), recipe, processes=1)
    assert (recipe.train.per_device_train_batch_size, estimate.rows) == (4, pytest.approx(800 / 517))
    without = estimate.memory - 0.3 * estimate.activations - PROCESS_BYTES
    one = "train.per_device_train_batch_size=1 train.gradient_accumulation_steps=4"
    assert estimate.smaller_batch(without, recipe.train) == one
    assert estimate.memory == pytest.approx(measured, rel=0.25)


def test_the_estimate_is_within_a_quarter_of_a_step_with_lora_here(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    options = ["--model", "config.json", "--layers", "5", "--steps", "1", "--case", "lora,labels"]
    command = [sys.executable, ROOT / "benchmarks" / "training_memory.py", *options]
    step = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    figures = json.loads(step.stdout)
    assert figures["process"] + figures["estimated"] == pytest.approx(figures["process"] + figures["peak"], rel=0.25)


def test_activations_of_every_method_and_family_grow_with_what_they_depend_on() -> None:
    llama = LlamaConfig(**{**SMALL, "num_hidden_layers": 3})
    t5 = T5Config(vocab_size=2000, d_model=64, d_kv=16, d_ff=128, num_layers=3, num_decoder_layers=2, num_heads=4)

    def bytes_of(config: LlamaConfig | T5Config, shape: Shape, *changes: str) -> float:
        overrides = ["train.gradient_checkpointing=false", *changes]
        return activation_bytes(config, shape, load_recipe("tinyllama-lora", overrides))

    for config in (llama, t5):
        lora, prompt = (
            bytes_of(config, Shape(64, 16), *changes)
            for changes in ((), ("method=prompt_tuning", "method.num_virtual_tokens=4"))
        )
        assert lora > prompt > 0
        assert bytes_of(config, Shape(64, 32)) > lora
    assert bytes_of(llama, Shape(64, 16), "method=full") < bytes_of(llama, Shape(64, 16))
    assert bytes_of(llama, Shape(64, 16), "train.gradient_checkpointing=true") < bytes_of(llama, Shape(64, 16))
