"""The Python API of training: `train`; docs/python.md has an example.

Nothing heavy is imported before the function is called, because the environment must be set first.
"""

from collections.abc import Sequence
from pathlib import Path

from neuron_sum.calls import api_call
from neuron_sum.recipes.loading import RecipeSource, load_recipe
from neuron_sum.recipes.schema import Recipe
from neuron_sum.runs.folder import RunFolder
from neuron_sum.training import launch


def train(
    recipe: RecipeSource,
    output: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    progress: bool = False,
) -> RunFolder:
    """Fine-tunes a model in this process: full, LoRA or prompt tuning, depending on the recipe.

    Args:
        recipe: The recipe.
        output: The folder of the run. Default: runs/NAME.
        overrides: Changes to the recipe, such as "train.learning_rate=1e-4".
        resume: Whether to continue the unfinished run in that folder.
        overwrite: Whether to replace the run in that folder.
        force: Whether to start even if the estimated memory does not fit.
        progress: Whether to print progress and estimates to standard error.

    Returns:
        The run; `weights` is the folder of the trained weights, `read_results()` returns losses, sizes and times.

    Raises:
        NeuronSumError: One of its subclasses for each failure; nothing is written before all checks have passed.
    """
    # transformers sets variables, such as that of bf16, which it would read as the defaults of the next training.
    with api_call(progress), launch.preserve_environment():
        loaded = load_recipe(recipe, overrides)
        launch.set_environment(loaded.train)
        from neuron_sum.training import train as training

        folder = Path(output) if output is not None else default_folder(loaded)
        return training.train(loaded, folder, resume=resume, overwrite=overwrite, force=force)


def default_folder(recipe: Recipe) -> Path:
    """The folder of a run that is not given one."""
    return Path("runs") / recipe.name
