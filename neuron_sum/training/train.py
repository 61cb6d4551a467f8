"""The training recipe, read top to bottom: data, model, method, what it will take; then training, and what stays."""

import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuron_sum import __version__, console, files
from neuron_sum.data.encoding import encode
from neuron_sum.data.examples import Dataset
from neuron_sum.data.layouts import Shape
from neuron_sum.data.rows import RowSet
from neuron_sum.data.shapes import ShapePlan, ShapeReport, check_packing, choose_plan
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import DataError
from neuron_sum.models import adapters
from neuron_sum.models import base as models
from neuron_sum.recipes.schema import ModelConfig, Recipe
from neuron_sum.runs.card import write_model_card
from neuron_sum.runs.folder import RunFolder, describe_damage, start_run
from neuron_sum.training.base import Trainer, TrainingData
from neuron_sum.training.estimate.steps import Estimate, estimate
from neuron_sum.training.estimate.timing import seconds_per_step
from neuron_sum.training.neuron.backend import NeuronBackend
from neuron_sum.training.processes import device_count, world_size
from neuron_sum.training.torch.backend import TorchTrainer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BACKENDS: dict[str, type[Trainer]] = {"torch": TorchTrainer, "neuron": NeuronBackend}
RECORDED_PACKAGES = ("torch", "transformers", "accelerate", "peft", "tokenizers", "numpy")


@dataclass(frozen=True)
class Prepared:
    """Everything that training needs, with nothing written yet."""

    run: RunFolder
    origin: ModelConfig
    dataset: Dataset
    tokenizer: "PreTrainedTokenizerFast"
    model: "PreTrainedModel | PeftModel"
    parameters: models.ParameterCount
    data: TrainingData
    plan: ShapePlan
    shapes: ShapeReport
    estimate: Estimate
    seconds: float | None


def train(
    recipe: Recipe, output: Path, *, resume: bool = False, overwrite: bool = False, force: bool = False
) -> RunFolder:
    """Trains what a recipe describes.

    Args:
        recipe: The whole recipe.
        output: The run folder to write.
        resume: Go on with the unfinished run there.
        overwrite: Replace the run there.
        force: Start even if the estimate says that it will not fit.

    Raises:
        NeuronSumError: Its children say what can go wrong; nothing is written before all checks have passed.
    """
    started = time.monotonic()
    if resume and RunFolder(output, recipe).is_complete:
        console.note(f"{output} is a finished run already")
        return start_run(output, recipe, processes=world_size(), resume=True, overwrite=False)
    made = prepare(recipe, output, resume=resume, overwrite=overwrite, force=force)
    run = made.run

    # From here on the folder is written
    if console.is_main_process():
        files.check_writable(output, int(made.estimate.disk))
        if overwrite:
            run.clear()
        files.write_text(output / "recipe.yaml", recipe.to_yaml())
        run.record_processes(world_size())
        if made.origin.name_or_path is None:  # random weights can be had nowhere else; the seed makes them once more
            with files.new_folder(run.base) as folder:
                models.load_base(made.origin, made.tokenizer).save_pretrained(folder)
                made.tokenizer.save_pretrained(folder)
    resume_from = run.last_checkpoint() if resume else None
    if resume:
        for folder in run.marked_checkpoints():
            if folder == resume_from:
                break
            console.warn(f"{folder.name} is not whole: {describe_damage(folder)}; it is not gone on from")
        console.note(f"going on from {resume_from.name}" if resume_from else "nothing was saved yet; starting anew")
    trainer = BACKENDS[recipe.train.backend](run, made.tokenizer, resume_from)
    weights = trainer.train(made.model, made.data, made.plan, recipe.train)
    if weights is None:
        return run

    # What is left behind
    if console.is_main_process():
        seconds = time.monotonic() - started
        results = _results(made, seconds)
        write_model_card(run, results)
        files.write_json(run.results, results)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        console.note(f"{weights} ({console.size(files.folder_size(weights))}) in {console.duration(seconds)}")
    return run


def check_before_start(recipe: Recipe, output: Path | None, processes: int, *, resume: bool, overwrite: bool) -> None:
    """What one process can refuse before it starts others, which all load everything first.

    Args:
        recipe: The whole recipe.
        output: The run folder that is to be written; None: a temporary one.
        processes: How many will train.
        resume: As in `train`.
        overwrite: As in `train`.

    Raises:
        RunError: If the folder holds something else.
        MissingExtraError: Naming what to install.
        RecipeError: If the recipe needs another number of processes.
        PlatformError: If this is no machine for the backend.
    """
    if output is not None:
        start_run(output, recipe, processes=processes, resume=resume, overwrite=overwrite)
    BACKENDS[recipe.train.backend].check(recipe.train, processes)


