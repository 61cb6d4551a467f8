"""The only place where prompt text lives, and the only place where it becomes token ids."""

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
"""How much of a dialogue is tokenized at first; English has 4 to 5, but one character can also be 18 tokens."""

MARGIN = 8
"""Tokens beyond max_source_length at which what follows cannot change the cut any more."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model takes it.

    Attributes:
        input_ids: Token ids, special tokens included, at most max_source_length of them.
        truncated: Whether the dialogue was cut at its end to fit.
    """

    input_ids: list[int]
    truncated: bool


@dataclass(frozen=True)
class Prompt:
    """A template with one {dialogue}."""

    template: str

    @property
    def sha256(self) -> str:
        """What an artifact records, so that training and serving cannot drift apart."""
        return hashlib.sha256(self.template.encode()).hexdigest()

    def render(self, dialogue: str) -> str:
        """The text the model is given. Braces in the dialogue are left alone."""
        before, after = self.template.split("{dialogue}")
        return f"{before}{dialogue}{after}"

    def encode(
        self, tokenizer: "PreTrainedTokenizerBase", dialogues: Sequence[str], max_source_length: int
    ) -> list[EncodedPrompt]:
        """Tokenizes prompts, cutting the dialogue, never the template, where both do not fit.

        The time does not grow with what is cut off: only the start of a long dialogue is tokenized.
        A plain `truncation=True` would cut the end of the template ("Summary: ") and keep a tail of the dialogue.

        Args:
            tokenizer: A fast tokenizer; character offsets are needed to cut.
            dialogues: The texts in the middle; all at once, for tokenizers are several times faster so.
            max_source_length: Tokens a prompt may have.

        Raises:
            RecipeError: If the template alone is longer than max_source_length.
        """
        if not dialogues:
            return []
        starts = {
            number: _start(dialogue, CHARACTERS_PER_TOKEN * max_source_length)
            for number, dialogue in enumerate(dialogues)
        }
        prompts: dict[int, EncodedPrompt] = {}
        while starts:
            encoded: list[list[int]] = tokenizer([self.render(start) for start in starts.values()])["input_ids"]
            longer: dict[int, str] = {}
            for (number, start), input_ids in zip(starts.items(), encoded, strict=True):
                dialogue = dialogues[number]
                if len(start) < len(dialogue) and len(input_ids) <= max_source_length + MARGIN:
                    longer[number] = _start(dialogue, 2 * len(start))
                elif len(input_ids) <= max_source_length:
                    prompts[number] = EncodedPrompt(input_ids, truncated=False)
                else:
                    prompts[number] = EncodedPrompt(self._cut(tokenizer, start, max_source_length), truncated=True)
            starts = longer
        return [prompts[number] for number in range(len(dialogues))]

    def _cut(self, tokenizer: "PreTrainedTokenizerBase", dialogue: str, max_source_length: int) -> list[int]:
        """The longest start of the dialogue with which the prompt fits."""
        offsets = tokenizer(dialogue, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        room = max_source_length - len(tokenizer(self.render(""))["input_ids"])
        # Tokens may join across the seams, so the first guess can be a token or two off.
        for keep in range(min(room + 2, len(offsets) - 1), -1, -1):
            cut = dialogue[: offsets[keep - 1][1]] if keep > 0 else ""
            input_ids: list[int] = tokenizer(self.render(cut))["input_ids"]
            if len(input_ids) <= max_source_length:
                return input_ids
        raise RecipeError(
            f"data.max_source_length = {max_source_length}: the prompt's template alone has more tokens",
            "raise data.max_source_length or shorten the prompt",
        )


def _start(text: str, size: int) -> str:
    """About the first `size` characters of a text, up to the end of a word: its tokens are the first of the text's."""
    if len(text) <= size:
        return text
    space = next((place for place in range(size, size // 2, -1) if text[place].isspace()), size)
    return text[:space]
