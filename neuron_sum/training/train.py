"""The training recipe, read top to bottom: data, model, method, estimate, training, what is left behind."""

import platform
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from neuron_sum import __version__, adapters, console, files, models
from neuron_sum.data.encoding import encode
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import DataError
from neuron_sum.model_card import write_model_card
from neuron_sum.recipe import ModelConfig, Recipe
from neuron_sum.run_folder import RunFolder, start_run
from neuron_sum.training.base import ShapePlan, Trainer, TrainingData
from neuron_sum.training.estimate import Estimate, estimate
from neuron_sum.training.torch import TorchTrainer

BACKENDS: dict[str, type[Trainer]] = {"torch": TorchTrainer}
RECORDED_PACKAGES = ("torch", "transformers", "accelerate", "peft", "tokenizers", "numpy")


def train(
    recipe: Recipe, output: Path, *, resume: bool = False, overwrite: bool = False, force: bool = False,
    dry_run: bool = False, say: Callable[[str], None] = console.note,
) -> tuple[RunFolder, Estimate]:  # fmt: skip
    """Trains what a recipe describes.

    Args:
        recipe: The whole recipe.
        output: The run folder to write.
        resume: Go on with the unfinished run there.
        overwrite: Replace the run there.
        force: Start even if the estimate says that it will not fit.
        dry_run: Stop before training; nothing is written.
        say: Is told what a person wants to know on the way.

    Returns:
        The run folder, and what the run was estimated to need.

    Raises:
        NeuronSumError: Its children say what can go wrong; nothing is written before all checks have passed.
    """
    if console.is_main_process():
        run = start_run(output, recipe, resume=resume, overwrite=overwrite)
    else:  # rank 0 may be writing there already; if it refuses, torchrun ends all
        run = RunFolder(output, recipe)
    if resume and run.is_complete:
        say(f"{output} is a finished run already")
    started = time.monotonic()

    # Data
    dataset = load_dataset(recipe.data)
    if not dataset["train"]:
        raise DataError(f"{dataset.origin} has no training examples", "give data.files.train, or another data.path")
    say(
        f"data: {dataset.origin}, "
        + ", ".join(f"{len(examples):,} {split}" for split, examples in dataset.splits.items())
    )
    say(f"licence of the data: {dataset.license or 'not stated; set data.license'}")
    for kind, count in dataset.skipped.items():
        say(f"left out: {count} rows: {kind}")
    if dataset.near_overlap:
        say(f"{dataset.near_overlap} training dialogues stand in validation or test but for case and white space")

    # Model and tokenizer
    origin = ModelConfig(name_or_path=str(run.base)) if resume and run.base.is_dir() else recipe.model
    tokenizer = models.load_tokenizer(
        origin, (text for example in dataset["train"] for text in (example.dialogue, *example.references))
    )
    base = models.load_base(origin, tokenizer)
    if recipe.model.name_or_path is None:
        base.name_or_path = str(run.base.resolve())  # PEFT notes it in adapter_config.json
    config = base.config
    decoder_only = models.is_decoder_only(config)
    prompt = recipe.prompt.resolve()
    data = TrainingData(
        train=encode(dataset["train"], tokenizer, prompt, recipe.data, decoder_only=decoder_only),
        validation=encode(dataset["validation"], tokenizer, prompt, recipe.data, decoder_only=decoder_only)
        if dataset["validation"]
        else None,
    )
    say(
        f"cut to fit: {data.train.sources_cut} of {len(dataset['train']):,} training dialogues at "
        f"{recipe.data.max_source_length} tokens, {data.train.targets_cut} summaries at {recipe.data.max_target_length}"
    )

    # Method
    model = adapters.attach(base, recipe.method, recipe.train.seed)
    parameters = models.count_parameters(model)
    say(f"{recipe.method.name}: {parameters}")

    # What it will take
    plan = ShapePlan(
        source_len=max(len(feature["input_ids"]) for feature in data.train.features),
        target_len=max(len(feature["labels"]) for feature in data.train.features),
    )
    expected = estimate(config, parameters, data, plan, recipe.train)
    say(str(expected))
    if not force:
        expected.check(recipe.train)
    if dry_run or (resume and run.is_complete):
        return run, expected

    # From here on the folder is written
    if overwrite and console.is_main_process() and output.exists():
        shutil.rmtree(output)
    files.check_writable(output, int(expected.disk))
    if console.is_main_process():
        files.write_text(output / "recipe.yaml", recipe.to_yaml())
        if origin.name_or_path is None:  # random weights can be had nowhere else; the seed makes them once more
            with files.new_folder(run.base) as folder:
                models.load_base(origin, tokenizer).save_pretrained(folder)
                tokenizer.save_pretrained(folder)
    resume_from = run.last_checkpoint() if resume else None
    if resume:
        say(f"going on from {resume_from.name}" if resume_from else "nothing was saved yet; starting anew")
    trainer = BACKENDS[recipe.train.backend](run, tokenizer, resume_from)
    weights = trainer.train(model, data, plan, recipe.train)

    # What is left behind
    if console.is_main_process():
        seconds = time.monotonic() - started
        write_model_card(run, dataset.license)
        files.write_json(run.results, _results(run, dataset.license, parameters, seconds, data))
        shutil.rmtree(run.checkpoints, ignore_errors=True)
        say(f"{weights} ({console.size(files.folder_size(weights))}) in {console.duration(seconds)}")
    return run, expected


def _results(
    run: RunFolder, data_license: str | None, parameters: models.ParameterCount, seconds: float, data: TrainingData
) -> dict[str, Any]:
    log = files.read_jsonl(run.log)
    losses = [entry["loss"] for entry in log if "loss" in entry]
    eval_losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    return {
        "method": run.recipe.method.name,
        "global_step": log[-1]["step"] if log else 0,
        "train_loss": losses[-1] if losses else None,
        "eval_loss": eval_losses[-1] if eval_losses else None,
        "seconds": round(seconds, 1),
        "trainable_parameters": parameters.trainable,
        "all_parameters": parameters.all,
        "weights_bytes": sum(file.stat().st_size for file in run.weights.glob("*.safetensors")),
        "train_examples": len(data.train),
        "sources_cut": data.train.sources_cut,
        "targets_cut": data.train.targets_cut,
        "data_license": data_license,
        "versions": {
            "neuron-sum": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in RECORDED_PACKAGES},
        },
    }
