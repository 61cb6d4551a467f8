"""One set of weights for all graphs; each tensor is created once, in the layout that the graphs require."""

import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from neuron_sum.artifact import RESTORE
from neuron_sum.errors import ArtifactError, reading

ALIGNMENT = 64
"""Bytes, the width of AVX-512."""

MODEL = "model."
"""Prefix of the tensor names in a graph; compile/graphs/static.py and compile/targets/neuron.py."""
PACKED, PLAIN = ".packed", ".weight"
"""Suffixes: a name with PACKED is the weight of the same name with PLAIN in oneDNN's blocked layout."""


class SharedWeights:
    """The tensors of weights.safetensors and their packed copies.

    Args:
        path: The file; it stays mapped, and unused tensors are never read.
        aliases: The stored name of each tensor with another name.
        others: Additional tensors, such as adapter stacks, returned unchanged.

    Raises:
        ArtifactError: If the file is damaged. `get` raises it if a tensor is missing.
    """

    def __init__(self, path: Path, aliases: Mapping[str, str], others: Mapping[str, Tensor]) -> None:
        with reading(path, ArtifactError, RESTORE):
            self._file = safe_open(path, framework="pt")
        self._path = path
        self._aliases, self._tensors = dict(aliases), dict(others)

    def get(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names; every call returns the same objects."""
        names = list(names)
        missing = [name for name in names if name not in self._tensors]
        for name in missing:
            if name.endswith(PACKED):
                self._tensors[name] = packed(self._read(name.removesuffix(PACKED) + PLAIN))
        self._tensors.update(_on_huge_pages({n: self._read(n) for n in missing if not n.endswith(PACKED)}))
        return {name: self._tensors[name] for name in names}

    def _read(self, name: str) -> Tensor:
        with reading(self._path, ArtifactError, RESTORE):
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
    """Copies of the tensors in one block of memory for which huge pages are requested.

    A step reads every weight once, and with small pages the address lookup can take as long as reading
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
