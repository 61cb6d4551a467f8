"""A tokenizer of the tokenizers library without transformers, whose import takes seconds.

transformers' fast tokenizers contain a tokenizer of the same library, which `save_pretrained` writes to tokenizer.json,
so that ids and texts are equal.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

CLEANED = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
"""The replacements of clean_up_tokenization (tokenization_utils_base.py of transformers 4.57), in order."""


class FastTokenizer:
    """See `neuron_sum.prompts.Tokenizer`.

    Args:
        backend: The tokenizer of the library.
        settings: The content of tokenizer_config.json, as transformers 4 writes it.
        chat_template: The text of the chat template, or None.
    """

    def __init__(self, backend: Tokenizer, settings: Mapping[str, Any], chat_template: str | None = None) -> None:
        self.backend_tokenizer = backend
        self.chat_template = chat_template
        self.backend_tokenizer.no_truncation()
        self.backend_tokenizer.no_padding()
        self.backend_tokenizer.encode_special_tokens = settings.get("split_special_tokens") is True
        self.added_tokens_decoder = self.backend_tokenizer.get_added_tokens_decoder()
        self._is_cleaned = settings.get("clean_up_tokenization_spaces") is True
        self.unk_token, self.bos_token, self.eos_token = (
            _text(settings.get(f"{name}_token")) for name in ("unk", "bos", "eos")
        )
        self.unk_token_id = self._id(self.unk_token)
        named = {name: self._id(_text(settings.get(f"{name}_token"))) for name in ("bos", "eos", "sep", "cls", "mask")}
        self.bos_token_id, self.eos_token_id, self.sep_token_id, self.cls_token_id, self.mask_token_id = named.values()
        self.pad_token_id = self._id(_text(settings.get("pad_token")))

    def __len__(self) -> int:
        """The size of the vocabulary."""
        size: int = self.backend_tokenizer.get_vocab_size()
        return size

    def __call__(
        self, text: str | Sequence[str], *, add_special_tokens: bool = True, return_offsets_mapping: bool = False
    ) -> dict[str, list[Any]]:
        """The token ids of a text, or those of each text; see `neuron_sum.prompts.Tokenizer`."""
        texts = [text] if isinstance(text, str) else list(text)
        encoded = self.backend_tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        found = {"input_ids": [each.ids for each in encoded]}
        if return_offsets_mapping:
            found["offset_mapping"] = [each.offsets for each in encoded]
        return {key: rows[0] for key, rows in found.items()} if isinstance(text, str) else found

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of tokens."""
        return self.batch_decode([token_ids], skip_special_tokens=skip_special_tokens)[0]

    def batch_decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """The text of each sequence of tokens."""
        rows = [list(row) for row in sequences]
        texts: list[str] = self.backend_tokenizer.decode_batch(rows, skip_special_tokens=skip_special_tokens)
        if self._is_cleaned:
            for old, new in CLEANED:
                texts = [text.replace(old, new) for text in texts]
        return texts

    def convert_ids_to_tokens(self, number: int) -> str:
        """The token with an id."""
        token: str = self.backend_tokenizer.id_to_token(number)
        return token

    def _id(self, token: str | None) -> int | None:
        """The id of a special token; None without one, or if the vocabulary lacks it."""
        number: int | None = None if token is None else self.backend_tokenizer.token_to_id(token)
        return number


def _text(value: object) -> str | None:
    """A special token, which may be stored as an object."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None
