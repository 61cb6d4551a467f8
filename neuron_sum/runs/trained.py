"""Loaders for the model of a finished run."""

from pathlib import Path

from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from neuron_sum.errors import ModelError
from neuron_sum.models import adapters
from neuron_sum.models import base as models
from neuron_sum.models.adapter_config import base_of, is_adapter
from neuron_sum.models.adapter_files import has_tokenizer, saved_rows
from neuron_sum.recipes.schema import FullMethod, ModelConfig
from neuron_sum.runs.folder import RunFolder


def load_trained(run: RunFolder) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerFast]:
    """Loads the trained model in evaluation mode, and its tokenizer.

    Raises:
        ModelError: If weights are missing or do not match the model.
    """
    tokenizer = models.load_tokenizer(ModelConfig(name_or_path=str(run.weights)))
    if isinstance(run.recipe.method, FullMethod):
        return models.load_base(ModelConfig(name_or_path=str(run.weights)), tokenizer), tokenizer
    base, _ = load_untuned(run)
    return adapters.load_adapter(base, run.weights), tokenizer


def load_weights(
    folder: Path, base: ModelConfig | None = None
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerFast]:
    """Loads a checkpoint, or an adapter on its base.

    Args:
        folder: A checkpoint with its tokenizer, or an adapter, in Hugging Face's layout.
        base: The base of an adapter; None for the one that its adapter_config.json names.

    Raises:
        ModelError: If weights are missing or do not match the model.
    """
    if not is_adapter(folder):
        origin = ModelConfig(name_or_path=str(folder))
        models.load_config(origin)  # the family, before a tokenizer that may be of any kind
        tokenizer = models.load_tokenizer(origin)
        return models.load_base(origin, tokenizer), tokenizer
    base = base or base_of(folder)
    rows = _resized(folder, models.load_config(base))
    tokenizer = adapter_tokenizer(folder, base)
    return adapters.load_adapter(models.load_base(base, tokenizer, rows=rows), folder), tokenizer


def adapter_tokenizer(folder: Path, base: ModelConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of an adapter, or that of its base if the adapter has none."""
    return models.load_tokenizer(ModelConfig(name_or_path=str(folder)) if has_tokenizer(folder) else base)


def adapter_config(folder: Path, base: ModelConfig) -> PretrainedConfig:
    """The configuration of an adapter's base, with as many embeddings as the adapter saved."""
    config = models.load_config(base)
    config.vocab_size = _resized(folder, config) or config.vocab_size
    return config


def _resized(folder: Path, config: PretrainedConfig) -> int | None:
    """The number of embeddings that an adapter saved, if it is not that of its base.

    Raises:
        ModelError: If the adapter saved only one of two layers that depend on it, so that new tokens would be random.
    """
    rows = {name: count for name, count in saved_rows(folder).items() if count != config.vocab_size}
    if not rows:
        return None
    layers = 1 if config.tie_word_embeddings else 2
    if len(set(rows.values())) > 1 or len(rows) < layers:
        found = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise ModelError(
            f"{folder} has resized only some of its embeddings ({found} rows; the base has {config.vocab_size})",
            "save the adapter again with save_embedding_layers=True",
        )
    return next(iter(rows.values()))


def load_untuned(run: RunFolder) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Loads the base model of the run, and its tokenizer.

    Raises:
        ModelError: If it cannot be loaded.
    """
    origin = ModelConfig(name_or_path=run.model_source(), revision=run.recipe.model.revision)
    tokenizer = models.load_tokenizer(ModelConfig(name_or_path=str(run.weights)))
    return models.load_base(origin, tokenizer), tokenizer
