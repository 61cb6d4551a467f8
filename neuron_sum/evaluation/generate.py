"""Summaries from any generator: batched, in order of length, and resumable after a kill."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from neuron_sum import console, files
from neuron_sum.errors import RunError, reading
from neuron_sum.evaluation.predictions import Prediction
from neuron_sum.evaluation.reuse import Reusable
from neuron_sum.prompts import EncodedPrompt
from neuron_sum.recipes.schema import GenerateConfig, Recipe
from neuron_sum.runs.fingerprint import digest, of_recipe
from neuron_sum.runtimes.base import Generator
from neuron_sum.sections import SectionCoder, decode

PREDICTIONS = "predictions.jsonl"
KEPT = Reusable("predictions", "generation.json", PREDICTIONS)


def fingerprint(
    recipe: Recipe, ids: Sequence[str], dialogues: Sequence[str], model: Mapping[str, str]
) -> dict[str, str]:
    """The hash of each part that predictions depend on.

    Args:
        recipe: The recipe, for prompt, max_source_length and generation.
        ids: One id per dialogue.
        dialogues: The texts, in order.
        model: The parts of the model or the artifact.
    """
    return {
        **model,
        **of_recipe(recipe),
        "data.max_source_length": str(recipe.data.max_source_length),
        "generation settings": digest(recipe.generate.model_dump(exclude={"batch_size"})),
        "dialogues": digest(list(zip(ids, dialogues, strict=True))),
        **({"sections": digest(recipe.output.model_dump())} if recipe.output.sections else {}),
    }


def read_kept(folder: Path, parts: Mapping[str, str]) -> list[Prediction] | None:
    """The predictions in a folder; None without predictions, or if something that they depend on has changed.

    Args:
        folder: The folder of generation.json and predictions.jsonl.
        parts: The result of `fingerprint`.

    Raises:
        RunError: If generation.json is damaged.
    """
    entries = KEPT.read(folder, parts)
    return None if entries is None else [Prediction(**entry) for entry in entries]


def keep(folder: Path, parts: Mapping[str, str], predictions: Sequence[Prediction], settings: GenerateConfig) -> None:
    """Write predictions.jsonl, and generation.json last.

    Args:
        folder: The folder of both files.
        parts: The result of `fingerprint`.
        predictions: One prediction per dialogue.
        settings: The generation settings, for the reader of the file.
    """
    lines = (prediction.to_json() for prediction in predictions)
    KEPT.write(folder, parts, lines, generate=settings.model_dump())


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
    coder = SectionCoder.of(recipe.output.sections, tokenizer)
    done: dict[str, Prediction] = {}
    if partial is not None:
        with reading(partial, RunError, KEPT.hint(partial)):
            done = {entry["id"]: Prediction(**entry) for entry in files.read_jsonl(partial)}
    if partial is not None:  # removes a line that a kill left incomplete
        files.write_text(partial, "".join(prediction.to_json() + "\n" for prediction in done.values()))
    # The longest first: a batch that does not fit into memory fails immediately, and batches have little padding.
    order = sorted((i for i in range(len(ids)) if ids[i] not in done), key=lambda i: -len(prompts[i].input_ids))
    size = generator.batch_size
    with console.progress(description, len(ids), len(done), quiet=quiet) as bar:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            rows = generator.generate([prompts[i].input_ids for i in batch], recipe.generate)
            predictions = [
                _prediction(generator, decode(row, tokenizer, coder), ids[i], prompts[i], row)
                for i, row in zip(batch, rows, strict=True)
            ]
            if partial is not None:
                with files.writing(partial), partial.open("a", encoding="utf-8") as lines:
                    lines.writelines(prediction.to_json() + "\n" for prediction in predictions)
            done.update((prediction.id, prediction) for prediction in predictions)
            bar.advance(len(batch))
    return [done[example_id] for example_id in ids]


def _prediction(
    generator: Generator, summary: str, example_id: str, prompt: EncodedPrompt, output: Sequence[int]
) -> Prediction:
    return Prediction(
        id=example_id,
        summary=summary,
        truncated=prompt.truncated,
        input_tokens=len(prompt.input_ids),
        output_tokens=len(output),
        hit_limit=not output or output[-1] not in generator.ends,
    )
