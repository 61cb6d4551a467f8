"""The modules that are traced for inf2 and trn1: T5's graphs with the state of a batch in buffers on the device.

A graph reads and assigns buffers ("In-place buffer updates" in AWS Neuron's documentation of `ModelBuilderV2`). They
have the rows of the largest batch and the source length of the longest bucket, and all graphs share them: encode of any
shape writes the cross-attention keys and values of its prompts into the rows that it is given, and a step reads the
beginning that its shape needs. So a prompt can join a running batch, and the batch can change its shape.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compile.graphs.kv_cache import MASKED, first_rows, write_scatter, write_where
from compile.graphs.static import EncodeGraph, StaticModel, StepGraph, adapter_stacks
from compile.graphs.t5 import StaticT5
from neuron_sum.artifact import GraphFile
from neuron_sum.recipes.schema import CacheWrite
from neuron_sum.runtimes import neuronx


class DeviceEncode(nn.Module):
    """The module that is traced for `encode`: it writes the constants of its prompts into rows of the buffers.

    Args:
        model: The static model.
        graph: The shape of the graph.
        rows: The rows of the buffers.
        cache_write: The form of the write.
    """

    def __init__(self, model: StaticT5, graph: GraphFile, rows: int, cache_write: CacheWrite) -> None:
        super().__init__()
        self.graph, self.model, self.write = graph, model, WRITES[cache_write].rows
        self.constants = _constants(self, rows)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor, slot: Tensor | None = None) -> Tensor:
        """Writes the results of `StaticT5.encode` into `rows`, (B,) int64; returns the lengths of the prompts.

        Rows may be equal, for equal prompts. The other rows keep their values. Source positions behind those of the
        graph are masked, and zero, because a value that is not finite would be a NaN also if its weight is 0.
        """
        if slot is None:
            slot = torch.zeros_like(input_ids[:, 0])
        missing = self.model.options.source_len - self.graph.source_len
        bias, *cross = self.model.encode(input_ids, attention_mask, slot)
        if missing:
            bias = functional.pad(bias, (0, missing), value=MASKED)
            cross = [functional.pad(tensor, (0, 0, 0, missing)) for tensor in cross]
        for name, tensor in zip(self.constants, [bias, *cross], strict=True):
            setattr(self, name, self.write(getattr(self, name), tensor, rows))
        return attention_mask.sum(1)

    def example_inputs(self) -> dict[str, Tensor]:
        """Inputs of the graph's shape; without adapters no slot, because a graph must use all of its inputs."""
        ids, mask, slot = EncodeGraph(self.model).example_inputs(self.graph)
        inputs = {"input_ids": ids, "attention_mask": mask, "rows": torch.arange(len(ids))}
        return inputs | ({"slot": slot} if _has_stacks(self.model, "encode") else {})


class DeviceStep(nn.Module):
    """The module that is traced for `step`: it reads the buffers of `DeviceEncode` and writes its own.

    Args:
        model: The static model.
        graph: The shape of the graph.
        rows: The rows of the buffers.
    """

    def __init__(self, model: StaticT5, graph: GraphFile, rows: int) -> None:
        super().__init__()
        self.graph, self.model = graph, model
        *self.inputs, _, _ = StepGraph(model).example_inputs(graph)
        *_, state = StepGraph(model).example_inputs(graph.model_copy(update={"batch": rows}))
        self.constants = _constants(self, rows)
        self.state = _buffers(self, f"{neuronx.STATE}{rows}x{graph.target_len}x{graph.num_beams}", state)

    def forward(
        self, tokens: Tensor, position: Tensor, ancestors: Tensor | None = None, slot: Tensor | None = None
    ) -> list[Tensor]:
        """Writes a column of the self-attention cache for each step; returns the results of `StepGraph`."""
        if ancestors is None:
            ancestors = torch.zeros_like(self.inputs[2], device=tokens.device)
        if slot is None:
            slot = torch.zeros_like(tokens[:, 0])
        bias, *cross = (first_rows(getattr(self, name), len(tokens)) for name in self.constants)
        state = [getattr(self, name) for name in self.state]
        if self.graph.source_len < self.model.options.source_len:
            length = self.graph.source_len + self.model.options.soft_prompt_tokens
            bias, cross = bias[..., :length], [tensor[:, :, :length] for tensor in cross]
        results: list[Tensor] = StepGraph(self.model, self.graph.steps)(
            tokens, position, ancestors, slot, [bias, *cross], state
        )
        for name, tensor in zip(self.state, state, strict=True):
            setattr(self, name, tensor)
        return results

    def written(self) -> list[str]:
        """The names of all tensors that the host or a graph writes."""
        return [*self.constants, *self.state, *(f"model.{name}" for name in adapter_stacks(self.model))]

    def example_inputs(self) -> dict[str, Tensor]:
        """Inputs of the graph's shape: tokens, position, of several beams ancestors, of adapters slots."""
        tokens, position, ancestors, slot = self.inputs
        beams = {"ancestors": ancestors} if tokens.shape[1] > 1 else {}
        slots = {"slot": slot} if _has_stacks(self.model, "step") else {}
        return {"tokens": tokens, "position": position} | beams | slots


