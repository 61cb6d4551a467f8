"""Artifacts for inf2 and trn1: T5's graphs as torch_neuronx.trace made them, their state on the device.

Every graph keeps its state in parameters, which come first in its `parameters()` and in the order in which they were
traced. A batch begins by copying what the encoder made into the step graph's, as optimum-neuron 0.4.5 does it
(neuron/modeling_seq2seq.py, generate). The encoder's inputs are put on the device before, for then its outputs stay
there too (AWS Neuron documentation, "Direct HBM Tensor Allocation"). Self-attention keys and values are not cleared:
what an earlier batch left is masked until it is written over.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from neuron_sum.artifact import WEIGHTS, Artifact, Bucket, GraphFile, Manifest
from neuron_sum.errors import ArtifactError, PlatformError
from neuron_sum.platform.machine import package_version
from neuron_sum.runtimes.device import VISIBLE, check_cores, check_family, take_cores, visible_cores
from neuron_sum.runtimes.graphs import GraphRuntime, Step
from neuron_sum.runtimes.slots import AdapterSlots, load_slots
from neuron_sum.runtimes.weights import MODEL

STATE, CONSTANT = "state.", "constants."
"""How the names of kept tensors begin that are no adapters'; compile/targets/neuron.py's DeviceStep."""
NEEDED = ("torch-neuronx", "neuronx-cc")
"""Distributions on AWS's own package index."""


def stack() -> dict[str, str | None]:
    """The versions that a compiled graph is bound to; None for what is not installed."""
    return {
        "torch": torch.__version__.partition("+")[0],
        **{name: (package_version(name) or "").partition("+")[0] or None for name in NEEDED},
    }


def load(artifact: Artifact) -> GraphRuntime:
    """An artifact ready to be stepped; a graph is loaded when it is first used.

    Raises:
        ArtifactError: If the artifact was compiled for other versions, another device, or a core that is not there.
        PlatformError: If this machine has no Neuron packages.
        ModelError: If an adapter in the artifact does not fit its slots.
    """
    manifest = artifact.manifest
    assert manifest.compilation is not None
    assert manifest.state is not None
    _check(manifest, manifest.compilation.core)
    adapters, _ = load_slots(artifact)
    graphs = _Graphs(artifact, adapters, take_cores(manifest.compilation.core, 1))
    files = {(g.kind, g.batch, g.source_len, g.target_len, g.num_beams): g for g in manifest.graphs}

    def encode(bucket: Bucket) -> Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]:
        graph = graphs.get(files["encode", bucket.batch, bucket.source_len, None, None])

        def call(*inputs: Tensor) -> Sequence[Tensor]:
            graph.renew_stacks()
            made: Sequence[Tensor] = graph(*(tensor.to(graphs.device) for tensor in inputs))
            return made

        return call

    def open_step(bucket: Bucket, num_beams: int, constants: Sequence[Tensor]) -> Step:
        graph = graphs.get(files["step", bucket.batch, bucket.source_len, bucket.target_len, num_beams])
        graph.renew_stacks()
        # What the encoder keeps may come out of it too, behind the constants.
        graph.copy_in(dict(zip(graph.constants, constants[: len(graph.constants)], strict=True)))

        def call(*inputs: Tensor) -> Tensor:
            made = graph(*inputs)
            logits: Tensor = made if isinstance(made, Tensor) else made[0]
            return logits

        return call

    lock = threading.Lock()
    return GraphRuntime(
        manifest.buckets, manifest.num_beams, manifest.tokens, encode, open_step, adapters, turn=lambda: lock
    )


