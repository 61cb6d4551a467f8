"""The preflight report: estimates for a recipe's graphs on Inferentia2, without its compiler or a device."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from compile.graphs.buckets import adapter_room, bucket_graphs, check_context, recipe_buckets
from compile.preflight import calibration, error_codes, operators
from compile.preflight.calibration import Calibration
from compile.preflight.device_times import measured_ratio
from compile.preflight.floors import INSTANCE, BucketReport, GraphReport
from compile.preflight.hlo import Account
from compile.preflight.lowering import LoweringJob, LoweringOptions, lower
from neuron_sum import console
from neuron_sum.artifact import Bucket
from neuron_sum.errors import RecipeError
from neuron_sum.models.dimensions import base_config
from neuron_sum.platform.matrix import INSTANCES
from neuron_sum.platform.prices import find_price
from neuron_sum.recipes.schema import LoraMethod, PromptTuningMethod, Recipe
from neuron_sum.training.estimate.projection import EpochProjection, project_epoch

WHERE = "-where"
"""Name suffix of steps that rewrite the cache."""
OUT_OF_MEMORY = "NCC_EOOM001, NCC_EOOM002, NCC_EVRF009 or NCC_EXSP001"
"""The documented error codes of a graph that does not fit into the device's memory."""
WIDE_INTEGERS = (
    "s64: token ids, positions and indices, all far below 2^31. A NeuronCore-v2's engines are documented for integers\n"
    "of up to 32 bits; neuronx-cc narrows s64 to s32 by default (documented for Neuron 2.32; planned to change in the\n"
    "next release)"
)
"""AWS Neuron documentation: neuron-core-v2 (its engines), and release-notes/components/compiler of 2.32.0."""
STRUCTURE = {"parameter"}
"""Opcodes that occur in any HLO text and are not on any list."""


