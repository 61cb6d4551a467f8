"""Rows of random examples, small models of every method, and their loss and gradients in double precision."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel

from neuron_sum.data.encoding import IGNORED, Encoded, Features
from neuron_sum.data.layouts import Lengths, Shape
from neuron_sum.data.rows import Batch, RowSet
from neuron_sum.data.shapes import ShapePlan
from neuron_sum.models import adapters
from neuron_sum.models.base import model_class_of
from neuron_sum.recipes.schema import FullMethod, LoraMethod, Method, PromptTuningMethod

VIRTUAL = 5
METHODS: dict[str, Method] = {
    "full": FullMethod(),
    "lora": LoraMethod(r=4, lora_dropout=0),
    "prompt_tuning": PromptTuningMethod(num_virtual_tokens=VIRTUAL),
}


def examples(config: PretrainedConfig, count: int = 17) -> Encoded:
    """Random examples whose lengths differ much."""
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
    """Room for about three examples per row."""
    seq2seq = config.is_encoder_decoder
    source = np.array([len(feature["input_ids"]) + virtual_tokens for feature in data.features])
    target = np.array([len(feature["labels"]) * seq2seq for feature in data.features])
    shape = Shape(120, 40 * seq2seq)
    plan = ShapePlan("packed", (shape,), Lengths(source, target), not seq2seq, virtual_tokens, 3, 1, seed=0)
    return RowSet(data, plan)


def made(config: PretrainedConfig, method: Method, *, packed: bool) -> PreTrainedModel | PeftModel:
    """The same weights for packed and plain; those of LoRA are not zero."""
    torch.manual_seed(0)
    base = model_class_of(config, packed=packed)(copy.deepcopy(config))
    model = adapters.attach(base, method, seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def alone(data: Encoded) -> list[Batch]:
    """One example at a time, without padding, in the form that a model accepts."""
    return [{name: torch.tensor([value]) for name, value in feature.items()} for feature in data.features]


def loss_and_gradients(model: torch.nn.Module, batches: Sequence[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss summed over label tokens, and its gradients, in double precision."""
    model, total = model.double(), torch.zeros(())
    for inputs in batches:
        batch = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
        labels = batch["labels"] if model.config.is_encoder_decoder else batch["labels"][:, 1:]
        total = total + model(**batch).loss * (labels != IGNORED).sum()
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return total.item(), gradients


def worst_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of any gradient's entry, relative to the largest of its tensor."""
    assert one.keys() == other.keys()
    assert one
    return max(
        float((other[name] - value).abs().max() / value.abs().max().clamp(min=1e-9)) for name, value in one.items()
    )
