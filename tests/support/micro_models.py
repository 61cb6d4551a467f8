"""Recipes and settings of the micro models, the folder of the checkout, and compiling a run."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neuron_sum.artifact import Artifact

ROOT = Path(__file__).parents[2]

MICRO = """
name: micro
extends: tiny
data: {max_examples: 64, max_validation_examples: 12, max_test_examples: 12}
model:
  config: {d_model: 32, d_kv: 8, d_ff: 32, num_layers: 1, num_decoder_layers: 1, num_heads: 2, dropout_rate: 0.1}
  tokenizer: {vocab_size: 400}
train:
  per_device_train_batch_size: 8
  max_steps: 12
  logging_steps: 1
  save_steps: 4
generate: {max_new_tokens: 12}
"""

MICRO_LLAMA = """
name: micro-llama
extends: tiny
data: {max_examples: 64, max_validation_examples: 12, max_test_examples: 12}
prompt: {preset: tinyllama-chat}
model:
  config: null
  tokenizer: {vocab_size: 400}
train: {per_device_train_batch_size: 8, max_steps: 6, logging_steps: 1}
generate: {max_new_tokens: 12}
"""
LLAMA_CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

NEURON = ("train.backend=neuron", "train.shapes.plan=fixed")
"""Overrides that make any recipe of the torch backend valid for the neuron backend."""

SHAPE = ["compile.batch_sizes=[3]", "compile.source_lens=[192]"]
LORA_SHAPE = [
    "compile.batch_sizes=[1,3]",
    "compile.num_beams=[1,2]",
    "compile.adapters.slots=2",
    "compile.adapters.soft_prompt_tokens=4",
]


def compiled(run: Path, folder: Path, *overrides: str) -> "Artifact":
    from compile.exporters.own import build, make_plan
    from compile.source import open_source

    source = open_source(run, None, [*SHAPE, *overrides])
    return build(source, make_plan(source), folder, overwrite=False, jobs=None)
