"""One set of weights for all graphs, each tensor made once, in the form that a graph asks for."""

import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

ALIGNMENT = 64
"""Bytes; AVX-512's width."""

MODEL = "model."
"""How the names of a graph's tensors begin; compile/graphs/static.py and compile/targets/neuron.py."""
PACKED, PLAIN = ".packed", ".weight"
"""A name that ends with PACKED is the weight of the same name with PLAIN in oneDNN's blocked layout."""


class SharedWeights:
    """weights.safetensors, and what is made of it.

    Args:
        path: The file; it stays mapped, and what no graph asks for is never read.
        aliases: Names that are another tensor of the file.
        others: Further tensors, such as adapters' stacks, handed out as they are.
    """

    def __init__(self, path: Path, aliases: Mapping[str, str], others: Mapping[str, Tensor]) -> None:
        self._file = safe_open(path, framework="pt")
        self._aliases, self._made = dict(aliases), dict(others)

    def get(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names; the same ones at every call."""
        names = list(names)
        missing = [name for name in names if name not in self._made]
        for name in missing:
            if name.endswith(PACKED):
                self._made[name] = packed(self._read(name.removesuffix(PACKED) + PLAIN))
        self._made.update(_on_huge_pages({n: self._read(n) for n in missing if not n.endswith(PACKED)}))
        return {name: self._made[name] for name in names}

    def _read(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(self._aliases.get(name, name))  # type: ignore[no-untyped-call]
        return tensor


def packed(weight: Tensor) -> Tensor:
    """A weight (out, in) in oneDNN's blocked layout for this CPU."""
    if weight.dtype == torch.int8:
        blocked: Tensor = torch.ops.onednn.qlinear_prepack(weight, None)
    else:
        blocked = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return blocked


def _on_huge_pages(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in one block of memory that asks for huge pages.

    A step reads every weight once, and on small pages looking up addresses can take as long as reading
    (docs/performance.md). A mapped file has no huge pages.
    """
    aligned = {
        name: -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT for name, tensor in tensors.items()
    }
    if not aligned:
        return {}
    block = mmap.mmap(-1, sum(aligned.values()) + ALIGNMENT)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    copies, offset = {}, 0
    for name, tensor in tensors.items():
        copy = torch.frombuffer(block, dtype=tensor.dtype, count=tensor.numel(), offset=offset).view(tensor.shape)
        copies[name] = copy.copy_(tensor)
        offset += aligned[name]
    return copies
