"""Prompt texts and their tokenization; no other module contains either."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neuron_sum.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT = "chat"
"""The preset that uses the chat template of the model's tokenizer."""

INSTRUCTION = "Summarize the following conversation.\n\n{dialogue}"
"""The user's message in a chat template."""

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
    """The text around a dialogue.

    Attributes:
        template: Text that contains {dialogue} once.
        is_chat: Whether the template already has all special tokens, so that the tokenizer adds none.
    """

    template: str
    is_chat: bool = False

    @property
    def sha256(self) -> str:
        """The hash recorded in an artifact, so that training and serving use the same prompt."""
        return hashlib.sha256(f"{self.template}{CHAT if self.is_chat else ''}".encode()).hexdigest()

    def render(self, dialogue: str) -> str:
        """The text of the prompt. Braces in the dialogue are unchanged."""
        before, after = self.template.split("{dialogue}")
        return f"{before}{dialogue}{after}"

    def encode(
        self, tokenizer: "PreTrainedTokenizerBase", dialogues: Sequence[str], max_source_length: int
    ) -> list[EncodedPrompt]:
        """Tokenizes prompts; cuts the dialogue, never the template, if both do not fit.

        Only the start of a long dialogue is tokenized, so that the time does not depend on its length. The text of a
        control token in a dialogue, such as `</s>`, is not that token: a space after its first character splits it.
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
        dialogues, control = list(dialogues), control_ids(tokenizer)
        expected = _count(self._tokenize(tokenizer, [""])[0], control)
        prompts: dict[int, EncodedPrompt] = {}
        split: set[int] = set()
        while starts:
            encoded = self._tokenize(tokenizer, list(starts.values()))
            longer: dict[int, str] = {}
            for (number, start), input_ids in zip(starts.items(), encoded, strict=True):
                dialogue = dialogues[number]
                if number not in split and _count(input_ids, control) > expected:
                    split.add(number)
                    limit = MAX_CHARACTERS_PER_TOKEN * max_source_length
                    dialogues[number] = without_control(tokenizer, dialogue[:limit]) + dialogue[limit:]
                    longer[number] = start_of(dialogues[number], len(start))
                    continue
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
        room = max_source_length - len(self._tokenize(tokenizer, [""])[0])
        # Tokens may merge across the boundaries, so that the first guess can be wrong by one or two tokens.
        for keep in range(min(room + 2, len(offsets) - 1), -1, -1):
            cut = dialogue[: offsets[keep - 1][1]] if keep > 0 else ""
            input_ids = self._tokenize(tokenizer, [cut])[0]
            if len(input_ids) <= max_source_length:
                return input_ids
        raise RecipeError(
            f"data.max_source_length = {max_source_length}: the prompt template itself has more tokens",
            "raise data.max_source_length or shorten the prompt",
        )

    def _tokenize(self, tokenizer: "PreTrainedTokenizerBase", dialogues: Sequence[str]) -> list[list[int]]:
        texts = [self.render(dialogue) for dialogue in dialogues]
        rows: list[list[int]] = tokenizer(texts, add_special_tokens=not self.is_chat)["input_ids"]
        return rows


def control_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """The ids of the tokens that control the model, which no text of a user may contain.

    An unknown character also has the id of a special token, and some models have speaker tags as special tokens; both
    may occur in a dialogue.
    """
    names = ("bos_token", "eos_token", "pad_token", "sep_token", "cls_token", "mask_token")
    named = {getattr(tokenizer, f"{name}_id") for name in names}
    marks = {
        number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special and token.content.startswith(("<", "["))
    }
    return frozenset(named | marks) - {None, tokenizer.unk_token_id}


def without_control(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """The text with a space after the first character of everything that the tokenizer takes for a control token.

    Not all tokenizers can read such a text as plain text (T5's finds `</s>` also in its vocabulary), nor is it always
    written in the same characters (T5's reads a full-width `＜/s＞` as `</s>`).
    """
    control = control_ids(tokenizer)
    for _ in range(len(text)):  # the space can only create a token again if a token's second character is a space
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        found = [(start, end) for number, (start, end) in spans if number in control]
        if not found:
            return text
        for start, end in reversed(found):
            first = len(text[start:end]) - len(text[start:end].lstrip()) + 1
            text = f"{text[: start + first]} {text[start + first :]}"
    return text


def _count(input_ids: Sequence[int], control: frozenset[int]) -> int:
    return sum(number in control for number in input_ids)


def start_of(text: str, size: int) -> str:
    """About the first `size` characters of a text, up to the end of a word.

    Its tokens are the first of the whole text, except in a run of hundreds of characters without a space, which a
    unigram model can split otherwise.
    """
    if len(text) <= size:
        return text
    space = next((index for index in range(size, size // 2, -1) if text[index].isspace()), size)
    return text[:space]
