"""One set of weights for all graphs; each tensor is created once, in the layout that the graphs require."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from neuron_sum.artifact import RESTORE
from neuron_sum.errors import ArtifactError, reading
from neuron_sum.runtimes.native import Tensor
from neuron_sum.runtimes.packing import Packer

ALIGNMENT = 64
"""Bytes, the width of AVX-512."""

MODEL = "model."
"""Prefix of the tensor names in a graph; compile/graphs/static.py and compile/targets/neuron.py."""

DTYPES = {"F32": np.float32, "BF16": np.uint16, "I64": np.int64, "I32": np.int32, "I8": np.int8}
"""The dtypes of safetensors; NumPy has no bf16."""

PACKED, PLAIN = ".packed", ".weight"
"""Suffixes: a name with PACKED is the weight of the same name with PLAIN in oneDNN's blocked layout."""


class SharedWeights:
    """The tensors of weights.safetensors and their packed copies.

    Args:
        path: The file; it stays mapped, and unused tensors are never read.
        aliases: The stored name of each tensor with another name.
        others: Additional tensors, such as adapter stacks, whose memory is shared.

    Raises:
        ArtifactError: If the file is damaged. `get` raises it if a tensor is missing.
    """

    def __init__(self, path: Path, aliases: Mapping[str, str], others: Mapping[str, NDArray[Any]]) -> None:
        with reading(path, ArtifactError, RESTORE):
            self._stored = _read(path)
        self._path, self._aliases, self._packer = path, dict(aliases), Packer()
        self._tensors = {name: Tensor.of(array) for name, array in others.items()}

    def get(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names; every call returns the same objects."""
        names = list(names)
        for name in names:
            if name not in self._tensors:
                self._tensors[name] = (
                    self._packer.pack(self._array(name.removesuffix(PACKED) + PLAIN))
                    if name.endswith(PACKED)
                    else Tensor.of(self._array(name))
                )
        return {name: self._tensors[name] for name in names}

    def _array(self, name: str) -> NDArray[Any]:
        with reading(self._path, ArtifactError, RESTORE):
            return self._stored[self._aliases.get(name, name)]


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file, in its mapped memory; safetensors itself has no NumPy arrays of bf16.

    The data follow the header, whose length is in the first 8 bytes, without gaps; safetensors verifies this.
    """
    found = dict[str, NDArray[Any]]()
    with safe_open(path, framework="np") as file:
        content = np.memmap(path, mode="r")
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        for name in file.offset_keys():
            part = file.get_slice(name)
            dtype, shape = np.dtype(DTYPES[part.get_dtype()]), part.get_shape()
            end = start + math.prod(shape) * dtype.itemsize
            found[name] = content[start:end].view(dtype).reshape(shape)
            start = end
    return found
