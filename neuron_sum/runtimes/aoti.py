"""Runtime for CPU artifacts: AOTInductor packages with one shared set of weights.

The weights are stored once, outside the packages, and the graphs of all buckets read the same tensors (weights.py).
"""

import importlib.metadata
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuron_sum.artifact import RESTORE, WEIGHTS, Artifact, Bucket
from neuron_sum.errors import ArtifactError, reading
from neuron_sum.platform import cpu
from neuron_sum.runtimes.graphs import Encode, GraphRuntime
from neuron_sum.runtimes.native import Graph, Tensor
from neuron_sum.runtimes.state import Array, HostState
from neuron_sum.runtimes.weights import ALIGNMENT, MODEL, PACKED, SharedWeights

if TYPE_CHECKING:
    from neuron_sum.runtimes.slots import AdapterSlots


def stack() -> dict[str, str]:
    """The versions that the machine code of an artifact requires."""
    return {"torch": importlib.metadata.version("torch").partition("+")[0]}


def load(artifact: Artifact) -> GraphRuntime:
    """Load the runtime of an artifact; each graph is loaded when it is first used.

    Raises:
        ArtifactError: If the artifact was compiled for another machine or another version of torch.
        ModelError: If an adapter in the artifact does not fit its slots.
    """
    manifest = artifact.manifest
    _check(artifact)
    adapters, stacks = _slots(artifact)
    weights = SharedWeights(artifact.path / WEIGHTS, manifest.aliases, stacks)
    graphs = {(g.kind, g.batch, g.source_len, g.target_len, g.num_beams, g.steps): g.file for g in manifest.graphs}
    packages = _Packages(artifact.path, weights)

    def encode(bucket: Bucket) -> Encode:
        graph = packages.get(graphs["encode", bucket.batch, bucket.source_len, None, None, 1])
        return lambda ids, mask, slot, rows: _encoded(graph, manifest.source_step, ids, mask, slot)

    def step(bucket: Bucket, num_beams: int, steps: int) -> Graph:
        return packages.get(graphs["step", bucket.batch, bucket.source_len, bucket.target_len, num_beams, steps])

    assert manifest.state is not None
    opened = HostState(step, manifest.state, Tensor.of)
    return GraphRuntime(
        manifest.buckets,
        manifest.num_beams,
        manifest.tokens,
        encode,
        opened,
        adapters,
        greedy_steps=manifest.greedy_steps,
    )


def _encoded(
    graph: Callable[..., list[Tensor]], source_step: int | None, input_ids: Array, attention_mask: Array, slot: Array
) -> list[Tensor]:
    """Encode prompts without the columns in which all rows have padding, as far as the graph permits."""
    if source_step is not None:
        length = max(-(-int(attention_mask.sum(axis=1).max()) // source_step), 1) * source_step
        try:
            return graph(*(np.ascontiguousarray(each[:, :length]) for each in (input_ids, attention_mask)), slot)
        except RuntimeError:
            # oneDNN keeps a product that it could not prepare for lack of memory; warm_up has prepared the longest.
            if length >= input_ids.shape[1]:
                raise
    return graph(input_ids, attention_mask, slot)


class _Packages:
    """AOTInductor packages, each loaded once, with the same tensors."""

    def __init__(self, folder: Path, weights: SharedWeights) -> None:
        self._folder, self._weights = folder, weights
        self._loaded: dict[str, Graph] = {}
        self._lock = threading.Lock()

    def get(self, file: str) -> Graph:
        with self._lock:
            if file not in self._loaded:
                with reading(self._folder / file, ArtifactError, RESTORE):
                    graph = Graph(self._folder / file)
                tensors = self._weights.get(name.removeprefix(MODEL) for name in graph.constants)
                _check_constants(file, graph, tensors)
                graph.load({MODEL + name: tensor for name, tensor in tensors.items()})
                self._loaded[file] = graph
            return self._loaded[file]


def _check_constants(file: str, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
    """Raise if a weight is not of the type and size of the graph, which would read other values, or beyond its end."""
    for name, tensor in tensors.items():
        if name.endswith(PACKED):
            continue  # oneDNN knows its shape
        array, (dtype, size) = np.asarray(tensor), graph.constants[MODEL + name]
        aligned = -(-array.nbytes // ALIGNMENT) * ALIGNMENT  # as Inductor states sizes
        if (array.dtype.str, aligned) != (dtype, size):
            raise ArtifactError(
                f"{file}: {name} has {array.nbytes:,} bytes of {array.dtype.str}; the graph needs {size:,} of {dtype}",
                RESTORE,
            )


def _slots(artifact: Artifact) -> "tuple[AdapterSlots | None, Mapping[str, NDArray[Any]]]":
    """The adapter slots, for which torch is imported, and the memory of their stacks."""
    if artifact.manifest.adapters is None:
        return None, {}
    import torch

    from neuron_sum.runtimes.slots import load_slots

    slots, stacks = load_slots(artifact)
    plain = {
        name: stack.view(torch.uint16) if stack.dtype == torch.bfloat16 else stack for name, stack in stacks.items()
    }
    return slots, {name: stack.numpy() for name, stack in plain.items()}


def _check(artifact: Artifact) -> None:
    artifact.manifest.check_stack(stack())
    if missing := sorted(set(artifact.manifest.cpu_flags) - cpu.flags()):
        raise ArtifactError(
            f"cpu_flags: compiled for a CPU with {', '.join(missing)}, which this CPU lacks",
            "compile again on this machine",
        )
