"""Compare an artifact's summaries with those of transformers from the same weights; record it in the manifest."""

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compile.source import Source, open_source
from neuron_sum.artifact import RECIPE, Artifact, Check, Manifest, Verification, write_manifest
from neuron_sum.data.examples import evenly_spaced
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import ArtifactError, DataError, RecipeError
from neuron_sum.evaluation.generate import summarize_all
from neuron_sum.evaluation.predictions import Prediction
from neuron_sum.evaluation.rouge import RougeProtocol, Scores, rouge
from neuron_sum.evaluation.statistics import MIN_EXAMPLES, Drop, Outcome, measure_drop
from neuron_sum.models.adapter_config import is_adapter
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import LIMITS, Recipe
from neuron_sum.runs.fingerprint import differences, model_parts
from neuron_sum.runtimes.base import CompiledGenerator, Generator
from neuron_sum.runtimes.generation import StepGenerator
from neuron_sum.runtimes.hugging_face import TransformersGenerator
from neuron_sum.runtimes.load import load_generator
from neuron_sum.sections import SectionCoder

ALLOWED_DIFFERENCES = 0.02
"""Share of fp32 summaries that may differ: rounding decides when transformers scores two continuations the same."""

EXACT_EXAMPLES, EXAMPLES = 32, 100
"""Default numbers of dialogues: for artifacts in fp32, whose summaries must be equal, and for others, whose scores are
compared. With 100 dialogues, the interval for SmolLM2-135M in bf16 had 0.75 points of ROUGE-1 on each side.
"""


WEAKENING = (
    "generate.",
    "data.max_source_length=",
    "data.max_target_length=",
    "evaluate.confidence=",
    "evaluate.bootstrap_samples=",
)
"""Overrides with which an artifact could pass although its summaries differ."""


@dataclass(frozen=True)
class Comparison:
    """The result of a verification.

    Attributes:
        record: The record in the manifest.
        differing: (id, summary of transformers, summary of the artifact) of each pair that differs.
        truncated: The number of dialogues that were truncated.
        split: The split that the dialogues are from.
        wanted: The number of dialogues to compare; fewer were compared if the split is smaller.
        available: The number of dialogues in the split.
    """

    record: Verification
    differing: list[tuple[str, str, str]]
    truncated: int
    split: str
    wanted: int
    available: int


