"""Small GGUF files and wheels, written with the package `gguf` from models of transformers."""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<file_sep>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DIMENSIONS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def byte_level_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer like SmolLM2's, with 320 tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def micro_llama(vocab_size: int) -> LlamaForCausalLM:
    """A random Llama with grouped K/V heads and a tied head."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        **DIMENSIONS,
    )
    return LlamaForCausalLM(config).eval()


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast | SentencePieceProcessor,
    *,
    architecture: str = "llama",
    splitter: str = "smollm",
    quantize: bool = False,
    extra_tensors: Sequence[str] = (),
    left_out: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a model as llama.cpp stores it: permuted query and key rows, metadata, and the tokenizer's vocabulary.

    Args:
        path: The file to write.
        model: A Llama of transformers.
        tokenizer: A byte-level tokenizer, or a SentencePiece model.
        architecture: The value of general.architecture.
        splitter: The value of tokenizer.ggml.pre.
        quantize: Whether matrices are stored in 8 bits (Q8_0).
        extra_tensors: Names of additional tensors.
        left_out: Names of tensors that are not written.
        metadata: Metadata in place of or in addition to that of the model: text, bytes, integers and booleans.
    """
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    if isinstance(tokenizer, SentencePieceProcessor):
        _add_sentencepiece(writer, tokenizer)
    else:
        _add_byte_level(writer, tokenizer, splitter)
    for key, value in (metadata or {}).items():
        kind = gguf.GGUFValueType.BOOL if isinstance(value, bool) else gguf.GGUFValueType.UINT32
        kind = gguf.GGUFValueType.STRING if isinstance(value, str | bytes) else kind
        writer.kv_data[0][key] = gguf.gguf_writer.GGUFValue(value, kind)
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        values = tensor.numpy()
        if name.endswith("q_proj.weight"):
            values = _interleave(values, heads)
        elif name.endswith("k_proj.weight"):
            values = _interleave(values, groups)
        kind = gguf.GGMLQuantizationType.Q8_0 if quantize and values.ndim == 2 else gguf.GGMLQuantizationType.F32
        if _name(name) in left_out:
            continue
        writer.add_tensor(_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
    for name in extra_tensors:
        writer.add_tensor(name, np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_byte_level(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, splitter: str) -> None:
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    merges = [" ".join(pair) for pair in _model_of(tokenizer)["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter)
    writer.add_token_list(names)
    writer.add_token_types([3 if name in SPECIAL else 1 for name in names])
    writer.add_token_merges(merges)
    for key, number in {"bos": 1, "eos": 2, "unknown": 0, "padding": 2}.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", number)
    writer.add_add_bos_token(False)
    if isinstance(tokenizer, PreTrainedTokenizerFast) and tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _add_sentencepiece(writer: gguf.GGUFWriter, pieces: SentencePieceProcessor) -> None:
    kinds = {pieces.is_unknown: 2, pieces.is_control: 3, pieces.is_byte: 6}
    numbers = range(pieces.vocab_size())
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([pieces.id_to_piece(number) for number in numbers])
    writer.add_token_scores([pieces.get_score(number) for number in numbers])
    writer.add_token_types([next((kind for has, kind in kinds.items() if has(number)), 1) for number in numbers])
    for key, number in {"bos": pieces.bos_id(), "eos": pieces.eos_id(), "unknown": pieces.unk_id()}.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", number)


def write_wheel(folder: Path, name: str, version: str, member: str, content: bytes) -> tuple[Path, str]:
    """Writes a wheel with one file in a folder as an index serves it; returns it and its hash."""
    wheel = folder / name / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: nothing-here\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (wheel.parent / "index.html").write_text(f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>')
    return wheel, digest


def _model_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    import json

    model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return model


def _interleave(values: np.ndarray, heads: int) -> np.ndarray:
    """The rows of query or key in llama.cpp's order, in which the two halves of each head alternate."""
    rows, width = values.shape
    return values.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, module = name.split(".", 3)
    return f"blk.{layer}.{NAMES[module.removesuffix('.weight')]}.weight"