@dataclass(frozen=True)
class Report:
    """The results of a preflight.

    Attributes:
        recipe: The recipe.
        model_type: The type of its base model.
        dtype: The dtype of weights and products.
        kv_dtype: The dtype of keys and values.
        graphs: All graphs, with encode first in each bucket.
        buckets: All buckets and beam widths.
        calibrations: Published measurements with their floors.
        epoch: The projection of a training epoch.
        compiler_operators: The output of `neuronx-cc list-operators`; None if it is not on PATH.
    """

    recipe: Recipe
    model_type: str
    dtype: str
    kv_dtype: str
    graphs: tuple[GraphReport, ...]
    buckets: tuple[BucketReport, ...]
    calibrations: tuple[Calibration, ...]
    epoch: EpochProjection
    compiler_operators: frozenset[str] | None

    @cached_property
    def faults(self) -> list[str]:
        """The reasons why graphs will not compile or not fit."""
        faults = []
        for graph in self.graphs:
            faults += [f"{graph.name}: {error}" for error in graph.lowered.rejections.errors]
        available = INSTANCES[INSTANCE].core_memory
        for bucket in self.buckets:
            if bucket.memory > available:
                faults.append(
                    f"{bucket.name}: {bucket.memory / 1e9:.1f} GB of memory with one copy of the weights, "
                    f"a core has {available / 1e9:.1f} ({OUT_OF_MEMORY})"
                )
        return list(dict.fromkeys(faults))

    @property
    def warnings(self) -> list[str]:
        """Memory that may not fit, because a graph is loaded when a request first needs it; codes without an error."""
        available = INSTANCES[INSTANCE].core_memory
        memory = (
            f"all graphs together take up to {self.loaded_memory / 1e9:.1f} GB, a core has {available / 1e9:.1f}: use "
            "fewer or smaller buckets, or compile.dtype=bf16"
        )
        codes = [f"{graph.name}: {line}" for graph in self.graphs for line in graph.lowered.rejections.warnings]
        return codes if self.fits else [memory, *codes]

    @property
    def fits(self) -> bool:
        """Whether a core has memory for all graphs at once."""
        return self.loaded_memory <= INSTANCES[INSTANCE].core_memory

    @cached_property
    def unlisted(self) -> dict[str, list[str]]:
        """Operators that are not in the published list, with the kinds of graph that use them."""
        return self._outside(frozenset(operators.PUBLISHED.values()))

    @cached_property
    def unlisted_by_compiler(self) -> dict[str, list[str]] | None:
        """The same for the list of the compiler on PATH; not a fault, because this is not tested with a real list."""
        return None if self.compiler_operators is None else self._outside(self.compiler_operators)

    @cached_property
    def limits(self) -> dict[str, str]:
        """The published limits of operators that these graphs use."""
        used = {name for graph in self.graphs for name in graph.account.operators}
        return {name: limit for name, limit in operators.LIMITS.items() if name in used}

    def _outside(self, known: frozenset[str]) -> dict[str, list[str]]:
        kinds: dict[str, set[str]] = {}
        for graph in self.graphs:
            for name in _used(graph.account) - known:
                kinds.setdefault(name, set()).add(graph.lowered.graph.kind)
        return {name: sorted(kinds[name]) for name in sorted(kinds)}

    @property
    def has_wide_integers(self) -> bool:
        """Whether WIDE_INTEGERS applies to these graphs."""
        return any("s64" in graph.account.dtypes for graph in self.graphs)

    @property
    def weights(self) -> int:
        """Bytes of the weights, which all graphs share (neuron_sum/runtimes/neuronx.py)."""
        return max(graph.lowered.weights for graph in self.graphs)

    @property
    def state(self) -> int:
        """Bytes of the buffers, which have the largest shape: of encode, and of the steps for each beam width."""
        encoded, stepped = dict[tuple[int, int], int](), dict[int | None, int]()
        for graph in sorted(self.graphs, key=lambda graph: graph.lowered.graph.kind):  # encode first
            shape, lowered = graph.lowered.graph, graph.lowered
            if shape.kind == "encode":
                encoded[shape.batch, shape.source_len] = lowered.account.written
            else:
                own = lowered.state - encoded[shape.batch, shape.source_len]
                stepped[shape.num_beams] = max(own, stepped.get(shape.num_beams, 0))
        return max(encoded.values()) + sum(stepped.values())

    @property
    def loaded_memory(self) -> int:
        """Bytes on one core once every graph is loaded, without the compiled programs."""
        return self.weights + self.state + max(graph.account.activations for graph in self.graphs)

    def as_dict(self) -> dict[str, Any]:
        """The values for --json."""
        price = find_price(INSTANCE)
        return {
            "recipe": self.recipe.name,
            "model_type": self.model_type,
            "dtype": self.dtype,
            "kv_dtype": self.kv_dtype,
            "graphs": [graph.as_dict() for graph in self.graphs],
            "buckets": [bucket.as_dict() for bucket in self.buckets],
            "core_memory": INSTANCES[INSTANCE].core_memory,
            "weights": self.weights,
            "state": self.state,
            "memory_all_loaded": self.loaded_memory,
            "warnings": self.warnings,
            "unlisted_operators": self.unlisted,
            "operators_source": operators.SOURCE,
            "operator_limits": self.limits,
            "unlisted_by_neuronx_cc": self.unlisted_by_compiler,
            "neuronx_cc_lists": sorted(self.compiler_operators) if self.compiler_operators is not None else None,
            "integers": WIDE_INTEGERS if self.has_wide_integers else None,
            "faults": self.faults,
            "error_codes_source": error_codes.SOURCE,
            "calibration": [row.as_dict() for row in self.calibrations],
            "training": self.epoch.as_dict(),
            "price": asdict(price),
        }


