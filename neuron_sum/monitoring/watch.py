"""Captured requests next to the training data of a run."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from neuron_sum import console
from neuron_sum.data.encoding import encode
from neuron_sum.data.sources import load_dataset
from neuron_sum.data.statistics import (
    STATISTICS,
    TextCounter,
    TextStatistics,
    letters,
    training_statistics,
    unknown_ids,
)
from neuron_sum.errors import DataError, RecipeError, RunError
from neuron_sum.models import base as models
from neuron_sum.monitoring.drift import Measure, compare
from neuron_sum.monitoring.requests import Item, read_items
from neuron_sum.prompts import MAX_CHARACTERS_PER_TOKEN, start_of
from neuron_sum.recipes.schema import ModelConfig
from neuron_sum.runs.contents import DAMAGED
from neuron_sum.runs.fingerprint import check_data
from neuron_sum.runs.folder import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from neuron_sum.prompts import EncodedPrompt

BATCH = 256
"""Number of dialogues in memory at a time."""
REASONS = 20
"""Number of different reasons for unreadable lines that are listed."""


@dataclass(frozen=True)
class Flagged:
    """An item that is not as in the training data.

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
        flagged: The first items that are not as in the training data.
    """

    run: str
    files: int = 0
    dialogues: int = 0
    answers: int = 0
    rejected: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    first_unreadable: str | None = None
    measures: list[Measure] = field(default_factory=list)
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
        RunError: If the run has no statistics and its data has changed.
    """
    tokenizer = models.load_tokenizer(ModelConfig(name_or_path=str(run.weights)))
    training = read_statistics(run, tokenizer)
    watched, counter = Watched(str(run.path), files=len(paths)), TextCounter(unknown_ids(tokenizer))
    known, new_letters, paired = set(training.letters), 0, 0
    for batch in _batches(_readable(paths, watched)):
        sources = _sources(batch, run, tokenizer)
        targets = _target_tokens(batch, run, tokenizer)
        for item, prompt, tokens in zip(batch, sources, targets, strict=True):
            if prompt is None:
                watched.skip(item.location, "a dialogue that makes a control token together with the prompt")
                continue
            reasons = []
            if item.dialogue is not None:
                watched.dialogues += 1
                truncated = prompt.truncated if item.truncated is None else item.truncated
                if counter.add_dialogue(prompt.input_ids, truncated=truncated):
                    reasons.append("unknown tokens")
                if letters([item.dialogue]) - known:
                    new_letters += 1
                    reasons.append("new letters")
            if item.summary is not None:
                watched.answers += 1
                paired += item.dialogue is not None
                if counter.add_summary(tokens, item.summary, item.dialogue):
                    reasons.append("invented tags")
                if not item.summary.strip():
                    reasons.append("empty summary")
            if item.rejected:
                watched.rejected += 1
                reasons.append("rejected")
            if reasons and len(watched.flagged) < shown:
                watched.flagged.append(Flagged(item, tuple(reasons)))
    if not watched.dialogues + watched.answers + watched.rejected:
        reason = next(iter(watched.unreadable), "they are empty")
        raise DataError(
            f"no line of {len(paths)} files can be read; the first reason ({watched.first_unreadable}): {reason}",
            "use files of SageMaker's data capture, or inputs of a batch transform next to their .out files",
        )
    watched.measures = compare(
        training,
        counter,
        paired=paired,
        new_letters=new_letters,
        rejected=watched.rejected,
        answered=watched.answers + watched.rejected,
    )
    return watched


def read_statistics(run: RunFolder, tokenizer: "PreTrainedTokenizerFast") -> TextStatistics:
    """The statistics of a run's training data: those that training has written, or else computed from the data.

    Args:
        run: The finished run.
        tokenizer: Its tokenizer.

    Raises:
        RunError: If the file is damaged, or if there is none and the data has changed since the training.
    """
    path = run.weights / STATISTICS
    if path.is_file():
        try:
            return TextStatistics.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            raise RunError(f"{path} cannot be read: {first['msg']}", DAMAGED) from error
    console.note(f"{path} does not exist (older versions did not write it); reading the training data")
    dataset = load_dataset(run.recipe.data)
    check_data(run.read_record().fingerprint, dataset, "train", run.path)
    decoder_only = models.is_decoder_only(models.load_config(ModelConfig(name_or_path=run.model_source())))
    prompt = run.recipe.prompt.resolve()
    encoded = encode(dataset["train"], tokenizer, prompt, run.recipe.data, decoder_only=decoder_only)
    return training_statistics(dataset["train"], encoded, tokenizer, decoder_only=decoder_only)


def _readable(paths: Iterable[Path], watched: Watched) -> Iterator[Item]:
    """The items of the files; counts what cannot be read."""
    for path in paths:
        for item in read_items(path):
            if isinstance(item, Item):
                yield item
                continue
            watched.skip(item.location, item.reason)


def _batches(items: Iterator[Item]) -> Iterator[list[Item]]:
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


def _target_tokens(batch: Sequence[Item], run: RunFolder, tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """The number of tokens of each summary with its end token, limited as in training."""
    limit = run.recipe.data.max_target_length
    texts = [start_of(item.summary or "", MAX_CHARACTERS_PER_TOKEN * limit) for item in batch]
    rows = tokenizer(text_target=texts, add_special_tokens=False)["input_ids"]
    return [min(len(row) + 1, limit) for row in rows]
