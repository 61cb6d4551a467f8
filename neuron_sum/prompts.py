"""Prompt texts and their tokenization; no other module contains either."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from neuron_sum.errors import RecipeError

CHAT = "chat"
"""The preset that uses the chat template of the model's tokenizer."""

INSTRUCTION = "Summarize the following conversation.\n\n{dialogue}"
"""The user's message in a chat template."""

PRESETS = {
    "course": "Summarize the following conversation.\n\n{dialogue}\n\nSummary: ",
    "summarize": "summarize: {dialogue}",
    "tinyllama-chat": "<|user|>\nSummarize the following conversation.\n\n{dialogue}</s>\n<|assistant|>\n",
    "claim": "{dialogue}\n\nClaim: {claim}\nTrue?\n",
    "minicheck": "predict: {dialogue}</s>{claim}",
}
"""`claim` and `minicheck` ask whether a claim is true; the latter is that of MiniCheck-Flan-T5-Large (Tang et al. 2024,
arXiv:2404.10774; minicheck/inference.py of github.com/Liyan06/MiniCheck)."""


CHARACTERS_PER_TOKEN = 2
"""Characters of a dialogue tokenized at first, per token; English has 4 to 5, but a character may have 18 tokens."""

MAX_CHARACTERS_PER_TOKEN = 32
"""A dialogue whose characters have fewer tokens, such as megabytes of spaces, is cut although its tokens would fit."""

MARGIN = 8
"""Tokens beyond max_source_length after which further text no longer changes the cut."""

BLOCK = 500
"""Number of texts that are tokenized at once."""


