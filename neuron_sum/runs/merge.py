"""Merge a LoRA adapter into a plain checkpoint."""

from pathlib import Path

from peft import PeftModel

from neuron_sum import files
from neuron_sum.errors import ModelError, RunError
from neuron_sum.models import adapters
from neuron_sum.models.adapter_config import base_of, check_unused_base, is_adapter, nested_hint
from neuron_sum.runs.fingerprint import open_trained
from neuron_sum.runs.trained import load_trained, load_weights


def merge(source: Path, output: Path, base: str | None = None) -> float:
    """Writes the merged model after verifying that its logits equal those of the adapter.

    Args:
        source: A finished LoRA run, or a LoRA adapter in PEFT's layout.
        output: The folder to write in Hugging Face's layout.
        base: The base model of an adapter, in place of the one that its adapter_config.json names.

    Returns:
        The largest difference of a logit, relative to the largest logit.

    Raises:
        RunError: If the source is neither a run nor an adapter.
        ModelError: If the source has no adapter, or the logits differ.
    """
    if output.exists():
        raise ModelError(f"{output} already exists", "choose another folder with --output")
    if (source / "recipe.yaml").is_file():
        check_unused_base(base, source)
        run = open_trained(source)
        if not is_adapter(run.weights):
            raise ModelError(f"{run.path} was trained in full and has no adapter", f"use its weights, {run.weights}")
        model, tokenizer = load_trained(run)
    elif is_adapter(source):
        model, tokenizer = load_weights(source, base_of(source, base))
    else:
        hint = nested_hint(source) or "run `neuron-sum train RECIPE` to create a run"
        raise RunError(f"{source} is neither a run nor an adapter", hint)
    assert isinstance(model, PeftModel)
    merged, difference = adapters.merge(model)
    with files.lock_output(output), files.new_folder(output) as folder:
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return difference
