"""Adapters that others saved: written by hand in the layout of PEFT 0.21, without PEFT."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from neuron_sum.models import base as models
from neuron_sum.recipes.schema import ModelConfig, TrainedTokenizer

CONFIG = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 4,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["q", "v"],
    "target_parameters": None,
    "task_type": "SEQ_2_SEQ_LM",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}

DIALOGUE = "#Person1#: Hi, a table for two on Friday, please.\n#Person2#: At seven?\n"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


def write_bases(folder: Path) -> None:
    """Tiny models with random weights and a tokenizer: t5 and llama, with a tied head and without."""
    for family, config in (("t5", T5), ("llama", LLAMA)):
        for name, tied in ((family, False), (f"{family}-tied", True)):
            made = ModelConfig(
                config={**config, "tie_word_embeddings": tied}, tokenizer=TrainedTokenizer(vocab_size=400)
            )
            tokenizer = models.load_tokenizer(made, [DIALOGUE])
            models.load_base(made, tokenizer).save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)


def tensors_for(base: Path, targets: Sequence[str] = ("q", "v"), r: int = 4) -> dict[str, torch.Tensor]:
    """Random LoRA weights of all modules of a checkpoint whose names end with a target."""
    generator, tensors = torch.Generator().manual_seed(3), {}
    for name, weight in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in targets:
            for half, shape in (("A", (r, weight.shape[1])), ("B", (weight.shape[0], r))):
                key = f"base_model.model.{module}.lora_{half}.weight"
                tensors[key] = torch.randn(shape, generator=generator) * 0.3
    return tensors


def write_adapter(
    folder: Path, base: Path | None, tensors: dict[str, torch.Tensor] | None = None, **config: Any
) -> Path:
    """A folder with adapter_config.json (0.21, changed by `config`) and the weights, without tokenizer files.

    Args:
        folder: The folder to make.
        base: The base that the adapter names; None leaves it out.
        tensors: The weights; None for random ones of q and v.
        **config: Changes of the configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if tensors is None:
        assert base is not None
        tensors = tensors_for(base)
    values = {**CONFIG, "base_model_name_or_path": None if base is None else str(base), **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder
