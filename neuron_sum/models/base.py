"""Base models and tokenizers from a hub, a folder, or a configuration with random weights."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import extract_commit_hash

from neuron_sum.errors import ModelError, reading
from neuron_sum.models import packed_t5
from neuron_sum.models.checkpoint import DAMAGED_HINT, find_file, read_inline, read_object, shorten
from neuron_sum.models.configs import LARGEST, head_may_be_embedding, make_config
from neuron_sum.models.families import family_of
from neuron_sum.models.gguf import folder_of
from neuron_sum.models.tokenizer_files import check_fits, read_sentencepiece, read_tokenizer
from neuron_sum.models.trained_tokenizer import SPECIAL, train_tokenizer
from neuron_sum.models.weights import GENERATION_CONFIG, load_weights
from neuron_sum.recipes.schema import ModelConfig, TrainedTokenizer

CONFIG = "config.json"


@dataclass(frozen=True)
class ParameterCount:
    """The numbers printed by PEFT's print_trainable_parameters."""

    trainable: int
    all: int

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.all:,} parameters are trainable ({100 * self.trainable / self.all:.2f} %)"


def count_parameters(model: torch.nn.Module) -> ParameterCount:
    """Counts each parameter once, even if it is tied."""
    parameters = list(model.parameters())
    return ParameterCount(
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        all=sum(parameter.numel() for parameter in parameters),
    )


def load_config(config: ModelConfig, tokenizer: PreTrainedTokenizerFast | None = None) -> PretrainedConfig:
    """Loads the transformers configuration of a recipe's model.

    Args:
        config: The recipe's model section.
        tokenizer: The tokenizer that provides vocab_size if an inline configuration lacks it.

    Raises:
        ModelError: If it cannot be loaded, or has an unknown key or an unsupported value.
    """
    values, source = _read_config(config)
    if config.name_or_path is None and tokenizer is not None and "vocab_size" not in values:
        values["vocab_size"] = len(tokenizer)
    loaded = make_config(values, source)
    # A configuration class has a default, which is not an end token of this model.
    loaded.eos_token_id = _stored_ends(config, values)
    if not is_decoder_only(loaded) and loaded.num_decoder_layers > loaded.num_layers:
        raise ModelError(
            f"a T5 with {loaded.num_decoder_layers} decoder layers and {loaded.num_layers} encoder layers cannot "
            "generate, because transformers 4.57 derives the decoder's cache size from the encoder",
            "use the same number of layers for both",
        )
    return loaded


def _read_config(config: ModelConfig) -> tuple[dict[str, Any], str]:
    """The content of a recipe's configuration, and its name for error messages."""
    if config.name_or_path is None:
        return read_inline(config)
    found = find_file(folder_of(config.name_or_path), CONFIG, config.revision, required=True)
    assert found is not None
    values = read_object(found)
    values |= {"name_or_path": config.name_or_path, "_commit_hash": extract_commit_hash(str(found), None)}
    return values, str(found)


def _stored_ends(config: ModelConfig, values: dict[str, Any]) -> int | list[int] | None:
    """The end tokens of a checkpoint, which generation_config.json knows better than config.json."""
    if config.name_or_path is None:
        return None
    path = find_file(folder_of(config.name_or_path), GENERATION_CONFIG, config.revision)
    stored = read_object(path).get("eos_token_id") if path is not None else None
    stored = values.get("eos_token_id") if stored is None else stored
    stored = None if stored == [] else stored
    rows = values.get("vocab_size")
    valid = range(rows if isinstance(rows, int) else LARGEST)
    ids = stored if isinstance(stored, list) else [stored]
    if any(number is not None and (isinstance(number, bool) or number not in valid) for number in ids):
        raise ModelError(
            f"{path or config.name_or_path}: eos_token_id = {shorten(stored)} is not a token id", DAMAGED_HINT
        )
    return stored


