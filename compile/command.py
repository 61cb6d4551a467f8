"""`neuron-sum compile`, `compile verify` and `compile report`."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from neuron_sum import console, files
from neuron_sum.command_group import CommandGroup
from neuron_sum.errors import ArtifactError, RecipeError
from neuron_sum.recipes.command import BaseOption, SetOption

if TYPE_CHECKING:
    from compile.verify import Comparison
    from neuron_sum.artifact import Artifact

ExamplesOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Dialogues of the evaluation split to compare. Default: 32 for fp32, whose summaries must be equal, and "
        "100 for other data types.",
    ),
]
MAX_DROP = 1.0
MaxDropOption = Annotated[float, typer.Option(min=0, help="Largest accepted loss in ROUGE-1 points.")]


compile = CommandGroup(
    "Compile a run ahead of time into an artifact. `compile RUN` is short for `compile run RUN`; its options are "
    "listed by `compile run --help`.",
    {"run": f"{__name__}:run", "verify": f"{__name__}:verify", "report": f"{__name__}:report"},
    default="run",
)


def run(
    run: Annotated[
        Path | None,
        typer.Argument(help="Folder of a finished run, or of a checkpoint or an adapter (then with --recipe)."),
    ] = None,
    target: Annotated[
        Literal["cpu", "inf2", "trn1"] | None,
        typer.Option(help="Device that the artifact is for. Default: the recipe's compile.target, or cpu."),
    ] = None,
    overrides: SetOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", "-r", help="Name or file of the recipe with prompt, lengths and beams for a plain checkpoint."
        ),
    ] = None,
    base: BaseOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the artifact. Default: RUN/artifacts/TARGET-DTYPE.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing artifact.")] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Graphs compiled in parallel. Default: as many as processors and memory allow."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be compiled and write nothing.")] = False,
    plan: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Suggest source lengths for data: sample, a file or a folder."),
    ] = None,
) -> None:
    """Compile a run ahead of time (the default of `neuron-sum compile`)."""
    if plan is not None:
        _plan_buckets(plan, run, recipe, overrides or [], base)
        return
    if run is None:
        hint = "run `neuron-sum compile RUN`; `neuron-sum train RECIPE` creates a run"
        raise RecipeError("missing argument RUN", "run `neuron-sum compile ./run`" if Path("run").is_dir() else hint)

    from compile import api

    changes = [*(overrides or []), *([f"compile.target={target}"] if target else [])]
    planned = api.plan(run, output, recipe, changes, base, overwrite=overwrite, jobs=jobs)
    if dry_run:
        console.emit(planned.as_dict(), "dry run: nothing was written")
        return
    manifest = planned.build().manifest
    folder, described = planned.folder, planned.as_dict()
    size = files.folder_size(folder)
    graphs = f"{len(described['graphs'])} graphs, " if "graphs" in described else ""
    place = f", on {manifest.target}" if "exporter" in described else ""
    console.emit(
        {**described, "bytes": size, "manifest": manifest.model_dump(mode="json")},
        f"compiled {folder}: {graphs}{console.size(size)}\nnext{place}: {console.command('compile', 'verify', folder)}",
    )


def verify(
    artifact: Annotated[Path, typer.Argument(help="Folder of an artifact.")],
    source: Annotated[
        Path | None, typer.Option(help="Run that the artifact was compiled from, if it has moved.")
    ] = None,
    overrides: SetOption = None,
    examples: ExamplesOption = None,
    max_drop: MaxDropOption = MAX_DROP,
) -> None:
    """Compare an artifact's summaries with those of transformers; record the result in the manifest."""
    from compile.verify import ALLOWED_DIFFERENCES, width
    from compile.verify import verify as check
    from neuron_sum.artifact import open_artifact
    from neuron_sum.data.examples import count_of

    opened = open_artifact(artifact)
    comparison = check(opened, source, examples, max_drop, overrides or [])
    record = comparison.record
    if record.examples < comparison.wanted:
        console.warn(
            f"{record.examples} dialogues instead of {comparison.wanted}: the {comparison.split} split has no more"
            + (" with these --set values" if overrides else "")
        )
    for example, expected, actual in comparison.differing[:3]:
        console.note(f"{example}\n  transformers: {expected}\n  artifact:     {actual}")
    table = console.table(
        "batch", "beams", "same as transformers", "ROUGE-1", "interval", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum"
    )
    for row in record.checks:
        rouge1, *others = (f"{difference:+.2f}" for difference in row.rouge_difference.values())
        interval = "" if row.rouge1_interval is None else "[{:+.1f}, {:+.1f}]".format(*row.rouge1_interval)
        table.add_row(
            str(row.batch),
            width(row.num_beams, row.steps),
            f"{row.identical} of {record.examples}",
            rouge1,
            interval,
            *others,
        )
    untested = f"; not tested, because no prompt is that long: {', '.join(record.unseen)}" if record.unseen else ""
    points = f"{max_drop:g} point{'' if max_drop == 1 else 's'}"
    rule = (
        f"at most {ALLOWED_DIFFERENCES:.0%} of the summaries of an fp32 artifact may differ"
        if opened.manifest.is_exact
        else f"an artifact in {opened.manifest.dtype} may lose at most {points} of ROUGE-1"
    )
    outcome = "passed" if record.passed else "undecided" if record.undecided else "failed"
    console.emit(
        {
            **record.model_dump(mode="json"),
            "truncated": comparison.truncated,
            "split": comparison.split,
            "available": comparison.available,
        },
        f"{opened.manifest.dtype} artifact compared with transformers in fp32 on "
        f"{count_of(record.examples, comparison.available)} {comparison.split} dialogues; ROUGE is artifact minus "
        f"transformers (truncated dialogues: {comparison.truncated}{untested})",
        table,
        f"{outcome}: {rule}",
        *([f"next: {console.command('evaluate', artifact)}"] if record.passed else []),
    )
    if record.undecided:
        changed_drop = None if max_drop == MAX_DROP else max_drop
        again = console.command("compile", "verify", artifact, source=source, set=overrides, max_drop=changed_drop)
        raise _undecided(opened, comparison, rule, again)
    if not record.passed and opened.manifest.is_exact:
        raise ArtifactError(
            f"{opened.path} differs too much from its source: {rule}",
            "compile again, and report it if the summaries differ again",
        )
    if not record.passed:
        raise ArtifactError(
            f"{opened.path} is worse than its source: it loses more than {points} of ROUGE-1, and {rule}",
            "compile with `--set compile.dtype=bf16` or fp32, or raise --max-drop",
        )


