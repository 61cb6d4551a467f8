"""xla_hlo_call for the one operator that neuron-sum builds: DynamicUpdateSlice."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def xla_hlo_call(build: Callable[..., Any]) -> Callable[..., Tensor]:
    """Calls a function that describes an operator, and computes the described operator."""

    def call(*tensors: Tensor) -> Tensor:
        result: Tensor = build(*(Operand(tensor) for tensor in tensors))
        return result

    return call


class Operand:
    """A tensor in the function's view: a dtype that is indexed by a shape to name an operator's result."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.sizes, self.dtype = tensor, list(tensor.shape), self

    def __getitem__(self, sizes: list[int]) -> "Operand":
        assert sizes == self.sizes
        return self

    def DynamicUpdateSlice(self, cache: "Operand", update: "Operand", *starts: "Operand") -> Tensor:
        """The cache with the update at the starts; all but one must be 0 here, because the update is as wide."""
        assert len(starts) == cache.tensor.dim()
        assert cache.tensor.dtype == update.tensor.dtype
        assert all(start.tensor.dim() == 0 and start.tensor.dtype == torch.int32 for start in starts)
        partial = [axis for axis, size in enumerate(update.sizes) if size != cache.sizes[axis]] or [2]
        assert len(partial) == 1, "an update that is narrower in several dimensions"
        rows = starts[partial[0]].tensor.to(torch.int64) + torch.arange(update.sizes[partial[0]])
        return cache.tensor.index_copy(partial[0], rows, update.tensor)
