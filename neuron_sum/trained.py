"""A finished run's model, ready to summarize."""

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from neuron_sum import adapters, models
from neuron_sum.recipe import FullMethod, ModelConfig
from neuron_sum.run_folder import RunFolder


def load_trained(run: RunFolder) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerFast]:
    """The trained model in evaluation mode, and its tokenizer.

    Raises:
        ModelError: If weights are missing or do not fit.
    """
    tokenizer = models.load_tokenizer(ModelConfig(name_or_path=str(run.weights)))
    if isinstance(run.recipe.method, FullMethod):
        return models.load_base(ModelConfig(name_or_path=str(run.weights)), tokenizer), tokenizer
    base, _ = load_untuned(run)
    return adapters.load_adapter(base, run.weights), tokenizer


def load_untuned(run: RunFolder) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model that the run started from, and its tokenizer.

    Raises:
        ModelError: If it cannot be loaded.
    """
    origin = ModelConfig(name_or_path=run.model_source(), revision=run.recipe.model.revision)
    tokenizer = models.load_tokenizer(ModelConfig(name_or_path=str(run.weights)))
    return models.load_base(origin, tokenizer), tokenizer