class Tokenizer(Protocol):
    """The part of transformers' PreTrainedTokenizerFast that prompts and summaries require.

    Attributes:
        backend_tokenizer: The Tokenizer of the tokenizers library.
        chat_template: The text of the chat template, or None; several as a mapping.
        added_tokens_decoder: The added tokens by id.
        unk_token: The text of the token of unknown characters.
        unk_token_id: Its id.
        bos_token_id: The id of the token that begins a text; this and the following are None without such a token.
        eos_token_id: The one that ends a text.
        sep_token_id: The one that separates texts.
        pad_token_id: The one that pads batches.
        cls_token_id: The one that is classified.
        mask_token_id: The one in place of a missing word.
    """

    backend_tokenizer: Any
    chat_template: Any
    added_tokens_decoder: Mapping[int, Any]
    unk_token: str | None
    unk_token_id: int | None
    bos_token_id: int | None
    eos_token_id: int | None
    sep_token_id: int | None
    pad_token_id: int | None
    cls_token_id: int | None
    mask_token_id: int | None

    def __len__(self) -> int:
        """The size of the vocabulary."""

    def __call__(
        self, text: str | Sequence[str], *, add_special_tokens: bool = True, return_offsets_mapping: bool = False
    ) -> Mapping[str, list[Any]]:
        """The `input_ids` of a text or of each text and, if requested, the characters of each token, `offset_mapping`.

        Args:
            text: A text, or several.
            add_special_tokens: Whether the tokens that begin and end a text are added.
            return_offsets_mapping: Whether the characters of each token are returned, as (start, end).
        """

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of tokens."""

    def batch_decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """The text of each sequence of tokens."""

    def convert_ids_to_tokens(self, number: int) -> str:
        """The token with an id."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as input of the model.

    Attributes:
        input_ids: Token ids including special tokens, at most max_source_length.
        truncated: Whether the end of the dialogue was cut off to fit.
        coverage: The share of the dialogue's turns that are encoded uncut, from 0 to 1.
    """

    input_ids: list[int]
    truncated: bool
    coverage: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """The text around a dialogue.

    Attributes:
        template: Text that contains {dialogue} once, and {claim} once if it asks about a claim.
        is_chat: Whether the template already has all special tokens, so that the tokenizer adds none.
        claim: The text for {claim}.
    """

    template: str
    is_chat: bool = False
    claim: str | None = None

    @property
    def has_claim(self) -> bool:
        """Whether the prompt asks about a claim."""
        return "{claim}" in self.template

    @property
    def sha256(self) -> str:
        """The hash recorded in an artifact, so that training and serving use the same prompt."""
        return hashlib.sha256(f"{self.template}{CHAT if self.is_chat else ''}".encode()).hexdigest()

    def render(self, dialogue: str) -> str:
        """The text of the prompt. Braces in the dialogue and the claim are unchanged."""
        parts = self.template.split("{dialogue}")
        before, after = (part.replace("{claim}", self.claim) if self.claim is not None else part for part in parts)
        return f"{before}{dialogue}{after}"

    def encode_claims(
        self,
        tokenizer: Tokenizer,
        dialogues: Sequence[str],
        claims: Sequence[str],
        max_source_length: int,
    ) -> list[EncodedPrompt]:
        """Tokenizes prompts with a claim about each dialogue as `encode` does; the claim is never cut.

        Args:
            tokenizer: A fast tokenizer.
            dialogues: The dialogues.
            claims: One claim for each dialogue.
            max_source_length: Maximum number of tokens of a prompt.

        Raises:
            RecipeError: If the template and a claim have more than max_source_length tokens.
        """
        return [
            replace(self, claim=without_control(tokenizer, claim)).encode(tokenizer, [dialogue], max_source_length)[0]
            for dialogue, claim in zip(dialogues, claims, strict=True)
        ]

    def encode(self, tokenizer: Tokenizer, dialogues: Sequence[str], max_source_length: int) -> list[EncodedPrompt]:
        """Tokenizes prompts; cuts the dialogue, never the template, if both do not fit.

        Only the start of a long dialogue is tokenized, so that the time does not depend on its length. The text of a
        control token in a dialogue, such as `</s>`, is not that token: a space after its first character splits it.
        A plain `truncation=True` would cut the end of the template ("Summary: ") and keep more of the dialogue.

        Args:
            tokenizer: A fast tokenizer, because cutting requires character offsets.
            dialogues: The dialogues; all at once, because a tokenizer is several times faster with batches.
            max_source_length: Maximum number of tokens of a prompt.

        Raises:
            RecipeError: If the template itself has more than max_source_length tokens, or asks about a claim.
        """
        if self.has_claim and self.claim is None:
            raise RecipeError(
                "the prompt has {claim}: this model checks claims and writes no summaries",
                "use it with --set evaluate.claims.model=RUN, and a summarizer's recipe here",
            )
        if not dialogues:
            return []
        starts = {
            number: start_of(dialogue, CHARACTERS_PER_TOKEN * max_source_length)
            for number, dialogue in enumerate(dialogues)
        }
        dialogues, control = list(dialogues), control_ids(tokenizer)
        expected = _count(self._tokenize(tokenizer, [""])[0], control)
        prompts: dict[int, EncodedPrompt] = {}
        while starts:
            encoded = self._tokenize(tokenizer, list(starts.values()))
            longer: dict[int, str] = {}
            for (number, start), input_ids in zip(starts.items(), encoded, strict=True):
                dialogue = dialogues[number]
                if _count(input_ids, control) > expected:
                    plain = without_control(tokenizer, start)
                    if plain == start:
                        raise RecipeError(
                            "the end of a dialogue and the prompt together make a control token of the tokenizer",
                            "put a space or a new line around {dialogue} in prompt.template",
                        )
                    dialogues[number], longer[number] = plain + dialogue[len(start) :], plain
                    continue
                is_short = len(start) < min(len(dialogue), MAX_CHARACTERS_PER_TOKEN * max_source_length)
                if is_short and len(input_ids) <= max_source_length + MARGIN:
                    longer[number] = start_of(dialogue, 2 * len(start))
                elif len(input_ids) <= max_source_length:
                    is_cut, covered = len(start) < len(dialogue), coverage(dialogue, len(start))
                    prompts[number] = EncodedPrompt(input_ids, is_cut, covered)
                else:
                    input_ids, kept = self._cut(tokenizer, start, max_source_length)
                    prompts[number] = EncodedPrompt(input_ids, True, coverage(dialogue, kept))
            starts = longer
        return [prompts[number] for number in range(len(dialogues))]

    def count(self, tokenizer: Tokenizer, dialogue: str) -> int:
        """The number of tokens of the prompt with the whole dialogue."""
        return len(self._tokenize(tokenizer, [dialogue])[0])

    def _cut(self, tokenizer: Tokenizer, dialogue: str, max_source_length: int) -> tuple[list[int], int]:
        """The token ids of the prompt with the longest start of the dialogue that fits, and its characters."""
        offsets = tokenizer(dialogue, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        room = max_source_length - self.count(tokenizer, "")
        # Tokens may merge across the boundaries, so that the first guess can be wrong by one or two tokens.
        for keep in range(min(room + 2, len(offsets) - 1), -1, -1):
            cut = dialogue[: offsets[keep - 1][1]] if keep > 0 else ""
            input_ids = self._tokenize(tokenizer, [cut])[0]
            if len(input_ids) <= max_source_length:
                return input_ids, len(cut)
        raise RecipeError(
            f"data.max_source_length = {max_source_length}: the prompt without the dialogue has more tokens",
            "raise data.max_source_length or shorten the prompt",
        )

    def _tokenize(self, tokenizer: Tokenizer, dialogues: Sequence[str]) -> list[list[int]]:
        texts = [self.render(dialogue) for dialogue in dialogues]
        return token_rows(tokenizer, texts, add_special_tokens=not self.is_chat)


def token_rows(tokenizer: Tokenizer, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
    """The token ids of texts, tokenized in blocks: what a tokenizer needs meanwhile takes several times their memory.

    Args:
        tokenizer: A fast tokenizer.
        texts: The texts.
        add_special_tokens: Whether the tokenizer adds its tokens at the start and the end.
    """
    rows: list[list[int]] = []
    for start in range(0, len(texts), BLOCK):
        block = list(texts[start : start + BLOCK])
        rows += tokenizer(block, add_special_tokens=add_special_tokens)["input_ids"]
    return rows


def control_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids of the tokens that control the model, which no text of a user may contain.

    These are the tokens that begin, end and separate texts, and special tokens in angle brackets or, if the chat
    template uses them, in square brackets. Other special tokens, such as speaker tags, may occur in a dialogue, and so
    may the token of unknown characters.
    """
    named = {getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "sep", "cls", "mask")}
    template = str(tokenizer.chat_template or "")
    marks: set[int | None] = {
        number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special and (token.content.startswith("<") or (token.content[0] == "[" and token.content in template))
    }
    model = tokenizer.backend_tokenizer.model
    has_unknown = getattr(model, "unk_token", tokenizer.unk_token) == tokenizer.unk_token
    if has_unknown and tokenizer.unk_token_id not in named:
        marks.discard(tokenizer.unk_token_id)
    else:
        marks.add(tokenizer.pad_token_id)
    ids = (number for number in named | marks if number is not None)
    return frozenset(number for number in ids if len(tokenizer.convert_ids_to_tokens(number)) > 1)


