"""Choice of source lengths from data, with the padding they cost and the savings of one more length."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from neuron_sum.data.buckets import best_buckets
from neuron_sum.data.encoding import target_tokens
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import DataError
from neuron_sum.recipes.schema import LIMITS, DataConfig, OutputConfig, Recipe, SplitFiles

LONGEST = 1_000_000
"""Tokens after which a prompt is truncated; the maximum of data.max_source_length."""
STEP = 32
"""Source lengths are multiples of this: finer steps change little and make cache hits rarer."""
MOST_BUCKETS = 4
FORMATS = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv"}


@dataclass(frozen=True)
class BucketChoice:
    """One set of source lengths.

    Attributes:
        source_lens: Lengths in tokens; a prompt uses the smallest that fits.
        fit: Share of the prompts that fit into the longest.
        padding: Share of the compiled positions that hold padding.
        positions: Mean number of positions per prompt; the encoder's work is proportional to it.
    """

    source_lens: tuple[int, ...]
    fit: float
    padding: float
    positions: float


@dataclass(frozen=True)
class DataLengths:
    """Token counts of a data set.

    Attributes:
        origin: The name of the data set in messages.
        source: Tokens of each prompt, including the template.
        target: Tokens of each summary as in training, including the end token.
    """

    origin: str
    source: Sequence[int]
    target: Sequence[int]

    def target_percentile(self, percent: float) -> int:
        """The number of tokens that this percentage of the summaries does not exceed."""
        return int(np.percentile(self.target, percent, method="higher"))


def choices(lengths: Sequence[int], longest: int) -> list[BucketChoice]:
    """The best set of one length, two lengths, and so on, as long as another length saves something.

    Args:
        lengths: Tokens of each prompt; longer prompts than `longest` count as not fitting and as truncated to it.
        longest: The maximum source length in tokens.
    """
    truncated = np.minimum(np.asarray(lengths), longest)
    grid = [*range(STEP, longest, STEP), longest]
    ends = [end for end in grid if end <= _first_at_least(grid, int(truncated.max()))]
    candidates: list[BucketChoice] = []
    for shapes in best_buckets(
        truncated, np.zeros_like(truncated), np.array(ends), np.zeros(1, np.int64), MOST_BUCKETS
    ):
        source_lens = tuple(source_len for source_len, _ in shapes)
        positions = int(np.array(source_lens)[np.searchsorted(source_lens, truncated)].sum())
        candidates.append(
            BucketChoice(
                source_lens=source_lens,
                fit=float((np.asarray(lengths) <= longest).mean()),
                padding=1 - float(truncated.sum()) / positions,
                positions=positions / len(truncated),
            )
        )
    return candidates


def measure(data: str, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> DataLengths:
    """Counts the tokens of every prompt and summary.

    Args:
        data: `sample`, a .jsonl, .csv or .tsv file, or a folder in the format that the recipe names.
        recipe: The recipe with the prompt and the column names.
        tokenizer: The model's tokenizer.

    Raises:
        DataError: If there are no dialogues.
    """
    config = _data_config(data, recipe)
    output = OutputConfig() if config.source == "sample" else recipe.output
    dataset = load_dataset(config, output)
    examples = [example for split in dataset.splits.values() for example in split]
    if not examples:
        raise DataError(f"{dataset.origin} has no dialogues", "use a file or a folder with dialogues")
    dialogues = [example.dialogue for example in examples]
    sources = recipe.prompt.resolve().encode(tokenizer, dialogues, LONGEST)
    targets, _ = target_tokens([example.references[0] for example in examples], tokenizer, LONGEST, output.sections)
    return DataLengths(dataset.origin, [len(source.input_ids) for source in sources], [len(row) + 1 for row in targets])


def _data_config(data: str, recipe: Recipe) -> DataConfig:
    if data == "sample":
        return DataConfig(source="sample")
    path = Path(data)
    if path.is_file():
        if path.suffix not in FORMATS:
            raise DataError(
                f"{data} has an unknown format: {path.suffix or 'no suffix'}",
                f"use a {', '.join(FORMATS)} file, or a folder",
            )
        delimiter = "\t" if path.suffix == ".tsv" else recipe.data.delimiter
        return recipe.data.model_copy(
            update={
                "source": FORMATS[path.suffix],
                "path": str(path.parent),
                "files": SplitFiles(train=path.name),
                "delimiter": delimiter,
                "max_examples": None,
            }
        )
    if not path.is_dir():
        raise DataError(
            f"{data} is neither a file nor a folder", "use `sample`, a .jsonl, .csv or .tsv file, or a folder"
        )
    source = recipe.data.source if recipe.data.source not in ("sample", "hub") else "jsonl"
    return recipe.data.model_copy(update={"source": source, "path": data, **dict.fromkeys(LIMITS.values())})


def _first_at_least(grid: Sequence[int], length: int) -> int:
    return next(end for end in grid if end >= length)
