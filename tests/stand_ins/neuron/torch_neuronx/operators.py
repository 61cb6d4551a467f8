"""Operators that upstream writes in HLO or takes from torch_neuronx, computed with those of torch_xla."""

import types
from collections.abc import Callable
from typing import Any

import torch
import torch_xla.core.xla_op_registry as xla_op_registry
from torch import Tensor

UPDATE_SLICE = xla_op_registry.register(
    "dynamic_update_slice", lambda tensor, update, *starts: tensor.dynamic_update_slice(update, list(starts))
)


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
        self.scribe = types.SimpleNamespace(u32=self)

    def __getitem__(self, sizes: list[int]) -> "Operand":
        assert sizes == self.sizes
        return self

    def Constant(self, constant_value: int) -> "Operand":
        """A number."""
        return Operand(torch.tensor(constant_value, dtype=torch.int32, device=self.tensor.device))

    def DynamicUpdateSlice(self, tensor: "Operand", update: "Operand", *starts: "Operand") -> Tensor:
        """The tensor with the update at the starts."""
        assert len(starts) == tensor.tensor.dim()
        assert tensor.tensor.dtype == update.tensor.dtype
        assert all(start.tensor.dim() == 0 and start.tensor.dtype == torch.int32 for start in starts)
        result: Tensor = UPDATE_SLICE(*(each.tensor.to("xla") for each in (tensor, update, *starts)))
        return result.to(tensor.tensor.device)

    def Rng(self, minimum: "Operand", maximum: "Operand", distribution: int) -> Tensor:
        """Uniform random numbers between 0 and 1."""
        assert distribution == 1
        return torch.rand_like(self.tensor)


class RmsNorm:
    """The mathematics of the custom call."""

    @staticmethod
    def apply(hidden: Tensor, weight: Tensor, epsilon: float, dim: int) -> Tensor:
        """Normalizes over a dimension."""
        return hidden * torch.rsqrt(hidden.pow(2).mean(dim, keepdim=True) + epsilon) * weight.float()


class TopK:
    """The largest values of one core."""

    @staticmethod
    def apply(tensor: Tensor, k: int, dim: int) -> Any:
        """Values and indices."""
        return torch.topk(tensor, k, dim=dim)


class Argmax:
    """The index of the largest value of one core."""

    @staticmethod
    def apply(tensor: Tensor, dim: int, keepdim: bool = False) -> Tensor:
        """The index."""
        return torch.argmax(tensor, dim=dim, keepdim=keepdim)


def nki_jit(*_: Any, **__: Any) -> Callable[[Any], Any]:
    """Returns a kernel unchanged; of those that upstream calls, only `cumsum` can be computed."""
    return lambda kernel: kernel


def cumsum(tensor: Tensor, output: Tensor, axis: int) -> None:
    """The result of the NKI kernel."""
    output.copy_(torch.cumsum(tensor, axis))


class CollectivesConfig:
    """The pairs of ranks of ring attention, which is not used here.

    Args:
        replica_groups: The ranks of each group.
    """

    def __init__(self, replica_groups: list[list[int]]) -> None:
        self.rank_src_tgt_pairs = {rank: list[Any]() for group in replica_groups for rank in group}


OPERATORS = {"xla_hlo_call": xla_hlo_call, "nki_jit": nki_jit, "RmsNorm": RmsNorm, "TopK": TopK, "Argmax": Argmax}
"""The names of torch_neuronx.xla_impl.ops that upstream uses here."""
