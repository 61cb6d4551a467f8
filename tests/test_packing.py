"""Packed rows: the loss and the gradients of one example at a time, and a run that leaves an ordinary checkpoint."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel

from neuron_sum import adapters, packed_t5
from neuron_sum.data.encoding import IGNORED, Encoded, Features
from neuron_sum.data.layouts import Lengths, Shape
from neuron_sum.data.rows import Batch, Collator, RowSet
from neuron_sum.data.shapes import ShapePlan
from neuron_sum.recipe import FullMethod, LoraMethod, Method, PromptTuningMethod

VIRTUAL = 5
T5 = transformers.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0,
                           feed_forward_proj="gated-gelu", decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)  # fmt: skip
LLAMA = transformers.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                 num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, eos_token_id=1)  # fmt: skip
METHODS: dict[str, Method] = {
    "full": FullMethod(), "lora": LoraMethod(r=4, lora_dropout=0), "prompt_tuning": PromptTuningMethod(num_virtual_tokens=VIRTUAL),
}  # fmt: skip


def examples(config: PretrainedConfig, count: int = 17) -> Encoded:
    """Random ones, of lengths that differ much."""
    draw = np.random.default_rng(0)
    features: list[Features] = []
    for _ in range(count):
        source, target = (draw.integers(2, 96, draw.integers(2, longest)).tolist() for longest in (60, 20))
        labels = [*target, 1]
        if config.is_encoder_decoder:
            features.append({"input_ids": [*source, 1], "labels": labels})
        else:
            features.append({"input_ids": source + labels, "labels": [IGNORED] * len(source) + labels})
    return Encoded(tuple(features), sources_cut=0, targets_cut=0)


def packed_rows(data: Encoded, config: PretrainedConfig, virtual_tokens: int = 0) -> RowSet:
    """Room for about three examples a row."""
    seq2seq = config.is_encoder_decoder
    source = np.array([len(feature["input_ids"]) + virtual_tokens for feature in data.features])
    target = np.array([len(feature["labels"]) * seq2seq for feature in data.features])
    shape = Shape(120, 40 * seq2seq)
    plan = ShapePlan("packed", (shape,), Lengths(source, target), not seq2seq, virtual_tokens, 3, 1, seed=0)
    return RowSet(data, plan)


def made(config: PretrainedConfig, method: Method, *, packed: bool) -> PreTrainedModel | PeftModel:
    """The same weights for packed and plain; LoRA's are not zero."""
    classes = {"t5": packed_t5.T5ForConditionalGeneration if packed else transformers.T5ForConditionalGeneration}
    torch.manual_seed(0)
    base = classes.get(config.model_type, transformers.LlamaForCausalLM)(copy.deepcopy(config))
    model = adapters.attach(base, method, seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def alone(data: Encoded) -> list[Batch]:
    """One example at a time, not padded, as a model takes it."""
    return [{name: torch.tensor([value]) for name, value in feature.items()} for feature in data.features]


def loss_and_gradients(model: torch.nn.Module, batches: Sequence[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss summed over label tokens, and its gradients."""
    total = torch.zeros(())
    for batch in batches:
        labels = batch["labels"] if model.config.is_encoder_decoder else batch["labels"][:, 1:]
        total = total + model(**batch).loss * (labels != IGNORED).sum()
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return total.item(), gradients


def worst_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Of any gradient's entry, relative to the largest of its tensor."""
    assert one.keys() == other.keys()
    assert one
    return max(
        float((other[name] - value).abs().max() / value.abs().max().clamp(min=1e-9)) for name, value in one.items()
    )


CASES = [("t5", "full"), ("t5", "lora"), ("t5", "prompt_tuning"), ("llama", "full"), ("llama", "lora")]


@pytest.mark.parametrize(("family", "method"), CASES, ids=lambda value: value)
def test_packed_gives_the_loss_and_gradients_of_one_example_at_a_time(family: str, method: str) -> None:
    config = {"t5": T5, "llama": LLAMA}[family]
    data = examples(config)
    rows = packed_rows(data, config, VIRTUAL if method == "prompt_tuning" else 0)
    collator = Collator(rows.plan, config)
    batches = [collator([rows[row] for row in batch]) for batch in rows.plan.batches(0)]
    assert sum(len(row.examples) > 1 for row in rows.plan.rows(0)) >= 4
    expected = loss_and_gradients(made(config, METHODS[method], packed=False), alone(data))
    packed = loss_and_gradients(made(config, METHODS[method], packed=True), batches)
    assert packed[0] == pytest.approx(expected[0], rel=1e-6)
    assert worst_difference(expected[1], packed[1]) < 1e-5
