"""Summaries from any generator: batched, in order of length, and resumable after a kill."""

import contextlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from neuron_sum import console, files
from neuron_sum.data.rounds import Rounds, open_rounds
from neuron_sum.errors import RunError, reading
from neuron_sum.evaluation.predictions import Prediction
from neuron_sum.evaluation.reuse import Reusable
from neuron_sum.prompts import Tokenizer
from neuron_sum.recipes.schema import GenerateConfig, Recipe
from neuron_sum.runs.fingerprint import digest, of_recipe
from neuron_sum.runtimes.base import Generator, RunningBatch
from neuron_sum.runtimes.generation import StepGenerator
from neuron_sum.sections import SectionCoder, decode

PREDICTIONS = "predictions.jsonl"
KEPT = Reusable("predictions", "generation.json", PREDICTIONS)


def fingerprint(
    recipe: Recipe, ids: Sequence[str], dialogues: Sequence[str], model: Mapping[str, str]
) -> dict[str, str]:
    """The hash of each part that predictions depend on.

    Args:
        recipe: The recipe, for prompt, length of dialogues and generation.
        ids: One id per dialogue.
        dialogues: The texts, in order.
        model: The parts of the model or the artifact.
    """
    return {
        **model,
        **of_recipe(recipe),
        "data.max_source_length": str(recipe.data.max_source_length),
        "data.long": f"{recipe.data.long} {recipe.data.merge_until}",
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
    tokenizer: Tokenizer,
    recipe: Recipe,
    ids: Sequence[str],
    dialogues: Sequence[str],
    partial: Path | None = None,
    description: str = "summarizing",
    quiet: bool = False,
    joins: bool = False,
) -> list[Prediction]:
    """Summarize every dialogue; with data.long `merge`, the pieces of long ones and then their summaries.

    Args:
        generator: A model, or an artifact.
        tokenizer: The tokenizer of the generator.
        recipe: The recipe, for prompt, length of dialogues and generation.
        ids: One id per dialogue.
        dialogues: The texts.
        partial: A file for finished predictions; those that it already contains are not generated again.
        description: The label of the progress bar.
        quiet: Whether to hide the progress bar.
        joins: Whether each prompt starts as soon as another one ends, if the generator can do that, instead of when its
            whole batch has ended.

    Raises:
        DataError: With data.long `refuse`, if a dialogue does not fit.
    """
    rounds = open_rounds(recipe.prompt.resolve(), tokenizer, dialogues, recipe.data, ids)
    if pieces := [len(each.prompts) for each in rounds if len(each.prompts) > 1]:
        what = "the dialogue is" if len(ids) == 1 else f"{len(pieces):,} of {len(ids):,} dialogues are"
        console.note(f"{what} summarized in {sum(pieces):,} pieces")
    coder = SectionCoder.of(recipe.output.sections, tokenizer)
    done: dict[str, Prediction] = {}
    if partial is not None:
        with reading(partial, RunError, KEPT.hint(partial)):
            done = {entry["id"]: Prediction(**entry) for entry in files.read_jsonl(partial)}
    if partial is not None:  # removes a line that a kill left incomplete
        files.write_text(partial, "".join(prediction.to_json() + "\n" for prediction in done.values()))
    waiting: list[tuple[int, int, int]] = []
    outputs: dict[int, dict[int, list[int]]] = {}
    unfinished: set[int] = set()
    # The longest first: a batch that does not fit into memory fails immediately, and batches have little padding. The
    # prompts of a dialogue stay together, so that it is finished before the next one.
    longest = [max(len(prompt.input_ids) for prompt in each.prompts) for each in rounds]

    def queue(index: int) -> None:
        outputs[index] = {}
        for number in range(len(rounds[index].prompts)):
            heapq.heappush(waiting, (-longest[index], index, number))

    for index, example_id in enumerate(ids):
        if example_id not in done:
            queue(index)
    with console.progress(description, len(ids), len(done), quiet=quiet) as bar:
        for finished in _finished(generator, recipe.generate, waiting, rounds, joins):
            predictions: list[Prediction] = []
            for (index, number), row in finished:
                outputs[index][number] = row
                current = rounds[index]
                if len(outputs[index]) < len(current.prompts):
                    continue
                texts = [outputs[index][place] for place in range(len(current.prompts))]
                if any(not text or text[-1] not in generator.ends for text in texts):
                    unfinished.add(index)
                current.close([decode(text, tokenizer, coder) for text in texts])
                if current.summary is None:
                    queue(index)
                else:
                    predictions.append(_prediction(ids[index], current, texts, hit_limit=index in unfinished))
            if partial is not None and predictions:
                with files.writing(partial), partial.open("a", encoding="utf-8") as lines:
                    lines.writelines(prediction.to_json() + "\n" for prediction in predictions)
            done.update((prediction.id, prediction) for prediction in predictions)
            bar.advance(len(predictions))
    return [done[example_id] for example_id in ids]


def _finished(
    generator: Generator,
    settings: GenerateConfig,
    waiting: list[tuple[int, int, int]],
    rounds: Sequence[Rounds],
    joins: bool,
) -> Iterator[list[tuple[tuple[int, int], list[int]]]]:
    """Generate all waiting prompts, together with those that are added to the heap meanwhile.

    Args:
        generator: A model, or an artifact.
        settings: The generation settings.
        waiting: A heap of (order, index of the dialogue, number of the prompt).
        rounds: The prompts of each dialogue.
        joins: See `summarize_all`.

    Yields:
        For each finished prompt, its dialogue and number, and the new tokens.
    """

    def take(count: int) -> tuple[list[tuple[int, int]], list[list[int]]]:
        items = [heapq.heappop(waiting)[1:] for _ in range(min(count, len(waiting)))]
        return items, [rounds[index].prompts[number].input_ids for index, number in items]

    running = _running_batch(generator, settings) if joins else None
    if running is None:
        while waiting:
            items, prompts = take(generator.batch_size)
            yield list(zip(items, generator.generate(prompts, settings), strict=True))
        return
    adapter = generator.default_adapter if isinstance(generator, StepGenerator) else None
    tickets: dict[int, tuple[int, int]] = {}
    with contextlib.closing(running):
        while waiting or running.running:
            while count := running.room(len(waiting)):
                items, prompts = take(count)
                tickets.update(zip(running.join(prompts, [adapter] * count), items, strict=True))
            yield [(tickets.pop(ticket), tokens) for ticket, tokens in running.step()]


def _running_batch(generator: Generator, settings: GenerateConfig) -> RunningBatch | None:
    """A batch that prompts can join; None if a prompt cannot be encoded without computing unused rows.

    The prompts are independent: the tokens of a continued evaluation are those of one that was not interrupted.
    """
    if isinstance(generator, StepGenerator) and min(bucket.batch for bucket in generator.buckets) == 1:
        return generator.roll(settings, independent=True)
    return None


def _prediction(example_id: str, rounds: Rounds, outputs: Sequence[Sequence[int]], *, hit_limit: bool) -> Prediction:
    """The prediction of a finished dialogue, from the tokens of its last round."""
    return Prediction(
        id=example_id,
        summary=str(rounds.summary),
        truncated=rounds.truncated,
        input_tokens=rounds.input_tokens,
        output_tokens=sum(map(len, outputs)),
        hit_limit=hit_limit,
        coverage=rounds.coverage,
    )
