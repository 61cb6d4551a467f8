"""Summaries from any generator: batched, in order of length, and going on where a killed run stopped."""

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
    """What predictions depend on: dialogues, prompt, generation settings and the very weights.

    Args:
        recipe: For the model's name, prompt, max_source_length and generation.
        ids: One per dialogue.
        dialogues: The texts, in order.
        weights: Hashes of weights and graphs; a model that is a hub id is known by the recipe's model section.
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
    """A prediction for every dialogue.

    Args:
        generator: A model, or an artifact.
        tokenizer: Its tokenizer.
        recipe: For prompt, max_source_length and generation.
        ids: One per dialogue.
        dialogues: The texts.
        partial: Where finished predictions are kept on the way; what stands there already is not made again.
        description: For the progress bar.
        quiet: Whether to show none.
    """
    prompts = recipe.prompt.resolve().encode(tokenizer, dialogues, recipe.data.max_source_length)
    done = {entry["id"]: Prediction(**entry) for entry in files.read_jsonl(partial)} if partial is not None else {}
    if partial is not None:  # what a kill cut off in the middle of a line goes
        files.write_text(partial, "".join(prediction.to_json() + "\n" for prediction in done.values()))
    # The longest first: a batch that does not fit into memory fails at once, and batches hold little padding.
    order = sorted((i for i in range(len(ids)) if ids[i] not in done), key=lambda i: -len(prompts[i].input_ids))
    size = generator.batch_size
    with console.progress(description, len(ids), len(done), quiet=quiet) as bar:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            rows = generator.generate([prompts[i].input_ids for i in batch], recipe.generate)
            made = [_prediction(tokenizer, ids[i], prompts[i], row) for i, row in zip(batch, rows, strict=True)]
            if partial is not None:
                with partial.open("a", encoding="utf-8") as lines:
                    lines.writelines(prediction.to_json() + "\n" for prediction in made)
            done.update((prediction.id, prediction) for prediction in made)
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
