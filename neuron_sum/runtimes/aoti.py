"""Artifacts for the CPU: AOTInductor packages over one shared set of weights.

Weights lie outside the packages, once. Loading brings those that oneDNN multiplies into its blocked layout for this
very machine and hands the same tensors to the graphs of every bucket.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from neuron_sum import cpu
from neuron_sum.artifact import ADAPTERS, WEIGHTS, Artifact, Bucket
from neuron_sum.errors import ArtifactError
from neuron_sum.runtimes.adapters import AdapterSlots
from neuron_sum.runtimes.graphs import GraphRuntime

PACKED = ".packed"
"""How the names of the weights end that are brought into oneDNN's layout: (out, in), float or int8."""

MODEL = "model."
"""How the names of a graph's tensors begin; compile/graphs.py."""


def stack() -> dict[str, str]:
    """The versions that an artifact's machine code is bound to."""
    return {"torch": torch.__version__.partition("+")[0]}


def load(artifact: Artifact) -> GraphRuntime:
    """An artifact ready to be stepped; a graph is loaded when it is first used, or by `warm_up`.

    Raises:
        ArtifactError: If this machine or its torch is not what the artifact was compiled for.
        ModelError: If an adapter in the artifact does not fit its slots.
    """
    manifest = artifact.manifest
    _check(artifact)
    tensors = _load_weights(artifact.path / WEIGHTS)
    for name, original in manifest.aliases.items():
        tensors[name] = _packed(tensors[original]) if name.endswith(PACKED) else tensors[original]
    adapters = None
    if manifest.adapters is not None:
        dtype = torch.float32 if manifest.dtype == "fp32" else torch.bfloat16
        stacks = {
            name: torch.zeros(shape, dtype=torch.int64 if name.endswith(".mask") else dtype)
            for name, shape in manifest.adapter_stacks.items()
        }
        tensors.update(stacks)
        adapters = AdapterSlots(manifest.adapters, stacks, manifest.adapter_targets)
        for folder in sorted((artifact.path / ADAPTERS).glob("*")):
            adapters.load(folder.name, folder)
    graphs = {(g.kind, g.batch, g.source_len, g.target_len, g.num_beams): g.file for g in manifest.graphs}
    packages = _Packages(artifact.path, tensors)

    def encode(bucket: Bucket) -> Callable[..., Any]:
        return packages.get(graphs["encode", bucket.batch, bucket.source_len, None, None])

    def step(bucket: Bucket, num_beams: int) -> Callable[..., Any]:
        return packages.get(graphs["step", bucket.batch, bucket.source_len, bucket.target_len, num_beams])

    return GraphRuntime(manifest.buckets, manifest.num_beams, manifest.tokens, manifest.state, encode, step, adapters)


class _Packages:
    """AOTInductor packages, each loaded once, all reading the same tensors."""

    def __init__(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        self._folder, self._tensors = folder, tensors
        self._loaded: dict[str, Callable[..., Any]] = {}
        self._lock = threading.Lock()

    def get(self, file: str) -> Callable[..., Any]:
        with self._lock:
            if file not in self._loaded:
                package = torch._inductor.aoti_load_package(str(self._folder / file))
                constants = {name: self._tensors[name.removeprefix(MODEL)] for name in package.get_constant_fqns()}
                # user_managed: the graph reads our tensors where they are, and we keep them alive.
                package.load_constants(constants, check_full_update=True, user_managed=True)
                self._loaded[file] = package
            return self._loaded[file]


def _check(artifact: Artifact) -> None:
    for name, compiled in artifact.manifest.stack.items():
        if (here := stack().get(name)) != compiled:
            raise ArtifactError(
                f"stack.{name}: compiled with {compiled}, this is {here}",
                f"install {name}=={compiled}, or compile again",
            )
    if missing := sorted(set(artifact.manifest.cpu_flags) - cpu.flags()):
        raise ArtifactError(
            f"cpu_flags: compiled for a CPU with {', '.join(missing)}, which this one lacks",
            "compile again on this machine",
        )


def _load_weights(path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  safe_open is no mapping
            tensor = file.get_tensor(name)
            tensors[name] = _packed(tensor) if name.endswith(PACKED) else tensor
    return tensors


def _packed(weight: Tensor) -> Tensor:
    """A weight (out, in) in oneDNN's blocked layout."""
    if weight.dtype == torch.int8:
        packed: Tensor = torch.ops.onednn.qlinear_prepack(weight, None)
    else:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed
