"""Runtime for inf2 and trn1 artifacts: graphs of T5 from torch_neuronx.trace, with their state on the device.

Every graph stores its state in parameters, which come first in its `parameters()`, in the order of tracing. A batch
starts by copying the encoder's outputs into the parameters of the step graph, as optimum-neuron 0.4.5 does
(neuron/modeling_seq2seq.py, generate). The inputs of a graph are moved to the device first, because then its outputs
also stay there (AWS Neuron documentation, "Direct HBM Tensor Allocation"). Self-attention keys and values are not
cleared: values of an earlier batch are masked until they are overwritten.
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
"""Prefixes of the names of kept tensors other than adapter stacks; see DeviceStep in compile/targets/neuron.py."""
CANDIDATES = 4
"""Outputs of a step before its kept tensors; see compile/graphs/selection.py."""
CHECKED = (0.0, 1.0)
"""The values of kept parameters for which the results must differ."""
REPORT = "report the output of `neuron-sum compile report ARTIFACT`"
NEEDED = ("torch-neuronx", "neuronx-cc")
"""Distributions that only the AWS Neuron package index has."""


def stack() -> dict[str, str | None]:
    """The versions that a compiled graph requires; None for packages that are not installed."""
    return {
        "torch": torch.__version__.partition("+")[0],
        **{name: (package_version(name) or "").partition("+")[0] or None for name in NEEDED},
    }


def load(artifact: Artifact) -> GraphRuntime:
    """Load the runtime of an artifact; each graph is loaded when it is first used.

    Raises:
        ArtifactError: If the artifact was compiled for other versions, another device, or a missing core.
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

        def call(ids: Tensor, mask: Tensor, slot: Tensor) -> Sequence[Tensor]:
            graph.renew_stacks()
            return graph.run(ids, mask, *([slot] if graph.has_slots else []))

        return call

    def open_step(bucket: Bucket, num_beams: int, constants: Sequence[Tensor]) -> Step:
        graph = graphs.get(files["step", bucket.batch, bucket.source_len, bucket.target_len, num_beams])
        graph.renew_stacks()
        # The encoder may also return its kept tensors, after the constants.
        graph.copy_in(dict(zip(graph.constants, constants[: len(graph.constants)], strict=True)))

        def call(tokens: Tensor, position: Tensor, ancestors: Tensor, slot: Tensor) -> Sequence[Tensor]:
            needed = [(ancestors, num_beams > 1), (slot, graph.has_slots)]
            return graph.run(tokens, position, *(tensor for tensor, is_needed in needed if is_needed))[:CANDIDATES]

        return call

    lock = threading.Lock()
    return GraphRuntime(
        manifest.buckets, manifest.num_beams, manifest.tokens, encode, open_step, adapters, turn=lambda: lock
    )


