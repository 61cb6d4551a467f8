"""Tokenization of examples for training; counts the texts that are cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from neuron_sum.data.examples import Example
from neuron_sum.prompts import Prompt
from neuron_sum.recipes.schema import DataConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label that torch's cross entropy ignores."""

Features = dict[str, list[int]]


@dataclass(frozen=True)
class Encoded(torch.utils.data.Dataset[Features]):
    """Tokenized examples for a data collator.

    Attributes:
        features: One entry per (dialogue, reference): input_ids and labels.
        sources_cut: Number of dialogues cut to max_source_length.
        targets_cut: Number of summaries cut to max_target_length.
    """

    features: tuple[Features, ...]
    sources_cut: int
    targets_cut: int

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Features:
        return self.features[index]

    @property
    def source_tokens(self) -> int:
        """Input tokens of one epoch, without padding."""
        return sum(len(feature["input_ids"]) for feature in self.features)

    @property
    def target_tokens(self) -> int:
        """Label tokens of one epoch that count in the loss."""
        return sum(label != IGNORED for feature in self.features for label in feature["labels"])


def encode(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt,
    data: DataConfig,
    *,
    decoder_only: bool,
) -> Encoded:
    """Tokenizes examples for training; an example with several references becomes one entry per reference.

    An encoder-decoder model receives the prompt as input_ids and the summary as labels. A decoder-only model receives
    both in one row, and labels that ignore the prompt, so that it learns to answer and not to repeat the dialogue.

    Args:
        examples: The examples to tokenize.
        tokenizer: The model's tokenizer; its eos_token ends every summary.
        prompt: The text around the dialogue.
        data: The recipe's section with max_source_length and max_target_length.
        decoder_only: Whether the model is decoder-only.
    """
    sources = prompt.encode(tokenizer, [example.dialogue for example in examples], data.max_source_length)
    references = [reference for example in examples for reference in example.references]
    tokenized: list[list[int]] = (
        tokenizer(text_target=references, add_special_tokens=False)["input_ids"] if references else []
    )
    targets = iter([[*target[: data.max_target_length - 1], tokenizer.eos_token_id] for target in tokenized])
    features: list[Features] = []
    for example, source in zip(examples, sources, strict=True):
        for _, target in zip(example.references, targets, strict=False):
            if decoder_only:
                labels = [IGNORED] * len(source.input_ids) + target
                features.append({"input_ids": source.input_ids + target, "labels": labels})
            else:
                features.append({"input_ids": source.input_ids, "labels": target})
    return Encoded(
        tuple(features),
        sources_cut=sum(source.truncated for source in sources),
        targets_cut=sum(len(target) >= data.max_target_length for target in tokenized),
    )
