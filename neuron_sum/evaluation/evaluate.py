"""The metrics of one system: ROUGE and faithfulness with intervals, speaker-tag fidelity, lengths, and truncation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuron_sum import files
from neuron_sum.artifact import Artifact
from neuron_sum.data.examples import Example
from neuron_sum.errors import DataError
from neuron_sum.evaluation.claims import CLAIMS, Checker, Claim, claim_scores, score_claims
from neuron_sum.evaluation.faithfulness import Checked, check_summary, count_findings, rule_scores
from neuron_sum.evaluation.generate import KEPT
from neuron_sum.evaluation.prediction_files import PredictionColumns
from neuron_sum.evaluation.predictions import Prediction
from neuron_sum.evaluation.rouge import RougeProtocol, Scores, human_agreement, rouge
from neuron_sum.evaluation.sections import section_metrics
from neuron_sum.evaluation.speaker_tags import tag_fidelity
from neuron_sum.evaluation.statistics import bootstrap
from neuron_sum.evaluation.systems import HUMAN, UNTUNED, System, predict
from neuron_sum.recipes.schema import EvaluateConfig, Recipe
from neuron_sum.runs.fingerprint import DATA, differences, digest, model_parts, of_examples
from neuron_sum.runs.folder import RunFolder
from neuron_sum.sections import Sections, without_headings

DEFAULT_COLUMNS = PredictionColumns()


@dataclass(frozen=True)
class Evaluation:
    """The predictions and metrics of one system.

    Attributes:
        system: The evaluated system.
        predictions: One prediction per example; for `human`, the first references.
        scores: ROUGE in points, per example.
        metrics: The content of metrics.json.
        checks: The findings of the rules; None for a summary without a dialogue.
        claims: The claims of each summary; None without a checker, or without dialogues.
        faithfulness: The scores of the rules and of the checker in points, per example; empty without dialogues.
    """

    system: System
    predictions: Sequence[Prediction]
    scores: Scores
    metrics: dict[str, Any]
    checks: Sequence[Checked | None]
    claims: Sequence[Sequence[Claim]] | None
    faithfulness: Scores


def evaluate_system(
    system: System,
    recipe: Recipe,
    examples: Sequence[Example],
    folder: Path,
    columns: PredictionColumns = DEFAULT_COLUMNS,
    base: RunFolder | None = None,
    data: str = "",
    available: int | None = None,
    checker: Checker | None = None,
    sections: Sections = (),
) -> Evaluation:
    """Predict if necessary, score, and write predictions.jsonl (models) and metrics.json into a folder.

    Args:
        system: The system to evaluate.
        recipe: The recipe, for prompt, generation and the ROUGE protocol.
        examples: The split's examples.
        folder: The output folder. For systems without a model, only the scores of a checker are written.
        columns: The columns of a predictions file.
        base: For `untuned`: a run that started from it.
        data: The origin of the examples, recorded with the metrics.
        available: The number of examples that `examples` were selected from, also recorded.
        checker: The model that scores the claims of the summaries.
        sections: The sections of the references. Headings do not count in scores.

    Raises:
        DataError: For `human`, if an example has only one reference; if the tokenizer drops letters of the references.
    """
    protocol = RougeProtocol.of(recipe.evaluate)
    references = [
        tuple(without_headings(reference, sections) for reference in example.references) for example in examples
    ]
    protocol.check(references)
    if system.builtin == HUMAN:
        if single := sum(len(texts) < 2 for texts in references):
            raise DataError(
                f"human: {single} of {len(examples)} examples have only one reference, and at least two are needed",
                "use a split with several references, such as DialogSum's test split, or omit human",
            )
        predictions = [Prediction(example.id, example.references[0]) for example in examples]
        others = [example.references[1:] for example in examples]
    else:
        predictions = predict(system, recipe, examples, columns, folder, base)
        others = [example.references for example in examples]
    summaries = [without_headings(prediction.summary, sections) for prediction in predictions]
    is_human = system.builtin == HUMAN
    scores = human_agreement(references, protocol) if is_human else rouge(summaries, references, protocol)
    dialogues = [each.dialogue for each in examples]
    checks = [check_summary(*pair) for pair in zip(summaries, dialogues, strict=True)]
    faithfulness = rule_scores(checks)
    claims = None
    if checker is not None and faithfulness:
        claims = score_claims(checker, summaries, dialogues, folder)
        faithfulness[CLAIMS] = claim_scores(claims)
    has_model = system.file is None and system.builtin in (None, UNTUNED)
    fingerprint = {
        **(KEPT.fingerprint(folder) if has_model else {}),
        "examples": of_examples(examples),
        "evaluation protocol": digest(recipe.evaluate.model_dump(mode="json")),
    }
    metrics = {
        "data": data,
        "available": available,
        "fingerprint": fingerprint,
        **_metrics(system, examples, summaries, references, predictions, scores, protocol, recipe.evaluate, base),
        "faithfulness": {
            "scores": {name: bootstrap(values, recipe.evaluate).as_dict() for name, values in faithfulness.items()},
            "findings": count_findings(checks),
        },
    }
    if sections:
        written = [prediction.summary for prediction in predictions]
        metrics["sections"] = section_metrics(written, others, examples, sections, recipe.evaluate, claims)
    if folder.is_dir():
        files.write_json(folder / "metrics.json", metrics)
    return Evaluation(system, predictions, scores, metrics, checks, claims, faithfulness)


def _metrics(
    system: System,
    examples: Sequence[Example],
    summaries: Sequence[str],
    references: Sequence[Sequence[str]],
    predictions: Sequence[Prediction],
    scores: Scores,
    protocol: RougeProtocol,
    config: EvaluateConfig,
    base: RunFolder | None,
) -> dict[str, Any]:
    words = [len(summary.split()) for summary in summaries]
    reference_words = [len(reference.split()) for texts in references for reference in texts]
    tokens = [prediction.output_tokens for prediction in predictions if prediction.output_tokens is not None]
    metrics: dict[str, Any] = {
        "system": system.name,
        "split": config.split,
        "examples": len(examples),
        "protocol": {"text": describe(protocol, config), **protocol.__dict__},
        "scores": {name: bootstrap(values, config).as_dict() for name, values in scores.items()},
        "speaker_tags": tag_fidelity(summaries, [example.dialogue for example in examples]),
        "words_mean": round(float(np.mean(words)), 1),
        "reference_words_mean": round(float(np.mean(reference_words)), 1),
        "output_tokens_mean": round(float(np.mean(tokens)), 1) if tokens else None,
        "empty": sum(not summary.strip() for summary in summaries),
        "dialogues_cut": sum(prediction.truncated for prediction in predictions),
        "coverage_percent": _coverage(predictions),
        "hit_max_new_tokens": sum(prediction.hit_limit for prediction in predictions),
    }
    if sizes := _sizes(system, base):
        metrics["run"] = sizes
    if system.artifact is not None:
        manifest = system.artifact.manifest
        size = sum((system.artifact.path / name).stat().st_size for name in manifest.files)
        training = _training(system.artifact)
        metrics["artifact"] = {"target": manifest.target, "dtype": manifest.dtype, "bytes": size, **training}
    return metrics


def _coverage(predictions: Sequence[Prediction]) -> float | None:
    """The mean share of turns that were encoded uncut, in percent; None for a system without a model.

    It is rounded down, so that it is 100 only if no turn was cut.
    """
    shares = [prediction.coverage for prediction in predictions if prediction.coverage is not None]
    return math.floor(1000 * float(np.mean(shares))) / 10 if shares else None


def _training(artifact: Artifact) -> dict[str, Any]:
    """Method and number of training examples of the run that an artifact was compiled from; empty if it has no run.

    Older artifacts do not record the number, which is then that of the run, unless the run is another one now.
    """
    source = artifact.manifest.source
    if DATA["train"] not in source.fingerprint and source.train_examples is None:
        return {}
    count, origin = source.train_examples, RunFolder(Path(source.path), artifact.recipe)
    if (
        count is None
        and origin.is_complete
        and not differences(source.fingerprint, model_parts(origin.read_record().fingerprint))
    ):
        count = origin.read_results().get("train_examples")
    return {"method": artifact.recipe.method.name, "train_examples": count}


def _sizes(system: System, base: RunFolder | None) -> dict[str, Any] | None:
    """Parameters and bytes of a run, or of the untuned model that a run started from."""
    run = system.run or (base if system.builtin == UNTUNED else None)
    if run is None:
        return None
    results = run.read_results()
    sizes = {key: results[key] for key in ("method", "trainable_parameters", "all_parameters", "weights_bytes")}
    if system.run is not None:
        return {**sizes, "train_examples": results.get("train_examples")}
    adapter_parameters = 0 if results["method"] == "full" else results["trainable_parameters"]
    size = sum(file.stat().st_size for file in Path(run.model_source()).glob("*.safetensors"))
    parameters = results["all_parameters"] - adapter_parameters
    return {"method": UNTUNED, "trainable_parameters": 0, "all_parameters": parameters, "weights_bytes": size or None}


def describe(protocol: RougeProtocol, config: EvaluateConfig) -> str:
    """The protocol in one line; printed with every result."""
    return (
        f"{protocol}; {100 * config.confidence:.0f} % intervals from {config.bootstrap_samples:,} bootstrap samples, "
        f"seed {config.seed}"
    )
