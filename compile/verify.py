"""Holds an artifact's text against transformers', from the same weights; the manifest keeps what was seen."""

import datetime
import math
from dataclasses import dataclass
from pathlib import Path

from compile.source import Source, open_source
from neuron_sum.artifact import RECIPE, Artifact, Check, Verification, write_manifest
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import ArtifactError, DataError
from neuron_sum.evaluation.generate import summarize_all
from neuron_sum.evaluation.predictions import Prediction
from neuron_sum.evaluation.rouge import RougeProtocol, rouge
from neuron_sum.recipes.schema import Recipe
from neuron_sum.runtimes.base import Generator
from neuron_sum.runtimes.hugging_face import TransformersGenerator
from neuron_sum.runtimes.load import load_generator

ALLOWED_DIFFERENCES = 0.02
"""Share of fp32 summaries that may differ: rounding decides where transformers scores two continuations alike."""


@dataclass(frozen=True)
class Comparison:
    """What a verification found.

    Attributes:
        record: What the manifest keeps.
        differing: (id, transformers' summary, the artifact's) where they differ.
        truncated: Dialogues that were cut to fit.
    """

    record: Verification
    differing: list[tuple[str, str, str]]
    truncated: int


def verify(artifact: Artifact, source_path: Path | None, examples: int, max_drop: float) -> Comparison:
    """Summarizes the same dialogues with transformers and with every batch size and beam width of the artifact.

    The manifest keeps what was seen, passed or not.

    Args:
        artifact: To be checked.
        source_path: The run or checkpoint it came from, where that has moved.
        examples: How many of the evaluation split's dialogues.
        max_drop: ROUGE-1 points that may be lost.

    Raises:
        ArtifactError: If the weights there are not those it was compiled from.
        DataError: If there are no dialogues to summarize.
    """
    manifest, recipe = artifact.manifest, artifact.recipe
    source = open_source(source_path or Path(manifest.source.path), str(artifact.path / RECIPE), [])
    _check_same_weights(artifact, source)
    dataset = load_dataset(recipe.data)
    chosen = dataset[recipe.evaluate.split][:examples]
    if not chosen:
        raise DataError(f"{dataset.origin} has no {recipe.evaluate.split} split", "an artifact of a recipe with data")
    ids, dialogues = [example.id for example in chosen], [example.dialogue for example in chosen]
    references, protocol = [example.references for example in chosen], RougeProtocol.of(recipe.evaluate)
    model, tokenizer = source.load()
    reference = TransformersGenerator(model, tokenizer, recipe.generate.batch_size)
    compiled, _ = load_generator(artifact)
    checks, differing, truncated = [], list[tuple[str, str, str]](), 0
    for num_beams in manifest.num_beams:
        asked = recipe.model_copy(update={"generate": recipe.generate.model_copy(update={"num_beams": num_beams})})

        def summarize(by: Generator, what: str, asked: Recipe = asked) -> list[Prediction]:
            return summarize_all(by, tokenizer, asked, ids, dialogues, description=what)

        def scores(made: list[Prediction]) -> dict[str, float]:
            found = rouge([prediction.summary for prediction in made], references, protocol)
            return {name: float(values.mean()) for name, values in found.items()}

        expected = summarize(reference, f"transformers, beams {num_beams}")
        before = scores(expected)
        for batch in sorted({bucket.batch for bucket in manifest.buckets}):
            actual = summarize(compiled.with_batch_size(batch), f"artifact, beams {num_beams}, batch {batch}")
            pairs = [
                (one.id, one.summary, other.summary)
                for one, other in zip(expected, actual, strict=True)
                if one.summary != other.summary
            ]
            after = scores(actual)
            difference = {name: round(after[name] - before[name], 3) for name in before}
            checks.append(
                Check(batch=batch, num_beams=num_beams, identical=len(ids) - len(pairs), rouge_difference=difference)
            )
            differing += pairs
            truncated = sum(prediction.truncated for prediction in actual)
    allowed = math.ceil(ALLOWED_DIFFERENCES * len(ids)) if manifest.is_exact else len(ids)
    record = Verification(
        examples=len(ids),
        checks=tuple(checks),
        unseen=tuple(str(bucket) for bucket in manifest.buckets if bucket not in compiled.used),
        max_drop=max_drop,
        passed=all(
            check.rouge_difference["ROUGE-1"] >= -max_drop and len(ids) - check.identical <= allowed for check in checks
        ),
        checked=datetime.date.today().isoformat(),
    )
    write_manifest(artifact.path, manifest.model_copy(update={"verified": record}))
    return Comparison(record, differing, truncated)


def _check_same_weights(artifact: Artifact, source: Source) -> None:
    if (now := source.weights_sha256()) != artifact.manifest.source.weights_sha256:
        raise ArtifactError(
            f"source.weights_sha256: {source.path} has other weights ({now[:12]}…) than the artifact was compiled from "
            f"({artifact.manifest.source.weights_sha256[:12]}…)",
            "compile again, or name the right run with --source",
        )
