"""Tiny models of every decoder-only family, with random weights so large that their choices are clear."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from neuron_sum.models.base import model_class_of
from neuron_sum.models.configs import make_config

VOCABULARY, PAD, END, BEGIN = 96, 0, 1, 2
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "bos_token_id": BEGIN,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
WINDOW = 80
KINDS: dict[str, dict[str, Any]] = {
    "smollm2": {"model_type": "llama", "tie_word_embeddings": True},
    "llama3": {"model_type": "llama", "tie_word_embeddings": False, "rope_theta": 5e5, "rope_scaling": LLAMA3},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "sliding_window": WINDOW, "head_dim": 16},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, "sliding_window": 4, "use_sliding_window": False},
    "qwen2-window": {
        "model_type": "qwen2",
        "sliding_window": WINDOW,
        "use_sliding_window": True,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": False, "head_dim": 16},
    "qwen3-window": {
        "model_type": "qwen3",
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "use_sliding_window": True,
        "sliding_window": WINDOW,
    },
    "smollm3": {"model_type": "smollm3", "tie_word_embeddings": True, "no_rope_layer_interval": 2},
}


def values_of(kind: str, **changes: Any) -> dict[str, Any]:
    """The content of a config.json."""
    return {**SHAPE, **KINDS[kind], **changes}


def made(kind: str, **changes: Any) -> PreTrainedModel:
    """A model whose biases and norms are random, too."""
    config = make_config(values_of(kind, **changes), kind)
    model = model_class_of(config)(config).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + ("norm" in name))
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    """A word for each id."""
    words = {"<pad>": PAD, "</s>": END, "<s>": BEGIN, **{f"w{index}": index for index in range(3, VOCABULARY)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, "<pad>")), pad_token="<pad>", eos_token="</s>", bos_token="<s>"
    )


def prompts(lengths: tuple[int, ...] = (24, 11, 5)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def saved(kind: str, folder: Path, **changes: Any) -> Path:
    """A checkpoint with its tokenizer."""
    made(kind, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
