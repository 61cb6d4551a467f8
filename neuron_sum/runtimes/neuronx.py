"""Runtime for inf2 and trn1 artifacts: graphs of T5 from neuronx-distributed's ModelBuilder, with state on the device.

Every graph is an NxDModel, loaded from its file. All of them share one set of tensors on the device, by name: weights,
adapter stacks, and buffers with the rows of the largest batch, of which a step reads the first ones. A graph that
assigns a buffer updates the tensor that others read, so that nothing is copied between encode and the steps, and encode
of a few prompts can write into rows of a running batch. Self-attention keys and values are not cleared: values of an
earlier summary are masked until they are overwritten.

Calls are asynchronous, because only then do outputs stay on the device until they are read (NxDModel.forward): the host
reads the candidates of a step, and the logits only in a fallback.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from neuron_sum.artifact import WEIGHTS, Artifact, Bucket, GraphFile, Manifest
from neuron_sum.errors import ArtifactError, PlatformError
from neuron_sum.platform.machine import package_version
from neuron_sum.runtimes.device import check_family, take_cores
from neuron_sum.runtimes.graphs import Encode, GraphRuntime
from neuron_sum.runtimes.slots import AdapterSlots, load_slots
from neuron_sum.runtimes.state import Array, Result, Step
from neuron_sum.runtimes.weights import MODEL

STATE, CONSTANT = "state_", "constants_"
"""The starts of the names of buffers: of a batch's self-attention, and of what encode computes for its steps."""
CHECKED = (0, 1)
"""Token ids of dialogues, and values of buffers and of adapters, for which the results must differ."""
REPORT = "report the output of `neuron-sum compile report ARTIFACT`"
NEEDED = ("torch-neuronx", "neuronx-cc", "neuronx-distributed")
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
        ArtifactError: If the artifact was compiled for other versions or another device.
        PlatformError: If this machine has no Neuron packages, or no free core.
        ModelError: If an adapter in the artifact does not fit its slots.
    """
    manifest = artifact.manifest
    graphs, adapters = _open(artifact)
    files = {(g.kind, g.batch, g.source_len, g.target_len, g.num_beams, g.steps): g for g in manifest.graphs}

    def encode(bucket: Bucket) -> Encode:
        graph = graphs.get(files["encode", bucket.batch, bucket.source_len, None, None, 1])

        def call(ids: Array, mask: Array, slot: Array, rows: Array) -> Sequence[Result]:
            graphs.renew_stacks()
            graph.run_arrays(input_ids=ids, attention_mask=mask, rows=rows, slot=slot)
            return ()  # the results are in the buffers

        return call

    def step(bucket: Bucket, num_beams: int, steps: int) -> _Graph:
        return graphs.get(files["step", bucket.batch, bucket.source_len, bucket.target_len, num_beams, steps])

    lock = threading.Lock()
    return GraphRuntime(
        manifest.buckets,
        manifest.num_beams,
        manifest.tokens,
        encode,
        _DeviceState(step),
        adapters,
        turn=lambda: lock,
        greedy_steps=manifest.greedy_steps,
    )


@dataclass(frozen=True)
class _DeviceState:
    """A `BatchState` in the buffers, which are the same for every batch.

    Attributes:
        graph: A function of bucket, beam width and number of steps that returns the step graph.
    """

    graph: "Callable[[Bucket, int, int], _Graph]"

    def __call__(self, bucket: Bucket, num_beams: int, constants: Sequence[Result] = ()) -> Step:
        """See `BatchState`."""
        return lambda tokens, position, ancestors, slot, steps: self.graph(bucket, num_beams, steps).run_arrays(
            tokens=tokens, position=position, ancestors=ancestors, slot=slot
        )

    def rows(self, largest: Bucket, num_beams: int, source_lens: Sequence[int]) -> "_DeviceRows":
        """See `BatchState`."""
        return _DeviceRows(self, num_beams)


@dataclass(frozen=True)
class _DeviceRows:
    """See `Rows`. Encode has written the constants, and every row has room for the longest prompt."""

    state: _DeviceState
    num_beams: int
    move: ClassVar[None] = None
    """No graph copies the keys and values of a row."""

    def write(self, rows: Sequence[int], constants: Sequence[Result], encoded_len: int, source_len: int) -> None:
        """See `Rows`."""

    def resize(self, count: int, old: int, new: int) -> None:
        """See `Rows`."""

    def step(self, bucket: Bucket) -> Step:
        """See `Rows`."""
        return self.state(bucket, self.num_beams)


@contextmanager
def device_tensors(artifact: Artifact) -> Iterator[Mapping[str, Tensor]]:
    """All graphs of an artifact, loaded for the duration of a block; the tensors on the device by name.

    Args:
        artifact: The artifact.

    Raises:
        NeuronSumError: As `load`.
    """
    graphs, _ = _open(artifact)
    for graph in artifact.manifest.graphs:
        graphs.get(graph)
    yield graphs._tensors


def _open(artifact: Artifact) -> "tuple[_Graphs, AdapterSlots | None]":
    """The graphs of an artifact, not loaded yet, and its adapter slots; takes a core."""
    _check(artifact.manifest)
    adapters, _ = load_slots(artifact)
    take_cores(1)
    return _Graphs(artifact, adapters), adapters


class _OnDevice:
    """An output that is read from the device by np.asarray()."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self.shape = tensor, tensor.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self._tensor.cpu().numpy()


