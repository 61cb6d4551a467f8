"""Pieces of a long dialogue, each of which fits into a prompt.

A dialogue is split between turns; a turn that is too long is split at sentences, then at words, then at characters, and
each part begins with its speaker. Nothing is dropped. Tokenizing takes time in proportion to the dialogue's length.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from neuron_sum.data.sentences import split_claims
from neuron_sum.prompts import EncodedPrompt, Prompt, turns_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPEAKER = re.compile(r"(?:#[^\s#]+#:?|\[[^\]\n]{1,40}\]:?|[^\s:,!?][^:,!?\n]{0,40}:)\s+(?=\S)")
"""The start of a turn: `#Person1#: `, `Anna Hill: ` or `[doctor] `."""

MARGIN = 4
"""Tokens by which those of several lines together may exceed the sum of those of each line."""

Line = tuple[int, str]
"""The number of a turn, and the turn or a part of it."""


@dataclass(frozen=True)
class Piece:
    """A piece of a dialogue.

    Attributes:
        text: The turns, one per line; parts of a turn begin with its speaker.
        turns: The numbers of the turns that are in the piece as a whole or in part.
        prompt: The prompt with the text. It is truncated only if a single character has too many tokens.
    """

    text: str
    turns: frozenset[int]
    prompt: EncodedPrompt


class Splitter:
    """Splits dialogues into pieces that fit into a prompt.

    Args:
        prompt: The text around each piece.
        tokenizer: A fast tokenizer.
        max_source_length: Maximum number of tokens of a prompt.

    Raises:
        RecipeError: If the prompt without a dialogue does not fit.
    """

    def __init__(self, prompt: Prompt, tokenizer: "PreTrainedTokenizerBase", max_source_length: int) -> None:
        self._prompt, self._tokenizer, self._length = prompt, tokenizer, max_source_length
        [empty] = prompt.encode(tokenizer, [""], max_source_length)
        self._room = max(max_source_length - len(empty.input_ids) - MARGIN, 1)

    def split(self, dialogue: str) -> list[Piece]:
        """The pieces of a dialogue in order, of about the same number of tokens."""
        lines: list[Line] = []
        sizes: list[int] = []
        turns = turns_of(dialogue)
        for number, (turn, size) in enumerate(zip(turns, self.count(turns), strict=True)):
            parts = [turn] if size <= self._room else self._parts(turn, self._room)
            lines += [(number, part) for part in parts]
            sizes += [size] if len(parts) == 1 else self.count(parts)
        groups = [lines[start:end] for start, end in pairwise(_boundaries(sizes, self._room))]
        return self._fitted(groups or [[(0, "")]])

    def count(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text as a line."""
        if not texts:
            return []
        lines = [f"{text}\n" for text in texts]
        return [len(row) for row in self._tokenizer(lines, add_special_tokens=False)["input_ids"]]

    def _fitted(self, groups: Sequence[Sequence[Line]]) -> list[Piece]:
        """The groups as pieces; those whose tokens together do not fit are split again."""
        texts = ["\n".join(text for _, text in group) for group in groups]
        prompts = self._prompt.encode(self._tokenizer, texts, self._length)
        pieces: list[Piece] = []
        for group, text, prompt in zip(groups, texts, prompts, strict=True):
            smaller = self._halves(group) if prompt.truncated else []
            if len(smaller) > 1:
                pieces += self._fitted(smaller)
            else:
                pieces.append(Piece(text, frozenset(number for number, _ in group), prompt))
        return pieces

    def _halves(self, group: Sequence[Line]) -> list[Sequence[Line]]:
        if len(group) > 1:
            middle = len(group) // 2
            return [group[:middle], group[middle:]]
        [(number, text)] = group
        return [[(number, part)] for part in self._parts(text, max(self.count([text])[0] // 2, 1))]

    def _parts(self, turn: str, room: int) -> list[str]:
        """The parts of a turn with at most `room` tokens each, if that is possible; each begins with its speaker."""
        found = SPEAKER.match(turn)
        speaker = found[0] if found is not None else ""
        if speaker and 2 * self.count([speaker])[0] > room:
            speaker = ""
        room -= self.count([speaker])[0] if speaker else 0
        units: list[str] = []
        sentences = split_claims(turn[len(speaker) :])
        for sentence, size in zip(sentences, self.count(sentences), strict=True):
            units += [f"{sentence} "] if size <= room else self._words(sentence, room)
        bounds = _boundaries(self.count(units), room)
        return [speaker + "".join(units[start:end]).rstrip() for start, end in pairwise(bounds)]

    def _words(self, sentence: str, room: int) -> list[str]:
        """The words of a sentence with the space after them, and the parts of those that are too long."""
        units, words = list[str](), [f"{word} " for word in sentence.split()]
        for word, size in zip(words, self.count(words), strict=True):
            step = len(word) if size <= room else max(room // 2, 1)
            slices = [word[start : start + step] for start in range(0, len(word), step)]
            for part, tokens in zip(slices, self.count(slices), strict=True):
                units += [part] if tokens <= room else part
        return units


def _boundaries(sizes: Sequence[int], room: int) -> list[int]:
    """The first index of each group of consecutive items with at most `room` tokens, and the number of items.

    The groups have about the same number of tokens. An item with more tokens is a group.
    """
    groups = _grouped(sizes, room, math.inf)
    return _grouped(sizes, room, sum(sizes) / max(len(groups) - 1, 1))


def _grouped(sizes: Sequence[int], room: int, enough: float) -> list[int]:
    """As `_boundaries`; a group ends when all tokens so far reach a multiple of `enough`."""
    bounds, used, total = [0], 0, 0
    for index, size in enumerate(sizes):
        if used and (used + size > room or total + size / 2 >= enough * len(bounds)):
            bounds.append(index)
            used = 0
        used += size
        total += size
    return [*bounds, len(sizes)] if sizes else [0]