def load_base(
    config: ModelConfig, tokenizer: PreTrainedTokenizerFast, *, packed: bool = False, rows: int | None = None
) -> PreTrainedModel:
    """Loads the base model in fp32 and in evaluation mode.

    Only safetensors weights are loaded, and code from a hub is never executed.

    Args:
        config: The recipe's model section.
        tokenizer: The tokenizer of the model.
        packed: Whether the model will be trained on packed rows.
        rows: The number of embeddings if an adapter replaces them; new ones are random until then.

    Raises:
        ModelError: If it cannot be loaded, if its weights are incomplete or not finite, or if the tokenizer has more
            entries than the model's embedding.
    """
    settings = load_config(config, tokenizer)
    check_fits(tokenizer, rows or settings.vocab_size)
    model_class = model_class_of(settings, packed=packed)
    if config.name_or_path is not None:
        model = load_weights(
            model_class,
            settings,
            folder_of(config.name_or_path),
            config.revision,
            head_may_be_embedding=head_may_be_embedding(_read_config(config)[0]),
        )
    else:
        with torch.random.fork_rng(), reading("model.config", ModelError):
            torch.manual_seed(config.seed)
            model = model_class(settings)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    set_special_tokens(model, tokenizer)
    if config.name_or_path is not None:  # PEFT notes it in adapter_config.json
        model.name_or_path = model.config.name_or_path = config.name_or_path
    return model.eval()


def model_class_of(config: PretrainedConfig, *, packed: bool = False) -> type[PreTrainedModel]:
    """The class of a family; those of decoder-only families support packed rows unchanged."""
    family = family_of(config)
    return packed_t5.T5ForConditionalGeneration if packed and not family.decoder_only else family.model_class


def is_decoder_only(config: PretrainedConfig) -> bool:
    """Whether prompt and summary share one row."""
    return family_of(config).decoder_only


def load_tokenizer(config: ModelConfig, training_texts: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Loads or trains the recipe's tokenizer, a fast one with an end token and a padding token.

    Args:
        config: The recipe's model section.
        training_texts: The texts for training, if the recipe's tokenizer has only a vocab_size.

    Raises:
        ModelError: If it cannot be loaded.
    """
    if isinstance(config.tokenizer, TrainedTokenizer):
        backend = train_tokenizer(
            training_texts, config.tokenizer.vocab_size, decoder_only=is_decoder_only(load_config(config))
        )
        return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
    source = folder_of(config.tokenizer or str(config.name_or_path))
    if source.endswith(".model"):
        tokenizer = read_sentencepiece(Path(source), load_config(config).model_type)
    else:
        tokenizer = read_tokenizer(source, config.revision if source == config.name_or_path else None)
    if not tokenizer.is_fast:
        raise ModelError(f"model.tokenizer = {source!r} is not a fast tokenizer", "save it with a tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer {source} has no eos_token, which ends a summary", "set it and save the tokenizer"
        )
    if tokenizer.pad_token is None:
        # Labels are padded with IGNORED, never with this token, so that the end token is valid (Llama 3 has no other).
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def end_tokens(config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The ids that end a summary: that of the tokenizer, which ends it in training, and those of the checkpoint."""
    stored = config.eos_token_id
    ends = [tokenizer.eos_token_id, *(stored if isinstance(stored, list) else [stored])]
    return [number for number in dict.fromkeys(ends) if number is not None]


def set_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Sets the model's padding, begin and end ids to those of the tokenizer; a T5 decoder starts with padding.

    The end tokens of the checkpoint stay valid, after that of the tokenizer.
    """
    ends = end_tokens(model.config, tokenizer)
    for config in (model.config, model.generation_config):
        config.pad_token_id = tokenizer.pad_token_id
        config.eos_token_id = ends if len(ends) > 1 else ends[0]
        config.bos_token_id = tokenizer.bos_token_id
        if not is_decoder_only(model.config) and config.decoder_start_token_id is None:
            config.decoder_start_token_id = tokenizer.pad_token_id