def _undecided(artifact: "Artifact", comparison: "Comparison", rule: str, again: str) -> ArtifactError:
    """The error of a verification with too few dialogues, with the number that it needs."""
    from neuron_sum.evaluation.statistics import MIN_EXAMPLES

    record, available, needed = comparison.record, comparison.available, comparison.record.examples_needed
    other_data = "--set evaluate.split=SPLIT or --set data.path=FOLDER"
    if available < MIN_EXAMPLES:
        return ArtifactError(
            f"undecided: the {comparison.split} split has {available} dialogues, and at least {MIN_EXAMPLES} are "
            f"needed to verify {artifact.path}",
            f"use a larger split or other data: {other_data}",
        )
    return ArtifactError(
        f"undecided: {record.examples} dialogues are not enough to tell whether {artifact.path} keeps the rule that "
        f"{rule}" + ("" if needed is None else f"; about {needed:,} are needed, and the split has {available:,}"),
        f"run `{again} --examples {needed}`"
        if needed is not None and needed <= available
        else f"raise --max-drop, or use more dialogues: {other_data}",
    )


def report(
    artifact: Annotated[Path, typer.Argument(help="Folder of an artifact.")],
    output: Annotated[
        Path | None, typer.Option(help="File to write. Default: NAME-report.json in the current folder.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="Run that the artifact was compiled from, if it has moved.")
    ] = None,
    examples: ExamplesOption = None,
    max_drop: MaxDropOption = MAX_DROP,
) -> None:
    """Write a diagnostic report for an artifact (doctor, manifest, latency, verify) to attach to an issue."""
    from compile.machine_report import make_report
    from neuron_sum.artifact import artifact_name, open_artifact

    opened = open_artifact(artifact)
    content = make_report(opened, source, examples, max_drop)
    target = output or Path(f"{artifact_name(artifact)}-report.json")
    files.write_json(target, content)
    failed = [name for name in ("latency", "verify") if content[name]["error"] is not None]
    for name in failed:
        console.warn(f"{name}: {content[name]['error']}")
    timings = (content["latency"]["result"] or [])[1:]
    table = console.table(*(name.replace("_", " ") for name in (timings[0] if timings else ())))
    for row in timings:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.emit(
        content, table, f"wrote {target}; it contains paths and versions of this machine, but no text of dialogues"
    )


def _plan_buckets(data: str, run: Path | None, recipe_name: str | None, overrides: list[str], base: str | None) -> None:
    from compile.bucket_choice import choices, measure
    from compile.source import open_source
    from neuron_sum.models.base import load_tokenizer
    from neuron_sum.models.chat import not_rendered, render_chat
    from neuron_sum.recipes.loading import load_recipe

    if run is not None:
        source = open_source(run, recipe_name, overrides, base)
        recipe, tokenizer = source.recipe, source.tokenizer()
    elif recipe_name is not None:
        from neuron_sum.data.sources import load_dataset

        recipe = load_recipe(recipe_name, overrides)
        tokenizer = load_tokenizer(recipe.model, load_dataset(recipe.data, recipe.output).training_texts())
        recipe = render_chat(not_rendered(recipe), tokenizer)
    else:
        raise RecipeError(
            "--plan needs a tokenizer to count tokens, and neither RUN nor --recipe is given",
            f"run `{console.command('compile', 'RUN', plan=data)}`, or use --recipe NAME instead of RUN",
        )
    lengths = measure(data, recipe, tokenizer)
    candidates = choices(lengths.source, recipe.data.max_source_length)
    table = console.table("compile.source_lens", "fit", "padding", "positions", "relative to one", "graphs")
    per_bucket = 1 + len(recipe.compile.num_beams or (1,)) + (recipe.compile.greedy_steps > 1)
    per_length = len(recipe.compile.batch_sizes) * per_bucket
    for choice in candidates:
        table.add_row(
            f"[{','.join(map(str, choice.source_lens))}]",
            f"{100 * choice.fit:.1f} %",
            f"{100 * choice.padding:.1f} %",
            f"{choice.positions:.0f}",
            f"{choice.positions / candidates[0].positions:.2f}",
            str(per_length * len(choice.source_lens)),
        )
    best = next((c for c, more in pairwise(candidates) if more.positions > 0.9 * c.positions), candidates[-1])
    p99, longest = lengths.target_percentile(99), max(lengths.target)
    target = f"summaries: 99 % have at most {p99} tokens, the longest {longest}; compile.target_len covers new tokens"
    suggestion = f"compile.source_lens=[{','.join(map(str, best.source_lens))}]"
    command = console.command(
        "compile",
        run or "RUN",
        recipe=None if run is None else recipe_name,
        base=base,
        set=[*(overrides if run is not None else []), suggestion],
    )
    console.emit(
        {
            "origin": lengths.origin,
            "prompts": len(lengths.source),
            "suggested": list(best.source_lens),
            "target_p99": p99,
            "target_longest": longest,
            "choices": [
                {"source_lens": list(c.source_lens), "fit": c.fit, "padding": c.padding, "positions": c.positions}
                for c in candidates
            ],
        },
        f"{len(lengths.source):,} prompts of {lengths.origin}; compiled lengths: at most "
        f"{recipe.data.max_source_length} tokens",
        table,
        target,
        f"next: {command}",
    )
