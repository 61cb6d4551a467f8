"""Holds an artifact's text against transformers', from the same weights; the manifest keeps what was seen."""

import datetime
import time
from dataclasses import dataclass
from pathlib import Path

from compile.source import Source, open_source
from neuron_sum import console
from neuron_sum.artifact import RECIPE, Artifact, Verification, write_manifest
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import ArtifactError, DataError
from neuron_sum.evaluation.generate import summarize_all
from neuron_sum.evaluation.rouge import RougeProtocol, rouge
from neuron_sum.recipe import Recipe
from neuron_sum.runtimes.hugging_face import TransformersGenerator
from neuron_sum.runtimes.load import load_generator


@dataclass(frozen=True)
class Comparison:
    """What a verification found.

    Attributes:
        record: What the manifest keeps.
        differing: (id, transformers' summary, the artifact's) where they differ.
        truncated: Dialogues that were cut to fit.
        seconds: Wall time of transformers and of the artifact.
    """

    record: Verification
    differing: list[tuple[str, str, str]]
    truncated: int
    seconds: tuple[float, float]


def verify(artifact: Artifact, source_path: Path | None, examples: int) -> Comparison:
    """Summarizes the same dialogues twice, and writes the difference into the manifest.

    Args:
        artifact: To be checked.
        source_path: The run or checkpoint it came from, where that has moved.
        examples: How many of the evaluation split's dialogues.

    Raises:
        ArtifactError: If the weights there are not those it was compiled from.
        DataError: If there are no dialogues to summarize.
    """
    manifest, recipe = artifact.manifest, _recipe(artifact)
    source = open_source(source_path or Path(manifest.source.path), str(artifact.path / RECIPE), [])
    _check_same_weights(artifact, source)
    dataset = load_dataset(recipe.data)
    chosen = dataset[recipe.evaluate.split][:examples]
    if not chosen:
        raise DataError(f"{dataset.origin} has no {recipe.evaluate.split} split", "an artifact of a recipe with data")
    ids, dialogues = [example.id for example in chosen], [example.dialogue for example in chosen]
    model, tokenizer = source.load()
    reference = TransformersGenerator(model, tokenizer, recipe.generate.batch_size)
    started = time.perf_counter()
    expected = summarize_all(reference, tokenizer, recipe, ids, dialogues, description="transformers, fp32")
    between = time.perf_counter()
    generator, tokenizer = load_generator(artifact)
    loaded = time.perf_counter()
    actual = summarize_all(generator, tokenizer, recipe, ids, dialogues, description=f"artifact, {manifest.dtype}")
    ended = time.perf_counter()

    references = [example.references for example in chosen]
    protocol = RougeProtocol.of(recipe.evaluate)
    before, after = (
        {name: float(values.mean()) for name, values in rouge([p.summary for p in made], references, protocol).items()}
        for made in (expected, actual)
    )
    pairs = list(zip(expected, actual, strict=True))
    record = Verification(
        examples=len(chosen),
        identical=sum(one.summary == other.summary for one, other in pairs),
        rouge_difference={name: round(after[name] - before[name], 3) for name in before},
        num_beams=recipe.generate.num_beams,
        checked=datetime.date.today().isoformat(),
    )
    write_manifest(artifact.path, manifest.model_copy(update={"verified": record}))
    return Comparison(
        record,
        [(one.id, one.summary, other.summary) for one, other in pairs if one.summary != other.summary],
        sum(prediction.truncated for prediction in actual),
        (between - started, ended - loaded),
    )


def _recipe(artifact: Artifact) -> Recipe:
    """The artifact's recipe, with lengths and beams that it was compiled for."""
    recipe, manifest = artifact.recipe, artifact.manifest
    beams = recipe.generate.num_beams if recipe.generate.num_beams in manifest.num_beams else manifest.num_beams[0]
    longest = max(bucket.target_len for bucket in manifest.buckets)
    generate = recipe.generate.model_copy(
        update={"num_beams": beams, "max_new_tokens": min(recipe.generate.max_new_tokens, longest)}
    )
    cut = min(recipe.data.max_source_length, manifest.max_source_len)
    if cut < recipe.data.max_source_length:
        console.note(f"dialogues are cut to {cut} tokens, the longest bucket, for both")
    data = recipe.data.model_copy(update={"max_source_length": cut})
    return recipe.model_copy(update={"generate": generate, "data": data})


def _check_same_weights(artifact: Artifact, source: Source) -> None:
    if (now := source.weights_sha256()) != artifact.manifest.source.weights_sha256:
        raise ArtifactError(
            f"source.weights_sha256: {source.path} has other weights ({now[:12]}…) than the artifact was compiled from "
            f"({artifact.manifest.source.weights_sha256[:12]}…)",
            "compile again, or name the right run with --source",
        )
