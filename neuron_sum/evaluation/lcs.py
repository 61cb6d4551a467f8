"""Longest common subsequences in little memory, for ROUGE-L and ROUGE-Lsum with the scores of rouge-score.

rouge-score fills a table with a Python number for each pair of words. Here, the bits of one integer are a row of that
table (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): bit j is set if the length grows from column j to
j + 1.
"""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence

from rouge_score import scoring

FEW = 8
"""The mask of a word with few positions is computed at each use, because a mask is as long as the text."""

Words = Sequence[str]


def lcs_f1(reference: Words, candidate: Words) -> float:
    """The F1 of ROUGE-L, from 0 to 1."""
    if not reference or not candidate:
        return 0.0
    (last,) = deque(_Rows(reference, candidate).after(0, 0), maxlen=1)
    return _f1(last.bit_count(), len(reference), len(candidate))


def union_lcs_f1(reference: Sequence[Words], candidate: Sequence[Words]) -> float:
    """The F1 of ROUGE-Lsum, from 0 to 1: for each sentence of the reference, the union of what sentences share with it.

    Args:
        reference: The words of each sentence of the reference.
        candidate: The words of each sentence of the prediction.
    """
    left, right = (Counter(word for sentence in text for word in sentence) for text in (reference, candidate))
    if not left or not right:
        return 0.0
    total, predicted = left.total(), right.total()
    distinct = [(sentence, frozenset(sentence)) for sentence in dict.fromkeys(map(tuple, candidate))]
    hits = 0
    for sentence in reference:
        shared = [index for index, word in enumerate(sentence) if word in right]
        missing = set(shared)
        wanted = {sentence[index] for index in missing}
        for other, words in distinct:
            if not missing:
                break
            if not wanted.isdisjoint(words):  # otherwise it adds nothing to the union
                missing.difference_update(lcs_indices(sentence, other))
                wanted = {sentence[index] for index in missing}
        for index in shared:
            word = sentence[index]
            if index not in missing and left[word] > 0 and right[word] > 0:  # each occurrence counts once
                hits += 1
                left[word] -= 1
                right[word] -= 1
    return _f1(hits, total, predicted)


def lcs_indices(reference: Words, candidate: Words) -> list[int]:
    """The positions in the reference of one longest common subsequence: the one that rouge-score finds, last first.

    It is read backwards from the rows. Only every n-th row is kept; the rows between two of them are computed again.
    """
    rows = _Rows(reference, candidate)
    step = max(1, math.isqrt(len(reference)))
    kept = [0, *(row for index, row in enumerate(rows.after(0, 0), 1) if index % step == 0)]
    found: list[int] = []
    row_index, column = len(reference), len(candidate)
    block: list[int] = []
    start = row_index
    while row_index > 0 and column > 0:
        if not block or row_index <= start:
            start = (row_index - 1) // step * step
            block = [kept[start // step], *rows.after(start, kept[start // step], row_index)]
        row, above = block[row_index - start], block[row_index - start - 1]
        word, below_column = reference[row_index - 1], (1 << column) - 1
        # How much the length in this column grows from the row above to this row: 0 or 1.
        growth = (row & below_column).bit_count() - (above & below_column).bit_count()
        while column > 0 and candidate[column - 1] != word and growth:
            column -= 1
            growth += (above >> column & 1) - (row >> column & 1)
        if column > 0 and candidate[column - 1] == word:
            found.append(row_index - 1)
            column -= 1
        row_index -= 1
    return found


class _Rows:
    def __init__(self, reference: Words, candidate: Words) -> None:
        self._reference, self._ones = reference, (1 << len(candidate)) - 1
        self._positions: dict[str, list[int]] = defaultdict(list)
        for index, word in enumerate(candidate):
            self._positions[word].append(index)
        self._masks = {word: _mask(found) for word, found in self._positions.items() if len(found) > FEW}

    def after(self, start: int, row: int, end: int | None = None) -> Iterator[int]:
        """The rows of the words from `start` to `end`, computed from the row before them."""
        flat = ~row & self._ones  # Hyyrö's V: the bits without growth
        for word in self._reference[start:end]:
            matches = self._masks.get(word)
            if matches is None:
                matches = _mask(self._positions.get(word, ()))
            both = flat & matches
            flat = ((flat + both) | (flat & ~matches)) & self._ones
            yield ~flat & self._ones


def _mask(positions: Sequence[int]) -> int:
    mask = 0
    for position in positions:
        mask |= 1 << position
    return mask


def _f1(common: int, reference: int, candidate: int) -> float:
    score: float = scoring.fmeasure(common / candidate, common / reference)
    return score
