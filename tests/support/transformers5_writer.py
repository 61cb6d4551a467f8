"""Writes checkpoints and tokenizers with transformers 5, and prints what it computes with them.

Runs in the environment of transformers5.py. Arguments: the output folder, and a run's checkpoint to save again.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

OUTPUT, RUN = map(Path, sys.argv[1:])
T5 = {
    "vocab_size": 64,
    "d_model": 12,
    "d_kv": 4,
    "d_ff": 16,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}
LLAMA = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "eos_token_id": 1,
}
ROPES = {
    "theta": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "beta_fast": 16.0},
    "yarn-short": {"rope_type": "yarn", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 2.1, 2.2, 2.3],
        "original_max_position_embeddings": 16,
    },
}
FAMILIES = {
    "mistral": {"sliding_window": None},
    "mistral-window": {"sliding_window": 64},
    "qwen2": {"rope_parameters": dict(ROPES["yarn"])},
    "qwen2-window": {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
    "qwen3": {"head_dim": 8},
    "smollm3": {"no_rope_layer_interval": 2, "pad_token_id": 0},
}
"""Settings of the other decoder-only families, by their model_type and a suffix."""
IDS = torch.arange(3, 51)[None]
TEXTS = ["Tom: hi, the  meeting is on Friday.\nAnn: fine <extra>", "#Person1#: the   end </s> <extra_id_3> ü"]


def model_logits(model: PreTrainedModel) -> list[float]:
    targets = {"decoder_input_ids": torch.tensor([[0, 5, 9]])} if model.config.model_type == "t5" else {}
    with torch.inference_mode():
        return model(input_ids=IDS, **targets).logits.float().flatten().tolist()


def save_model(name: str, model: PreTrainedModel, **options: object) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(OUTPUT / name, **options)
    return model_logits(type(model).from_pretrained(OUTPUT / name, dtype=torch.float32))


def own_head(config: T5Config) -> T5ForConditionalGeneration:
    """A T5 with a head that is not tied, as after loading FLAN-T5."""
    model = T5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    return model


def save_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    tokenizer.save_pretrained(OUTPUT / name)
    again = AutoTokenizer.from_pretrained(OUTPUT / name)
    return [again(text)["input_ids"] for text in TEXTS]


def write_models() -> dict[str, list[float]]:
    resized = LlamaForCausalLM(LlamaConfig(**LLAMA))
    resized.resize_token_embeddings(70)
    models = {
        "t5-scaled": T5ForConditionalGeneration(T5Config(**T5)),
        "t5-unscaled": T5ForConditionalGeneration(T5Config(**T5, tie_word_embeddings=False)),
        "t5-own-head": own_head(T5Config(**T5, tie_word_embeddings=False)),
        "t5-scaled-own-head": own_head(T5Config(**T5)),
        "llama-tied": LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True)),
        "llama-bf16": LlamaForCausalLM(LlamaConfig(**LLAMA)).to(torch.bfloat16),
        "llama-resized": resized,
    }
    models |= {
        f"llama-{name}": LlamaForCausalLM(LlamaConfig(**LLAMA, rope_parameters=dict(rope)))
        for name, rope in ROPES.items()
    }
    for name, settings in FAMILIES.items():
        config = AutoConfig.for_model(name.partition("-")[0], **{**LLAMA, **settings})
        models[name] = AutoModelForCausalLM.from_config(config)
    logits = {name: save_model(name, model) for name, model in models.items()}
    sharded = LlamaForCausalLM(LlamaConfig(**LLAMA))
    return {**logits, "llama-sharded": save_model("llama-sharded", sharded, max_shard_size="4KB")}


def write_tokenizers() -> dict[str, list[list[int]]]:
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁the", "the", *letters, *(f"<extra_id_{i}>" for i in range(99, -1, -1))]
    vocab = ["<unk>", "<s>", "</s>", "▁", "th", "the", "▁the", *letters]
    t5 = T5Tokenizer(vocab=[(piece, -1.0 - len(pieces) / (1 + len(piece))) for piece in pieces])
    llama = LlamaTokenizer(
        vocab={piece: number for number, piece in enumerate(vocab)}, merges=[("t", "h"), ("th", "e"), ("▁", "the")]
    )
    ids = {
        "t5-tokenizer": save_tokenizer("t5-tokenizer", t5),
        "llama-tokenizer": save_tokenizer("llama-tokenizer", llama),
    }
    t5.add_tokens(["<extra>"])
    llama.add_special_tokens({"additional_special_tokens": ["<extra>", AddedToken("#Person1#", lstrip=True)]})
    return {
        **ids,
        "t5-tokenizer-added": save_tokenizer("t5-tokenizer-added", t5),
        "llama-tokenizer-added": save_tokenizer("llama-tokenizer-added", llama),
        "backend": save_tokenizer("backend", AutoTokenizer.from_pretrained(RUN)),
    }


def save_run() -> list[list[int]]:
    """Saves a trained T5 again; the ids that it generates for the texts."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(RUN), AutoTokenizer.from_pretrained(RUN)
    model.save_pretrained(OUTPUT / "run")
    tokenizer.save_pretrained(OUTPUT / "run")
    inputs = (tokenizer(text, return_tensors="pt") for text in TEXTS)
    return [model.generate(**batch, max_new_tokens=12, do_sample=False)[0].tolist() for batch in inputs]


with contextlib.redirect_stderr(io.StringIO()):
    result = {"texts": TEXTS, "logits": write_models(), "ids": write_tokenizers(), "generated": save_run()}
print(json.dumps(result))
