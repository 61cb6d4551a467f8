"""Tokenizer files of transformers 4 and 5, and SentencePiece models."""

from pathlib import Path
from typing import Any, cast

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from neuron_sum.errors import ModelError, reading
from neuron_sum.models.checkpoint import DAMAGED_HINT, find_file, read_object
from neuron_sum.models.families import FAMILIES

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
MODELS = ("spiece.model", "tokenizer.model")
SPECIAL_TOKENS = "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"
OTHERS = (SPECIAL_TOKENS, "added_tokens.json")
HINT = "use a folder with tokenizer.json, a SentencePiece .model file, a hub id, or {vocab_size: N} to train one"

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
KEPT = (
    *SPECIAL,
    "chat_template",
    "clean_up_tokenization_spaces",
    "model_max_length",
    "padding_side",
    "split_special_tokens",
    "truncation_side",
)
"""Settings of transformers 5 that transformers 4 also reads; the other settings are in tokenizer.json."""


MAX_TOKEN = 1000
"""The maximum length of a special token in characters; the time to read one grows with the square."""


def read_tokenizer(source: str, revision: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer in a folder or on a hub.

    Args:
        source: A local folder or a hub id.
        revision: The commit on the hub.

    Raises:
        ModelError: If a file is missing or damaged; names it.
    """
    tokenizer = _open(source, revision)
    with reading(f"the tokenizer of {source}", ModelError, HINT):
        tokenizer("a dialogue")  # some wrong settings are found only here
    return tokenizer


def _open(source: str, revision: str | None) -> PreTrainedTokenizerFast:
    others = {name: read_object(path) for name in OTHERS if (path := find_file(source, name, revision)) is not None}
    backend = find_file(source, TOKENIZER, revision)
    path = find_file(source, SETTINGS, revision, required=not (Path(source).is_dir() or backend is not None))
    settings = read_object(path) if path is not None else {}
    for content in (settings, settings.get("added_tokens_decoder"), *others.values()):
        _check_lengths(content, source)
    extra = settings.get("extra_special_tokens")
    new = settings.get("tokenizer_class") == "TokenizersBackend" or "backend" in settings or isinstance(extra, list)
    if not new:
        if backend is None and Path(source).is_dir() and not any((Path(source) / name).is_file() for name in MODELS):
            raise ModelError(f"{source} contains neither {TOKENIZER} nor {' or '.join(MODELS)}", HINT)
        if path is None and find_file(source, "config.json", revision) is None:
            if backend is None or "eos_token" not in others.get(SPECIAL_TOKENS, {}):
                raise ModelError(
                    f"{source} has no {SETTINGS} beside its {TOKENIZER if backend else 'SentencePiece model'}, so that "
                    "its special tokens are not known",
                    f"copy the {SETTINGS} that was saved with it to {source}",
                )
            return _with_template(_read_version_5(backend, others[SPECIAL_TOKENS]), source, revision)
        with reading(backend or path or source, ModelError, HINT):
            return cast(
                PreTrainedTokenizerFast,
                AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False),
            )
    if backend is None:
        raise ModelError(
            f"{source} has a {SETTINGS} of transformers 5, but no {TOKENIZER}",
            "save the tokenizer again, with both files",
        )
    return _with_template(_read_version_5(backend, settings), source, revision)


def _with_template(tokenizer: PreTrainedTokenizerFast, source: str, revision: str | None) -> PreTrainedTokenizerFast:
    """The tokenizer with the chat template in a separate file, if its settings contain none."""
    if tokenizer.chat_template is None and (path := find_file(source, TEMPLATE, revision)) is not None:
        with reading(path, ModelError, DAMAGED_HINT):
            tokenizer.chat_template = path.read_text(encoding="utf-8")
    return tokenizer


def read_sentencepiece(path: Path, model_type: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a SentencePiece model, as the family's files on the hub have it.

    Args:
        path: The .model file.
        model_type: The model family.

    Raises:
        ModelError: If the file is missing or damaged.
    """
    with reading(f"model.tokenizer = {str(path)!r}", ModelError, HINT):
        if not path.is_file():
            raise OSError("no such file")
        # Without add_prefix_space, transformers 4.57 drops SentencePiece's space before the first word.
        if not FAMILIES[model_type].decoder_only:
            return transformers.T5TokenizerFast(vocab_file=str(path), legacy=True, add_prefix_space=True)
        return transformers.LlamaTokenizerFast(vocab_file=str(path), legacy=True, add_prefix_space=True)


def check_fits(tokenizer: PreTrainedTokenizerFast, rows: int) -> None:
    """Rejects a tokenizer with an id that the embedding does not have; an embedding may be larger.

    Args:
        tokenizer: The tokenizer.
        rows: The number of vectors of the embedding, config.vocab_size.

    Raises:
        ModelError: With the number of entries and the largest id.
    """
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= rows:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} entries, ids up to {largest}, but the model's embedding has {rows}",
            "set model.tokenizer to the model's tokenizer; if tokens were added, resize the embedding and save both",
        )


def _read_version_5(backend: Path, settings: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer that transformers 5 saved: tokenizer.json with the special tokens by name, also without a class.

    transformers 5 saves additional special tokens in extra_special_tokens: as a list, or as an object with their names,
    which is the only form that transformers 4 reads.
    """
    kept = {key: settings[key] for key in KEPT if settings.get(key) is not None}
    extra = settings.get("extra_special_tokens") or []
    additional = [*(extra if isinstance(extra, list) else ()), *(settings.get("additional_special_tokens") or ())]
    named = extra if isinstance(extra, dict) else {}
    with reading(backend, ModelError, DAMAGED_HINT):
        tokens = [_token(value) for value in additional]
        kept |= {key: _token(kept[key]) for key in SPECIAL if key in kept}
        return PreTrainedTokenizerFast(
            tokenizer_file=str(backend),
            model_input_names=["input_ids", "attention_mask"],
            additional_special_tokens=list(dict.fromkeys(tokens)),
            extra_special_tokens={key: _token(value) for key, value in named.items()},
            **kept,
        )


def _check_lengths(content: object, source: str) -> None:
    """Rejects a special token that is so long that reading it would take minutes."""
    for key, value in content.items() if isinstance(content, dict) else ():
        text = value.get("content") if isinstance(value, dict) else value
        named = key.endswith("_token") or isinstance(value, dict)
        if named and isinstance(text, str) and len(text) > MAX_TOKEN:
            raise ModelError(
                f"the tokenizer of {source} has the special token {key} with {len(text):,} characters; the maximum is "
                f"{MAX_TOKEN:,}",
                DAMAGED_HINT,
            )


def _token(value: object) -> Any:
    """The text of a special token, which may be stored as an object."""
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str):
        raise TypeError(f"{value!r} is not a special token")
    return content