class _Graph:
    """One loaded graph and its parameters on the device.

    Args:
        trace: The module loaded by torch_neuronx.
        graph: The entry of the manifest.
        adapters: The adapter slots that the graph has copies of.
        results: The number of outputs; the next values of the kept parameters may follow them.
        device: The name of its device.
    """

    def __init__(self, trace: Any, graph: GraphFile, adapters: AdapterSlots | None, results: int, device: str) -> None:
        self._trace, self._graph, self._adapters = trace, graph, adapters
        self._results, self._device = results, device
        self._names = [kept.name for kept in graph.kept]
        self.constants = [name for name in self._names if name.startswith(CONSTANT)]
        self._stacks = [name for name in self._names if not name.startswith((STATE, CONSTANT))]
        self._version: int | None = None

    @property
    def has_slots(self) -> bool:
        """Whether the graph reads adapters, and the slot of each example."""
        return bool(self._stacks)

    def run(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Run the graph. From inputs on the device come outputs on the device, and only what is read is transferred."""
        outputs: Sequence[Tensor] = self._trace(*(tensor.to(self._device) for tensor in inputs))
        return outputs

    def kept(self) -> list[Tensor]:
        """The kept parameters; read at every call, because moving a graph to a device replaces its parameters."""
        return list(islice(self._trace.parameters(), len(self._names)))

    def copy_in(self, values: Mapping[str, Tensor]) -> None:
        """Copy new values into kept parameters.

        Args:
            values: Tensors by name, on the host or on the device.
        """
        for name, tensor in zip(self._names, self.kept(), strict=True):
            if name in values:
                tensor.copy_(values[name])

    def check_copies(self) -> None:
        """Run the graph with different values in its kept parameters, which are overwritten later.

        Reading a parameter back is no evidence: on other devices, copies into a loaded graph's parameters could be read
        back while the graph computed with the old values.

        Raises:
            ArtifactError: If the results do not depend on the encoder's outputs, or not on the adapters.
        """
        for what, names in (("the encoder's outputs", self.constants), ("adapters", self._stacks)):
            results = []
            for value in CHECKED if names else ():
                kept = dict(zip(self._names, self.kept(), strict=True))
                self.copy_in({name: torch.full_like(kept[name], value, device="cpu") for name in names})
                results.append([output.cpu() for output in self.run(*self._example_inputs())[: self._results]])
            if results and all(torch.equal(one, other) for one, other in zip(*results, strict=True)):
                raise ArtifactError(
                    f"{self._graph.file}: the graph ignores {what} that are copied into its parameters: all "
                    "dialogues, or all adapters, would have the same summary",
                    f"use --target cpu, and {REPORT}",
                )

    def _example_inputs(self) -> list[Tensor]:
        """Inputs of the graph's shape, with the first adapter slot."""
        graph = self._graph
        ids = torch.ones(graph.batch, graph.source_len, dtype=torch.int64)
        inputs = [ids, ids]
        if graph.kind == "step":
            beams, target_len = graph.num_beams or 1, graph.target_len or 1
            inputs = [ids[:, :1].expand(-1, beams).contiguous(), torch.zeros(1, dtype=torch.int64)]
            if beams > 1:
                inputs.append(torch.zeros(graph.batch, beams, target_len, dtype=torch.int64))
        return [*inputs, *([ids[:, 0].contiguous()] if self.has_slots else [])]

    def renew_stacks(self) -> None:
        """Copy the adapter stacks to the device if an adapter was loaded since the last copy."""
        if self._adapters is None or not self._stacks or self._version == self._adapters.version:
            return
        version = self._adapters.version  # read before the copy, so that adapters loaded during it are copied next time
        self.copy_in({name: self._adapters.stacks[name] for name in self._stacks})
        self._version = version


class _Graphs:
    """The graphs of an artifact, each loaded once onto one core.

    Args:
        artifact: The artifact.
        adapters: The adapter slots of the artifact.
        core: The index of the core among the visible cores.
    """

    def __init__(self, artifact: Artifact, adapters: AdapterSlots | None, core: int) -> None:
        manifest = artifact.manifest
        assert manifest.compilation is not None
        self._folder, self._adapters = artifact.path, adapters
        self._core, self._inline_weights = core, manifest.compilation.inline_weights
        self.device = f"neuron:{self._core}"
        assert manifest.state is not None
        self._constants = 1 + manifest.state.tensors
        self._weights = {} if self._inline_weights else _weights(artifact.path / WEIGHTS, manifest.aliases, adapters)
        self._loaded: dict[str, _Graph] = {}
        self._lock = threading.Lock()

    def get(self, graph: GraphFile) -> _Graph:
        with self._lock:
            if graph.file not in self._loaded:
                self._loaded[graph.file] = self._load(graph)
            return self._loaded[graph.file]

    @torch.inference_mode(False)  # every later batch writes to the kept parameters
    def _load(self, graph: GraphFile) -> _Graph:
        import torch_neuronx

        trace = torch.jit.load(self._folder / graph.file)  # type: ignore[no-untyped-call]
        torch_neuronx.experimental.set_neuron_cores(trace, start_nc=self._core, nc_count=1)
        if not self._inline_weights:
            torch_neuronx.replace_weights(trace, self._weights)
            _check_weights(trace, graph.file)
        torch_neuronx.move_trace_to_device(trace, self._core)
        expected = [kept.shape for kept in graph.kept]
        found = [tuple(parameter.shape) for parameter in islice(trace.parameters(), len(expected))]
        if found != expected:
            at = next(i for i, pair in enumerate(zip([*found, None], expected, strict=False)) if pair[0] != pair[1])
            shape = found[at] if at < len(found) else "nothing"
            raise ArtifactError(
                f"graphs.kept: {graph.file} has {shape} instead of {graph.kept[at].name} {expected[at]}",
                "compile again",
            )
        results = CANDIDATES if graph.kind == "step" else self._constants
        loaded = _Graph(trace, graph, self._adapters, results, self.device)
        loaded.check_copies()
        return loaded


def _check_weights(trace: Any, file: str) -> None:
    """Raise if a placeholder of compilation remains: one number that is repeated, where a weight belongs."""
    remaining = [
        name
        for name, tensor in [*trace.named_parameters(), *trace.named_buffers()]
        if tensor.numel() > 1 and not any(tensor.stride())
    ]
    if remaining:
        raise ArtifactError(
            f"{file}: torch_neuronx.replace_weights left {len(remaining)} weights at zero, such as {remaining[0]}",
            f"compile again with `--set compile.neuron.inline_weights=true`, and {REPORT}",
        )


def _weights(path: Path, aliases: Mapping[str, str], adapters: AdapterSlots | None) -> dict[str, Tensor]:
    """All tensors of the graphs except the state; each graph also gets the stacks that only the other kind reads."""
    stored = load_file(path)
    stacks = adapters.stacks if adapters is not None else {}
    tensors = {**stored, **{name: stored[other] for name, other in aliases.items()}, **stacks}
    return {MODEL + name: tensor for name, tensor in tensors.items()}


def _check(manifest: Manifest, core: int) -> None:
    installed = stack()
    if missing := [name for name in NEEDED if installed[name] is None]:
        raise PlatformError(
            f"target: compiled for {manifest.target}, but this machine has no {' and no '.join(missing)}",
            f"run it on an {manifest.target} instance with the Neuron SDK, or compile with --target cpu",
        )
    manifest.check_stack(installed)
    check_family(manifest)
    last = max((visible_cores() or 1) - 1, 0)
    check_cores(
        core,
        1,
        f"compilation.core is {core} (the first core is 0)",
        f"compile again with compile.neuron.core={last} or lower, or set more cores in {VISIBLE}",
    )
