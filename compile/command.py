"""`neuron-sum compile`: a run to an artifact; `compile verify`: the artifact against transformers."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from neuron_sum import console, files
from neuron_sum.errors import ArtifactError, RecipeError
from neuron_sum.recipes.command import SetOption

if TYPE_CHECKING:
    from compile.exporters.own import CompilePlan
    from compile.source import Source

DEFAULT = "run"


class _DefaultsToRun(TyperGroup):
    """`compile RUN` is `compile run RUN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


compile = typer.Typer(
    cls=_DefaultsToRun,
    no_args_is_help=True,
    help="Compile a run ahead of time into an artifact: `compile RUN`, short for `compile run RUN`, with --target, "
    "--set, --plan, --dry-run, --output, --jobs and more (`compile run --help`).",
)


@compile.command(DEFAULT)
def run(
    run: Annotated[Path | None, typer.Argument(help="A finished run, or a checkpoint with --recipe.")] = None,
    target: Annotated[
        Literal["cpu", "inf2", "trn1"] | None, typer.Option(help="Where it will run; default: compile.target, cpu.")
    ] = None,
    overrides: SetOption = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="How a plain checkpoint is asked: a name or a file.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Default: RUN/artifacts/TARGET-DTYPE.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the artifact there.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Graphs at a time; default: as fit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be compiled; write nothing.")] = False,
    plan: Annotated[
        str | None, typer.Option(metavar="DATA", help="Choose buckets from data: sample, a file or a folder.")
    ] = None,
) -> None:
    """Compile a run ahead of time (the default of `neuron-sum compile`)."""
    if plan is not None:
        _plan_buckets(plan, run, recipe, overrides or [])
        return
    if run is None:
        hint = "neuron-sum compile RUN; neuron-sum train RECIPE makes a run"
        raise RecipeError("what is to be compiled?", "neuron-sum compile ./run" if Path("run").is_dir() else hint)

    from compile.exporters import optimum
    from compile.exporters.common import check_output
    from compile.exporters.own import build, make_plan
    from compile.source import open_source

    source = open_source(run, recipe, [*(overrides or []), *([f"compile.target={target}"] if target else [])])
    if optimum.is_chosen(source):
        if jobs is not None:
            console.warn(f"--jobs {jobs} is not followed: optimum-neuron decides how many compilers run at once")
        _export(source, output, overwrite=overwrite, dry_run=dry_run)
        return
    planned = make_plan(source)
    folder = output or source.default_output(planned.settings.dtype)
    check_output(folder, overwrite=overwrite, needed_bytes=planned.weights_bytes())
    _announce(source, planned, jobs)
    if dry_run:
        console.emit(_as_dict(planned, jobs, folder), "dry run: nothing was written")
        return
    artifact = build(source, planned, folder, overwrite=overwrite, jobs=jobs)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    console.emit(
        {**_as_dict(planned, jobs, folder), "bytes": size, "manifest": artifact.manifest.model_dump(mode="json")},
        f"compiled {folder}: {len(planned.graphs)} graphs, {console.size(size)}\n"
        f"next: neuron-sum compile verify {folder}",
    )


@compile.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="An artifact.")],
    source: Annotated[Path | None, typer.Option(help="The run it came from, where that has moved.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="Dialogues of the evaluation split.")] = 32,
    max_drop: Annotated[float, typer.Option(min=0, help="ROUGE-1 points it may lose before this fails.")] = 1.0,
) -> None:
    """Hold an artifact's summaries against transformers', from the same weights, and record it in the manifest."""
    from compile.verify import ALLOWED_DIFFERENCES
    from compile.verify import verify as check
    from neuron_sum.artifact import open_artifact

    opened = open_artifact(artifact)
    found = check(opened, source, examples, max_drop)
    for example, expected, actual in found.differing[:3]:
        console.note(f"{example}\n  transformers: {expected}\n  artifact:     {actual}")
    table = console.table("batch", "beams", "same as transformers", "ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum")
    for seen in found.record.checks:
        table.add_row(
            str(seen.batch),
            str(seen.num_beams),
            f"{seen.identical} of {found.record.examples}",
            *(f"{difference:+.2f}" for difference in seen.rouge_difference.values()),
        )
    unseen = f"; not seen, for no prompt is so long: {', '.join(found.record.unseen)}" if found.record.unseen else ""
    console.emit(
        {**found.record.model_dump(mode="json"), "truncated": found.truncated},
        f"{opened.manifest.dtype} artifact against transformers in fp32, ROUGE as artifact minus transformers "
        f"(cut dialogues: {found.truncated}{unseen})",
        table,
        f"next: neuron-sum evaluate {artifact}",
    )
    if not found.record.passed:
        raise ArtifactError(
            f"{opened.path} is not as good as what it was compiled from: {max_drop} points of ROUGE-1 may be lost, and "
            f"in fp32 {ALLOWED_DIFFERENCES:.0%} of the summaries may differ",
            "compile with compile.dtype=bf16 or fp32, or allow more with --max-drop",
        )


@compile.command()
def report(
    artifact: Annotated[Path, typer.Argument(help="An artifact.")],
    output: Annotated[Path | None, typer.Option(help="Default: NAME-report.json here.")] = None,
    source: Annotated[Path | None, typer.Option(help="The run it came from, where that has moved.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="Dialogues that `verify` summarizes.")] = 32,
    max_drop: Annotated[float, typer.Option(min=0, help="As for `verify`.")] = 1.0,
) -> None:
    """Write what this machine says of an artifact into one file: doctor, manifest, latency, verify; to be sent."""
    from compile.machine_report import make_report
    from neuron_sum.artifact import artifact_name, open_artifact

    opened = open_artifact(artifact)
    made = make_report(opened, source, examples, max_drop)
    target = output or Path(f"{artifact_name(artifact)}-report.json")
    files.write_json(target, made)
    failed = [name for name in ("latency", "verify") if made[name]["error"] is not None]
    for name in failed:
        console.warn(f"{name}: {made[name]['error']}")
    timed = (made["latency"]["result"] or [])[1:]
    table = console.table(*(name.replace("_", " ") for name in (timed[0] if timed else ())))
    for row in timed:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.emit(made, table, f"wrote {target}: it has paths and versions of this machine, no text of dialogues")


def _announce(source: "Source", plan: "CompilePlan", jobs: int | None) -> None:
    """What will be made, before the first graph."""
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
    kept = "kept apart, in a slot" if source.keeps_adapter_apart else "compiled in"
    adapter = f"; adapter {kept}" if source.is_adapter else ""
    console.note(
        f"{plan.config.model_type}, {plan.settings.dtype}, weights {console.size(plan.weights_bytes())}{adapter}"
    )
    if missing:
        console.note(
            f"{len(missing)} of {len(plan.graphs)} graphs to compile, {plan.processes(jobs)} at a time"
            + (f": about {console.duration(seconds)}" if (seconds := plan.seconds(jobs)) is not None else "")
        )


def _export(source: "Source", output: Path | None, *, overwrite: bool, dry_run: bool) -> None:
    """`compile` through optimum-neuron."""
    from compile.exporters import optimum

    plan = optimum.make_plan(source)
    folder = output or source.default_output(plan.settings.dtype)
    described = {
        "artifact": str(folder),
        "target": plan.settings.target,
        "dtype": plan.settings.dtype,
        "exporter": "optimum",
        "buckets": [plan.bucket.model_dump()],
        "num_beams": [plan.num_beams],
        "sequence_length": plan.sequence_length,
    }
    adapter, cores = "; adapter merged" if source.is_adapter else "", plan.settings.neuron.tensor_parallel_size
    console.note(
        f"{plan.config.model_type}, {plan.settings.dtype}, for {plan.settings.target} through optimum-neuron: batch "
        f"{plan.bucket.batch}, {plan.sequence_length} tokens, NeuronCores: {cores}{adapter}"
    )
    if dry_run:
        console.emit(described, "dry run: nothing was written")
        return
    artifact = optimum.build(source, plan, folder, overwrite=overwrite)
    size = files.folder_size(folder)
    console.emit(
        {**described, "bytes": size, "manifest": artifact.manifest.model_dump(mode="json")},
        f"compiled {folder}: {console.size(size)}\nnext, on {plan.settings.target}: neuron-sum compile verify {folder}",
    )


def _as_dict(plan: "CompilePlan", jobs: int | None, folder: Path) -> dict[str, Any]:
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


def _plan_buckets(data: str, run: Path | None, recipe_name: str | None, overrides: list[str]) -> None:
    from compile.bucket_choice import choices, measure
    from compile.source import open_source
    from neuron_sum.models.base import load_tokenizer
    from neuron_sum.recipes.loading import load_recipe

    if run is not None:
        source = open_source(run, recipe_name, overrides)
        recipe, tokenizer = source.recipe, source.tokenizer()
    elif recipe_name is not None:
        from neuron_sum.data.sources import load_dataset

        recipe = load_recipe(recipe_name, overrides)
        tokenizer = load_tokenizer(recipe.model, load_dataset(recipe.data).training_texts())
    else:
        raise RecipeError(
            "tokens are counted by a model's tokenizer: whose?",
            f"neuron-sum compile RUN --plan {data}, or --recipe NAME --plan {data}",
        )
    lengths = measure(data, recipe, tokenizer)
    found = choices(lengths.source, recipe.data.max_source_length)
    table = console.table("compile.source_lens", "fit", "padding", "positions", "against one", "graphs")
    per_length = len(recipe.compile.batch_sizes) * (1 + len(recipe.compile.num_beams or (1,)))
    for choice in found:
        table.add_row(
            f"[{','.join(map(str, choice.source_lens))}]",
            f"{100 * choice.fit:.1f} %",
            f"{100 * choice.padding:.1f} %",
            f"{choice.positions:.0f}",
            f"{choice.positions / found[0].positions:.2f}",
            str(per_length * len(choice.source_lens)),
        )
    best = next((c for c, more in pairwise(found) if more.positions > 0.9 * c.positions), found[-1])
    p99, longest = lengths.target_percentile(99), max(lengths.target)
    target = f"summaries: 99 % have at most {p99} tokens, the longest {longest}; compile.target_len covers new tokens"
    suggestion = f"compile.source_lens=[{','.join(map(str, best.source_lens))}]"
    where = str(run) if run is not None else "RUN"
    console.emit(
        {
            "origin": lengths.origin,
            "prompts": len(lengths.source),
            "suggested": list(best.source_lens),
            "target_p99": p99,
            "target_longest": longest,
            "choices": [
                {"source_lens": list(c.source_lens), "fit": c.fit, "padding": c.padding, "positions": c.positions}
                for c in found
            ],
        },
        f"{len(lengths.source):,} prompts of {lengths.origin}, at most {recipe.data.max_source_length} tokens compiled",
        table,
        target,
        f"next: neuron-sum compile {where} --set {suggestion}",
    )
