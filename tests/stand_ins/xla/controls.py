"""Graphs whose faults the preflight must detect, lowered like others: python controls.py, one JSON line NAME -> HLO

Also compares the in-place write with the plain one, on XLA's CPU device: "written" is whether both are equal.
"""

import json
import os
from collections.abc import Callable

os.environ["XLA_EXPERIMENTAL"] = "nonzero:masked_select"  # otherwise torch_xla needs the values

import torch
import torch_xla
from torch import Tensor
from torch.nn.functional import conv_transpose2d

from compile.graphs.kv_cache import write_column
from compile.preflight.xla_process import hlo_text, write_slice

CACHE = torch.zeros(1, 2, 6, 4)


def shifted(cache: Tensor) -> Tensor:
    """A cache as in optimum-neuron: the new column on the right, the oldest dropped."""
    return torch.cat([cache, cache[:, :, :1] + 1], dim=2)[:, :, 1:]


CONTROLS: dict[str, Callable[[Tensor], Tensor]] = {
    "f64": lambda cache: (cache.double() * 2).float(),
    "dynamic": lambda cache: torch.nonzero(cache),
    "rewritten": shifted,
    "in_place": lambda cache: write_slice(cache, torch.ones_like(cache[:, :, :1]), torch.ones_like(cache[0, 0, 0, :1])),
    "scattered": lambda cache: write_column(
        cache, cache[:, :, :1] + 1, torch.zeros(1, dtype=torch.int64).to(cache.device)
    ),
}


SQUARE = torch.ones(4, 4)
REJECTED: dict[str, Callable[[Tensor], Tensor]] = {
    "NCC_EMOD025": lambda square: torch.nonzero(square),
    "NCC_ESMP002": lambda square: square[torch.arange(10, device=square.device)],
    "NCC_ESPP004": lambda square: (square.double() * 2).float(),
    "NCC_ESPP047": lambda square: square.to(torch.float8_e4m3fn).float(),
    "NCC_EVRF001": lambda square: torch.triangular_solve(square, square)[0],
    "NCC_EVRF004": lambda square: square.to(torch.complex64) * 2,
    "NCC_EVRF010": lambda square: conv_transpose2d(
        square[None, None], square[None, None, :3, :3], stride=2, dilation=2
    ),
    "NCC_EVRF013": lambda square: torch.topk(square.int(), 2).values,
    "NCC_EVRF016": lambda square: square.int().scatter_add(0, square.long(), square.int()),
    "NCC_EVRF022": lambda square: torch.bitwise_right_shift(square.to(torch.int16), square.to(torch.int16)),
    "NCC_EVRF029": lambda square: torch.topk(square[None], 2).values,
    "NCC_EVRF035": lambda square: square.long() @ square.long(),
    "NCC_EVRF062": lambda square: torch.pow(square.long(), square.long()),
}
"""Graphs with a documented error code of the compiler; NCC_EVRF029 is not documented."""
ACCEPTED: dict[str, Callable[[Tensor], Tensor]] = {
    "top-k of two dimensions": lambda square: torch.topk(square, 2).values,
    "all rows": lambda square: square[torch.arange(4, device=square.device)],
    "scatter of integers": lambda square: square.int().scatter(0, square.long(), square.int()),
    "scatter_add of floats": lambda square: square.scatter_add(0, square.long(), square),
    "shift of 32 bits": lambda square: torch.bitwise_right_shift(square.int(), square.int()),
    "random numbers": torch.rand_like,
}


def same_columns() -> bool:
    """Compares every position, two different ones at once, with one beam and three."""
    torch.manual_seed(0)
    for beams in (1, 3):
        for position in range(2):
            at, cache = torch.tensor([position, 1 - position]), torch.randn(2, 2, 2 * beams, 4)
            column = torch.randn(2, 2, beams, 4)
            device = torch_xla.device()
            written = write_slice(cache.to(device), column.to(device), at.to(device)).cpu()
            if not torch.equal(written, write_column(cache, column, at)):
                return False
    return True


if __name__ == "__main__":
    device = torch_xla.device()
    texts = {name: hlo_text([make(CACHE.to(device))]) for name, make in CONTROLS.items()}
    found = {name: hlo_text([make(SQUARE.to(device))]) for name, make in {**REJECTED, **ACCEPTED}.items()}
    accepted = {name: found.pop(name) for name in ACCEPTED}
    print(json.dumps({"texts": texts, "rejected": found, "accepted": accepted, "written": same_columns()}))