def device_graph(model: StaticModel, graph: GraphFile, rows: int, cache_write: CacheWrite) -> DeviceEncode | DeviceStep:
    """The module that is traced for a graph.

    Args:
        model: The static model; its options have the form of a step's write.
        graph: The shape of the graph.
        rows: The rows of the buffers: the largest batch of the artifact.
        cache_write: The form of encode's write.
    """
    assert isinstance(model, StaticT5)
    return DeviceEncode(model, graph, rows, cache_write) if graph.kind == "encode" else DeviceStep(model, graph, rows)


def write_slice(cache: Tensor, column: Tensor, position: Tensor) -> Tensor:
    """`kv_cache.write_column` as XLA's dynamic-update-slice: one for each example, because each has its own step."""
    places, new = (position * column.shape[2]).to(torch.int32), column.to(cache.dtype)
    for example, place in enumerate(places.unbind()):
        zero = torch.zeros_like(place)
        cache = _update_slice(cache, new[example : example + 1], (torch.full_like(place, example), zero, place, zero))
    return cache


def rows_slice(buffer: Tensor, values: Tensor, rows: Tensor) -> Tensor:
    """Writes rows of a buffer, one dynamic-update-slice for each.

    Args:
        buffer: (rows of the buffer, ...), four dimensions.
        values: (B, ...).
        rows: (B,) int64, the row of each value.
    """
    for example, row in enumerate(rows.to(torch.int32).unbind()):
        zero = torch.zeros_like(row)
        buffer = _update_slice(buffer, values[example : example + 1], (row, zero, zero, zero))
    return buffer


def rows_scatter(buffer: Tensor, values: Tensor, rows: Tensor) -> Tensor:
    """`rows_slice` as one scatter."""
    return buffer.index_copy(0, rows, values)


def rows_where(buffer: Tensor, values: Tensor, rows: Tensor) -> Tensor:
    """`rows_slice` as a choice between old and new for each row of the buffer."""
    is_written = rows[:, None] == torch.arange(len(buffer), device=buffer.device)
    for example in range(len(values)):
        buffer = torch.where(is_written[example, :, None, None, None], values[example : example + 1], buffer)
    return buffer


def _update_slice(tensor: Tensor, update: Tensor, starts: Sequence[Tensor]) -> Tensor:
    """XLA's dynamic-update-slice, which no torch operator lowers to. It has one start, a scalar for each dimension.

    Called as in optimum-neuron 0.4.5 for a run-time index (models/inference/backend/modules/kvcache/utils.py).
    """
    from torch_neuronx.xla_impl.ops import xla_hlo_call

    @xla_hlo_call  # type: ignore[untyped-decorator]
    def call(tensor: Any, update: Any, *starts: Any) -> Any:
        return tensor.dtype[tensor.sizes].DynamicUpdateSlice(tensor, update, *starts)

    updated: Tensor = call(tensor, update, *starts)
    return updated


@dataclass(frozen=True)
class Write:
    """A form of compile.neuron.cache_write.

    Attributes:
        column: The function by which a step writes a column of the self-attention cache; see `kv_cache.write_column`.
        rows: The function by which encode writes rows; see `rows_slice`.
    """

    column: Callable[[Tensor, Tensor, Tensor], Tensor]
    rows: Callable[[Tensor, Tensor, Tensor], Tensor]


WRITES: dict[CacheWrite, Write] = {
    "in_place": Write(write_slice, rows_slice),
    "scatter": Write(write_scatter, rows_scatter),
    "where": Write(write_where, rows_where),
}


def _constants(module: DeviceEncode | DeviceStep, rows: int) -> list[str]:
    """Registers the buffers for the results of encode; returns their names."""
    model = module.model
    shape = module.graph.model_copy(update={"batch": rows, "source_len": model.options.source_len})
    constants = StepGraph(model).example_inputs(shape)[4]
    return _buffers(module, f"{neuronx.CONSTANT}{rows}x{model.options.source_len}", constants)


def _buffers(module: nn.Module, start: str, tensors: Sequence[Tensor]) -> list[str]:
    """Registers buffers START_0, START_1, ...; returns their names."""
    names = [f"{start}_{index}" for index in range(len(tensors))]
    for name, tensor in zip(names, tensors, strict=True):
        module.register_buffer(name, tensor)
    return names


def _has_stacks(model: StaticT5, kind: str) -> bool:
    """Whether one kind of graph reads adapter stacks."""
    return any(name.startswith(StaticT5.ENCODE_NAMES) == (kind == "encode") for name in adapter_stacks(model))
