"""Prompt texts and their tokenization; no other module contains either."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neuron_sum.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PRESETS = {
    "course": "Summarize the following conversation.\n\n{dialogue}\n\nSummary: ",
    "summarize": "summarize: {dialogue}",
    "tinyllama-chat": "<|user|>\nSummarize the following conversation.\n\n{dialogue}</s>\n<|assistant|>\n",
}


CHARACTERS_PER_TOKEN = 2
"""Characters of a dialogue tokenized at first, per token; English has 4 to 5, but a character may have 18 tokens."""

MAX_CHARACTERS_PER_TOKEN = 32
"""A dialogue whose characters have fewer tokens, such as megabytes of spaces, is cut although its tokens would fit."""

MARGIN = 8
"""Tokens beyond max_source_length after which further text no longer changes the cut."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as input of the model.

    Attributes:
        input_ids: Token ids including special tokens, at most max_source_length.
        truncated: Whether the end of the dialogue was cut off to fit.
    """

    input_ids: list[int]
    truncated: bool


@dataclass(frozen=True)
class Prompt:
    """A template that contains {dialogue} once."""

    template: str

    @property
    def sha256(self) -> str:
        """The hash recorded in an artifact, so that training and serving use the same prompt."""
        return hashlib.sha256(self.template.encode()).hexdigest()

    def render(self, dialogue: str) -> str:
        """The text of the prompt. Braces in the dialogue are unchanged."""
        before, after = self.template.split("{dialogue}")
        return f"{before}{dialogue}{after}"

    def encode(
        self, tokenizer: "PreTrainedTokenizerBase", dialogues: Sequence[str], max_source_length: int
    ) -> list[EncodedPrompt]:
        """Tokenizes prompts; cuts the dialogue, never the template, if both do not fit.

        Only the start of a long dialogue is tokenized, so that the time does not depend on its length.
        A plain `truncation=True` would cut the end of the template ("Summary: ") and keep more of the dialogue.

        Args:
            tokenizer: A fast tokenizer, because cutting requires character offsets.
            dialogues: The dialogues; all at once, because a tokenizer is several times faster with batches.
            max_source_length: Maximum number of tokens of a prompt.

        Raises:
            RecipeError: If the template itself has more than max_source_length tokens.
        """
        if not dialogues:
            return []
        starts = {
            number: start_of(dialogue, CHARACTERS_PER_TOKEN * max_source_length)
            for number, dialogue in enumerate(dialogues)
        }
        prompts: dict[int, EncodedPrompt] = {}
        while starts:
            encoded: list[list[int]] = tokenizer([self.render(start) for start in starts.values()])["input_ids"]
            longer: dict[int, str] = {}
            for (number, start), input_ids in zip(starts.items(), encoded, strict=True):
                dialogue = dialogues[number]
                is_short = len(start) < min(len(dialogue), MAX_CHARACTERS_PER_TOKEN * max_source_length)
                if is_short and len(input_ids) <= max_source_length + MARGIN:
                    longer[number] = start_of(dialogue, 2 * len(start))
                elif len(input_ids) <= max_source_length:
                    prompts[number] = EncodedPrompt(input_ids, truncated=len(start) < len(dialogue))
                else:
                    prompts[number] = EncodedPrompt(self._cut(tokenizer, start, max_source_length), truncated=True)
            starts = longer
        return [prompts[number] for number in range(len(dialogues))]

    def _cut(self, tokenizer: "PreTrainedTokenizerBase", dialogue: str, max_source_length: int) -> list[int]:
        """The token ids of the prompt with the longest start of the dialogue that fits."""
        offsets = tokenizer(dialogue, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        room = max_source_length - len(tokenizer(self.render(""))["input_ids"])
        # Tokens may merge across the boundaries, so that the first guess can be wrong by one or two tokens.
        for keep in range(min(room + 2, len(offsets) - 1), -1, -1):
            cut = dialogue[: offsets[keep - 1][1]] if keep > 0 else ""
            input_ids: list[int] = tokenizer(self.render(cut))["input_ids"]
            if len(input_ids) <= max_source_length:
                return input_ids
        raise RecipeError(
            f"data.max_source_length = {max_source_length}: the prompt template itself has more tokens",
            "raise data.max_source_length or shorten the prompt",
        )


def start_of(text: str, size: int) -> str:
    """About the first `size` characters of a text, up to the end of a word.

    Its tokens are the first of the whole text, except in a run of hundreds of characters without a space, which a
    unigram model can split otherwise.
    """
    if len(text) <= size:
        return text
    space = next((index for index in range(size, size // 2, -1) if text[index].isspace()), size)
    return text[:space]
