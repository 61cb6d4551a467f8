"""Training rows of long dialogues: their pieces, and the merges of the pieces' summaries.

A piece learns the part of the human summary that matches it, as in Summ^N (Zhang et al. 2022, arXiv:2110.10150), which
assigns the sentences of a summary to the segments of its source greedily by ROUGE. There, a sentence may go to several
segments; here it goes to the one that contains the most of its words and pairs of words, so that no piece learns to
write what it does not contain. A merge learns to write the sentences of all its pieces from their parts, one per line.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from neuron_sum.data.examples import Example
from neuron_sum.data.pieces import Splitter
from neuron_sum.data.rounds import check_lengths
from neuron_sum.data.sentences import split_claims
from neuron_sum.prompts import Prompt, Tokenizer
from neuron_sum.recipes.schema import DataConfig

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Rows:
    """The examples to train on.

    Attributes:
        examples: Short dialogues as they are; pieces and merges in place of long ones.
        long: Number of dialogues that do not fit into a prompt.
        pieces: Number of pieces.
        merges: Number of merges.
    """

    examples: tuple[Example, ...]
    long: int = 0
    pieces: int = 0
    merges: int = 0

    def note(self) -> str | None:
        """A note for the user; None without long dialogues."""
        if not self.long:
            return None
        return f"{self.long:,} long dialogues are {self.pieces:,} pieces and {self.merges:,} merges of their summaries"


def training_rows(examples: Sequence[Example], tokenizer: Tokenizer, prompt: Prompt, data: DataConfig) -> Rows:
    """The rows of a split, as `data.long` determines.

    Args:
        examples: The examples.
        tokenizer: A fast tokenizer.
        prompt: The text around a dialogue.
        data: The section with max_source_length and long.

    Raises:
        DataError: With long `refuse`, if a dialogue does not fit.
    """
    if data.long == "truncate":
        return Rows(tuple(examples))
    dialogues = [example.dialogue for example in examples]
    encoded = prompt.encode(tokenizer, dialogues, data.max_source_length)
    if data.long == "refuse":
        check_lengths(
            prompt, tokenizer, dialogues, encoded, data.max_source_length, [example.id for example in examples]
        )
        return Rows(tuple(examples))
    splitter = Splitter(prompt, tokenizer, data.max_source_length)
    rows: list[Example] = []
    long = pieces = merges = 0
    for example, first in zip(examples, encoded, strict=True):
        if not first.truncated:
            rows.append(example)
            continue
        long += 1
        texts = [piece.text for piece in splitter.split(example.dialogue)]
        for reference in example.references:
            sentences = split_claims(reference)
            parts = [part for part in zip(texts, match_sentences(texts, sentences), strict=True) if part[1]]
            merged = list(_merges(splitter, sentences, [numbers for _, numbers in parts]))
            for text, numbers in (*parts, *merged):
                target = reference if len(numbers) == len(sentences) else _join(sentences, numbers)
                rows.append(replace(example, id=f"{example.id}-{len(rows)}", dialogue=text, references=(target,)))
            pieces += len(parts)
            merges += len(merged)
    return Rows(tuple(rows), long, pieces, merges)


def match_sentences(pieces: Sequence[str], sentences: Sequence[str]) -> list[list[int]]:
    """The numbers of the sentences that match each piece; every sentence matches one piece.

    A sentence matches the piece with the largest share of its words and pairs of adjacent words (the mean of the
    precisions of ROUGE-1 and ROUGE-2); of equal ones, the earliest.

    Args:
        pieces: The texts of the pieces.
        sentences: The sentences of a human summary.
    """
    found = [_grams(piece) for piece in pieces]
    matches: list[list[int]] = [[] for _ in pieces]
    for number, sentence in enumerate(sentences):
        words, pairs = _grams(sentence)
        scores = [
            len(words & in_words) / max(len(words), 1) + len(pairs & in_pairs) / max(len(pairs), 1)
            for in_words, in_pairs in found
        ]
        matches[scores.index(max(scores))].append(number)
    return matches


def _merges(
    splitter: Splitter, sentences: Sequence[str], parts: Sequence[Sequence[int]]
) -> Iterator[tuple[str, list[int]]]:
    """The text of each merge and the numbers of its sentences, round by round as in `Rounds`."""
    while len(parts) > 1:
        pieces = splitter.split("\n".join(_join(sentences, numbers) for numbers in parts))
        if len(pieces) >= len(parts):
            return
        merged = [sorted({number for part in piece.turns for number in parts[part]}) for piece in pieces]
        yield from zip((piece.text for piece in pieces), merged, strict=True)
        parts = merged


def _join(sentences: Sequence[str], numbers: Sequence[int]) -> str:
    """The sentences in one line, which is one turn of the text of a merge."""
    return " ".join(" ".join(sentences[number] for number in numbers).split())


def _grams(text: str) -> tuple[set[str], set[tuple[str, str]]]:
    words = WORD.findall(text.casefold())
    return set(words), set(pairwise(words))
