"""Static graphs of a transformers model: their classes, tensors and compiled modules."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from compile.graphs.kv_cache import MASKED
from compile.graphs.layers import GraphOptions, Linear, named_layers
from compile.graphs.llama import StaticLlama
from compile.graphs.selection import candidates, most_probable, select
from compile.graphs.t5 import StaticT5
from neuron_sum.artifact import Bucket, GraphFile, SpecialTokens, StateSpec
from neuron_sum.models.base import is_decoder_only
from neuron_sum.runtimes.graphs import Encode, GraphRuntime
from neuron_sum.runtimes.slots import MASK, VECTORS, AdapterSlots
from neuron_sum.runtimes.state import Array, HostState

StaticModel = StaticT5 | StaticLlama

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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


class ShortEncodeGraph(EncodeGraph):
    """`EncodeGraph` for prompts of any length up to the bucket's; the constants are padded to it.

    Args:
        model: The static model.
        source_len: The source length of the bucket.
    """

    def __init__(self, model: StaticModel, source_len: int) -> None:
        super().__init__(model)
        self.source_len = source_len

    def forward(self, input_ids: Tensor, attention_mask: Tensor, slot: Tensor) -> list[Tensor]:
        """See `StaticT5.encode`; the inputs may have fewer columns."""
        missing = self.source_len - input_ids.shape[1]
        bias, *others = self.model.encode(input_ids, attention_mask, slot)
        padded = (nn.functional.pad(each, (0, 0, 0, missing)) if each.ndim == 4 else each for each in others)
        return [nn.functional.pad(bias, (0, missing), value=MASKED), *padded]


class StepGraph(nn.Module):
    """The module that is compiled for `step`.

    Args:
        model: The static model.
        steps: The number of steps per call; several need one beam.
    """

    def __init__(self, model: StaticModel, steps: int = 1) -> None:
        super().__init__()
        self.model, self.steps = model, steps

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        ancestors: Tensor,
        slot: Tensor,
        constants: list[Tensor],
        state: list[Tensor],
    ) -> list[Tensor]:
        """The next tokens of every beam.

        Args:
            tokens: See `StaticT5.step`, also for the other arguments.
            position: (B,) int64, the first step of every example.
            ancestors: (B, K, T) int64.
            slot: (B,) int64.
            constants: The result of `encode`.
            state: The self-attention cache.

        Returns:
            The candidates of `select`; of several steps the tokens (B, steps), int64, and their logits (B, steps),
            float32.
        """
        if self.steps == 1:
            return select(
                self.model.step(tokens, position, ancestors, slot, constants, state), candidates(tokens.shape[1])
            )
        # An example that is at its end repeats the last position, so that it writes only there.
        last = torch.full_like(position, ancestors.shape[2] - 1)
        chosen, logits = list[Tensor](), list[Tensor]()
        for step in range(self.steps):
            at = torch.minimum(position + step, last)
            tokens, largest = most_probable(self.model.step(tokens, at, ancestors, slot, constants, state))
            chosen.append(tokens)
            logits.append(largest)
        return [torch.cat(chosen, dim=1), torch.cat(logits, dim=1)]

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


def graph_module(model: StaticModel, graph: GraphFile) -> EncodeGraph | StepGraph:
    """The module that is compiled for a graph."""
    return EncodeGraph(model) if graph.kind == "encode" else StepGraph(model, graph.steps)


def eager_runtime(
    model: StaticModel,
    tensors: Mapping[str, Tensor],
    buckets: Sequence[Bucket],
    num_beams: Sequence[int],
    tokens: SpecialTokens,
    greedy_steps: int = 1,
) -> GraphRuntime:
    """A runtime with the graphs as plain torch modules: the reference for a compiled artifact."""
    stacks = {name: torch.zeros_like(stack) for name, stack in adapter_stacks(model).items()}
    model.load_state_dict({**tensors, **stacks}, assign=True)
    spec = model.options.adapters
    adapters = AdapterSlots(spec, stacks, adapter_targets(model)) if spec is not None else None
    opened = HostState(lambda bucket, num_beams, steps: _with_arrays(StepGraph(model, steps)), state_spec(model))
    graph = _with_arrays(EncodeGraph(model))

    def encode(bucket: Bucket) -> Encode:
        return lambda ids, mask, slot, rows: graph(ids, mask, slot)

    return GraphRuntime(buckets, num_beams, tokens, encode, opened, adapters, greedy_steps=greedy_steps)


def _with_arrays(graph: EncodeGraph | StepGraph) -> Callable[..., list[Array]]:
    """A graph as a function of NumPy's arrays, in which lists of arrays are written in place."""

    @torch.inference_mode()
    def call(*inputs: Array | Sequence[Array]) -> list[Array]:
        given = [as_tensor(each) if isinstance(each, np.ndarray) else list(map(as_tensor, each)) for each in inputs]
        written = [list(each) if isinstance(each, list) else each for each in given]
        results = graph(*written)
        for old, new in zip(given, written, strict=True):
            if isinstance(old, list):
                for target, value in zip(old, new, strict=True):
                    if value is not target:  # a write that returns a new tensor
                        target.copy_(value)
        return [as_array(result) for result in results]

    return call


def as_tensor(array: Array) -> Tensor:
    """A tensor with the memory of an array, of which uint16 is bf16."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


def as_array(tensor: Tensor) -> Array:
    """An array with the memory of a tensor; bf16 becomes uint16."""
    array: Array = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
