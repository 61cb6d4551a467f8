"""The training stage from top to bottom: data, model, method, estimate; then training and its results."""

import platform
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from neuron_sum import __version__, console, files
from neuron_sum.data.encoding import encode, unknown_tokens
from neuron_sum.data.examples import Dataset
from neuron_sum.data.layouts import Shape
from neuron_sum.data.long_rows import training_rows
from neuron_sum.data.rows import RowSet
from neuron_sum.data.shapes import ShapePlan, ShapeReport, check_packing, choose_plan
from neuron_sum.data.sources import load_dataset
from neuron_sum.data.statistics import STATISTICS, DialogueStatistics, training_statistics
from neuron_sum.errors import DataError
from neuron_sum.models import adapters
from neuron_sum.models import base as models
from neuron_sum.models.chat import render_chat, token_warnings
from neuron_sum.models.gguf import origin_of
from neuron_sum.models.rotary import check_positions, training_lengths
from neuron_sum.platform import threads
from neuron_sum.prompts import CHAT
from neuron_sum.recipes.loading import load_resolved
from neuron_sum.recipes.schema import SPLITS, ModelConfig, Recipe, Split
from neuron_sum.runs.card import write_model_card
from neuron_sum.runs.contents import is_run
from neuron_sum.runs.fingerprint import DATA, TRAINED, Fingerprint, check, of_base, of_data, of_model, of_recipe
from neuron_sum.runs.folder import RunFolder, describe_damage, start_run, step_of
from neuron_sum.runs.tracking import reporting
from neuron_sum.sections import SectionCoder
from neuron_sum.training.base import Trainer, TrainingData
from neuron_sum.training.callbacks import MlflowLog
from neuron_sum.training.estimate.activations import most_label_positions
from neuron_sum.training.estimate.steps import Estimate, estimate
from neuron_sum.training.estimate.timing import seconds_per_step
from neuron_sum.training.launch import extracts_graphs
from neuron_sum.training.neuron.backend import NeuronBackend
from neuron_sum.training.processes import device_count, world_size
from neuron_sum.training.torch.backend import TorchTrainer
from neuron_sum.training.torch.bf16 import prepare_for_bf16

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BACKENDS: dict[str, type[Trainer]] = {"torch": TorchTrainer, "neuron": NeuronBackend}
ENCODED: tuple[Split, ...] = ("train", "validation")
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
    steps_left: int
    seconds: float | None
    """The estimated time of the steps that are left; None if it was not measured."""
    resumed: bool
    """Whether the folder contains an unfinished run, which continues."""


def train(
    recipe: Recipe, output: Path, *, resume: bool = False, overwrite: bool = False, force: bool = False
) -> RunFolder:
    """Train a recipe.

    Args:
        recipe: The whole recipe.
        output: The run folder to write.
        resume: Continue the unfinished run in that folder.
        overwrite: Replace the run in that folder.
        force: Start even if the run will not fit according to the estimate.

    Raises:
        NeuronSumError: One of its subclasses for each failure; nothing is written before all checks have passed.
    """
    started = time.monotonic()
    with ExitStack() as locks:
        if console.is_main_process() and output.is_dir():
            locks.enter_context(files.lock(output))
        if resume and RunFolder(output, recipe).is_complete:
            console.note(f"{output} is already a finished run")
            return start_run(output, recipe, processes=world_size(), resume=True, overwrite=False)
        prepared = prepare(recipe, output, resume=resume, overwrite=overwrite, force=force)
        if console.is_main_process():  # from here on the run folder is written
            files.check_writable(output, int(prepared.estimate.disk))
            locks.enter_context(files.lock(output))
            # If the folder did not exist before, another process may have started a run in it since.
            start_run(output, recipe, processes=world_size(), resume=resume, overwrite=overwrite)
            _write_start(prepared)
        with files.writing(output, f"free some space, then continue: {prepared.run.resume_command}"):
            return _train(prepared, started, resume=resume)


def _write_start(prepared: Prepared) -> None:
    """Write the first files of a run, or of its continuation."""
    run = prepared.run
    if prepared.resumed:
        files.write_text(run.recipe_path, run.recipe.to_yaml())
        run.record_processes(world_size(), torch.get_num_threads())
        return

    def write(new: RunFolder) -> None:
        files.write_text(new.recipe_path, new.recipe.to_yaml())
        new.record_processes(world_size(), torch.get_num_threads())
        if prepared.origin.name_or_path is None:  # random weights exist nowhere else; the seed creates them again
            models.load_base(prepared.origin, prepared.tokenizer).save_pretrained(new.base)
            prepared.tokenizer.save_pretrained(new.base)
        new.write_record(_inputs(new.recipe, new.base, prepared.dataset))

    run.create(write)


def _inputs(recipe: Recipe, base: Path, dataset: Dataset) -> Fingerprint:
    """The parts that the trained weights depend on, and the data of their evaluation."""
    return {**of_base(recipe, base), **of_data(dataset, *SPLITS), **of_recipe(recipe)}


