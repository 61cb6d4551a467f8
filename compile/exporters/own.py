"""The exporter of this package's static graphs: the plan, its costs, and the artifact."""

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from compile import cache
from compile.exporters.common import check_output, effective_recipe, special_tokens
from compile.graphs.buckets import adapter_room, bucket_graphs, check_context, recipe_buckets
from compile.graphs.layers import GraphOptions
from compile.graphs.static import StaticModel, adapter_stacks, adapter_targets, state_spec, static_model, weights
from compile.source import Source
from compile.targets.base import Target
from compile.targets.cpu import CpuTarget
from compile.targets.neuron import NeuronTarget
from compile.workers import SCRATCH, Job, compile_all
from neuron_sum import __version__, console, files
from neuron_sum.artifact import (
    ADAPTERS,
    GRAPHS,
    RECIPE,
    TOKENIZER,
    WEIGHTS,
    Artifact,
    Bucket,
    GraphFile,
    Manifest,
    PromptRecord,
    hash_files,
    open_artifact,
    write_manifest,
)
from neuron_sum.errors import CompileError, Interrupted
from neuron_sum.platform import cpu, threads
from neuron_sum.recipes.schema import CompileConfig
from neuron_sum.runtimes.slots import AdapterSlots
from neuron_sum.runtimes.weights import PACKED, PLAIN
from neuron_sum.sections import SectionCoder

HEAD = "head" + PLAIN
NO_LAYOUT = "not chosen yet"
LAYOUT = ".layout"
"""The suffix of a file in the cache with the layout of the weights that the first graph of an artifact prefers."""
COMPILED_ADAPTER = "default"
"""The slot name of the adapter in an artifact."""


