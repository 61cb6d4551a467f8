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


def same_columns() -> bool:
    """Compares every position, with one beam and three."""
    torch.manual_seed(0)
    for beams in (1, 3):
        for position in range(2):
            at, cache = torch.tensor([position]), torch.randn(2, 2, 2 * beams, 4)
            column = torch.randn(2, 2, beams, 4)
            device = torch_xla.device()
            written = write_slice(cache.to(device), column.to(device), at.to(device)).cpu()
            if not torch.equal(written, write_column(cache, column, at)):
                return False
    return True


if __name__ == "__main__":
    texts = {name: hlo_text([make(CACHE.to(torch_xla.device()))]) for name, make in CONTROLS.items()}
    print(json.dumps({"texts": texts, "written": same_columns()}))
