"""`neuron-sum train` and `neuron-sum merge`."""

from pathlib import Path
from typing import Annotated

import typer

from neuron_sum import console
from neuron_sum.recipes.command import BaseOption, Overrides, RecipeArgument, SetOption


def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    sets: SetOption = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the unfinished run in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the output folder.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip and count bad rows of the data.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Start even if the estimated memory does not fit.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and estimate only; train and write nothing.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Number of training processes to start on this machine.")
    ] = None,
    precompile: Annotated[
        bool, typer.Option("--precompile", help="Only extract and compile the graphs into the Neuron compile cache.")
    ] = False,
) -> None:
    """Fine-tune a model: full, LoRA or prompt tuning, depending on the recipe."""
    from neuron_sum.recipes.loading import load_recipe
    from neuron_sum.training import api, launch

    changes = [*(overrides or []), *(sets or []), *(["data.skip_bad=true"] if skip_bad else [])]
    resolved = load_recipe(recipe, changes)
    launch.check_options(resolved.train, processes, precompile=precompile)
    folder = output or api.default_folder(resolved)
    if processes is not None and not dry_run:
        launch.set_environment(resolved.train)
        with launch.preserve_environment():
            from neuron_sum.training.train import check_before_start

            destination = None if precompile else folder
            check_before_start(resolved, destination, processes, resume=resume, overwrite=overwrite)
        output_option = ["--output", str(output)] if output is not None and not precompile else []
        run_flags = {"--resume": resume and not precompile, "--overwrite": overwrite and not precompile}
        all_flags = {**run_flags, "--force": force, "--json": console.settings.json, "--debug": console.settings.debug}
        flags = [flag for flag, on in all_flags.items() if on]
        raise typer.Exit(launch.start([recipe, *changes, *output_option, *flags], processes, precompile=precompile))
    if dry_run:
        launch.set_environment(resolved.train)
        from neuron_sum.training.train import prepare

        prepared = prepare(
            resolved,
            folder,
            resume=resume,
            overwrite=overwrite,
            force=force,
            processes=launch.planned_processes(resolved.train, processes),
        )
        expected = {**prepared.estimate.as_dict(), "steps_left": prepared.steps_left, "seconds": prepared.seconds}
        console.emit(
            {"run": str(folder), "shapes": prepared.shapes.as_dict(), "estimate": expected},
            "dry run: nothing was written",
        )
        return
    run = api.train(resolved, folder, resume=resume, overwrite=overwrite, force=force, progress=True)
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
        f"trained {folder}: {loss}\nnext: {console.command('evaluate', folder)}",
    )


def merge(
    run: Annotated[
        Path, typer.Argument(metavar="RUN|ADAPTER", help="Folder of a finished LoRA run, or of a LoRA adapter.")
    ],
    output: Annotated[Path | None, typer.Option(help="Folder of the merged model. Default: RUN/merged.")] = None,
    base: BaseOption = None,
) -> None:
    """Merge a LoRA adapter into its base model, and verify that the logits stay the same."""
    from neuron_sum.runs.merge import merge as merge_source

    folder = output or run / "merged"
    difference = merge_source(run, folder, base)
    console.emit(
        {"merged": str(folder), "largest_logit_difference": difference},
        f"merged into {folder}; largest logit difference: {difference:.1e} of the largest logit",
    )
