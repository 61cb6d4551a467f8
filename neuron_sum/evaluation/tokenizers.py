"""The words that ROUGE compares: rouge-score's ASCII words, or Unicode words of any script.

rouge-score's tokenizer keeps only a-z and 0-9 after lower-casing: it cuts words at an umlaut, and drops Hindi.
"""

import functools
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import regex
from nltk.stem.porter import PorterStemmer
from rouge_score import tokenize
from rouge_score.tokenizers import Tokenizer

STEM_CACHE = 100_000
MAX_WORDS = 60_000
"""Words of one text; the longest common subsequence takes time that grows with the product of two lengths."""

SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Line_Break=SA}"
"""Scripts without spaces between words: Chinese, Japanese, and Thai and its neighbours (class SA of UAX #14)."""

WORD = regex.compile(
    rf"[[\p{{L}}\p{{N}}]&&[{SPACELESS}]]\p{{M}}*|[[\p{{L}}\p{{N}}]--[{SPACELESS}]][[\p{{L}}\p{{M}}\p{{N}}]--[{SPACELESS}]]*",
    regex.V1,
)
INVISIBLE = regex.compile(r"[\p{Cf}--\u200b]", regex.V1)
"""Joiners, soft hyphens and text directions belong to the word around them; a zero width space separates words."""

ANY_WORD = regex.compile(r"[\p{L}\p{N}][\p{L}\p{M}\p{N}]*")
LOST = regex.compile(r"[[\p{L}\p{M}\p{Nd}]--[a-z0-9]]", regex.V1)
ASCII_END = regex.compile(r"(?<=[.!?])\s+")
UNICODE_END = regex.compile(r"(?<=[.!?])\s+|(?<=[\p{Sentence_Terminal}--[.!?]])\s*", regex.V1)


class AsciiTokenizer(Tokenizer):  # type: ignore[misc]
    """rouge-score's default tokenizer, with a cache of stems because words repeat and stemming is slow."""

    sentence_end = ASCII_END

    def __init__(self, use_stemmer: bool) -> None:
        self._stemmer = _CachingStemmer() if use_stemmer else None

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        words: list[str] = tokenize.tokenize(text, self._stemmer)
        return words


class UnicodeTokenizer(Tokenizer):  # type: ignore[misc]
    """Runs of letters, marks and digits after NFKC and case folding; the characters of scripts without spaces.

    For ASCII texts the words are those of `AsciiTokenizer` without stemming.
    """

    sentence_end = UNICODE_END

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        if text.isascii():
            words: list[str] = tokenize.tokenize(text, None)
            return words
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        return list(WORD.findall(INVISIBLE.sub("", folded)))


class _CachingStemmer:
    def __init__(self) -> None:
        self.stem: Callable[[str], str] = functools.lru_cache(STEM_CACHE)(PorterStemmer().stem)


@dataclass(frozen=True)
class LostLetters:
    """The words of which the ASCII tokenizer drops letters.

    Attributes:
        count: The number of these words.
        words: The number of all words.
        example: The first of these words.
    """

    count: int
    words: int
    example: str

    @property
    def share(self) -> float:
        """The share of these words among all words, from 0 to 1."""
        return self.count / max(self.words, 1)

    def __str__(self) -> str:
        return f"{self.count:,} of {self.words:,} words ({100 * self.share:.1f} %), such as {self.example!r}"


def lost_letters(texts: Iterable[str]) -> LostLetters:
    """Count the words with letters, marks or digits that are not in a-z and 0-9 after lower-casing."""
    count, words, example = 0, 0, ""
    for text in texts:
        found = ANY_WORD.findall(text.lower())
        words += len(found)
        if not text.isascii():
            lost = [word for word in found if LOST.search(word)]
            count += len(lost)
            example = example or (lost[0][:40] if lost else "")
    return LostLetters(count, words, example)
