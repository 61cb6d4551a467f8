"""Weights in oneDNN's blocked layout for this CPU."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuron_sum.runtimes.native import Tensor, from_mkldnn, zeros

BLOCK = 64
"""Inputs and outputs of a block of the layout for AVX-512."""


PATTERN = np.random.default_rng(0).integers(-127, 128, 65_537, dtype=np.int8)
"""Values whose order no exchange of rows, columns or blocks keeps; the length is a prime number."""


class Packer:
    """Packs weights (out, in).

    oneDNN packs int8 in a loop that is about ten times slower than `_blocked`. So it packs a pattern of each shape, and
    if `_blocked` gives the same bytes on this CPU, it packs the weights.
    """

    def __init__(self) -> None:
        self._patterns: dict[tuple[int, ...], Tensor | None] = {}

    def pack(self, weight: NDArray[Any]) -> Tensor:
        """A weight in the layout, as a tensor without an array."""
        if weight.dtype != np.int8 or any(size % BLOCK for size in weight.shape):
            return packed(weight)
        if weight.shape not in self._patterns:
            pattern = np.resize(PATTERN, weight.shape)
            made = packed(pattern)
            self._patterns[weight.shape] = made if np.array_equal(_blocked(pattern), made.content()) else None
        like = self._patterns[weight.shape]
        return from_mkldnn(_blocked(weight), like) if like is not None else packed(weight)


def packed(weight: NDArray[Any]) -> Tensor:
    """A weight (out, in) that oneDNN packs."""
    function = "onednn::qlinear_prepack" if weight.dtype == np.int8 else "mkldnn::_reorder_linear_weight"
    return Tensor.from_operator(function, weight, None)


def _blocked(weight: NDArray[np.int8]) -> NDArray[np.uint8]:
    """The layout BA16a64b4a of oneDNN, in which the sums of an output's weights follow, negative, in int32."""
    outputs, inputs = weight.shape
    content = zeros((outputs * (inputs + 4),), np.dtype(np.uint8))
    fours = np.ascontiguousarray(weight).view(np.uint32).reshape(outputs // BLOCK, BLOCK, inputs // BLOCK, BLOCK // 4)
    blocks, sums = np.split(content, [weight.size])
    blocks.view(np.uint32).reshape(len(fours), fours.shape[2], BLOCK // 4, BLOCK)[...] = fours.transpose(0, 2, 3, 1)
    np.negative(weight.sum(axis=1, dtype=np.int32), out=sums.view(np.int32))
    return content
