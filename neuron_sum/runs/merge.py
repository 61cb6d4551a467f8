"""Merge a LoRA run into a plain checkpoint."""

from pathlib import Path

import transformers

from neuron_sum import files
from neuron_sum.data.encoding import encode
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import ModelError
from neuron_sum.models import adapters
from neuron_sum.models import base as models
from neuron_sum.recipes.schema import FullMethod
from neuron_sum.runs.fingerprint import check_data
from neuron_sum.runs.folder import RunFolder
from neuron_sum.runs.trained import load_trained

PROBE_EXAMPLES = 4


def merge_run(run: RunFolder, output: Path) -> float:
    """Writes the merged model after verifying that its logits on real dialogues equal those of the adapter.

    Args:
        run: A finished LoRA run.
        output: The folder to write in Hugging Face's layout.

    Returns:
        The largest difference of a logit, relative to the largest logit.

    Raises:
        ModelError: If the run has no adapter, or the logits differ.
    """
    if isinstance(run.recipe.method, FullMethod):
        raise ModelError(f"{run.path} was trained in full and has no adapter", f"use its weights, {run.weights}")
    if output.exists():
        raise ModelError(f"{output} already exists", "choose another folder with --output")
    dataset = load_dataset(run.recipe.data)
    check_data(run.read_record().fingerprint, dataset, "train", run.path)
    model, tokenizer = load_trained(run)
    probe = encode(
        dataset["train"][:PROBE_EXAMPLES],
        tokenizer,
        run.recipe.prompt.resolve(),
        run.recipe.data,
        decoder_only=models.is_decoder_only(model.config),
    )
    batch = transformers.DataCollatorForSeq2Seq(tokenizer)(list(probe.features))
    merged, difference = adapters.merge(model, dict(batch))
    with files.lock_output(output), files.new_folder(output) as folder:
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return difference