def _train(prepared: Prepared, started: float, *, resume: bool) -> RunFolder:
    run, recipe = prepared.run, prepared.run.recipe
    resume_from = run.last_checkpoint() if resume else None
    if resume:
        for folder in run.marked_checkpoints():
            if folder == resume_from:
                break
            console.warn(f"skipping incomplete checkpoint {folder.name}: {describe_damage(folder)}")
        console.note(f"continuing from {resume_from.name}" if resume_from else "no checkpoint found; starting again")
    trainer = BACKENDS[recipe.train.backend](run, prepared.tokenizer, resume_from)
    to_mlflow = "mlflow" in recipe.train.report_to and console.is_main_process() and not extracts_graphs()
    with reporting(run, active=to_mlflow) as mlflow_run:
        callbacks = [MlflowLog(mlflow_run)] if mlflow_run is not None else []
        weights = trainer.train(prepared.model, prepared.data, prepared.plan, recipe.train, callbacks)
        if weights is None:
            return run

        # Results
        if console.is_main_process():
            seconds = time.monotonic() - started
            results = _results(prepared, seconds)
            run.write_record({**run.read_record().fingerprint, **of_model(str(run.weights), TRAINED)})
            write_model_card(run, results)
            if recipe.data.claims is None:  # a checker answers no requests
                files.write_text(run.weights / STATISTICS, _statistics(prepared).model_dump_json(indent=1) + "\n")
            files.write_json(run.results, results)
            shutil.rmtree(run.checkpoints, ignore_errors=True)
            if mlflow_run is not None:
                mlflow_run.end("FINISHED")
            console.note(f"{weights} ({console.size(files.folder_size(weights))}) in {console.duration(seconds)}")
    return run


def _statistics(prepared: Prepared) -> DialogueStatistics:
    """The statistics of the training data, with which `neuron-sum watch` compares requests."""
    recipe, dialogues = prepared.run.recipe, [example.dialogue for example in prepared.dataset["train"]]
    prompts = recipe.prompt.resolve().encode(prepared.tokenizer, dialogues, recipe.data.max_source_length)
    return training_statistics(prompts, prepared.tokenizer)


