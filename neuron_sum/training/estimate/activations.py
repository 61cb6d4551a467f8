"""Bytes that a step of the torch backend allocates for activations, counted in a forward pass with fake tensors.

The pass has one layer, then two, of the real width, because layers are equal. It counts what autograd saves, which
includes an adapter's copies in fp32 and bf16 and its dropout masks, and what is freed before the backward pass.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig

from neuron_sum.data.layouts import Shape
from neuron_sum.data.rows import Collator, RowSet
from neuron_sum.models import adapters
from neuron_sum.models import base as models
from neuron_sum.recipes.schema import PromptTuningMethod, Recipe
from neuron_sum.training.loss import TokenLoss, split_labels
from neuron_sum.training.torch.bf16 import prepare_for_bf16, prepares

HOLES = 0.15
"""The share of freed memory that no later block fills, because saved blocks lie between the holes; measured with LoRA
of SmolLM2-135M and rows of up to 517 tokens (docs/training.md)."""
LARGEST_HOLE = 32 * 2**20
"""Bytes up to which glibc keeps a freed block in its heap; larger ones always return to the system."""
LARGEST = 32
"""The number of batches that are searched for the most labels."""
LOSS_COPIES = 3
"""Copies of the logits in fp32 that exist at once while the loss is computed backward, in addition to the saved one."""

SCORE_COPIES = 3
"""Copies of an attention layer's scores in bf16 that exist at once: scores, probabilities and a gradient."""


@dataclass(frozen=True)
class Count:
    """Bytes of a forward pass.

    Attributes:
        saved: Saved for the backward pass, without parameters.
        freed: Freed before the backward pass, in blocks that stay in the heap.
    """

    saved: float = 0
    freed: float = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.saved + other.saved, self.freed + other.freed)

    def __sub__(self, other: "Count") -> "Count":
        return Count(self.saved - other.saved, self.freed - other.freed)

    def __mul__(self, times: int) -> "Count":
        return Count(self.saved * times, self.freed * times)


def activation_bytes(config: PretrainedConfig, shape: Shape, recipe: Recipe) -> float:
    """Bytes of one batch of the longest rows, computed at once.

    Args:
        config: The base model's configuration.
        shape: The longest row; for a decoder-only model, target_len is the number of positions with logits.
        recipe: The recipe, for its method, batch size, precision and gradient checkpointing.
    """
    names = ["num_hidden_layers"] if models.is_decoder_only(config) else ["num_layers", "num_decoder_layers"]
    one = dict.fromkeys(names, 1)
    total = first = _count(config, shape, recipe, one)
    for name in names:
        two = {**one, name: 2}
        total += (_count(config, shape, recipe, two) - first) * (getattr(config, name) - 1)
        if recipe.train.gradient_checkpointing:  # the backward pass computes one layer after another again
            plain = recipe.model_copy(
                update={"train": recipe.train.model_copy(update={"gradient_checkpointing": False})}
            )
            total += _count(config, shape, plain, two) - _count(config, shape, plain, one)
    rows = recipe.train.per_device_train_batch_size
    logits: int = 4 * rows * (shape.target_len or shape.source_len) * config.vocab_size
    scores = 0
    if models.is_decoder_only(config) and prepares(recipe.train):  # of one layer, while it is computed backward
        scores = SCORE_COPIES * 2 * rows * config.num_attention_heads * shape.source_len**2
    return total.saved + HOLES * total.freed + LOSS_COPIES * logits + scores


def most_label_positions(rows: RowSet, config: PretrainedConfig) -> int:
    """The largest number of positions with logits in one of the largest batches of a decoder-only model.

    Args:
        rows: The training split.
        config: The configuration of the model.
    """
    batches = sorted(rows.plan.batches(0), key=lambda batch: -len(batch) * sum(rows.plan.shape_of(batch)))
    collate = Collator(rows.plan, config)
    inputs = (split_labels(collate([rows[row] for row in batch]), decoder_only=True)[0] for batch in batches[:LARGEST])
    return max(len(each["logits_to_keep"]) for each in inputs)


def _count(config: PretrainedConfig, shape: Shape, recipe: Recipe, layers: dict[str, int]) -> Count:
    config, train, decoder_only = copy.deepcopy(config), recipe.train, models.is_decoder_only(config)
    for name, number in layers.items():
        setattr(config, name, number)
    rows, source_len, target_len = train.per_device_train_batch_size, *shape
    if not decoder_only and config.decoder_start_token_id is None:
        config.decoder_start_token_id = 0  # any value: only shapes matter
    with FakeTensorMode():
        model: Any = models.model_class_of(config)(config)
        inputs: dict[str, torch.Tensor] = {}
        if isinstance(recipe.method, PromptTuningMethod):
            model.requires_grad_(False)
            source_len += recipe.method.num_virtual_tokens
            inputs["inputs_embeds"] = torch.zeros(rows, source_len, config.hidden_size, requires_grad=True)
        else:
            model = adapters.attach(model, recipe.method, train.seed)
            inputs["input_ids"] = torch.ones(rows, source_len, dtype=torch.long)
        prepare_for_bf16(model, train)
        model.train()
        if train.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        positions = torch.ones(rows, target_len or source_len, dtype=torch.long)
        if decoder_only:
            inputs["attention_mask"] = torch.ones(rows, 1, source_len, source_len, dtype=torch.bool)
            inputs["logits_to_keep"] = positions[0]
        else:
            inputs["attention_mask"] = torch.ones(rows, source_len, dtype=torch.long)
            inputs["decoder_input_ids"] = positions
        tally = _Tally(model)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=train.bf16)
        with tally, saved_tensors_hooks(tally.save, lambda tensor: tensor), autocast:
            outputs = model(**inputs, use_cache=False)
            TokenLoss(shifted=False, label_smoothing=train.label_smoothing_factor)(outputs, positions, 1)
    return tally.count()


class _Tally(TorchDispatchMode):
    """The sizes of new storages, and whether autograd saves them.

    Args:
        model: The model, whose parameters and buffers are not counted.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept: list[torch.Tensor] = [*model.parameters(), *model.buffers()]  # so that no address is used again
        self._ignored = {_storage(tensor) for tensor in self._kept}
        self._allocated: dict[int, int] = {}
        self._saved: dict[int, int] = {}

    def count(self) -> Count:
        """The bytes until now."""
        freed = [size for key, size in self._allocated.items() if key not in self._saved and size <= LARGEST_HOLE]
        return Count(sum(self._saved.values()), sum(freed))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the results of an operation."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor, self._allocated)
        return result

    def save(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a tensor that autograd saves."""
        self._add(tensor, self._saved)
        return tensor

    def _add(self, tensor: torch.Tensor, sizes: dict[int, int]) -> None:
        if (key := _storage(tensor)) not in self._ignored and key not in sizes:
            sizes[key] = tensor.untyped_storage().nbytes()
            self._kept.append(tensor)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