def preflight(recipe: Recipe, *, examples_per_row: float | None = None, keep: Path | None = None) -> Report:
    """Lowers every graph of a recipe and counts its operations and bytes.

    Args:
        recipe: The recipe.
        examples_per_row: The mean number of examples per packed row; see `project_epoch`.
        keep: The folder to write the HLO texts to; None to discard them.

    Raises:
        RecipeError: For a dtype that the graphs do not support on Inferentia2, or examples_per_row without packed rows.
        NeuronSumError: If there is no torch_xla, a model's dimensions are unknown, or a graph does not lower.
    """
    config = base_config(recipe.model)
    buckets, beams = recipe_buckets(recipe)
    options = recipe_options(recipe, str(config.model_type), buckets)
    check_context(config, buckets, options.soft_prompt_tokens)
    several = recipe.compile.greedy_steps
    graphs = tuple(graph for bucket in buckets for graph in bucket_graphs(bucket, beams, greedy_steps=several))
    epoch = project_epoch(recipe, config, examples_per_row)
    steps = tuple(graph.model_copy(update={"file": graph.file + WHERE}) for graph in graphs if graph.kind == "step")
    jobs = [
        LoweringJob(config, options, graphs),
        LoweringJob(config, LoweringOptions(**{**vars(options), "write": "where"}), steps),
        *(measured.job() for measured in calibration.MEASURED),
    ]
    results = []
    with console.progress("lowering graphs", sum(len(job.graphs) for job in jobs)) as bar:
        for lowered in lower(jobs, keep):
            results.append(lowered)
            bar.advance(detail=Path(lowered.graph.file).name)
    rewriting = {lowered.graph.file: lowered for lowered in results if lowered.write == "where"}
    reports = {
        lowered.graph: GraphReport(lowered, rewriting.get(f"{lowered.graph.file}{WHERE}"))
        for lowered in results[: len(graphs)]
    }
    published = iter(results[len(graphs) + len(steps) :])
    calibrations = tuple(
        Calibration(measured, GraphReport(next(published)), GraphReport(next(published)))
        for measured in calibration.MEASURED
    )
    ratio = measured_ratio() or min(row.ratio for row in calibrations)
    by_bucket = []
    for bucket in buckets:
        encode, *bucket_steps = (reports[graph] for graph in bucket_graphs(bucket, beams, greedy_steps=several))
        greedy = bucket_steps[len(beams)] if several > 1 else None
        by_bucket += [
            BucketReport(
                bucket,
                width,
                encode,
                step,
                greedy if width == 1 else None,
                ratio,
                calibration.host_s(bucket.batch, width, recipe.generate.no_repeat_ngram_size),
            )
            for width, step in zip(beams, bucket_steps, strict=False)
        ]
    return Report(
        recipe=recipe,
        model_type=str(config.model_type),
        dtype=options.dtype,
        kv_dtype=options.kv_dtype,
        graphs=tuple(reports.values()),
        buckets=tuple(by_bucket),
        calibrations=calibrations,
        epoch=epoch,
        compiler_operators=operators.compiler_opcodes(),
    )


def recipe_options(recipe: Recipe, model_type: str, buckets: Sequence[Bucket]) -> LoweringOptions:
    """The options of a recipe's graphs on Inferentia2: plain projections, K/V and weights of the recipe's dtypes.

    Raises:
        RecipeError: For int8, which only the CPU supports.
    """
    settings, method = recipe.compile, recipe.method
    if settings.dtype == "int8":
        raise RecipeError("compile.dtype = int8 is for --target cpu", "use `--set compile.dtype=bf16` or fp32")
    trained = method.num_virtual_tokens if isinstance(method, PromptTuningMethod) else 0
    lora = method if isinstance(method, LoraMethod) else None
    adapters, soft_prompt = adapter_room(settings, lora, trained, model_type)
    return LoweringOptions(
        dtype=settings.dtype,
        kv_dtype=settings.kv_dtype or settings.dtype,
        source_len=max(bucket.source_len for bucket in buckets),
        target_len=max(bucket.target_len for bucket in buckets),
        soft_prompt_tokens=soft_prompt,
        adapters=adapters,
        write=settings.neuron.cache_write,
    )


def _used(account: Account) -> set[str]:
    return account.operators.keys() - STRUCTURE
