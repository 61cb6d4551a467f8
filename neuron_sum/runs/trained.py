"""Loaders for the model of a finished run."""

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from neuron_sum import files
from neuron_sum.models import adapters
from neuron_sum.models import base as models
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


def load_weights(folder: Path) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerFast]:
    """Loads a checkpoint, or an adapter on the base named in its adapter_config.json.

    Args:
        folder: A folder in Hugging Face's layout that includes the tokenizer.

    Raises:
        ModelError: If weights are missing or do not match the model.
    """
    tokenizer = models.load_tokenizer(ModelConfig(name_or_path=str(folder)))
    if not (folder / "adapter_config.json").is_file():
        return models.load_base(ModelConfig(name_or_path=str(folder)), tokenizer), tokenizer
    base = files.read_json(folder / "adapter_config.json")["base_model_name_or_path"]
    return adapters.load_adapter(models.load_base(ModelConfig(name_or_path=base), tokenizer), folder), tokenizer


def load_untuned(run: RunFolder) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Loads the base model of the run, and its tokenizer.

    Raises:
        ModelError: If it cannot be loaded.
    """
    origin = ModelConfig(name_or_path=run.model_source(), revision=run.recipe.model.revision)
    tokenizer = models.load_tokenizer(ModelConfig(name_or_path=str(run.weights)))
    return models.load_base(origin, tokenizer), tokenizer
