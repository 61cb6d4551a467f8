"""Configurations of models with few weights."""

from typing import Any

import transformers
from micro_models import LLAMA_CONFIG
from transformers import AutoConfig, PretrainedConfig

LAYERS, BEAMS = 2, 3

IDS = {"vocab_size": 96, "pad_token_id": 0, "eos_token_id": 1}
T5 = transformers.T5Config(
    d_model=32,
    d_kv=8,
    d_ff=64,
    num_layers=2,
    num_heads=4,
    dropout_rate=0.0,
    feed_forward_proj="gated-gelu",
    decoder_start_token_id=0,
    **IDS,
)
LLAMA = transformers.LlamaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **IDS
)

TINY = {
    "t5": {
        "model_type": "t5",
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": LAYERS,
        "num_decoder_layers": LAYERS,
        "num_heads": 2,
        "vocab_size": 64,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    "llama": {**LLAMA_CONFIG, "num_hidden_layers": LAYERS, "vocab_size": 64, "tie_word_embeddings": False},
}


def config_of(values: dict[str, Any]) -> PretrainedConfig:
    values = dict(values)
    return AutoConfig.for_model(values.pop("model_type"), **values)
