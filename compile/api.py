"""The Python API of the compilation: `compile_run`; and its two halves, between which the command prints the plan.

Nothing heavy is imported before a function is called.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neuron_sum import console, files
from neuron_sum.artifact import Artifact
from neuron_sum.calls import api_call
from neuron_sum.recipes.loading import RecipeSource
from neuron_sum.runs.folder import RunFolder

if TYPE_CHECKING:
    from compile.exporters.optimum import OptimumPlan
    from compile.exporters.own import CompilePlan
    from compile.source import Source


@dataclass(frozen=True)
class Planned:
    """A checked compilation that has not started.

    Attributes:
        source: The run, checkpoint or adapter to compile.
        plan: The plan of the exporter that the recipe selects.
        folder: The folder of the artifact.
        overwrite: Whether an existing artifact is replaced.
        jobs: The number of graphs compiled in parallel; None for as many as fit.
    """

    source: "Source"
    plan: "CompilePlan | OptimumPlan"
    folder: Path
    overwrite: bool
    jobs: int | None

    def as_dict(self) -> dict[str, Any]:
        """The plan as the command prints it with --json."""
        from compile.exporters.own import CompilePlan

        if isinstance(self.plan, CompilePlan):
            return _describe(self.plan, self.jobs, self.folder)
        return _describe_export(self.plan, self.folder)

    def build(self) -> Artifact:
        """Compiles, and writes the artifact; after a failure its folder does not exist.

        Raises:
            NeuronSumError: One of its subclasses for each failure.
        """
        from compile.exporters import optimum, own

        with files.lock_output(self.folder):
            if isinstance(self.plan, own.CompilePlan):
                return own.build(self.source, self.plan, self.folder, overwrite=self.overwrite, jobs=self.jobs)
            return optimum.build(self.source, self.plan, self.folder, overwrite=self.overwrite)


def compile_run(
    run: str | Path | RunFolder,
    output: str | Path | None = None,
    *,
    target: Literal["cpu", "inf2", "trn1"] | None = None,
    recipe: RecipeSource | None = None,
    overrides: Sequence[str] = (),
    base: str | None = None,
    overwrite: bool = False,
    jobs: int | None = None,
    progress: bool = False,
) -> Artifact:
    """Compiles a run ahead of time.

    Args:
        run: A finished run or its folder; with `recipe`, also the folder of a checkpoint or an adapter.
        output: The folder of the artifact. Default: RUN/artifacts/TARGET-DTYPE.
        target: The device that the artifact is for. Default: the recipe's compile.target, or cpu.
        recipe: The recipe with prompt, lengths and beams. Default: that of the run.
        overrides: Changes to the recipe, such as "compile.dtype=bf16".
        base: The base model (folder or hub id) of an adapter. Default: the one that adapter_config.json names.
        overwrite: Whether to replace an existing artifact.
        jobs: The number of graphs compiled in parallel. Default: as many as processors and memory allow.
        progress: Whether to print progress and the plan to standard error.

    Returns:
        The artifact, for `Summarizer`, `evaluate` and `compare`; `path` is its folder.

    Raises:
        NeuronSumError: One of its subclasses for each failure.
    """
    with api_call(progress):
        changes = [overrides] if isinstance(overrides, str) else [*overrides]
        if target is not None:
            changes.append(f"compile.target={target}")
        folder = None if output is None else Path(output)
        path = run.path if isinstance(run, RunFolder) else Path(run)
        return plan(path, folder, recipe, changes, base, overwrite=overwrite, jobs=jobs).build()


def plan(
    run: Path,
    output: Path | None,
    recipe: RecipeSource | None,
    overrides: Sequence[str],
    base: str | None,
    *,
    overwrite: bool,
    jobs: int | None,
) -> Planned:
    """Checks and prints what `compile_run` would do, and writes nothing.

    Args:
        run: As in `compile_run`.
        output: As in `compile_run`.
        recipe: As in `compile_run`.
        overrides: As in `compile_run`, with the target.
        base: As in `compile_run`.
        overwrite: As in `compile_run`.
        jobs: As in `compile_run`.

    Raises:
        NeuronSumError: One of its subclasses if the run cannot be compiled with these settings on this machine.
    """
    from compile.exporters import optimum, own
    from compile.exporters.common import check_output
    from compile.source import open_source

    source = open_source(run, recipe, overrides, base)
    if optimum.is_chosen(source):
        if jobs is not None:
            console.warn(f"--jobs {jobs} is ignored: optimum-neuron decides how many compilers run in parallel")
        exported = optimum.make_plan(source)
        folder = output or source.default_output(exported.settings.dtype)
        _announce_export(source, exported)
        return Planned(source, exported, folder, overwrite, None)
    planned = own.make_plan(source)
    neuron = planned.settings.neuron
    if planned.settings.target != "cpu" and neuron.optimize_layout and neuron.auto_cast != "none":
        console.warn(
            f"compile.neuron.auto_cast = {neuron.auto_cast}: the compiler chooses a layout of the weights only with "
            "none, so the graphs may be slower"
        )
    folder = output or source.default_output(planned.settings.dtype)
    check_output(folder, overwrite=overwrite, needed_bytes=planned.weights_bytes())
    _announce(source, planned, jobs)
    return Planned(source, planned, folder, overwrite, jobs)


def _announce(source: "Source", plan: "CompilePlan", jobs: int | None) -> None:
    """Prints the graphs, the model and the expected time before the first graph is compiled."""
    table = console.table("graph", "batch", "source", "target", "beams", "cached")
    missing = {graph.file for graph in plan.missing}
    for graph in plan.graphs:
        table.add_row(
            Path(graph.file).stem,
            str(graph.batch),
            str(graph.source_len),
            str(graph.target_len or ""),
            str(graph.num_beams or ""),
            "no" if graph.file in missing else "yes",
        )
    console.note_table(table)
    form = "stored separately, in a slot" if source.uses_adapter_slot else "compiled in"
    adapter = f"; adapter {form}" if source.is_adapter else ""
    console.note(
        f"{plan.config.model_type}, {plan.settings.dtype}, weights {console.size(plan.weights_bytes())}{adapter}"
    )
    if missing:
        console.note(
            f"{len(missing)} of {len(plan.graphs)} graphs to compile, {plan.processes(jobs)} in parallel"
            + (f": about {console.duration(seconds)}" if (seconds := plan.seconds(jobs)) is not None else "")
        )


def _announce_export(source: "Source", plan: "OptimumPlan") -> None:
    adapter, cores = "; adapter merged" if source.is_adapter else "", plan.settings.neuron.tensor_parallel_size
    console.note(
        f"{plan.config.model_type}, {plan.settings.dtype}, for {plan.settings.target} through optimum-neuron: batch "
        f"{plan.bucket.batch}, {plan.sequence_length} tokens, NeuronCores: {cores}{adapter}"
    )


def _describe(plan: "CompilePlan", jobs: int | None, folder: Path) -> dict[str, Any]:
    from compile import cache

    return {
        "artifact": str(folder),
        "target": plan.settings.target,
        "dtype": plan.settings.dtype,
        "buckets": [bucket.model_dump() for bucket in plan.buckets],
        "num_beams": list(plan.num_beams),
        "graphs": [graph.file for graph in plan.graphs],
        "to_compile": [graph.file for graph in plan.missing],
        "weights_bytes": plan.weights_bytes(),
        "estimated_seconds": None if (seconds := plan.seconds(jobs)) is None else round(seconds),
        "cache": str(cache.folder()),
    }


def _describe_export(plan: "OptimumPlan", folder: Path) -> dict[str, Any]:
    return {
        "artifact": str(folder),
        "target": plan.settings.target,
        "dtype": plan.settings.dtype,
        "exporter": "optimum",
        "buckets": [plan.bucket.model_dump()],
        "num_beams": [plan.num_beams],
        "sequence_length": plan.sequence_length,
    }
