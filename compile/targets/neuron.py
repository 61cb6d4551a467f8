"""The inf2 and trn1 targets: static T5 graphs through neuronx-distributed's ModelBuilder, which calls neuronx-cc.

Weights and adapter stacks are separate from the graphs and shared by all of them, so that the next checkpoint of the
same shape needs no compilation. The traced modules, and the state of a batch on the device: device_graphs.py.
"""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from compile.graphs.layers import Linear
from compile.graphs.static import StaticModel
from compile.graphs.t5 import StaticT5
from compile.targets.device_graphs import WRITES, DeviceStep, device_graph
from neuron_sum.artifact import Compilation, GraphFile
from neuron_sum.errors import CompileError, PlatformError, RecipeError
from neuron_sum.models.base import is_decoder_only
from neuron_sum.platform.machine import total_memory
from neuron_sum.platform.matrix import INSTANCES, NEURON_INDEX, PLATFORMS, platform_row
from neuron_sum.recipes.schema import CompileConfig
from neuron_sum.runtimes import neuronx

COMPILER = "neuronx-cc"
PLATFORM = "NEURON_PLATFORM_TARGET_OVERRIDE"
"""The environment variable with the device to compile for."""
PROCESS_BYTES = 16e9
"""Memory per compiler process: not documented, but it was killed on hosts of 16 GB (aws-neuron-samples#10)."""
MORE_MEMORY = 1.2
"""An instance with this many times the memory of this machine is suggested."""


@dataclass(frozen=True)
class NeuronTarget:
    """See `compile.targets.base.Target`."""

    settings: CompileConfig
    first_file: str | None = None
    layout: Path | None = None

    suffix: ClassVar[str] = ".pt"
    sources: ClassVar[tuple[str, ...]] = ("targets/neuron.py", "targets/device_graphs.py")
    shares_process: ClassVar[bool] = False
    """neuronx-cc takes minutes per graph, and whether a traced graph keeps device memory is not tested."""
    weights_inside: ClassVar[bool] = False

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of neuronx-cc, in the form in which ModelBuilder looks for its own defaults."""
        options = self.settings.neuron
        cast = () if options.auto_cast == "none" else (f"--auto-cast-type={options.auto_cast_type}",)
        return (
            f"--auto-cast={options.auto_cast}",
            *cast,
            f"-O{options.optlevel}",
            *("--target", self.settings.target),
            "--model-type=transformer",
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
        if options.inline_weights:
            raise RecipeError(
                "compile.neuron.inline_weights: ModelBuilder keeps weights outside of the graphs",
                "leave it out, or use exporter=optimum on an inf2 instance",
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
        return {"linear": Linear, "write": WRITES[self.settings.neuron.cache_write].column}

    def identity(self) -> dict[str, Any]:
        """See `Target`."""
        return {
            "stack": neuronx.stack(),
            "arguments": self.arguments,
            "optimize_layout": self.optimizes_layout,
            "buffers": (neuronx.STATE, neuronx.CONSTANT, self.rows),
        }

    def manifest(self) -> dict[str, Any]:
        """See `Target`."""
        stack, options = neuronx.stack(), self.settings.neuron
        versions = {name: stack[name] for name in neuronx.NEEDED}
        compilation = Compilation(
            compiler=stack[COMPILER] or "",
            arguments=self.arguments,
            exporter="own",
            cache_write=options.cache_write,
            optimize_layout=self.optimizes_layout,
            rows=self.rows,
            inline_weights=False,
            tensor_parallel_size=options.tensor_parallel_size,
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

    def first(self, graphs: Sequence[GraphFile]) -> GraphFile | None:
        """The largest step, because most of the time is spent in steps; None if its layout cannot be chosen."""
        if not self.optimizes_layout:
            return None
        return max(graphs, key=lambda graph: (graph.batch * (graph.num_beams or 0), graph.source_len))

    @property
    def rows(self) -> int:
        """The rows of the buffers that all graphs share: the largest batch."""
        return max(self.settings.batch_sizes)

    @property
    def optimizes_layout(self) -> bool:
        """Whether the compiler chooses the layout of the weights; upstream's compile_wlo adds --auto-cast=none."""
        return self.settings.neuron.optimize_layout and self.settings.neuron.auto_cast == "none"

    def with_layout(self, first: GraphFile, path: Path) -> "NeuronTarget":
        """See `Target`."""
        return replace(self, first_file=first.file, layout=path)

    def compile_graph(
        self, model: StaticModel, graph: GraphFile, weights: Mapping[str, Tensor] | None, path: Path
    ) -> None:
        """See `Target`."""
        os.environ[PLATFORM] = self.settings.target  # not all of upstream's calls of the compiler have its arguments
        import torch_neuronx  # noqa: F401  (before neuronx-distributed, which imports modules of it)
        from neuronx_distributed import NxDModel
        from neuronx_distributed.trace import model_builder

        module, key = device_graph(model, graph, self.rows, self.settings.neuron.cache_write), path.stem
        options = {
            "compiler_workdir": str(path.parent / COMPILER),
            "compiler_args": " ".join(self.arguments),
            "key": key,
        }
        _fill(module.model)
        try:
            with torch.no_grad():
                traced = model_builder.trace(module.eval(), kwargs=module.example_inputs())
            if self.layout is not None and graph.file == self.first_file:
                assert isinstance(module, DeviceStep)
                compiled, transformer = _compile_first(traced, set(module.written()), options, self.layout)
            else:
                if self.layout is not None:
                    _apply_layout(traced, self.layout, path.parent, key)
                compiled, transformer = model_builder.compile(traced.hlo, traced.metaneff, **options), None
        except RuntimeError as error:  # upstream's; its cause has the reason
            raise CompileError(f"{graph.file}: {error.__cause__ or error}".splitlines()[0]) from error
        built = NxDModel(world_size=1, layout_transformer=transformer)
        built.add(key, traced, compiled)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of TorchScript about annotations in NxDModel
            built.save(str(path))


