"""Static graphs of a transformers model: their classes, tensors and compiled modules."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from compile.graphs.layers import GraphOptions, Linear, named_layers
from compile.graphs.llama import StaticLlama
from compile.graphs.selection import candidates, select
from compile.graphs.t5 import StaticT5
from neuron_sum.artifact import Bucket, GraphFile, SpecialTokens, StateSpec
from neuron_sum.models.base import is_decoder_only
from neuron_sum.runtimes.graphs import TORCH_DTYPES, GraphRuntime, HostState
from neuron_sum.runtimes.slots import MASK, VECTORS, AdapterSlots

StaticModel = StaticT5 | StaticLlama


def static_model(config: PretrainedConfig, options: GraphOptions) -> StaticModel:
    """The static form of a model, with uninitialized tensors.

    Raises:
        ModelError: For a configuration that the static graphs do not support.
    """
    return (StaticLlama if is_decoder_only(config) else StaticT5)(config, options).eval()


def weights(model: StaticModel, state: Mapping[str, Tensor], soft_prompt: Tensor | None = None) -> dict[str, Tensor]:
    """The tensors of a static model, without the adapter stacks.

    Args:
        model: The result of `static_model`.
        state: The state dict of the transformers model, float32.
        soft_prompt: The soft prompt to compile in: (tokens, width).
    """
    tensors = model.weights(state)
    if soft_prompt is not None:
        tensors[VECTORS] = soft_prompt[None].to(model.options.dtype)
        tensors[MASK] = torch.ones(1, len(soft_prompt), dtype=torch.int64)
    for name, layer in named_layers(model):
        tensors.update({f"{name}.{key}": tensor for key, tensor in layer.weights(state).items()})
    return tensors


def adapter_targets(model: StaticModel) -> dict[str, str]:
    """The prefix of the LoRA stacks by module name in the transformers model."""
    return {
        part: f"{name}.{prefix}"
        for name, layer in named_layers(model)
        if isinstance(layer, Linear)
        for part, prefix in layer.adapted.items()
    }


def adapter_stacks(model: StaticModel) -> dict[str, Tensor]:
    """The uninitialized tensors that adapters fill."""
    if model.options.adapters is None:
        return {}
    names = AdapterSlots.stack_names(adapter_targets(model), model.options.soft_prompt_tokens)
    return {name: model.get_parameter(name) for name in names}


def state_spec(model: StaticModel) -> StateSpec:
    """The dimensions and dtype of the self-attention cache of the steps."""
    names = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    return StateSpec.model_validate(
        {
            "tensors": 2 * model.layers,
            "heads": model.state_heads,
            "head_dim": model.head_dim,
            "dtype": names[model.options.kv_dtype],
        }
    )


class EncodeGraph(nn.Module):
    """The module that is compiled for `encode`; the names of its parameters start with "model."."""

    def __init__(self, model: StaticModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, slot: Tensor) -> list[Tensor]:
        """See `StaticT5.encode`."""
        return self.model.encode(input_ids, attention_mask, slot)

    def example_inputs(self, graph: GraphFile) -> tuple[Any, ...]:
        """Inputs of the graph's shape."""
        ids = torch.zeros(graph.batch, graph.source_len, dtype=torch.int64)
        return ids, torch.ones_like(ids), torch.zeros(graph.batch, dtype=torch.int64)


class StepGraph(nn.Module):
    """The module that is compiled for `step`."""

    def __init__(self, model: StaticModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        ancestors: Tensor,
        slot: Tensor,
        constants: list[Tensor],
        state: list[Tensor],
    ) -> list[Tensor]:
        """The candidates of `select`, from the logits of `StaticT5.step`."""
        logits = self.model.step(tokens, position, ancestors, slot, constants, state)
        return select(logits, candidates(tokens.shape[1]))

    def example_inputs(self, graph: GraphFile) -> tuple[Any, ...]:
        """Inputs of the graph's shape."""
        model, spec, dtype = self.model, state_spec(self.model), self.model.options.kv_dtype
        batch, beams, target_len = graph.batch, graph.num_beams or 1, graph.target_len or 1
        source = graph.source_len + model.options.soft_prompt_tokens

        def cache(length: int) -> list[Tensor]:
            shape = (batch, spec.heads, length, spec.head_dim)
            return [torch.zeros(shape, dtype=dtype) for _ in range(spec.tensors)]

        ids = torch.zeros(batch, beams, dtype=torch.int64)
        slot = torch.zeros(batch, dtype=torch.int64)
        constants = [torch.zeros(batch, 1, 1, source), *([slot.clone()] if isinstance(model, StaticLlama) else [])]
        ancestors = torch.zeros(batch, beams, target_len, dtype=torch.int64)
        position = torch.zeros(batch, dtype=torch.int64)
        return ids, position, ancestors, slot, [*constants, *cache(source)], cache(target_len * beams)


def eager_runtime(
    model: StaticModel,
    tensors: Mapping[str, Tensor],
    buckets: Sequence[Bucket],
    num_beams: Sequence[int],
    tokens: SpecialTokens,
) -> GraphRuntime:
    """A runtime with the graphs as plain torch modules: the reference for a compiled artifact."""
    stacks = {name: torch.zeros_like(stack) for name, stack in adapter_stacks(model).items()}
    model.load_state_dict({**tensors, **stacks}, assign=True)
    spec = model.options.adapters
    adapters = AdapterSlots(spec, stacks, adapter_targets(model)) if spec is not None else None
    opened = HostState(lambda *_: StepGraph(model), state_spec(model))
    return GraphRuntime(buckets, num_beams, tokens, lambda _: model.encode, opened, adapters)
