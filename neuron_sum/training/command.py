"""`neuron-sum train` and `neuron-sum merge`."""

from pathlib import Path
from typing import Annotated

import typer

from neuron_sum import console
from neuron_sum.recipes.command import Overrides, RecipeArgument, SetOption


def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    sets: SetOption = None,
    output: Annotated[Path | None, typer.Option(help="The run's folder. Default: runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run there.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad rows out and count them.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Start even if it does not seem to fit.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and estimate; train and write nothing.")] = False,
    processes: Annotated[int | None, typer.Option(min=1, help="Train in so many processes on this machine.")] = None,
    precompile: Annotated[
        bool, typer.Option("--precompile", help="Neuron: only extract and compile the graphs, for the cache.")
    ] = False,
) -> None:
    """Fine-tune a model: full, LoRA or prompt tuning, as the recipe says."""
    from neuron_sum.recipes.loading import load_recipe
    from neuron_sum.training import launch

    changes = [*(overrides or []), *(sets or []), *(["data.skip_bad=true"] if skip_bad else [])]
    resolved = load_recipe(recipe, changes)
    launch.check_options(resolved.train, processes, precompile=precompile)
    launch.set_environment(resolved.train)
    folder = output or Path("runs") / resolved.name
    if processes is not None and not dry_run:
        with launch.environment_stays():
            from neuron_sum.training.train import check_before_start

            written = None if precompile else folder
            check_before_start(resolved, written, processes, resume=resume, overwrite=overwrite)
        where = ["--output", str(output)] if output is not None and not precompile else []
        run_flags = {"--resume": resume and not precompile, "--overwrite": overwrite and not precompile}
        all_flags = {**run_flags, "--force": force, "--json": console.settings.json, "--debug": console.settings.debug}
        given = [flag for flag, on in all_flags.items() if on]
        raise typer.Exit(launch.start([recipe, *changes, *where, *given], processes, precompile=precompile))
    from neuron_sum.training import train as training

    if dry_run:
        prepared = training.prepare(
            resolved,
            folder,
            resume=resume,
            overwrite=overwrite,
            force=force,
            processes=launch.planned_processes(resolved.train, processes),
        )
        expected = {**prepared.estimate.as_dict(), "seconds": prepared.seconds}
        console.emit(
            {"run": str(folder), "shapes": prepared.shapes.as_dict(), "estimate": expected},
            "dry run: nothing was written",
        )
        return
    run = training.train(resolved, folder, resume=resume, overwrite=overwrite, force=force)
    if not console.is_main_process():
        return
    if not run.is_complete:
        console.note("graphs were extracted; nothing was trained")
        return
    results = run.read_results()
    loss = f"loss {results['train_loss']:.3f}"
    if results["eval_loss"] is not None:
        loss += f", validation loss {results['eval_loss']:.3f}"
    console.emit(
        {"run": str(folder), "weights": str(run.weights), **results},
        f"trained {folder}: {loss}\nnext: neuron-sum evaluate {folder}",
    )


def merge(
    run: Annotated[Path, typer.Argument(help="A finished LoRA run.")],
    output: Annotated[Path | None, typer.Option(help="Where to write. Default: RUN/merged.")] = None,
) -> None:
    """Merge a LoRA adapter into its base, and prove that the logits stay the same."""
    from neuron_sum.runs.folder import open_run
    from neuron_sum.runs.merge import merge_run

    folder = output or run / "merged"
    difference = merge_run(open_run(run), folder)
    console.emit(
        {"merged": str(folder), "largest_logit_difference": difference},
        f"merged into {folder}; largest difference of a logit {difference:.1e} of the largest one",
    )