def _compile_first(traced: Any, written: set[str], options: dict[str, str], layout: Path) -> tuple[Any, Any]:
    """Compiles the first graph, and stores the layout that the compiler prefers for its weights.

    Args:
        traced: The result of ModelBuilder's `trace`.
        written: The tensors that the host or other graphs write, whose layout must not change.
        options: The options of ModelBuilder's `compile`.
        layout: The file to write: the compiler's wrapper with the conversions, empty without any; and the index of
            each weight in the graph.

    Returns:
        The compiled graph, and the program that converts the weights when they are loaded; None without conversions.
    """
    from neuronx_distributed.trace import hlo_utils, model_builder

    # Upstream's names have -> for the dots of a parameter's name.
    outside = {name for name in traced.weight_name_to_idx if name.replace("->", ".") in written}
    hlo_utils.mark_weights_for_wlo(traced, traced.weight_names_to_skip | outside)
    names = {name: index for name, index in traced.weight_name_to_idx.items() if name not in outside}
    compiled = model_builder.compile_wlo(traced.hlo, traced.metaneff, **options)
    transformer = model_builder.compile_layout_transformer(compiled, names, options["compiler_workdir"])
    wrapper = compiled.wrapped_neff_hlo_filepath
    content = bytearray(Path(wrapper).read_bytes() if wrapper else b"")
    temporary = layout.with_name(f".{layout.name}.tmp-{os.getpid()}")
    save_file({"wrapper": torch.tensor(content, dtype=torch.uint8)}, temporary, {"names": json.dumps(names)})
    temporary.replace(layout)
    return compiled, transformer


def _apply_layout(traced: Any, layout: Path, scratch: Path, key: str) -> None:
    """Converts a graph to the layout that `_compile_first` stored."""
    from neuronx_distributed.trace import hlo_utils
    from neuronx_distributed.trace.model_builder_utils import WLOArtifacts

    with safe_open(layout, framework="pt") as stored:
        content, names = stored.get_tensor("wrapper"), json.loads(stored.metadata()["names"])
    wrapper = scratch / "wrapper.hlo"
    wrapper.write_bytes(content.numpy().tobytes())
    first = SimpleNamespace(weight_name_to_idx=names)
    artifacts = WLOArtifacts("", str(wrapper) if len(content) else None)
    hlo_utils.apply_layout_transformation(traced, first, artifacts, key)


def larger_host(advice: str) -> str:
    """Other advice, then the smallest instance with clearly more memory than this machine; empty without one."""
    larger = [host for host in INSTANCES.values() if host.host_memory > MORE_MEMORY * total_memory()]
    if not larger:
        return ""
    host = min(larger, key=lambda instance: instance.host_gib)
    return f"{advice}; or use a {host.name}, which has {host.host_gib} GiB of host memory"


def _fill(model: StaticT5) -> None:
    """Fills a model with zeros, because its weights stay outside the graphs; position tables are filled."""
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    model.load_state_dict({**zeros, **model.tables()}, assign=True)