class _Graph:
    """One loaded graph and the parameters that it keeps on the device.

    Args:
        trace: As torch_neuronx loads it.
        graph: Which.
        adapters: Whose stacks it has copies of.
    """

    def __init__(self, trace: Any, graph: GraphFile, adapters: AdapterSlots | None) -> None:
        self._trace, self._adapters = trace, adapters
        self._names = [kept.name for kept in graph.kept]
        self.constants = [name for name in self._names if name.startswith(CONSTANT)]
        self._stacks = [name for name in self._names if not name.startswith((STATE, CONSTANT))]
        self._version: int | None = None

    def __call__(self, *inputs: Tensor) -> Any:
        return self._trace(*inputs)

    def kept(self) -> list[Tensor]:
        """What it keeps; asked for anew, for moving a graph to a device replaces its parameters."""
        return list(islice(self._trace.parameters(), len(self._names)))

    def copy_in(self, values: Mapping[str, Tensor]) -> None:
        """Gives kept parameters new values.

        Args:
            values: By name, on the host or on the device.
        """
        for name, tensor in zip(self._names, self.kept(), strict=True):
            if name in values:
                tensor.copy_(values[name])

    def renew_stacks(self) -> None:
        """Copies the adapters' stacks in if another adapter was loaded since."""
        if self._adapters is None or not self._stacks or self._version == self._adapters.version:
            return
        version = self._adapters.version  # before the copy: what is loaded meanwhile is copied next time
        self.copy_in({name: self._adapters.stacks[name] for name in self._stacks})
        self._version = version


class _Graphs:
    """Graphs, each loaded once, onto one core.

    Args:
        artifact: Whose.
        adapters: Of that artifact.
        core: Counted among those that the process sees.
    """

    def __init__(self, artifact: Artifact, adapters: AdapterSlots | None, core: int) -> None:
        manifest = artifact.manifest
        assert manifest.compilation is not None
        self._folder, self._adapters = artifact.path, adapters
        self._core, self._inside = core, manifest.compilation.inline_weights
        self.device = f"neuron:{self._core}"
        self._weights = {} if self._inside else _weights(artifact.path / WEIGHTS, manifest.aliases, adapters)
        self._loaded: dict[str, _Graph] = {}
        self._lock = threading.Lock()

    def get(self, graph: GraphFile) -> _Graph:
        with self._lock:
            if graph.file not in self._loaded:
                self._loaded[graph.file] = self._load(graph)
            return self._loaded[graph.file]

    @torch.inference_mode(False)  # what it keeps is written to by every later batch
    def _load(self, graph: GraphFile) -> _Graph:
        import torch_neuronx

        trace = torch.jit.load(self._folder / graph.file)  # type: ignore[no-untyped-call]
        torch_neuronx.experimental.set_neuron_cores(trace, start_nc=self._core, nc_count=1)
        if not self._inside:
            torch_neuronx.replace_weights(trace, self._weights)
        torch_neuronx.move_trace_to_device(trace, self._core)
        expected = [kept.shape for kept in graph.kept]
        found = [tuple(parameter.shape) for parameter in islice(trace.parameters(), len(expected))]
        if found != expected:
            at = next(i for i, pair in enumerate(zip([*found, None], expected, strict=False)) if pair[0] != pair[1])
            has = found[at] if at < len(found) else "nothing"
            raise ArtifactError(
                f"graphs.kept: {graph.file} keeps {has} where its manifest has {graph.kept[at].name} {expected[at]}",
                "compile again",
            )
        return _Graph(trace, graph, self._adapters)


def _weights(path: Path, aliases: Mapping[str, str], adapters: AdapterSlots | None) -> dict[str, Tensor]:
    """All that any graph has but its state; a graph holds the stacks that only the other kind reads, too."""
    stored = load_file(path)
    stacks = adapters.stacks if adapters is not None else {}
    tensors = {**stored, **{name: stored[other] for name, other in aliases.items()}, **stacks}
    return {MODEL + name: tensor for name, tensor in tensors.items()}


def _check(manifest: Manifest, core: int) -> None:
    here = stack()
    if missing := [name for name in NEEDED if here[name] is None]:
        raise PlatformError(
            f"target: compiled for {manifest.target}, and this machine has no {' and no '.join(missing)}",
            f"run it on an {manifest.target} instance with the Neuron SDK, or compile with --target cpu",
        )
    manifest.check_stack(here)
    check_family(manifest)
    fewer = max((visible_cores() or 1) - 1, 0)
    check_cores(
        core,
        1,
        f"compilation.core is {core}, counted from 0",
        f"compile.neuron.core={fewer} or less, or more cores in {VISIBLE}",
    )
