"""Runtime for CPU artifacts: AOTInductor packages with one shared set of weights.

The weights are stored once, outside the packages, and the graphs of all buckets read the same tensors (weights.py).
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from neuron_sum.artifact import RESTORE, WEIGHTS, Artifact, Bucket
from neuron_sum.errors import ArtifactError, reading
from neuron_sum.platform import cpu
from neuron_sum.runtimes.graphs import GraphRuntime, HostState
from neuron_sum.runtimes.slots import load_slots
from neuron_sum.runtimes.weights import MODEL, SharedWeights


def stack() -> dict[str, str]:
    """The versions that the machine code of an artifact requires."""
    return {"torch": torch.__version__.partition("+")[0]}


def load(artifact: Artifact) -> GraphRuntime:
    """Load the runtime of an artifact; each graph is loaded when it is first used.

    Raises:
        ArtifactError: If the artifact was compiled for another machine or another version of torch.
        ModelError: If an adapter in the artifact does not fit its slots.
    """
    manifest = artifact.manifest
    _check(artifact)
    adapters, stacks = load_slots(artifact)
    weights = SharedWeights(artifact.path / WEIGHTS, manifest.aliases, stacks)
    graphs = {(g.kind, g.batch, g.source_len, g.target_len, g.num_beams, g.steps): g.file for g in manifest.graphs}
    packages = _Packages(artifact.path, weights)

    def encode(bucket: Bucket) -> Callable[..., Any]:
        return packages.get(graphs["encode", bucket.batch, bucket.source_len, None, None, 1])

    def step(bucket: Bucket, num_beams: int, steps: int) -> Callable[..., Any]:
        return packages.get(graphs["step", bucket.batch, bucket.source_len, bucket.target_len, num_beams, steps])

    assert manifest.state is not None
    opened = HostState(step, manifest.state)
    return GraphRuntime(
        manifest.buckets,
        manifest.num_beams,
        manifest.tokens,
        encode,
        opened,
        adapters,
        greedy_steps=manifest.greedy_steps,
    )


class _Packages:
    """AOTInductor packages, each loaded once, with the same tensors."""

    def __init__(self, folder: Path, weights: SharedWeights) -> None:
        self._folder, self._weights = folder, weights
        self._loaded: dict[str, Callable[..., Any]] = {}
        self._lock = threading.Lock()

    def get(self, file: str) -> Callable[..., Any]:
        with self._lock:
            if file not in self._loaded:
                with reading(self._folder / file, ArtifactError, RESTORE):
                    package = torch._inductor.aoti_load_package(str(self._folder / file))
                    needed = [name.removeprefix(MODEL) for name in package.get_constant_fqns()]
                weights = self._weights.get(needed)
                constants = {MODEL + name: tensor for name, tensor in weights.items()}
                # user_managed: the graph reads the tensors in place, and SharedWeights keeps them alive.
                package.load_constants(constants, check_full_update=True, user_managed=True)
                self._loaded[file] = package
            return self._loaded[file]


def _check(artifact: Artifact) -> None:
    artifact.manifest.check_stack(stack())
    if missing := sorted(set(artifact.manifest.cpu_flags) - cpu.flags()):
        raise ArtifactError(
            f"cpu_flags: compiled for a CPU with {', '.join(missing)}, which this CPU lacks",
            "compile again on this machine",
        )
