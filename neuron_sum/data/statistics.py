"""Statistics of dialogues and summaries, for comparing requests with the training data; they contain no text."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from neuron_sum.data.encoding import IGNORED, Encoded
from neuron_sum.data.examples import Example, invented_tags
from neuron_sum.recipes.schema import Section

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STATISTICS = "training_statistics.json"
"""Name of the file with the statistics of the training data, in the folder of the trained weights."""

BYTE = re.compile(r"<0x([8-9A-F][0-9A-F])>")
"""A token for one byte of a character that the vocabulary lacks; those below 0x80 stand for newlines and tabs."""


class TextStatistics(Section):
    """Numbers of dialogues and summaries, and the letters of the dialogues."""

    version: Literal[1] = 1
    dialogues: int = Field(ge=1)
    source_tokens: dict[int, int]
    """Tokens of a prompt, after it is cut to data.max_source_length: the number of dialogues for each length."""
    truncated: int
    """Dialogues that are cut."""
    unknown: int | None
    """Dialogues with a token for unknown text; None if the tokenizer has no such token."""
    summaries: int = Field(ge=1)
    target_tokens: dict[int, int]
    """Tokens of a summary with its end token, at most data.max_target_length: the number of summaries for each."""
    invented: int
    """Summaries with a speaker tag that is not in the dialogue."""
    empty: int
    """Summaries without text."""
    letters: str
    """Every letter of the dialogues, in lower case, sorted."""


@dataclass
class TextCounter:
    """Counts dialogues and summaries one by one.

    Args:
        unknown_ids: The tokens for unknown text; empty if the tokenizer has none.
    """

    unknown_ids: frozenset[int]
    source_tokens: Counter[int] = field(default_factory=Counter)
    target_tokens: Counter[int] = field(default_factory=Counter)
    truncated: int = 0
    unknown: int = 0
    invented: int = 0
    empty: int = 0

    def add_dialogue(self, input_ids: Sequence[int], *, truncated: bool) -> bool:
        """Count a dialogue.

        Args:
            input_ids: The tokens of its prompt.
            truncated: Whether it was cut.

        Returns:
            Whether it has a token for unknown text.
        """
        is_unknown = not self.unknown_ids.isdisjoint(input_ids)
        self.source_tokens[len(input_ids)] += 1
        self.truncated += truncated
        self.unknown += is_unknown
        return is_unknown

    def add_summary(self, tokens: int, summary: str, dialogue: str | None) -> bool:
        """Count a summary.

        Args:
            tokens: The number of its tokens, with the end token.
            summary: The text.
            dialogue: The summarized dialogue, if it is known.

        Returns:
            Whether it has a speaker tag that is not in the dialogue.
        """
        is_invented = dialogue is not None and bool(invented_tags(summary, dialogue))
        self.target_tokens[tokens] += 1
        self.empty += not summary.strip()
        self.invented += is_invented
        return is_invented


def training_statistics(
    examples: Sequence[Example], encoded: Encoded, tokenizer: "PreTrainedTokenizerBase", *, decoder_only: bool
) -> TextStatistics:
    """The statistics of a training split.

    Args:
        examples: The examples.
        encoded: The same examples as tokens.
        tokenizer: The model's tokenizer.
        decoder_only: Whether input_ids contain the summary.
    """
    counter, features = TextCounter(unknown_ids(tokenizer)), iter(encoded.features)
    for example in examples:
        for number, reference in enumerate(example.references):
            feature = next(features)
            if number == 0:
                prompt = feature["labels"].count(IGNORED) if decoder_only else len(feature["input_ids"])
                counter.add_dialogue(feature["input_ids"][:prompt], truncated=False)
            counter.add_summary(sum(label != IGNORED for label in feature["labels"]), reference, example.dialogue)
    return TextStatistics(
        dialogues=len(examples),
        source_tokens=dict(sorted(counter.source_tokens.items())),
        truncated=encoded.sources_cut,
        unknown=counter.unknown if counter.unknown_ids else None,
        summaries=counter.target_tokens.total(),
        target_tokens=dict(sorted(counter.target_tokens.items())),
        invented=counter.invented,
        empty=counter.empty,
        letters="".join(sorted(letters(example.dialogue for example in examples))),
    )


def unknown_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """The tokens for text that the vocabulary lacks: the unknown token, or bytes; none for a byte-level tokenizer.

    Args:
        tokenizer: A fast tokenizer.
    """
    model = tokenizer.backend_tokenizer.model
    has_unknown = getattr(model, "unk_token", tokenizer.unk_token) == tokenizer.unk_token is not None
    found = {number for token, number in tokenizer.get_vocab().items() if BYTE.fullmatch(token)}
    return frozenset(found | ({tokenizer.unk_token_id} if has_unknown else set()))


def letters(texts: Iterable[str]) -> set[str]:
    """The letters of texts, in lower case.

    Args:
        texts: The texts.
    """
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    return {lower for character in characters if character.isalpha() for lower in character.lower() if lower.isalpha()}
