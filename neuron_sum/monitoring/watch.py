"""Captured requests next to the training data of a run."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from neuron_sum import files
from neuron_sum.console import command
from neuron_sum.data.examples import invented_tags
from neuron_sum.data.statistics import STATISTICS, DialogueCounter, DialogueStatistics, unknown_ids
from neuron_sum.errors import DataError, RecipeError, RunError, reading
from neuron_sum.models import base as models
from neuron_sum.monitoring.drift import Answers, Measure, compare
from neuron_sum.monitoring.requests import Item, read_items
from neuron_sum.prompts import MAX_CHARACTERS_PER_TOKEN, start_of
from neuron_sum.recipes.schema import ModelConfig
from neuron_sum.runs.contents import DAMAGED
from neuron_sum.runs.folder import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from neuron_sum.prompts import EncodedPrompt

T = TypeVar("T")
BATCH = 256
"""Number of dialogues in memory at a time."""
REASONS = 20
"""Number of different reasons for unreadable lines that are listed."""


@dataclass(frozen=True)
class Flagged:
    """An unusual item.

    Attributes:
        item: The item.
        reasons: The measures in which it counts.
    """

    item: Item
    reasons: tuple[str, ...]


@dataclass
class Watched:
    """The result of `watch`.

    Attributes:
        run: The folder of the run.
        files: Number of files.
        dialogues: Number of dialogues.
        answers: Number of summaries.
        rejected: Number of rejected dialogues.
        unreadable: The number of unreadable lines for each reason.
        first_unreadable: File and line of the first of them.
        measures: The comparison.
        evaluated: The number of summaries of the run's evaluation; 0 if it was not evaluated.
        flagged: The first unusual items.
    """

    run: str
    files: int = 0
    dialogues: int = 0
    answers: int = 0
    rejected: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    first_unreadable: str | None = None
    measures: list[Measure] = field(default_factory=list)
    evaluated: int = 0
    flagged: list[Flagged] = field(default_factory=list)

    def skip(self, location: str, reason: str) -> None:
        """Count a line that cannot be read.

        Args:
            location: File and line.
            reason: The reason.
        """
        self.first_unreadable = self.first_unreadable or location
        is_listed = reason in self.unreadable or len(self.unreadable) < REASONS
        self.unreadable[reason if is_listed else "other reasons"] += 1

    @property
    def drifted(self) -> list[Measure]:
        """The measures with the verdict "drift"."""
        return [measure for measure in self.measures if measure.verdict == "drift"]

    def as_dict(self) -> dict[str, Any]:
        """The result for --json, without texts."""
        return {
            "run": self.run,
            "files": self.files,
            "dialogues": self.dialogues,
            "answers": self.answers,
            "rejected": self.rejected,
            "evaluated": self.evaluated,
            "unreadable": dict(self.unreadable),
            "first_unreadable": self.first_unreadable,
            "measures": [measure.as_dict() for measure in self.measures],
            "drift": [measure.name for measure in self.drifted],
        }


def watch(paths: Sequence[Path], run: RunFolder, shown: int = 0) -> Watched:
    """Compare captured requests and answers with the training data of a run.

    Args:
        paths: The captured files.
        run: The finished run that was deployed.
        shown: The maximum number of items that are kept with their texts.

    Raises:
        DataError: If not a single line can be read.
        RunError: If the run has no statistics, or its statistics or predictions are damaged.
    """
    training = read_statistics(run)
    tokenizer = models.load_tokenizer(ModelConfig(name_or_path=str(run.weights)))
    in_pieces = run.recipe.data.long == "merge"  # then no answer is truncated, and long dialogues are counted
    evaluated = read_evaluated(run, tokenizer)
    watched, counter = Watched(str(run.path), files=len(paths)), DialogueCounter(unknown_ids(tokenizer))
    answers, entries = Answers(), 0
    watched.evaluated = evaluated.tokens.total() if evaluated is not None else 0
    for batch in _batches(_readable(paths, watched)):
        sources = _sources(batch, run, tokenizer)
        targets = _target_tokens([item.summary or "" for item in batch], run, tokenizer)
        for item, prompt, tokens in zip(batch, sources, targets, strict=True):
            if prompt is None:
                watched.skip(item.location, "a dialogue that makes a control token together with the prompt")
                continue
            entries += 1
            reasons = []
            if item.dialogue is not None:
                watched.dialogues += 1
                truncated = prompt.truncated if item.truncated is None or in_pieces else item.truncated
                if counter.add(prompt.input_ids, truncated=truncated):
                    reasons.append("unknown tokens")
            if item.summary is not None:
                watched.answers += 1
                answers.tokens[tokens] += 1
                if item.dialogue is not None:
                    answers.paired += 1
                    if invented_tags(item.summary, item.dialogue):
                        answers.invented += 1
                        reasons.append("invented tags")
            if item.rejected:
                watched.rejected += 1
                reasons.append("rejected")
            if reasons and len(watched.flagged) < shown:
                watched.flagged.append(Flagged(item, tuple(reasons)))
    unreadable = watched.unreadable.total()
    if not entries:
        reason = next(iter(watched.unreadable), "they are empty")
        where = f" ({watched.first_unreadable})" if watched.first_unreadable else ""
        raise DataError(
            f"no line of {', '.join(map(str, paths)):.200} can be read{where}: {reason}",
            "use files of SageMaker's data capture, or inputs of a batch transform next to their .out files",
        )
    watched.measures = compare(
        training,
        evaluated,
        counter,
        answers,
        rejected=watched.rejected,
        answered=watched.answers + watched.rejected,
        unreadable=unreadable,
        entries=entries + unreadable,
    )
    return watched


def read_statistics(run: RunFolder) -> DialogueStatistics:
    """The statistics of a run's training data, which training has written.

    Args:
        run: The finished run.

    Raises:
        RunError: If the file is missing or damaged.
    """
    path = run.weights / STATISTICS
    try:
        return DialogueStatistics.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise RunError(
            f"{path} does not exist", f"train again: {command('train', run.recipe_path, output='FOLDER')}"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise RunError(f"{path} cannot be read: {first['msg']}", DAMAGED) from error


def read_evaluated(run: RunFolder, tokenizer: "PreTrainedTokenizerFast") -> Answers | None:
    """The answers of a run's evaluation on evaluate.split; None if there is none.

    Args:
        run: The finished run.
        tokenizer: Its tokenizer.

    Raises:
        RunError: If the files are damaged, or of an evaluation that did not finish.
    """
    folder = run.path / "evaluation" / run.recipe.evaluate.split
    if not (folder / "metrics.json").is_file():
        return None
    hint = f"run `{command('evaluate', run.path)}`"
    metrics = files.read_json(folder / "metrics.json", hint=hint)
    with reading(folder, RunError, hint):
        summaries = [entry["summary"] for entry in files.read_jsonl(folder / "predictions.jsonl", hint=hint)]
        faithful, count = metrics["speaker_tags"]["faithful_percent"], metrics["examples"]
    if len(summaries) != count:
        raise RunError(f"{folder} has {len(summaries)} predictions and metrics of {count}", hint)
    tokens = Counter(length for batch in _batches(iter(summaries)) for length in _target_tokens(batch, run, tokenizer))
    paired = count if faithful is not None else 0  # without dialogues
    return Answers(tokens, round(paired * (1 - (faithful or 0) / 100)), paired)


def _readable(paths: Iterable[Path], watched: Watched) -> Iterator[Item]:
    """The items of the files; counts what cannot be read."""
    for path in paths:
        for item in read_items(path):
            if isinstance(item, Item):
                yield item
                continue
            watched.skip(item.location, item.reason)


def _batches(items: Iterator[T]) -> Iterator[list[T]]:
    while batch := list(islice(items, BATCH)):
        yield batch


def _sources(
    batch: Sequence[Item], run: RunFolder, tokenizer: "PreTrainedTokenizerFast"
) -> "Sequence[EncodedPrompt | None]":
    """The prompt of each dialogue as in training; None if the end of a dialogue and the prompt make a control token."""
    dialogues = [item.dialogue or "" for item in batch]
    try:
        return run.recipe.prompt.resolve().encode(tokenizer, dialogues, run.recipe.data.max_source_length)
    except RecipeError:
        return [None] if len(batch) == 1 else [_sources([item], run, tokenizer)[0] for item in batch]


def _target_tokens(summaries: Sequence[str], run: RunFolder, tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """The number of tokens of each summary with its end token, at most generate.max_new_tokens."""
    limit = run.recipe.generate.max_new_tokens
    texts = [start_of(summary, MAX_CHARACTERS_PER_TOKEN * limit) for summary in summaries]
    rows = tokenizer(text_target=texts, add_special_tokens=False)["input_ids"]
    return [min(len(row) + 1, limit) for row in rows]