def without_control(tokenizer: Tokenizer, text: str) -> str:
    """The text with a space after the first character of everything that the tokenizer takes for a control token.

    Not all tokenizers can read such a text as plain text (T5's finds `</s>` also in its vocabulary), nor is it always
    written in the same characters (T5's reads a full-width `＜/s＞` as `</s>`). What is still a control token after two
    such spaces is removed.
    """
    control = control_ids(tokenizer)
    for attempt in range(4):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        found = [(start, end) for number, (start, end) in spans if number in control]
        if not found:
            break
        pieces, last = [], 0
        for start, end in found:
            inner = text[start:end].lstrip()
            pieces += [text[last : end - len(inner)], f"{inner[:1]} {inner[1:]}" if attempt < 2 else " "]
            last = end
        text = "".join([*pieces, text[last:]])
    return text


def turns_of(dialogue: str) -> list[str]:
    """The turns of a dialogue: its lines with text."""
    return [line.strip() for line in dialogue.splitlines() if line.strip()]


def coverage(dialogue: str, kept: int) -> float:
    """The share of a dialogue's turns that are within its first `kept` characters, from 0 to 1."""
    if kept >= len(dialogue):
        return 1.0
    position = count = uncut = 0
    for line in dialogue.splitlines(keepends=True):
        if line.strip():
            count += 1
            uncut += position + len(line.rstrip()) <= kept
        position += len(line)
    return uncut / count if count else 1.0


def _count(input_ids: Sequence[int], control: frozenset[int]) -> int:
    return sum(map(control.__contains__, input_ids))


def start_of(text: str, size: int) -> str:
    """About the first `size` characters of a text, up to the end of a word.

    Its tokens are the first of the whole text, except in a run of hundreds of characters without a space, which a
    unigram model can split otherwise.
    """
    if len(text) <= size:
        return text
    space = next((index for index in range(size, size // 2, -1) if text[index].isspace()), size)
    return text[:space]
