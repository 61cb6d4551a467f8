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
        whole: list[list[int]] = tokenizer([self.render(dialogue) for dialogue in dialogues])["input_ids"]
        return [
            EncodedPrompt(input_ids, truncated=False)
            if len(input_ids) <= max_source_length
            else EncodedPrompt(self._cut(tokenizer, dialogue, max_source_length), truncated=True)
            for dialogue, input_ids in zip(dialogues, whole, strict=True)
        ]

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
