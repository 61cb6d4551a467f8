"""The inf2 and trn1 targets: static T5 graphs, traced with torch_neuronx.trace, which calls neuronx-cc.

A step's state never leaves the device: self-attention keys and values, encoder outputs and adapter stacks are
parameters that are both inputs and outputs (input_output_aliases), as in optimum-neuron 0.4.5's exporter
(exporters/neuron/model_configs.py, generate_io_aliases). Only the keys and values change; the others pass through.
Weights stay outside the compiled graph, so that the next checkpoint of the same shape needs no compilation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from compile.graphs.kv_cache import write_scatter, write_where
from compile.graphs.layers import Linear, frozen
from compile.graphs.selection import candidates, select
from compile.graphs.static import EncodeGraph, StaticModel, StepGraph, adapter_stacks, state_spec
from compile.graphs.t5 import StaticT5
from neuron_sum.artifact import Compilation, GraphFile, KeptTensor
from neuron_sum.errors import CompileError, PlatformError, RecipeError
from neuron_sum.models.base import is_decoder_only
from neuron_sum.platform.machine import neuron_devices, total_memory
from neuron_sum.platform.matrix import INSTANCES, NEURON_INDEX, PLATFORMS, platform_row
from neuron_sum.recipes.schema import CacheWrite, CompileConfig
from neuron_sum.runtimes import neuronx

COMPILER = "neuronx-cc"
PROCESS_BYTES = 16e9
"""Memory per compiler process: not documented, but it was killed on hosts of 16 GB (aws-neuron-samples#10)."""
MORE_MEMORY = 1.2
"""An instance with this many times the memory of this machine is suggested."""


@dataclass(frozen=True)
class NeuronTarget:
    """See `compile.targets.base.Target`."""

    settings: CompileConfig

    suffix: ClassVar[str] = ".pt"
    sources: ClassVar[tuple[str, ...]] = ("targets/neuron.py",)
    shares_process: ClassVar[bool] = False
    """neuronx-cc takes minutes per graph, and whether a traced graph keeps device memory is not tested."""

    @property
    def weights_inside(self) -> bool:
        """See `Target`."""
        return self.settings.neuron.inline_weights

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of neuronx-cc, in the order of optimum-neuron's prepare_compiler_flags."""
        options = self.settings.neuron
        cast = () if options.auto_cast == "none" else ("--auto-cast-type", options.auto_cast_type)
        return (
            "--auto-cast",
            options.auto_cast,
            *cast,
            "--optlevel",
            str(options.optlevel),
            "--target",
            self.settings.target,
            "--model-type",
            "transformer",
        )

    def check(self, config: PretrainedConfig) -> None:
        """See `Target`."""
        options = self.settings.neuron
        if is_decoder_only(config) or options.exporter == "optimum":
            raise RecipeError(
                f"a {config.model_type} with compile.neuron.exporter = {options.exporter or 'own'}: the static graphs "
                f"for {self.settings.target} support only T5 with exporter own",
                "use `--set compile.neuron.exporter=own` for T5, or `--target cpu` for the others",
            )
        if options.tensor_parallel_size != 1:
            raise RecipeError(
                f"compile.neuron.tensor_parallel_size = {options.tensor_parallel_size}: T5's graphs run on one core",
                "use `--set compile.neuron.tensor_parallel_size=1`, and several workers for several cores",
            )
        missing = [name for name in neuronx.NEEDED if neuronx.stack().get(name) is None]
        if missing:
            row = PLATFORMS[0]
            image = row.registry_images[0]
            pins = " ".join(f"{name}=={row.vendor_pins[name]}" for name in neuronx.NEEDED)
            raise PlatformError(
                f"compile.target = {self.settings.target} needs packages that this machine lacks: {', '.join(missing)}",
                f"use a Neuron image (SDK {row.neuron_sdk}: {image.repository}:{image.tag}), or run `pip install "
                f"--extra-index-url={NEURON_INDEX} {pins}` on any x86 host; a Neuron device is not needed. "
                "Or use --target cpu to compile for this machine",
            )

    def graph_options(self) -> dict[str, Any]:
        """See `Target`."""
        return {"linear": Linear, "write": WRITES[self.settings.neuron.cache_write], "row_sums": False}

    def device_tensors(self, model: StaticModel, graph: GraphFile) -> tuple[KeptTensor, ...]:
        """See `Target`."""
        return tuple(
            KeptTensor(name=name, shape=tuple(tensor.shape))
            for name, tensor in device_graph(model, graph).device_tensors()
        )

    def identity(self) -> dict[str, Any]:
        """See `Target`."""
        return {"stack": neuronx.stack(), "arguments": self.arguments}

    def manifest(self) -> dict[str, Any]:
        """See `Target`."""
        stack, options = neuronx.stack(), self.settings.neuron
        versions = {name: stack[name] for name in neuronx.NEEDED}
        compilation = Compilation(
            compiler=stack[COMPILER] or "",
            arguments=self.arguments,
            exporter="own",
            cache_write=options.cache_write,
            inline_weights=options.inline_weights,
            tensor_parallel_size=options.tensor_parallel_size,
            core=options.core,
            sdk=platform_row(versions),
        )
        return {"runtime": "neuronx", "target": self.settings.target, "stack": stack, "compilation": compilation}

    def process_bytes(self, parameters: int) -> float:
        """See `Target`."""
        return PROCESS_BYTES + parameters * 4

    def seconds(self, layers: int, graphs: int) -> float | None:
        """See `Target`."""
        return None

    def memory_advice(self) -> str:
        """See `Target`."""
        least = "use --jobs 1, which needs the least memory"
        return larger_host(least) or "use --jobs 1, smaller buckets, or `--set compile.neuron.optlevel=1`"

    def compile_graph(
        self, model: StaticModel, graph: GraphFile, weights: Mapping[str, Tensor] | None, path: Path
    ) -> None:
        """See `Target`."""
        import torch_neuronx

        module = device_graph(model, graph)
        _fill(module.model, weights)
        try:
            with torch.no_grad():
                traced = torch_neuronx.trace(
                    module.eval(),
                    module.example_inputs(),
                    input_output_aliases=aliases(module),
                    compiler_workdir=str(path.parent / COMPILER),
                    compiler_args=" ".join(self.arguments),
                    inline_weights_to_neff=self.weights_inside,
                    cpu_backend=neuron_devices() == 0,
                )
        except RuntimeError as error:
            raise CompileError(f"{graph.file}: {error}") from error
        if not self.weights_inside:
            # Otherwise each graph's file would contain a copy of all weights; loading inserts the real ones.
            torch_neuronx.replace_weights(
                traced,
                {name: torch.zeros((), dtype=t.dtype).expand(t.shape) for name, t in module.state_dict().items()},
            )
        torch.jit.save(traced, path)  # type: ignore[no-untyped-call]


def larger_host(advice: str) -> str:
    """Other advice, then the smallest instance with clearly more memory than this machine; empty without one."""
    larger = [host for host in INSTANCES.values() if host.host_memory > MORE_MEMORY * total_memory()]
    if not larger:
        return ""
    host = min(larger, key=lambda instance: instance.host_gib)
    return f"{advice}; or use a {host.name}, which has {host.host_gib} GiB of host memory"


class DeviceEncode(nn.Module):
    """The module that is traced for `encode`.

    Args:
        model: The static model.
        graph: The shape of the graph.
    """

    def __init__(self, model: StaticT5, graph: GraphFile) -> None:
        super().__init__()
        self.graph, self.model = graph, model
        self.stacks = _stack_names(model, encode=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, slot: Tensor | None = None) -> list[Tensor]:
        """The constants of `StaticT5.encode`, then the kept tensors."""
        if slot is None:
            slot = torch.zeros_like(input_ids[:, 0])
        constants = self.model.encode(input_ids, attention_mask, slot)
        return [*constants, *_tensors(self.model, self.stacks)]

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Inputs of the graph's shape; without adapters no slot, because a graph must use all of its inputs."""
        ids, mask, slot = EncodeGraph(self.model).example_inputs(self.graph)
        return (ids, mask, slot) if self.stacks else (ids, mask)

    @property
    def results(self) -> int:
        """The number of outputs that are returned to the caller; the others are the next values of the kept tensors."""
        return 1 + state_spec(self.model).tensors

    def device_tensors(self) -> list[tuple[str, Tensor]]:
        """Names and values of the parameters that stay on the device, in the order of `parameters()`."""
        return list(zip(self.stacks, _tensors(self.model, self.stacks), strict=True))


class DeviceStep(nn.Module):
    """The module that is traced for `step`. State and constants come before the model: loading relies on the order.

    Args:
        model: The static model.
        graph: The shape of the graph.
    """

    results = 4

    def __init__(self, model: StaticT5, graph: GraphFile) -> None:
        super().__init__()
        self.tokens, self.position, self.ancestors, self.slot, constants, state = StepGraph(model).example_inputs(graph)
        self.state = nn.ParameterList(frozen(tensor) for tensor in state)
        self.constants = nn.ParameterList(frozen(tensor) for tensor in constants)
        self.model, self.stacks = model, _stack_names(model, encode=False)

    def forward(self, tokens: Tensor, position: Tensor, *others: Tensor) -> list[Tensor]:
        """The candidates, then the next values of the kept tensors: the cache with a new column, others unchanged."""
        remaining = list(others)
        ancestors = remaining.pop(0) if self.has_beams else torch.zeros_like(self.ancestors, device=tokens.device)
        slot = remaining.pop(0) if self.stacks else torch.zeros_like(tokens[:, 0])
        state, constants = list(self.state), list(self.constants)
        logits = self.model.step(tokens, position, ancestors, slot, constants, state)
        return [*select(logits, candidates(tokens.shape[1])), *state, *constants, *_tensors(self.model, self.stacks)]

    @property
    def has_beams(self) -> bool:
        """Whether there is an order of beams, which a single one does not need."""
        return self.ancestors.shape[1] > 1

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Inputs of the graph's shape: tokens, position, of several beams ancestors, of adapters slots."""
        needed = [(self.ancestors, self.has_beams), (self.slot, bool(self.stacks))]
        return self.tokens, self.position, *(tensor for tensor, is_needed in needed if is_needed)

    def device_tensors(self) -> list[tuple[str, Tensor]]:
        """See `DeviceEncode.device_tensors`."""
        outside = [(name, tensor) for name, tensor in self.named_parameters() if not name.startswith("model.")]
        return [*outside, *zip(self.stacks, _tensors(self.model, self.stacks), strict=True)]


def device_graph(model: StaticModel, graph: GraphFile) -> DeviceEncode | DeviceStep:
    """The module that is traced for a graph."""
    assert isinstance(model, StaticT5)
    return DeviceEncode(model, graph) if graph.kind == "encode" else DeviceStep(model, graph)


def aliases(module: DeviceEncode | DeviceStep) -> dict[Tensor, int]:
    """torch_neuronx's input_output_aliases: the output index of each parameter that stays on the device."""
    return {tensor: module.results + index for index, (_, tensor) in enumerate(module.device_tensors())}


def write_slice(cache: Tensor, column: Tensor, position: Tensor) -> Tensor:
    """`layers.write_column` as one XLA dynamic-update-slice, which no torch operator lowers to.

    Called as in optimum-neuron 0.4.5 for a run-time index (models/inference/backend/modules/kvcache/utils.py).
    """
    from torch_neuronx.xla_impl.ops import xla_hlo_call

    @xla_hlo_call  # type: ignore[untyped-decorator]
    def update(cache: Any, column: Any, *starts: Any) -> Any:
        return cache.dtype[cache.sizes].DynamicUpdateSlice(cache, column, *starts)

    row = (position * column.shape[2]).to(torch.int32).squeeze(0)
    zero = torch.zeros_like(row)
    updated: Tensor = update(cache, column.to(cache.dtype), zero, zero, row, zero)
    return updated


WRITES: dict[CacheWrite, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "in_place": write_slice,
    "scatter": write_scatter,
    "where": write_where,
}
"""The functions of compile.neuron.cache_write."""


def _stack_names(model: StaticT5, *, encode: bool) -> list[str]:
    """The adapter stacks that one kind of graph reads, in the order of `parameters()`."""
    stacks = adapter_stacks(model).keys()
    return [
        name
        for name, _ in model.named_parameters()
        if name in stacks and name.startswith(StaticT5.ENCODE_NAMES) == encode
    ]


def _tensors(model: StaticT5, names: list[str]) -> list[Tensor]:
    """The named parameters, looked up at every use because moving a module to a device replaces them."""
    return [attrgetter(name)(model) for name in names]


def _fill(model: StaticT5, weights: Mapping[str, Tensor] | None) -> None:
    """Fills a model with its weights, or with zeros if they stay outside; position tables are always filled."""
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    model.load_state_dict({**zeros, **model.tables(), **(weights or {})}, assign=True)