def prepare(
    recipe: Recipe,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    force: bool = False,
    processes: int | None = None,
    say: Callable[[str], None] = console.note,
) -> Prepared:
    """Loads and checks everything, and tells what the run will take; writes nothing.

    Args:
        recipe: The whole recipe.
        output: The run folder that is to be written.
        resume: As in `train`.
        overwrite: As in `train`.
        force: As in `train`.
        processes: How many are to train it, where none of them is this one; None: this one, and all of its torchrun.
        say: Is told what a person wants to know.

    Raises:
        NeuronSumError: As in `train`.
    """
    together = processes or world_size()
    if console.is_main_process():
        run = start_run(output, recipe, processes=together, resume=resume, overwrite=overwrite)
    else:  # rank 0 may be writing there already; if it refuses, torchrun ends all
        run = RunFolder(output, recipe)

    BACKENDS[recipe.train.backend].check(recipe.train, processes)

    # Data
    dataset = load_dataset(recipe.data)
    if not dataset["train"]:
        raise DataError(f"{dataset.origin} has no training examples", "give data.files.train, or another data.path")
    for line in dataset.notes():
        say(line)

    # Model and tokenizer
    origin = ModelConfig(name_or_path=str(run.base)) if resume and run.base.is_dir() else recipe.model
    tokenizer = models.load_tokenizer(origin, dataset.training_texts())
    check_packing(recipe, decoder_only=models.is_decoder_only(models.load_config(origin, tokenizer)))
    base = models.load_base(origin, tokenizer, packed=recipe.train.shapes.plan == "packed")
    if recipe.model.name_or_path is None:
        base.name_or_path = str(run.base.resolve())  # PEFT notes it in adapter_config.json
    config, prompt, decoder_only = base.config, recipe.prompt.resolve(), models.is_decoder_only(base.config)
    validation = encode(dataset["validation"], tokenizer, prompt, recipe.data, decoder_only=decoder_only)
    data = TrainingData(
        train=encode(dataset["train"], tokenizer, prompt, recipe.data, decoder_only=decoder_only),
        validation=validation if len(validation) else None,
    )
    say(
        f"cut to fit: {data.train.sources_cut} of {len(dataset['train']):,} training dialogues at "
        f"{recipe.data.max_source_length} tokens, {data.train.targets_cut} summaries at {recipe.data.max_target_length}"
    )

    # Method
    BACKENDS[recipe.train.backend].check_model(config, recipe)
    model = adapters.attach(base, recipe.method, recipe.train.seed)
    parameters = models.count_parameters(model)
    say(f"{recipe.method.name}: {parameters}")

    # What it will take
    plan = choose_plan(
        recipe, data.train, data.validation, decoder_only=decoder_only, devices=device_count(recipe.train, together)
    )
    shapes = plan.report(data.train)
    say(str(shapes))
    longest = Shape(plan.source_len, plan.target_len)
    memory = BACKENDS[recipe.train.backend].memory(config, parameters, longest, recipe.train, together)
    expected = estimate(parameters, plan, recipe.train, memory)
    say(str(expected))
    if not force:
        memory.check(recipe.train)
    seconds = None
    measurable = together == 1 and BACKENDS[recipe.train.backend].computes_here
    if measurable and memory.fits:  # the step that is measured runs the whole model in one process
        seconds = expected.steps * seconds_per_step(model, RowSet(data.train, plan), recipe.train)
    takes = f"this will take about {console.duration(seconds)}" if seconds else "the progress bar will tell how long"
    say(f"{expected.steps:,} optimizer steps; {takes}")
    return Prepared(run, origin, dataset, tokenizer, model, parameters, data, plan, shapes, expected, seconds)


def _results(made: Prepared, seconds: float) -> dict[str, Any]:
    log = files.read_jsonl(made.run.log)
    losses = [entry["loss"] for entry in log if "loss" in entry]
    eval_losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    return {
        "method": made.run.recipe.method.name,
        "processes": world_size(),
        "global_step": log[-1]["step"] if log else 0,
        "train_loss": losses[-1] if losses else None,
        "eval_loss": eval_losses[-1] if eval_losses else None,
        "seconds": round(seconds, 1),
        "trainable_parameters": made.parameters.trainable,
        "all_parameters": made.parameters.all,
        "weights_bytes": sum(file.stat().st_size for file in made.run.weights.glob("*.safetensors")),
        "train_examples": len(made.data.train),
        "shapes": made.shapes.as_dict(),
        "sources_cut": made.data.train.sources_cut,
        "targets_cut": made.data.train.targets_cut,
        "data": made.dataset.origin,
        "data_license": made.dataset.license,
        "versions": {
            "neuron-sum": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in RECORDED_PACKAGES},
        },
    }
