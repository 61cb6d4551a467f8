"""Tokenizers trained on the dialogues of a recipe, for models with random weights."""

import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from neuron_sum.errors import ModelError
from neuron_sum.models.fast_tokenizer import FastTokenizer

SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
"""The special tokens in the order of their ids, of which T5 has the first three."""
SPACE = "▁"
LINES = 1000
"""Pieces that the trainer reads at a time."""


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, decoder_only: bool) -> Tokenizer:
    """Trains a BPE tokenizer that, as T5's, reads white space as one space.

    Args:
        texts: The dialogues and summaries.
        vocab_size: The maximum number of tokens.
        decoder_only: Whether a begin token is added to a text; otherwise, an end token is.

    Raises:
        ModelError: Without texts.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
    normalizer = normalizers.Sequence(
        # str.split, by which texts are split into words here, takes the same characters for white space.
        [normalizers.NFKC(), normalizers.Replace(Regex(r"[\s\x1c-\x1f]+"), " "), normalizers.Strip()]
    )
    # "Friday," and "Friday." start with the same token, so that a small model can copy the word; tags stay whole.
    pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex(r"[.,:;!?]"), "isolated")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=[character for character in string.printable if not character.isspace()],
        show_progress=False,
    )
    words = Counter(chain.from_iterable(map(str.split, texts)))
    pieces: Counter[str] = Counter()
    for word, count in words.items():
        for piece, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(word)):
            pieces[piece] += count
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("\n")
    tokenizer.train_from_iterator(_lines(pieces), trainer)
    if SPACE not in tokenizer.get_vocab():
        raise ModelError("cannot train a tokenizer without training dialogues", "use data with a train split")
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.Metaspace()
    frame = ("<s> $A", [("<s>", 3)]) if decoder_only else ("$A </s>", [("</s>", 1)])
    tokenizer.post_processor = processors.TemplateProcessing(single=frame[0], special_tokens=frame[1])
    return tokenizer


def _lines(pieces: Counter[str]) -> Iterator[str]:
    """Each piece as often as it occurs, one per line: the trainer counts them in a third of the time of whole texts."""
    for piece, count in pieces.items():
        for start in range(0, count, LINES):
            yield "\n".join([piece] * min(LINES, count - start))


class WordTokenizer(FastTokenizer):
    """A trained tokenizer that tokenizes each word once: the tokens of a text are those of its words.

    Args:
        backend: A tokenizer of `train_tokenizer`.
    """

    def __init__(self, backend: Tokenizer) -> None:
        super().__init__(backend, SPECIAL)
        self._words: dict[str, list[int]] = {}
        added: list[int] = backend.encode("").ids
        self._begin = [number for number in added if number == self.bos_token_id]
        self._end = added[len(self._begin) :]

    def __call__(
        self, text: str | Sequence[str], *, add_special_tokens: bool = True, return_offsets_mapping: bool = False
    ) -> dict[str, list[Any]]:
        """The token ids of a text, or those of each text; see `neuron_sum.prompts.Tokenizer`."""
        texts = [text] if isinstance(text, str) else list(text)
        if return_offsets_mapping or any(SPACE in each for each in texts):  # a SPACE of the text begins a word
            return super().__call__(
                text, add_special_tokens=add_special_tokens, return_offsets_mapping=return_offsets_mapping
            )
        split = [each.split() for each in texts]
        new = list(set().union(*split) - self._words.keys())
        encoded = self.backend_tokenizer.encode_batch(new, add_special_tokens=False)
        self._words.update((word, each.ids) for word, each in zip(new, encoded, strict=True))
        begin, end = (self._begin, self._end) if add_special_tokens else ([], [])
        rows = [[*begin, *chain.from_iterable(map(self._words.__getitem__, words)), *end] for words in split]
        return {"input_ids": rows[0] if isinstance(text, str) else rows}
