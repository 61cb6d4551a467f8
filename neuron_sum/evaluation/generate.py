"""Summaries from any generator: batched, in order of length, and resumable after a kill."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from neuron_sum import console, files
from neuron_sum.evaluation.predictions import Prediction
from neuron_sum.prompts import EncodedPrompt
from neuron_sum.recipes.schema import Recipe
from neuron_sum.runtimes.base import Generator


def fingerprint(recipe: Recipe, ids: Sequence[str], dialogues: Sequence[str], weights: Sequence[str]) -> str:
    """Hash everything that predictions depend on: dialogues, prompt, generation settings and weights.

    Args:
        recipe: The recipe, for the model's name, prompt, max_source_length and generation.
        ids: One id per dialogue.
        dialogues: The texts, in order.
        weights: Hashes of weights and graphs; a model with a hub id is identified by the recipe's model section.
    """
    settings = {
        "model": recipe.model.model_dump(mode="json"),
        "prompt": recipe.prompt.resolve().sha256,
        "max_source_length": recipe.data.max_source_length,
        "generate": recipe.generate.model_dump(exclude={"batch_size"}),
        "examples": list(zip(ids, dialogues, strict=True)),
        "weights": list(weights),
    }
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def summarize_all(
    generator: Generator,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    ids: Sequence[str],
    dialogues: Sequence[str],
    partial: Path | None = None,
    description: str = "summarizing",
    quiet: bool = False,
) -> list[Prediction]:
    """Summarize every dialogue.

    Args:
        generator: A model, or an artifact.
        tokenizer: The tokenizer of the generator.
        recipe: The recipe, for prompt, max_source_length and generation.
        ids: One id per dialogue.
        dialogues: The texts.
        partial: A file for finished predictions; those that it already contains are not generated again.
        description: The label of the progress bar.
        quiet: Whether to hide the progress bar.
    """
    prompts = recipe.prompt.resolve().encode(tokenizer, dialogues, recipe.data.max_source_length)
    done = {entry["id"]: Prediction(**entry) for entry in files.read_jsonl(partial)} if partial is not None else {}
    if partial is not None:  # removes a line that a kill left incomplete
        files.write_text(partial, "".join(prediction.to_json() + "\n" for prediction in done.values()))
    # The longest first: a batch that does not fit into memory fails immediately, and batches have little padding.
    order = sorted((i for i in range(len(ids)) if ids[i] not in done), key=lambda i: -len(prompts[i].input_ids))
    size = generator.batch_size
    with console.progress(description, len(ids), len(done), quiet=quiet) as bar:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            rows = generator.generate([prompts[i].input_ids for i in batch], recipe.generate)
            predictions = [_prediction(tokenizer, ids[i], prompts[i], row) for i, row in zip(batch, rows, strict=True)]
            if partial is not None:
                with partial.open("a", encoding="utf-8") as lines:
                    lines.writelines(prediction.to_json() + "\n" for prediction in predictions)
            done.update((prediction.id, prediction) for prediction in predictions)
            bar.advance(len(batch))
    return [done[example_id] for example_id in ids]


def _prediction(
    tokenizer: PreTrainedTokenizerFast, example_id: str, prompt: EncodedPrompt, output: Sequence[int]
) -> Prediction:
    return Prediction(
        id=example_id,
        summary=tokenizer.decode(output, skip_special_tokens=True).strip(),
        truncated=prompt.truncated,
        input_tokens=len(prompt.input_ids),
        output_tokens=len(output),
        hit_limit=tokenizer.eos_token_id not in output,
    )