def verify(
    artifact: Artifact,
    source_path: Path | None,
    examples: int | None,
    max_drop: float,
    overrides: Sequence[str] = (),
) -> Comparison:
    """Summarizes the same dialogues with transformers and with every batch size and beam width of the artifact.

    The graphs of several greedy steps per call are compared separately, without the bans that the loop cannot combine
    with them.

    An exact artifact passes if almost all summaries are the same. Any other passes if a paired bootstrap shows that it
    loses at most max_drop in ROUGE-1, and fails if it shows that it loses more. The result is recorded in the manifest,
    whether it passed or not.

    Args:
        artifact: The artifact to verify.
        source_path: The run or checkpoint that the artifact was compiled from, if it has moved.
        examples: The number of dialogues, evenly spaced over the evaluation split; the limits that the recipe sets for
            evaluations do not apply. None for EXACT_EXAMPLES or EXAMPLES.
        max_drop: The accepted loss in ROUGE-1 points.
        overrides: Changes to the recipe of the artifact, such as its data.

    Raises:
        ArtifactError: If the artifact was compiled from other weights or for another prompt.
        RecipeError: If an override would make the verification easier.
        DataError: If there are no dialogues to summarize, or the ROUGE protocol drops letters of their summaries.
    """
    manifest = artifact.manifest
    for override in overrides:
        if override.startswith(WEAKENING):
            raise RecipeError(f"{override!r:.100} would make the verification easier", "verify without it")
    recipe = load_recipe(
        str(artifact.path / RECIPE),
        [*(f"data.{limit}=null" for limit in LIMITS.values()), "data.long=truncate", "data.merge_until=0", *overrides],
    )
    if recipe.prompt.resolve().sha256 != manifest.prompt.sha256:
        raise ArtifactError(
            "prompt: differs from the prompt that the artifact was compiled with", "verify it without another prompt"
        )
    path = source_path or Path(manifest.source.path)
    base = recipe.model if is_adapter(path) else None
    source = open_source(path, str(artifact.path / RECIPE), [], base)
    _check_same_weights(artifact, source)
    dataset = load_dataset(recipe.data, recipe.output)
    split, wanted = recipe.evaluate.split, examples or (EXACT_EXAMPLES if manifest.is_exact else EXAMPLES)
    selection = evenly_spaced(dataset[split], wanted)
    if not selection:
        raise DataError(
            f"{dataset.origin} has no {split} split",
            "choose another one, such as --set evaluate.split=validation, or other data with --set data.path=FOLDER",
        )
    ids, dialogues = [example.id for example in selection], [example.dialogue for example in selection]
    references, protocol = [example.references for example in selection], RougeProtocol.of(recipe.evaluate)
    protocol.check(references)
    model, tokenizer = source.load()
    coder = SectionCoder.of(recipe.output.sections, tokenizer)
    reference = TransformersGenerator(model, tokenizer, recipe.generate.batch_size, coder)
    compiled, _ = load_generator(artifact, recipe.output.sections)
    checks, drops, differing, truncated = list[Check](), list[Drop](), list[tuple[str, str, str]](), 0
    single = replace(compiled, one_step=True) if isinstance(compiled, StepGenerator) else compiled
    searches: list[tuple[CompiledGenerator, int, dict[str, int]]] = [
        (single, 1, {"num_beams": num_beams}) for num_beams in manifest.num_beams
    ]
    if manifest.greedy_steps > 1:
        searches.append((compiled, manifest.greedy_steps, several_steps(manifest)))
    summarized: dict[str, list[Prediction]] = {}
    for tested, steps, changes in searches:
        settings = recipe.generate.model_copy(update=changes)
        changed, name = recipe.model_copy(update={"generate": settings}), width(settings.num_beams, steps)

        def summarize(generator: Generator, description: str, recipe: Recipe = changed) -> list[Prediction]:
            return summarize_all(generator, tokenizer, recipe, ids, dialogues, description=description)

        def scores(predictions: list[Prediction]) -> Scores:
            return rouge([prediction.summary for prediction in predictions], references, protocol)

        key = settings.model_dump_json()
        if key not in summarized:
            summarized[key] = summarize(reference, f"transformers, beams {settings.num_beams}")
        expected = summarized[key]
        before = scores(expected)
        for batch in sorted({bucket.batch for bucket in manifest.buckets}):
            actual = summarize(tested.with_batch_size(batch), f"artifact, beams {name}, batch {batch}")
            pairs = [
                (one.id, one.summary, other.summary)
                for one, other in zip(expected, actual, strict=True)
                if one.summary != other.summary
            ]
            after = scores(actual)
            drop = measure_drop(after["ROUGE-1"], before["ROUGE-1"], max_drop, recipe.evaluate)
            drops.append(drop)
            checks.append(
                Check(
                    batch=batch,
                    num_beams=settings.num_beams,
                    steps=steps,
                    identical=len(ids) - len(pairs),
                    rouge_difference={
                        name: round(float(after[name].mean() - before[name].mean()), 3) for name in before
                    },
                    rouge1_interval=(round(drop.interval.low, 3), round(drop.interval.high, 3)),
                )
            )
            differing += pairs
            truncated = sum(prediction.truncated for prediction in actual)
    outcomes, needed = {drop.outcome for drop in drops}, [drop.examples_needed for drop in drops]
    if manifest.is_exact:
        outcomes, needed = {_outcome_of_exact(check, len(ids)) for check in checks}, [MIN_EXAMPLES]
    undecided = "undecided" in outcomes and "failed" not in outcomes
    record = Verification(
        examples=len(ids),
        checks=tuple(checks),
        unseen=tuple(str(bucket) for bucket in manifest.buckets if bucket not in compiled.used),
        max_drop=max_drop,
        passed=outcomes == {"passed"},
        undecided=undecided,
        examples_needed=max((count for count in needed if count is not None), default=None) if undecided else None,
        checked=datetime.date.today().isoformat(),
    )
    write_manifest(artifact.path, manifest.model_copy(update={"verified": record}))
    return Comparison(record, differing, truncated, split, wanted, len(dataset[split]))


def several_steps(manifest: Manifest) -> dict[str, int]:
    """The settings with which the loop calls the graph of several greedy steps for all but the last tokens.

    Args:
        manifest: The manifest of an artifact with such a graph.
    """
    target_len = min(bucket.target_len for bucket in manifest.buckets)
    return {"num_beams": 1, "no_repeat_ngram_size": 0, "min_new_tokens": 0, "max_new_tokens": target_len}


def width(num_beams: int, steps: int) -> str:
    """The description of a search, such as "1, 4 steps per call"."""
    return str(num_beams) if steps == 1 else f"{num_beams}, {steps} steps per call"


def _outcome_of_exact(check: Check, count: int) -> Outcome:
    """Whether enough of the summaries of an artifact in fp32 are equal; one of a few may always differ by rounding."""
    differing = count - check.identical
    if differing and count < MIN_EXAMPLES:
        return "undecided"
    return "passed" if differing <= math.ceil(ALLOWED_DIFFERENCES * count) else "failed"


def _check_same_weights(artifact: Artifact, source: Source) -> None:
    recorded = artifact.manifest.source.fingerprint
    if changed := differences(recorded, model_parts(source.fingerprint())):
        raise ArtifactError(
            f"{source.path} changed since {artifact.path} was compiled from it: {', '.join(changed)}",
            "compile again, or pass the original run with --source",
        )
