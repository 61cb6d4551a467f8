"""Sections, tokenizers that split headings differently, and tiny models with several end tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from micro_models import LLAMA_CONFIG
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast, T5Config

from compile.graphs.layers import GraphOptions
from compile.graphs.static import eager_runtime, static_model, weights
from neuron_sum.artifact import Bucket, SpecialTokens
from neuron_sum.data.sources import load_dataset
from neuron_sum.models.base import is_decoder_only, load_tokenizer, model_class_of
from neuron_sum.recipes.schema import DataConfig, ModelConfig, SectionConfig, TrainedTokenizer
from neuron_sum.runtimes.generation import StepGenerator
from neuron_sum.runtimes.hugging_face import TransformersGenerator
from neuron_sum.sections import SectionCoder

SECTIONS = (
    SectionConfig(name="reason"),
    SectionConfig(name="follow_up", required=False, max_tokens=5),
    SectionConfig(name="actions", max_tokens=7),
)
WORDS = [
    "<pad>",
    "</s>",
    "<end>",
    "Reason",
    "Follow",
    "up",
    "Actions",
    ":",
    ".",
    *(f"w{number}" for number in range(30)),
]
ENDS = [1, 2]
PAD, END = 0, 1
SOURCE_LEN, TARGET_LEN = 24, 36


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, so that a tiny vocabulary has headings of two and three tokens."""
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", additional_special_tokens=["<end>"]
    )


def sentencepiece() -> PreTrainedTokenizerFast:
    """The tokenizer of T5 recipes without a pretrained one, which has no token for a line break."""
    texts = load_dataset(DataConfig()).training_texts()
    config = {"model_type": "t5", "d_model": 32}
    return load_tokenizer(ModelConfig(config=config, tokenizer=TrainedTokenizer(vocab_size=400)), texts)


def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE, in which a space belongs to the next word and a line break is a token."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=400, special_tokens=["<pad>", "</s>"], show_progress=False)
    trainer.initial_alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([*load_dataset(DataConfig()).training_texts(), "Reason:\nFollow up:\nActions:\n"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")


def random_model(family: str) -> PreTrainedModel:
    """A model with the vocabulary of `word_tokenizer`, and weights so large that its choices are clear."""
    tokens = {"vocab_size": len(WORDS), "pad_token_id": PAD, "eos_token_id": ENDS}
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config: Any = (
        T5Config(**sizes, **tokens, decoder_start_token_id=PAD, tie_word_embeddings=False)
        if family == "t5"
        else AutoConfig.for_model(**{**LLAMA_CONFIG, **tokens})
    )
    torch.manual_seed(3)
    model = model_class_of(config)(config).eval()
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.4 + ("norm" in name))
    return model


def both_generators(family: str, sections: Sequence[SectionConfig]) -> tuple[TransformersGenerator, StepGenerator]:
    """transformers, and graphs with the same weights."""
    model, tokenizer = random_model(family), word_tokenizer()
    coder = SectionCoder.of(sections, tokenizer)
    return TransformersGenerator(model, tokenizer, 4, coder), eager_generator(
        model, coder, SOURCE_LEN, TARGET_LEN, ENDS
    )


def eager_generator(
    model: PreTrainedModel, coder: SectionCoder | None, source_len: int, target_len: int, ends: Sequence[int]
) -> StepGenerator:
    """Graphs that are not compiled, with the weights of a model."""
    static = static_model(model.config, GraphOptions(source_len=source_len, target_len=target_len))
    start = None if is_decoder_only(model.config) else PAD
    buckets = [
        Bucket(batch=batch, source_len=length, target_len=target_len)
        for batch in (1, 4)
        for length in (source_len // 2, source_len)
    ]
    special = SpecialTokens(pad=PAD, ends=tuple(ends), decoder_start=start)
    runtime = eager_runtime(static, weights(static, model.state_dict()), buckets, (1, 3), special)
    return StepGenerator(runtime, sections=coder)