def check_before_start(recipe: Recipe, output: Path | None, processes: int, *, resume: bool, overwrite: bool) -> None:
    """Run the checks that need no data or model, before starting processes that each load everything.

    Args:
        recipe: The whole recipe.
        output: The run folder to write; None for a temporary one.
        processes: The number of processes that will train.
        resume: As in `train`.
        overwrite: As in `train`.

    Raises:
        RunError: If the folder contains something else.
        MissingExtraError: If a package is missing; names it.
        RecipeError: If the recipe needs another number of processes.
        PlatformError: If the backend cannot run on this machine.
    """
    if output is not None:
        with files.lock(output):  # the first process locks it again when it starts
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
) -> Prepared:
    """Load and check everything, and estimate the run; write nothing.

    Args:
        recipe: The whole recipe.
        output: The run folder to write.
        resume: As in `train`.
        overwrite: As in `train`.
        force: As in `train`.
        processes: The number of processes that will train if this process is not one of them; None if this process
            trains, together with all others of its torchrun.

    Raises:
        NeuronSumError: As in `train`.
    """
    together = processes or world_size()
    if console.is_main_process():
        run = start_run(output, recipe, processes=together, resume=resume, overwrite=overwrite)
    else:  # rank 0 may already be writing the folder; if it fails, torchrun ends all processes
        run = RunFolder(output, recipe)

    BACKENDS[recipe.train.backend].check(recipe.train, processes)
    if resume and run.threads is not None:
        threads.restore(run.threads)

    # The model's family and limits, before anything large is loaded
    origin = ModelConfig(name_or_path=str(run.base)) if resume and run.base.is_dir() else recipe.model
    settings = models.load_config(origin)
    decoder_only = models.is_decoder_only(settings)
    check_packing(recipe, decoder_only=decoder_only)
    check_positions(settings, training_lengths(recipe))
    BACKENDS[recipe.train.backend].check_model(settings, recipe)

    # Data
    dataset = load_dataset(recipe.data, recipe.output)
    if not dataset["train"]:
        raise DataError(f"{dataset.origin} has no training examples", "set data.files.train or another data.path")
    for line in dataset.notes():
        console.note(line)

    tokenizer = models.load_tokenizer(origin, dataset.training_texts())
    if recipe.prompt.preset == CHAT:  # a template may contain the date, and a given text may be of another model
        stored = load_resolved(run.recipe_path).prompt if resume and run.recipe_path.is_file() else recipe.prompt
        text = stored.rendered if resume else None
        recipe = recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"rendered": text})})
        recipe = render_chat(recipe, tokenizer)
        run = replace(run, recipe=recipe)

    if resumed := console.is_main_process() and resume and is_run(output):
        actual = _inputs(recipe, run.base, dataset)
        check(
            run.read_record().fingerprint,
            {part: value for part, value in actual.items() if part != DATA["test"]},
            output,
            "put the old files back, install the recorded version, or use --overwrite to restart",
        )

    if (coder := SectionCoder.of(recipe.output.sections, tokenizer)) is not None:
        coder.check_length("generate.max_new_tokens", recipe.generate.max_new_tokens)

    # Model
    base = models.load_base(origin, tokenizer, packed=recipe.train.shapes.plan == "packed")
    if recipe.model.name_or_path is None:
        base.name_or_path = str(run.base.resolve())  # PEFT notes it in adapter_config.json
    config, prompt = base.config, recipe.prompt.resolve()
    rows = {split: training_rows(dataset[split], tokenizer, prompt, recipe.data) for split in ENCODED}
    encoded = {
        split: encode(
            made.examples, tokenizer, prompt, recipe.data, decoder_only=decoder_only, sections=recipe.output.sections
        )
        for split, made in rows.items()
    }
    data = TrainingData(train=encoded["train"], validation=encoded["validation"] or None)
    total, limit, cut = len(dataset["train"]), recipe.data.max_source_length, data.train.sources_cut
    if prompt.has_claim:
        count = len(data.train)
        console.note(f"left out: {cut:,} of {total:,} claims, whose dialogues exceed {limit} tokens; {count:,} rows")
    else:
        if (note := rows["train"].note()) is not None:
            console.note(note)
        console.note(
            f"truncated: {cut} of {total:,} training dialogues at {limit} tokens, "
            f"{data.train.targets_cut} summaries at {recipe.data.max_target_length}"
        )

    for line in token_warnings(prompt, tokenizer, settings):
        console.warn(line)
    unknown = unknown_tokens(data.train, rows["train"].examples, tokenizer, decoder_only=decoder_only)
    if (warning := unknown.warning("train")) is not None:
        console.warn(warning)

    # Method
    model = adapters.attach(base, recipe.method, recipe.train.seed)
    prepare_for_bf16(model, recipe.train)
    parameters = models.count_parameters(model)
    console.note(f"{recipe.method.name}: {parameters}")

    # Estimate
    console.note(threads.describe(torch.get_num_threads()))
    plan = choose_plan(
        recipe, data.train, data.validation, decoder_only=decoder_only, devices=device_count(recipe.train, together)
    )
    shapes = plan.report(data.train)
    console.note(str(shapes))
    label_positions = most_label_positions(RowSet(data.train, plan), config) if decoder_only else plan.target_len
    longest = Shape(plan.source_len, label_positions)
    memory = BACKENDS[recipe.train.backend].memory(config, parameters, longest, recipe, together)
    expected = estimate(parameters, plan, recipe.train, memory)
    console.note(str(expected))
    if not force:
        memory.check(recipe.train)
    checkpoint = run.last_checkpoint() if resumed else None
    left = expected.steps - (step_of(checkpoint) if checkpoint else 0)
    steps = f"{left:,} of {expected.steps:,}" if checkpoint else f"{left:,}"
    seconds = None
    measurable = together == 1 and BACKENDS[recipe.train.backend].computes_here
    if left and measurable and memory.fits:  # the measured step runs the whole model in one process
        seconds = left * seconds_per_step(model, RowSet(data.train, plan), recipe.train, expected.steps)
    duration = (
        f"this will take about {console.duration(seconds)}" if seconds else "the progress bar shows the remaining time"
    )
    console.note(f"{steps} optimizer steps; {duration}" if left else f"{steps} optimizer steps")
    return Prepared(
        run, origin, dataset, tokenizer, model, parameters, data, plan, shapes, expected, left, seconds, resumed
    )


def _results(prepared: Prepared, seconds: float) -> dict[str, Any]:
    log = prepared.run.read_log()
    losses = [entry["loss"] for entry in log if "loss" in entry]
    eval_losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    return {
        "method": prepared.run.recipe.method.name,
        "processes": world_size(),
        "global_step": log[-1]["step"] if log else 0,
        "train_loss": losses[-1] if losses else None,
        "eval_loss": eval_losses[-1] if eval_losses else None,
        "seconds": round(seconds, 1),
        "trainable_parameters": prepared.parameters.trainable,
        "all_parameters": prepared.parameters.all,
        "weights_bytes": sum(file.stat().st_size for file in prepared.run.weights.glob("*.safetensors")),
        "train_examples": len(prepared.data.train),
        "examples": {
            split: {"used": len(examples), "available": prepared.dataset.available[split]}
            for split, examples in prepared.dataset.splits.items()
        },
        "shapes": prepared.shapes.as_dict(),
        "sources_cut": prepared.data.train.sources_cut,
        "targets_cut": prepared.data.train.targets_cut,
        "data": prepared.dataset.origin,
        "data_license": prepared.dataset.license,
        "converted_from": origin_of(str(prepared.origin.name_or_path)),
        "versions": {
            "neuron-sum": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in RECORDED_PACKAGES},
        },
    }
