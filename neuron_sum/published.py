"""The dimensions of the base models that recipes name, so that a check needs no model hub."""

from typing import Any

_T5 = {
    "model_type": "t5",
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "vocab_size": 32128,
    "d_kv": 64,
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "google/flan-t5-small": {
        **_T5, "d_model": 512, "d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8, "num_heads": 6,
    },
    "google/flan-t5-base": {
        **_T5, "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 12,
    },
    "google/flan-t5-large": {
        **_T5, "d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 16,
    },
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""By hub id. T5: the models' config.json. TinyLlama: the README of jzhang38/TinyLlama."""
