"""Runs with transformers 5 and PEFT: writes adapters of many kinds, and the logits of each.

Arguments: the folder of the bases, and the folder to write to.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

bases, output = map(Path, sys.argv[1:])


def write(base: Path, name: str, config, added: int = 0) -> None:
    t5 = base.name.startswith("t5")
    torch.manual_seed(7)
    model = (AutoModelForSeq2SeqLM if t5 else AutoModelForCausalLM).from_pretrained(base)
    target = output / f"{base.name}-{name}"
    if added:
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_tokens([f"<new{number}>" for number in range(added)])
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        tokenizer.save_pretrained(target)
    adapted = get_peft_model(model, config).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape) * 0.2)
    adapted.save_pretrained(target)
    ids = torch.randint(4, model.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        made = adapted(input_ids=ids, attention_mask=torch.ones_like(ids), **({"labels": ids} if t5 else {}))
    save_file({"ids": ids, "logits": made.logits.contiguous()}, target / "expected.safetensors")


def make_lora(**options) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, **options})


for base in sorted(bases.iterdir()):
    t5 = base.name.startswith("t5")
    task = {"task_type": "SEQ_2_SEQ_LM" if t5 else "CAUSAL_LM"}
    query, down, norm = ("q", "wo", "final_layer_norm") if t5 else ("q_proj", "down_proj", "norm")
    whole = ["lm_head", "shared" if t5 else "embed_tokens"]
    lora = partial(make_lora, **{"target_modules": [query], **task})
    ranks = {"rank_pattern": {down: 2, rf"0\..*{query}": 3}, "alpha_pattern": {down: 5}, "use_rslora": True}
    write(base, "plain", lora())
    write(base, "ranks", lora(target_modules=[query, down], **ranks))
    write(base, "regex", lora(target_modules=rf".*\.({query}|{down})"))
    write(base, "all-linear", lora(target_modules="all-linear"))
    write(base, "layers", lora(layers_to_transform=[1]))
    write(base, "excluded", lora(exclude_modules=r".*\.0\..*"))
    write(base, "norm", lora(modules_to_save=[norm]))
    write(base, "tokens", lora(), added=5)
    write(base, "soft", PromptTuningConfig(num_virtual_tokens=3, **task))
    write(base, "default-targets", lora(target_modules=None))
    write(base, "head", lora(target_modules=[query, "lm_head"]))
    write(base, "embedding", lora(target_modules=[query, whole[1]]))
    write(base, "whole", lora(modules_to_save=whole))
    write(base, "whole-and-tokens", lora(modules_to_save=whole), added=5)
    write(base, "dora", lora(use_dora=True))
    write(base, "bias", lora(bias="all"))
    write(base, "indices", lora(trainable_token_indices=[5, 6]))
    write(base, "no-task", lora(task_type=None))
    write(base, "prefix", PrefixTuningConfig(num_virtual_tokens=3, **task))
    write(base, "ia3", IA3Config(target_modules=[query, down], feedforward_modules=[down], **task))
    write(base, "adalora", AdaLoraConfig(target_modules=[query], total_step=10, **task))
print(json.dumps("written"))