@dataclass(frozen=True)
class CompilePlan:
    """The contents of an artifact.

    Attributes:
        config: The model's configuration.
        options: The options of all graphs.
        target: The device that the graphs are compiled for.
        buckets: Every batch size with every source length.
        num_beams: Beam widths.
        graphs: The graphs.
        cached: The file of each graph in the cache, whether it exists or not.
        layout: The file that the first graph writes and the others read, in the cache; None without one.
        layout_key: Its hash; NO_LAYOUT if it does not exist yet.
    """

    config: PretrainedConfig
    options: GraphOptions
    target: Target
    buckets: tuple[Bucket, ...]
    num_beams: tuple[int, ...]
    graphs: tuple[GraphFile, ...]
    cached: Mapping[str, Path]
    layout: Path | None = None
    layout_key: str | None = None

    @property
    def settings(self) -> CompileConfig:
        """The recipe's compile section, after a fallback of the target."""
        return self.target.settings

    def jobs(self, graphs: Sequence[GraphFile], weights: Path | None) -> list[Job]:
        """The jobs that compile graphs."""
        return [
            Job(self.config, self.options, graph, self.target, self.cached[graph.file], weights) for graph in graphs
        ]

    @property
    def missing(self) -> list[GraphFile]:
        """The graphs that are not in the cache; the first one also without its layout."""
        missing = [graph for graph in self.graphs if not self.cached[graph.file].is_file()]
        if self.layout is not None and not self.layout.is_file() and self.graphs[0] not in missing:
            return [self.graphs[0], *missing]
        return missing

    def model(self) -> StaticModel:
        """The static model with uninitialized tensors."""
        return static_model(self.config, self.options)

    def processes(self, jobs: int | None) -> int:
        """The number of graphs compiled in parallel, as processors and memory allow."""
        fitting = int(cpu.available_memory() // self.target.process_bytes(self.parameters()))
        return max(1, min(jobs or threads.cores(), fitting, max(len(self.missing), 1)))

    def parameters(self) -> int:
        """The number of parameters in weights.safetensors."""
        return sum(tensor.numel() for tensor in self._stored())

    def weights_bytes(self) -> int:
        """The size of weights.safetensors in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._stored())

    def _stored(self) -> list[Tensor]:
        omitted = {*adapter_stacks(model := self.model()), *([HEAD] if self._tied else [])}
        return [
            tensor for name, tensor in model.state_dict().items() if name not in omitted and not name.endswith(PACKED)
        ]

    @property
    def _tied(self) -> bool:
        """Whether head and embedding are the same tensor, stored once."""
        return bool(self.config.tie_word_embeddings) and self.settings.dtype != "int8"

    def seconds(self, jobs: int | None) -> float | None:
        """A rough estimate of the seconds to compile the missing graphs; None for targets without measurements."""
        per_process = math.ceil(sum(graph.steps for graph in self.missing) / self.processes(jobs))
        return self.target.seconds(int(self.config.num_hidden_layers), per_process)

    def aliases(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Tensors that are not stored, with the name of the equal stored tensor."""
        return {HEAD: "embedding"} if self._tied and HEAD in tensors else {}


def make_plan(source: Source) -> CompilePlan:
    """The plan of a source; reads the model's configuration, not its weights.

    Raises:
        ModelError: For a configuration that the static graphs do not support, or an adapter that cannot be merged or
            does not fit its slot.
        RecipeError: For a setting that the target does not support, or too few new tokens for the headings of sections.
        ResourceError: If this CPU lacks instructions that the dtype needs.
        PlatformError: If this machine has no Neuron compiler.
        CompileError: If there is no C++ compiler.
    """
    recipe, config = source.recipe, source.config()
    target: Target = CpuTarget.of(recipe.compile) if recipe.compile.target == "cpu" else NeuronTarget(recipe.compile)
    target.check(config)
    settings = target.settings
    buckets, num_beams = recipe_buckets(recipe)
    adapters, soft_prompt = adapter_room(settings, source.lora, source.soft_prompt_tokens, config.model_type)
    check_context(config, buckets, soft_prompt)
    if recipe.output.sections:
        coder = SectionCoder(recipe.output.sections, source.tokenizer())
        coder.check_length("generate.max_new_tokens", recipe.generate.max_new_tokens)
        coder.check_length("compile.target_len", max(bucket.target_len for bucket in buckets))
    options = GraphOptions(
        dtype=torch.float32 if settings.dtype == "fp32" else torch.bfloat16,
        kv_dtype=torch.float32 if (settings.kv_dtype or settings.dtype) == "fp32" else torch.bfloat16,
        source_len=max(bucket.source_len for bucket in buckets),
        target_len=max(bucket.target_len for bucket in buckets),
        soft_prompt_tokens=soft_prompt,
        adapters=adapters,
        **target.graph_options(),
    )
    static = static_model(config, options)
    source.check_adapter(_slots(static) if source.uses_adapter_slot else None)
    graphs = [
        graph for bucket in buckets for graph in bucket_graphs(bucket, num_beams, target.suffix, settings.greedy_steps)
    ]
    weights_hash = source.weights_hash() if target.weights_inside else None
    first_key = layout = layout_key = None
    if (first := target.first(graphs)) is not None:
        graphs = [first, *(graph for graph in graphs if graph != first)]
        first_key = cache.key(config, options, first, target, weights_hash)
        layout = cache.path(first_key, LAYOUT)
        layout_key = files.sha256(layout) if layout.is_file() else NO_LAYOUT
        target = target.with_layout(first, layout)
    keys = {
        graph.file: first_key if graph == first else cache.key(config, options, graph, target, weights_hash, layout_key)
        for graph in graphs
    }
    cached = {file: cache.path(key, target.suffix) for file, key in keys.items() if key}
    return CompilePlan(config, options, target, buckets, num_beams, tuple(graphs), cached, layout, layout_key)


def build(source: Source, plan: CompilePlan, output: Path, *, overwrite: bool, jobs: int | None) -> Artifact:
    """Compiles the graphs that are not in the cache, and writes the artifact.

    Finished graphs stay in the cache, so that an interrupted compilation continues where it stopped.

    Args:
        source: The run or checkpoint to compile.
        plan: The result of `make_plan`.
        output: The folder to write; after a failure it does not exist.
        overwrite: Whether an existing artifact is replaced.
        jobs: The number of graphs compiled in parallel; None for as many as fit.

    Raises:
        RunError: If the folder is in use.
        ModelError: If the merged model does not compute the same as its adapter.
        CompileError: If a graph does not compile.
        Interrupted: On Ctrl-C or SIGTERM.
    """
    output = output.resolve()
    check_output(output, overwrite=overwrite, needed_bytes=plan.weights_bytes())
    missing = plan.missing
    static, merges = plan.model(), source.is_adapter and not source.uses_adapter_slot
    loaded = None
    if missing and (merges or plan.target.weights_inside):
        loaded = _tensors(source, static)  # verifies the merge before anything is compiled
    cache.folder().mkdir(parents=True, exist_ok=True)
    files.sweep(cache.folder())
    try:
        with (
            _weights_file(loaded[1] if loaded is not None and plan.target.weights_inside else None) as weights_file,
            console.progress("compiling graphs", len(plan.graphs), len(plan.graphs) - len(missing)) as bar,
        ):
            if plan.layout is not None and missing[:1] == [plan.graphs[0]]:
                for job in compile_all(plan.jobs(missing[:1], weights_file), 1):
                    bar.advance(detail=Path(job.graph.file).stem)
                plan = make_plan(source)  # the names of the other graphs in the cache depend on its layout
            for job in compile_all(plan.jobs(plan.missing, weights_file), plan.processes(jobs)):
                bar.advance(detail=Path(job.graph.file).stem)
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped; nothing was written", "repeat the command to continue: finished graphs are in the cache"
        ) from None
    model_config, tensors = loaded or _tensors(source, static)
    aliases = plan.aliases(tensors)
    tokenizer = source.tokenizer()
    with files.new_folder(output) as folder:
        (folder / GRAPHS).mkdir()
        for graph in plan.graphs:
            cache.copy(plan.cached[graph.file], folder / graph.file)
        if plan.layout is not None and files.sha256(plan.layout) != plan.layout_key:
            raise CompileError("another process has compiled the same model", "repeat the command")
        stored = {name: tensor.contiguous() for name, tensor in tensors.items() if name not in aliases}
        save_file(stored, folder / WEIGHTS)
        model_config.save_pretrained(folder / TOKENIZER)
        tokenizer.save_pretrained(folder / TOKENIZER)
        recipe = effective_recipe(source.recipe, plan.options.source_len, plan.options.target_len, plan.num_beams)
        files.write_text(folder / RECIPE, recipe.to_yaml())
        if source.uses_adapter_slot:
            source.copy_adapter(folder / ADAPTERS / COMPILED_ADAPTER)
        write_manifest(folder, _manifest(source, plan, static, tokenizer, aliases, folder))
    return open_artifact(output)