class _Graph:
    """One loaded graph.

    Args:
        model: Its NxDModel.
        entry: Its entry in the manifest.
    """

    def __init__(self, model: Any, entry: GraphFile) -> None:
        self.model, self.entry = model, entry
        [self._name] = model.get_available_keys()
        described = model.get_metaneff(self._name).input_tensors
        kinds = type(described[0]).Type
        self._inputs = [each.user_input_key.decode() for each in described if each.type == kinds.USER_INPUT]
        self.tensors = {
            each.checkpoint_key.decode(): tuple(each.shape)
            for each in described
            if each.type in (kinds.INPUT_WEIGHT, kinds.INPUT_STATE)
        }

    def run(self, **inputs: Tensor) -> list[Tensor]:
        """Run the graph with those of the inputs that it has; its outputs stay on the device until they are read."""
        ranked = {name: [inputs[name]] for name in self._inputs}
        outputs = list(chain(*self.model(**ranked, forward_mode="async")))
        if self.entry.kind == "encode":
            outputs[0].cpu()  # nobody else waits for the buffers that it writes
        return outputs

    @torch.inference_mode()
    def run_arrays(self, **inputs: Array) -> list[_OnDevice]:
        """The same with arrays."""
        outputs = self.run(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return [_OnDevice(output) for output in outputs]

    def run_example(self, token: int = 1, row: int | None = None) -> list[Tensor]:
        """Run the graph with inputs of its shape, all ones, thus with the first adapter slot.

        Args:
            token: The id of all tokens of the dialogues, for encode.
            row: The row that encode writes. Default: the first ones, which a step of the same shape reads.
        """
        ones = map(torch.ones_like, self.model.reserved_example_inputs[self._name])
        inputs = dict(zip(self._inputs, ones, strict=True))
        if "input_ids" in inputs:
            inputs["input_ids"] *= token  # the mask stays
            batch = torch.arange(len(inputs["rows"]))
            inputs["rows"] = batch if row is None else torch.full_like(batch, row)
        return self.run(**inputs)

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into tensors on the device, which all graphs share."""
        for name, value in values.items():
            self.model.write_to_neuron_buffer(value, name, 0)


class _Graphs:
    """The graphs of an artifact, each loaded once, and the tensors on the device that they share.

    Args:
        artifact: The artifact.
        adapters: The adapter slots of the artifact.
    """

    def __init__(self, artifact: Artifact, adapters: AdapterSlots | None) -> None:
        self._artifact, self._adapters = artifact, adapters
        self._tensors: dict[str, Tensor] = {}
        self._loaded: dict[str, _Graph] = {}
        self._version: int | None = None
        self._lock = threading.Lock()

    def get(self, graph: GraphFile) -> _Graph:
        """A graph; the first call loads it."""
        with self._lock:
            if graph.file not in self._loaded:
                first = self._artifact.manifest.graphs[0]  # only it can convert the weights to the layout of all graphs
                # A step reads the buffers that encode of its shape writes.
                needed = {each.file: each for each in (first, self._encode_of(first), self._encode_of(graph), graph)}
                opened = [self._open(each) for file, each in needed.items() if file not in self._loaded]
                for loaded in sorted(opened, key=lambda each: each.entry.kind):  # steps are checked with their encode
                    self._start(loaded)
            return self._loaded[graph.file]

    def renew_stacks(self) -> None:
        """Copy the adapter stacks to the device if an adapter was loaded since the last copy."""
        if self._adapters is None or self._version == self._adapters.version:
            return
        version = self._adapters.version  # read before the copy, so that adapters loaded during it are copied next time
        graph = next(iter(self._loaded.values()))
        graph.write({name: stack for name, stack in self._stacks().items() if name in self._tensors})
        self._version = version

    def _stacks(self) -> dict[str, Tensor]:
        return {MODEL + name: stack for name, stack in self._adapters.stacks.items()} if self._adapters else {}

    def _encode_of(self, graph: GraphFile) -> GraphFile:
        shape = (graph.batch, graph.source_len)
        graphs = self._artifact.manifest.graphs
        return next(each for each in graphs if each.kind == "encode" and (each.batch, each.source_len) == shape)

    @torch.inference_mode(False)  # every later batch writes to the buffers
    def _open(self, graph: GraphFile) -> _Graph:
        """Read a graph, and move those of its weights and buffers to the device that are not there."""
        import torch_neuronx  # noqa: F401  (before neuronx-distributed, which imports modules of it)
        from neuronx_distributed import NxDModel

        model = NxDModel.load(str(self._artifact.path / graph.file))
        if not isinstance(model, NxDModel):  # upstream only warns
            raise ArtifactError(
                f"{graph.file}: neuronx-distributed {stack()['neuronx-distributed']} cannot read it", "compile again"
            )
        opened, stored = _Graph(model, graph), {**self._stored, **self._stacks()}
        # Only weights that the graph reads: the first one converts them, and knows no others.
        if needed := {n: stored[n] for n in opened.tensors if n in stored and n not in self._tensors}:
            model.set_weights([needed])
        elif model.state_initializer is not None:
            model.states = model.state_initializer()
        for tensors in (*model.weights, *model.states):
            for name, tensor in tensors.items():
                self._tensors.setdefault(name, tensor)
        return opened

    @cached_property
    def _stored(self) -> dict[str, Tensor]:
        """The weights in the artifact, by the names in the graphs."""
        stored = load_file(self._artifact.path / WEIGHTS)
        aliases = {name: stored[other] for name, other in self._artifact.manifest.aliases.items()}
        return {MODEL + name: tensor for name, tensor in {**stored, **aliases}.items()}

    @torch.inference_mode(False)
    def _start(self, graph: _Graph) -> None:
        """Give a graph the tensors on the device, and verify that it uses them."""
        self._check_tensors(graph)
        # A graph that only reads a buffer may count it as a weight.
        graph.model.weights, graph.model.states = [self._tensors], [self._tensors]
        graph.model.to_neuron()
        self._check_results(graph)
        self._loaded[graph.entry.file] = graph

    def _check_tensors(self, graph: _Graph) -> None:
        """Raise if the graph needs a tensor that does not exist, or a buffer of another shape."""
        for name, shape in graph.tensors.items():
            found = tuple(self._tensors[name].shape) if name in self._tensors else None
            if found is None or (found != shape and name.startswith((STATE, CONSTANT))):
                raise ArtifactError(
                    f"{graph.entry.file} needs {name} {shape}, but the artifact has {found or 'no such tensor'}",
                    f"compile again; if that does not help, {REPORT}",
                )

    def _check_results(self, graph: _Graph) -> None:
        """Run the graph with different dialogues, and different values in its buffers and adapters, which it keeps.

        Reading a tensor back is not sufficient: on other devices, values that were copied into a loaded graph's tensors
        could be read back while the graph computed with the old ones.

        Raises:
            ArtifactError: If the results do not depend on the dialogues, on the encoder's outputs, or on the adapters,
                or encode writes other rows.
        """
        is_step = graph.entry.kind == "step"
        encode = self._loaded[self._encode_of(graph.entry).file] if is_step else graph
        constants = [name for name in encode.tensors if name.startswith(CONSTANT)]
        state = [name for name in graph.tensors if name.startswith(STATE)]
        stacks = [name for name in self._stacks() if name in graph.tensors]
        before = {name: self._tensors[name].cpu().clone() for name in [*constants, *state, *stacks]}

        def copy(names: Sequence[str], value: int) -> None:
            graph.write({name: torch.full_like(before[name], value) for name in names})
            if not is_step:
                graph.run_example()

        changes: dict[str, Callable[[int], object]] = {"the dialogues that encode reads": encode.run_example}
        if is_step:
            changes["the encoder's outputs that are copied to the device"] = partial(copy, constants)
        if stacks:
            changes["adapters that are copied to the device"] = partial(copy, stacks)
        for what, change in changes.items():
            results = []
            try:
                for value in CHECKED:
                    change(value)
                    written = graph.run_example() if is_step else [self._tensors[name] for name in constants]
                    results.append([tensor.cpu().clone().nan_to_num() for tensor in written])
            finally:
                graph.write(before)
            if all(torch.equal(one, other) for one, other in zip(*results, strict=True)):
                raise ArtifactError(
                    f"{graph.entry.file}: the results do not depend on {what}: all dialogues, or all adapters, would "
                    "have the same summary",
                    f"use --target cpu, and {REPORT}",
                )
        if not is_step:
            self._check_rows(graph, {name: before[name] for name in constants})

    def _check_rows(self, encode: _Graph, before: Mapping[str, Tensor]) -> None:
        """Raise if encode does not write the row that it is given, or writes others, which a batch may use.

        Args:
            encode: The graph.
            before: The values of its buffers, which are restored.
        """
        last = len(next(iter(before.values()))) - 1
        try:
            encode.write({name: torch.zeros_like(tensor) for name, tensor in before.items()})
            encode.run_example(row=last)
            written = [self._tensors[name].cpu() != 0 for name in before]
            if any(tensor[:last].any() for tensor in written) or not any(tensor[last].any() for tensor in written):
                raise ArtifactError(
                    f"{encode.entry.file}: it writes other rows than those it is given: a dialogue that joins a batch "
                    "would change the other summaries",
                    f"use another compile.neuron.cache_write, and {REPORT}",
                )
        finally:
            encode.write(before)


def _check(manifest: Manifest) -> None:
    installed = stack()
    if missing := [name for name in NEEDED if installed[name] is None]:
        raise PlatformError(
            f"target: compiled for {manifest.target}, but this machine has no {' and no '.join(missing)}",
            f"run it on an {manifest.target} instance with the Neuron SDK, or compile with --target cpu",
        )
    manifest.check_stack(installed)
    if manifest.compilation is None or manifest.compilation.rows is None:
        raise ArtifactError(
            "compilation.rows: compiled by an earlier version, whose graphs do not share the rows of a batch",
            "compile again",
        )
    check_family(manifest)
