"""Runtime for CPU artifacts: AOTInductor packages with one shared set of weights.

The weights are stored once, outside the packages, and the graphs of all buckets read the same tensors (weights.py).
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from neuron_sum.artifact import RESTORE, WEIGHTS, Artifact, Bucket
from neuron_sum.errors import ArtifactError, reading
from neuron_sum.platform import cpu
from neuron_sum.runtimes.graphs import Encode, GraphRuntime
from neuron_sum.runtimes.slots import load_slots
from neuron_sum.runtimes.state import HostState
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

    def encode(bucket: Bucket) -> Encode:
        graph = packages.get(graphs["encode", bucket.batch, bucket.source_len, None, None, 1])
        return lambda ids, mask, slot, rows: graph(ids, mask, slot)

    def step(bucket: Bucket, num_beams: int, steps: int) -> Graph:
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
        self._loaded: dict[str, Graph] = {}
        self._lock = threading.Lock()

    def get(self, file: str) -> "Graph":
        with self._lock:
            if file not in self._loaded:
                with reading(self._folder / file, ArtifactError, RESTORE):
                    graph = Graph(self._folder / file)
                graph.load(self._weights.get(graph.constants))
                self._loaded[file] = graph
            return self._loaded[file]


class Graph:
    """An AOTInductor package, loaded without torch._inductor, which imports the whole compiler.

    Args:
        path: The .pt2 file.

    Attributes:
        constants: The names of its weights and adapter stacks.
    """

    def __init__(self, path: Path) -> None:
        self._loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
        self.constants = [name.removeprefix(MODEL) for name in self._loader.get_constant_fqns()]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the constants, which the graph reads in place; the caller keeps them alive."""
        constants = {MODEL + name: tensor for name, tensor in tensors.items()}
        self._loader.load_constants(constants, False, True, True)  # active buffer, all of them, user_managed

    def __call__(self, *inputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """The outputs of the graph in one list. Inputs may be lists of tensors."""
        flat = [tensor for each in inputs for tensor in ([each] if isinstance(each, Tensor) else each)]
        outputs: list[Tensor] = self._loader.boxed_run(flat)
        return outputs


def _check(artifact: Artifact) -> None:
    artifact.manifest.check_stack(stack())
    if missing := sorted(set(artifact.manifest.cpu_flags) - cpu.flags()):
        raise ArtifactError(
            f"cpu_flags: compiled for a CPU with {', '.join(missing)}, which this CPU lacks",
            "compile again on this machine",
        )