def _slots(static: StaticModel) -> AdapterSlots:
    """The adapter slots of graphs, without the memory of their stacks."""
    spec = static.options.adapters
    assert spec is not None
    stacks = {name: stack.to("meta") for name, stack in adapter_stacks(static).items()}
    return AdapterSlots(spec, stacks, adapter_targets(static))


def _tensors(source: Source, static: StaticModel) -> tuple[PretrainedConfig, dict[str, Tensor]]:
    """The checkpoint's configuration, and its tensors in the form of the graphs."""
    model, soft_prompt = source.load_for_compile()
    return model.config, weights(static, model.state_dict(), soft_prompt)


@contextlib.contextmanager
def _weights_file(tensors: Mapping[str, Tensor] | None) -> Iterator[Path | None]:
    """A temporary file with the tensors to compile in; None if no tensors are compiled in."""
    if tensors is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as folder:
        file = Path(folder) / WEIGHTS
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)
        yield file


def _manifest(
    source: Source,
    plan: CompilePlan,
    static: StaticModel,
    tokenizer: PreTrainedTokenizerFast,
    aliases: dict[str, str],
    folder: Path,
) -> Manifest:
    prompt = source.recipe.prompt.resolve()
    return Manifest(
        neuron_sum=__version__,
        model_type=plan.config.model_type,
        **plan.target.manifest(),
        dtype=plan.settings.dtype,
        kv_dtype="fp32" if plan.options.kv_dtype == torch.float32 else "bf16",
        prompt=PromptRecord.of(prompt),
        tokens=special_tokens(tokenizer, plan.config),
        buckets=plan.buckets,
        num_beams=plan.num_beams,
        state=state_spec(static),
        graphs=plan.graphs,
        aliases=aliases,
        adapters=plan.options.adapters,
        adapter_targets=adapter_targets(static),
        adapter_stacks={name: tuple(stack.shape) for name, stack in adapter_stacks(static).items()},
        default_adapter=COMPILED_ADAPTER if source.uses_adapter_slot else None,
        source=source.record(),
        files=hash_files(folder),
    )
