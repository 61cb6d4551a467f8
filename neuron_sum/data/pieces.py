"""Pieces of a long dialogue, each of which fits into a prompt.

A dialogue is split between turns; a turn that is too long is split at sentences, then at words, then at characters, and
each part begins with its speaker. Nothing is dropped. Tokenizing takes time in proportion to the dialogue's length.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from neuron_sum.data.sentences import split_claims
from neuron_sum.prompts import EncodedPrompt, Prompt, Tokenizer, turns_of

SPEAKER = re.compile(
    r"(?:#[^\s#]+#:?\s*|\[[^\]\n]{1,40}\]:?\s*"
    r"|[^\s:\uff1a,!?\uff0c\u3002][^:\uff1a,!?\uff0c\u3002\n]{0,40}(?::\s+|\uff1a\s*))(?=\S)"
)
"""The start of a turn: `#Person1#: `, `Anna Hill: ` or `[doctor] `; also with a full-width colon."""

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

    def __init__(self, prompt: Prompt, tokenizer: Tokenizer, max_source_length: int) -> None:
        self._prompt, self._tokenizer, self._length = prompt, tokenizer, max_source_length
        [empty] = prompt.encode(tokenizer, [""], max_source_length)
        self._room = max(max_source_length - len(empty.input_ids) - MARGIN, 1)

    def split(self, dialogue: str) -> list[Piece]:
        """The pieces of a dialogue in order, of about the same number of tokens."""
        lines: list[Line] = []
        sizes: list[int] = []
        turns = turns_of(dialogue)
        for number, (turn, size) in enumerate(zip(turns, self.count(turns), strict=True)):
            parts = [turn] if size <= self._room else self._parts(turn)
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
            if smaller:
                pieces += self._fitted(smaller)
            else:
                pieces.append(Piece(text, frozenset(number for number, _ in group), prompt))
        return pieces

    def _halves(self, group: Sequence[Line]) -> list[Sequence[Line]]:
        """The lines in two groups, or a line in two parts, if possible at a space; none for a single character.

        A line can be too long although its tokens were counted: a control token is encoded as several, and a tokenizer
        may have one token for a run of unknown characters, of which a prompt has only a limited number.
        """
        if len(group) > 1:
            middle = len(group) // 2
            return [group[:middle], group[middle:]]
        [(number, text)] = group
        speaker = self._speaker(text)
        if len(text) - len(speaker) < 2:
            return []
        middle = (len(speaker) + len(text)) // 2
        space = text.rfind(" ", len(speaker) + 1, middle)
        cut = space if space > 0 else middle
        return [[(number, text[:cut])], [(number, speaker + text[cut:].lstrip())]]

    def _speaker(self, turn: str) -> str:
        """The start of a turn that its parts repeat; empty if it takes more than half of a piece."""
        found = SPEAKER.match(turn)
        return found[0] if found is not None and 2 * self.count([found[0]])[0] <= self._room else ""

    def _parts(self, turn: str) -> list[str]:
        """The parts of a turn that fit into a piece, if that is possible; each begins with its speaker."""
        speaker = self._speaker(turn)
        room = self._room - (self.count([speaker])[0] if speaker else 0)
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

    There are as few groups as possible, if possible with about the same number of tokens. An item with more tokens is a
    group.
    """
    fewest = _grouped(sizes, room, math.inf)
    balanced = _grouped(sizes, room, sum(sizes) / max(len(fewest) - 1, 1))
    return min(balanced, fewest, key=len)


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
