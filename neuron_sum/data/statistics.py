"""Statistics of the training dialogues, for comparing requests with them; they contain no text."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from neuron_sum.prompts import EncodedPrompt
from neuron_sum.recipes.schema import Section

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STATISTICS = "training_statistics.json"
"""Name of the file with the statistics of the training data, in the folder of the trained weights."""

BYTE = re.compile(r"<0x([8-9A-F][0-9A-F])>")
"""A token for one byte of a character that the vocabulary lacks; those below 0x80 stand for newlines and tabs."""


class DialogueStatistics(Section):
    """Numbers of dialogues."""

    version: Literal[1] = 1
    dialogues: int = Field(ge=1)
    source_tokens: dict[int, int]
    """Tokens of a prompt, after it is cut to data.max_source_length: the number of dialogues for each length."""
    truncated: int
    """Dialogues that are cut."""
    unknown: int | None
    """Dialogues with a token for unknown text; None if the tokenizer has no such token."""


@dataclass
class DialogueCounter:
    """Counts dialogues one by one.

    Args:
        unknown_ids: The tokens for unknown text; empty if the tokenizer has none.
    """

    unknown_ids: frozenset[int]
    source_tokens: Counter[int] = field(default_factory=Counter)
    truncated: int = 0
    unknown: int = 0

    def add(self, input_ids: Sequence[int], *, truncated: bool) -> bool:
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


def training_statistics(prompts: Sequence[EncodedPrompt], tokenizer: "PreTrainedTokenizerBase") -> DialogueStatistics:
    """The statistics of the dialogues of a training split.

    Args:
        prompts: Their prompts, of which those of long dialogues are cut.
        tokenizer: The model's tokenizer.
    """
    counter = DialogueCounter(unknown_ids(tokenizer))
    for prompt in prompts:
        counter.add(prompt.input_ids, truncated=prompt.truncated)
    return DialogueStatistics(
        dialogues=len(prompts),
        source_tokens=dict(sorted(counter.source_tokens.items())),
        truncated=counter.truncated,
        unknown=counter.unknown if counter.unknown_ids else None,
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
