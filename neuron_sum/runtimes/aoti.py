"""Artifacts for the CPU: AOTInductor packages over one shared set of weights.

Weights lie outside the packages, once, and the graphs of every bucket read the same tensors (weights.py).
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from neuron_sum.artifact import WEIGHTS, Artifact, Bucket
from neuron_sum.errors import ArtifactError
from neuron_sum.platform import cpu
from neuron_sum.runtimes.graphs import GraphRuntime, with_host_state
from neuron_sum.runtimes.slots import load_slots
from neuron_sum.runtimes.weights import MODEL, SharedWeights


def stack() -> dict[str, str]:
    """The versions that an artifact's machine code is bound to."""
    return {"torch": torch.__version__.partition("+")[0]}


def load(artifact: Artifact) -> GraphRuntime:
    """An artifact ready to be stepped; a graph is loaded when it is first used.

    Raises:
        ArtifactError: If this machine or its torch is not what the artifact was compiled for.
        ModelError: If an adapter in the artifact does not fit its slots.
    """
    manifest = artifact.manifest
    _check(artifact)
    adapters, stacks = load_slots(artifact)
    weights = SharedWeights(artifact.path / WEIGHTS, manifest.aliases, stacks)
    graphs = {(g.kind, g.batch, g.source_len, g.target_len, g.num_beams): g.file for g in manifest.graphs}
    packages = _Packages(artifact.path, weights)

    def encode(bucket: Bucket) -> Callable[..., Any]:
        return packages.get(graphs["encode", bucket.batch, bucket.source_len, None, None])

    def step(bucket: Bucket, num_beams: int) -> Callable[..., Any]:
        return packages.get(graphs["step", bucket.batch, bucket.source_len, bucket.target_len, num_beams])

    assert manifest.state is not None
    opened = with_host_state(step, manifest.state)
    return GraphRuntime(manifest.buckets, manifest.num_beams, manifest.tokens, encode, opened, adapters)


class _Packages:
    """AOTInductor packages, each loaded once, all reading the same tensors."""

    def __init__(self, folder: Path, weights: SharedWeights) -> None:
        self._folder, self._weights = folder, weights
        self._loaded: dict[str, Callable[..., Any]] = {}
        self._lock = threading.Lock()

    def get(self, file: str) -> Callable[..., Any]:
        with self._lock:
            if file not in self._loaded:
                package = torch._inductor.aoti_load_package(str(self._folder / file))
                found = self._weights.get(name.removeprefix(MODEL) for name in package.get_constant_fqns())
                constants = {MODEL + name: tensor for name, tensor in found.items()}
                # user_managed: the graph reads our tensors where they are, and we keep them alive.
                package.load_constants(constants, check_full_update=True, user_managed=True)
                self._loaded[file] = package
            return self._loaded[file]


def _check(artifact: Artifact) -> None:
    artifact.manifest.check_stack(stack())
    if missing := sorted(set(artifact.manifest.cpu_flags) - cpu.flags()):
        raise ArtifactError(
            f"cpu_flags: compiled for a CPU with {', '.join(missing)}, which this one lacks",
            "compile again on this machine",
        )
