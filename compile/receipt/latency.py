"""Times of the graphs of an artifact, and the bytes that they read."""

import math
from collections.abc import Iterator
from typing import Any

from compile.machine_report import latency
from neuron_sum.artifact import Artifact, GraphFile
from neuron_sum.platform.matrix import CORE_BANDWIDTH
from neuron_sum.runtimes.base import CompiledGenerator
from neuron_sum.runtimes.neuronx import CONSTANT, STATE

GATHERED = "model.embedding"
"""The weight of which a step reads only a few rows."""
BYTES = 4
"""Bytes of an element: receipts compile fp32."""


def step_times(generator: CompiledGenerator, artifact: Artifact, rounds: int) -> Iterator[tuple[dict[str, Any], Any]]:
    """Median milliseconds of encode and of a step for every bucket and beam width, each with its graph's inputs.

    Args:
        generator: The loaded artifact of this package's graphs, after a warm-up.
        artifact: The artifact.
        rounds: The number of batches.
    """
    steps = {
        (graph.batch, graph.source_len, graph.target_len, graph.num_beams): graph
        for graph in artifact.manifest.graphs
        if graph.kind == "step" and graph.steps == 1
    }
    buckets = {str(bucket): bucket for bucket in artifact.manifest.buckets}
    for row in latency(generator, artifact, rounds):
        bucket = buckets[row["bucket"]]
        graph = steps[bucket.batch, bucket.source_len, bucket.target_len, row["num_beams"]]
        shape = {name: getattr(graph, name) for name in ("batch", "source_len", "target_len", "num_beams")}
        times = {name: row[name] for name in ("encode_ms", "step_ms")}
        yield {**shape, **times}, inputs(artifact, graph)


def inputs(artifact: Artifact, graph: GraphFile) -> dict[str, Any]:
    """The inputs, outputs and aliases of a graph of neuronx-distributed, as its file describes them."""
    import torch_neuronx  # noqa: F401  (before neuronx-distributed, which imports modules of it)
    from neuronx_distributed import NxDModel

    model = NxDModel.load(str(artifact.path / graph.file))
    [key] = model.get_available_keys()
    described = model.get_metaneff(key)
    kinds = type(described.input_tensors[0]).Type
    names = {kinds.USER_INPUT: "user input", kinds.INPUT_WEIGHT: "weight", kinds.INPUT_STATE: "state"}
    tensors = [
        {
            "name": (each.checkpoint_key or each.user_input_key).decode(),
            "type": names.get(each.type, f"type {each.type}"),
            "shape": list(each.shape),
            "read": _read(artifact, graph, each.checkpoint_key.decode(), list(each.shape)),
        }
        for each in described.input_tensors
    ]
    aliases = {str(output): tensors[place]["name"] for output, place in sorted(described.output_aliases_to.items())}
    return {
        "graph": graph.file,
        "inputs": tensors,
        "outputs": len(described.output_tensors),
        "aliases": aliases,
    }


def _read(artifact: Artifact, graph: GraphFile, name: str, shape: list[int]) -> list[int]:
    """The part of a tensor that a step reads: of the buffers that all graphs share, its rows and source tokens."""
    if not name.startswith((CONSTANT, STATE)):
        return shape
    part = [graph.batch, *shape[1:]]
    if name.startswith(CONSTANT):
        source = 3 if name.endswith("_0") else 2  # the source bias comes first, then keys and values
        part[source] -= max(bucket.source_len for bucket in artifact.manifest.buckets) - graph.source_len
    return part


def bytes_read(described: dict[str, Any], *, only_buffers: bool = False) -> int:
    """The bytes of the weights and buffers of a graph; a step reads them once.

    Args:
        described: The result of `inputs`.
        only_buffers: Whether weights are not counted.
    """
    return sum(
        BYTES * math.prod(tensor["read"])
        for tensor in described["inputs"]
        if tensor["type"] in ("weight", "state")
        and tensor["name"] != GATHERED
        and (not only_buffers or tensor["name"].startswith((CONSTANT, STATE)))
    )


def floor_ms(described: dict[str, Any]) -> float:
    """The least milliseconds of a step: its bytes at the bandwidth of a core's memory."""
    return 1000 * bytes_read(described) / CORE_BANDWIDTH
