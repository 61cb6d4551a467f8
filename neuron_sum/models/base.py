"""Base models and tokenizers from a hub, a folder, or a configuration with random weights."""

import json
import string
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from neuron_sum.errors import ModelError
from neuron_sum.models import packed_t5
from neuron_sum.recipes.schema import ModelConfig, TrainedTokenizer

SEQ2SEQ, DECODER_ONLY = "t5", "llama"
FAMILIES = (SEQ2SEQ, DECODER_ONLY)
"""The model_type values of transformers that every stage supports."""

HUB_HINT = "check the name and the network; without a network, use a local folder: model.name_or_path=FOLDER"


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
        ModelError: If it cannot be loaded, or if the model family is not supported.
    """
    if config.name_or_path is not None:
        try:
            loaded = AutoConfig.from_pretrained(config.name_or_path, revision=config.revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ModelError(f"model.name_or_path = {config.name_or_path!r}: {_first_line(error)}", HUB_HINT) from error
    else:
        values = dict(config.config) if isinstance(config.config, dict) else _read_json(Path(str(config.config)))
        if tokenizer is not None and "vocab_size" not in values:
            values["vocab_size"] = len(tokenizer)
        model_type = values.pop("model_type", None)
        if model_type not in FAMILIES:
            raise ModelError(f"model.config has model_type {model_type!r}; valid: {', '.join(FAMILIES)}")
        loaded = AutoConfig.for_model(model_type, **values)
    if loaded.model_type not in FAMILIES:
        raise ModelError(
            f"{config.name_or_path} is a {loaded.model_type} model; valid: {', '.join(FAMILIES)}",
            "use T5, FLAN-T5, Llama or TinyLlama",
        )
    if not is_decoder_only(loaded) and loaded.num_decoder_layers > loaded.num_layers:
        raise ModelError(
            f"a T5 with {loaded.num_decoder_layers} decoder layers and {loaded.num_layers} encoder layers cannot "
            "generate, because transformers 4.57 derives the decoder's cache size from the encoder",
            "use the same number of layers for both",
        )
    return loaded


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
        ModelError: If it cannot be loaded, or the tokenizer has more entries than the model's embedding.
    """
    settings = load_config(config, tokenizer)
    model_class = model_class_of(settings, packed=packed)
    if config.name_or_path is not None:
        try:
            model = model_class.from_pretrained(
                config.name_or_path, revision=config.revision, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"model.name_or_path = {config.name_or_path!r}: {_first_line(error)}", HUB_HINT) from error
    else:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            model = model_class(settings)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    if len(tokenizer) > model.config.vocab_size:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} entries, but the model's embedding has {model.config.vocab_size}",
            "set model.tokenizer to the tokenizer of the model",
        )
    _set_special_tokens(model, tokenizer)
    return cast(PreTrainedModel, model.eval())


def model_class_of(config: PretrainedConfig, *, packed: bool = False) -> type[PreTrainedModel]:
    """The class of a family: T5ForConditionalGeneration, or LlamaForCausalLM, which supports packed rows unchanged."""
    classes: dict[str, type[PreTrainedModel]] = {
        SEQ2SEQ: packed_t5.T5ForConditionalGeneration if packed else transformers.T5ForConditionalGeneration,
        DECODER_ONLY: transformers.LlamaForCausalLM,
    }
    return classes[config.model_type]


def is_decoder_only(config: PretrainedConfig) -> bool:
    """Whether prompt and summary share one row."""
    return bool(config.model_type == DECODER_ONLY)


def load_tokenizer(config: ModelConfig, training_texts: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Loads or trains the recipe's tokenizer, a fast one with a padding token.

    Args:
        config: The recipe's model section.
        training_texts: The texts for training, if the recipe's tokenizer has only a vocab_size.

    Raises:
        ModelError: If it cannot be loaded.
    """
    if isinstance(config.tokenizer, TrainedTokenizer):
        return _train_tokenizer(training_texts, config.tokenizer.vocab_size, load_config(config).model_type)
    source = config.tokenizer or str(config.name_or_path)
    try:
        if source.endswith(".model"):
            if not Path(source).is_file():
                raise OSError("no such file")
            settings = load_config(config)
            tokenizer_class = {SEQ2SEQ: transformers.T5TokenizerFast, DECODER_ONLY: transformers.LlamaTokenizerFast}[
                settings.model_type
            ]
            # Without add_prefix_space, transformers 4.57 drops SentencePiece's space before the first word.
            legacy = settings.model_type == SEQ2SEQ  # as in the files on the hub
            tokenizer = tokenizer_class(vocab_file=source, legacy=legacy, add_prefix_space=True)
        else:
            revision = config.revision if source == config.name_or_path else None
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.tokenizer = {source!r}: {_first_line(error)}",
            "use a folder with tokenizer.json, a SentencePiece .model file, a hub id, or {vocab_size: N} to train one",
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(f"model.tokenizer = {source!r} is not a fast tokenizer", "save it with a tokenizer.json")
    if tokenizer.pad_token is None:
        # Labels are padded with IGNORED, never with this token, so that the end token is valid (Llama 3 has no other).
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return cast(PreTrainedTokenizerFast, tokenizer)


def _train_tokenizer(texts: Iterable[str], vocab_size: int, family: str) -> PreTrainedTokenizerFast:
    """Trains a BPE tokenizer with T5's first three ids (pad 0, eos 1, unk 2), and white space as one space like T5."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    # "Friday," and "Friday." start with the same token, so that a small model can copy the word; tags stay whole.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex(r"[.,:;!?]"), "isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", "<s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=[character for character in string.printable if not character.isspace()],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if "▁" not in tokenizer.get_vocab():
        raise ModelError("cannot train a tokenizer without training dialogues", "use data with a train split")
    frame = {SEQ2SEQ: ("$A </s>", [("</s>", 1)]), DECODER_ONLY: ("<s> $A", [("<s>", 3)])}[family]
    tokenizer.post_processor = processors.TemplateProcessing(single=frame[0], special_tokens=frame[1])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )


def _set_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Sets the model's padding, begin and end ids to those of the tokenizer; a T5 decoder starts with padding."""
    for config in (model.config, model.generation_config):
        config.pad_token_id = tokenizer.pad_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.bos_token_id = tokenizer.bos_token_id
        if not is_decoder_only(model.config) and config.decoder_start_token_id is None:
            config.decoder_start_token_id = tokenizer.pad_token_id


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.config = {str(path)!r}: {_first_line(error)}", "use a config.json, or its content"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
