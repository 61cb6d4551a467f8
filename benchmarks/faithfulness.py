"""The faithfulness scores on perturbed human summaries and on human labels, with each target as held or missed.

    python benchmarks/faithfulness.py --data data.source=dialogsum data.path=DIALOGSUM [--checker RUN]
        [--dialogues 80] [--claims 150] [--labels FacEval_human_result.csv] [--labelled 750]

Every human summary of the test split is compared with its changed versions (neuron_sum/data/perturbations.py): the
area under the ROC curve (AUC) is the share of pairs of a true and a changed text in which the true one has the higher
score. The rules score whole summaries, the checker sentences, of which --claims are drawn, and as many changed ones of
each kind. The mean AUC gives every kind the same weight. Kinds in brackets were used neither to choose the rules nor to
train the checker.

--labels reads the human labels of FacEval (Wang et al. 2022, github.com/BinWang28/FacEval, MIT; its SAMSum dialogues
are CC BY-NC-ND 4.0): summaries of people and four models, with or without a factual error. Balanced accuracy is the
mean of the accuracies of both classes; a finding, or a claim with a probability below 0.5, counts as an error.
"""

import argparse
import csv
import random
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuron_sum import console, load_recipe
from neuron_sum.data.examples import Example, evenly_spaced
from neuron_sum.data.perturbations import PERTURBATIONS, perturb
from neuron_sum.data.sentences import split_claims
from neuron_sum.data.sources import load_dataset
from neuron_sum.evaluation.claims import UNSUPPORTED, Checker
from neuron_sum.evaluation.faithfulness import Evidence
from neuron_sum.recipes.schema import CheckerConfig, Perturbation

TUNED: dict[str, tuple[Perturbation, ...]] = {
    "rules": ("speakers", "number", "name", "other"),
    "checker": ("speakers", "number", "name", "negation", "other"),
}
RULES_AUC, RULES_FLAGGED, CHECKER_AUC = 0.70, 0.05, 0.85
Values = NDArray[np.float64]


def main() -> None:
    """Measure the rules, the checker and the agreement with people, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, nargs="+", help="KEY=VALUE settings of the data")
    parser.add_argument("--checker", help="a run, an artifact, a folder or a hub id, as in evaluate.claims.model")
    parser.add_argument("--length", type=int, default=448, help="maximum tokens of the checker's prompts")
    parser.add_argument("--dialogues", type=int, default=500, help="number of dialogues that the claims are about")
    parser.add_argument("--claims", type=int, default=150, help="number of true claims, and of false ones of each kind")
    parser.add_argument("--labels", type=Path, help="FacEval_human_result.csv")
    parser.add_argument("--labelled", type=int, default=750, help="number of its summaries that the checker scores")
    parser.add_argument("--seed", type=int, default=0, help="seed of the changes and of the selection")
    options = parser.parse_args()
    examples = load_dataset(load_recipe("smollm2-lora", options.data).data)["test"]
    results: dict[str, Any] = {"rules": measure_rules(examples, options.seed)}
    checker = None
    if options.checker:
        checker = Checker(CheckerConfig(model=options.checker, max_source_length=options.length))
        results["checker"] = measure_checker(
            checker, evenly_spaced(examples, options.dialogues), options.claims, options.seed
        )
    if options.labels:
        results["people"] = measure_agreement(options.labels, checker, options.labelled, options.seed)
    table = console.table("kind of change", *(f"{name}: AUC" for name in TUNED if name in results))
    for kind in (*PERTURBATIONS, "mean", "all pairs"):
        cells = [
            f"{results[name]['auc'][kind]:.3f}"
            if kind in TUNED[name] or kind not in PERTURBATIONS
            else f"[{results[name]['auc'][kind]:.3f}]"
            for name in TUNED
            if name in results
        ]
        table.add_row(kind, *cells)
    lines = [*target_lines(results), *(f"{key}: {value}" for key, value in results.get("people", {}).items())]
    versions = {name: version(name) for name in ("neuron-sum", "torch", "transformers")}
    console.emit({**results, "versions": versions}, table, *lines, f"versions: {versions}")


def auc(true: Values, false: Values) -> float:
    """The share of pairs in which a true text has the higher score; equal scores count half."""
    return float(np.mean((true[:, None] > false) + 0.5 * (true[:, None] == false)))


def summarized(true: Values, false: dict[str, Values]) -> dict[str, float]:
    """The AUC of each kind, their mean, and that of all pairs."""
    by_kind = {kind: auc(true, values) for kind, values in false.items()}
    return {
        **by_kind,
        "mean": float(np.mean(list(by_kind.values()))),
        "all pairs": auc(true, np.concatenate(list(false.values()))),
    }


def measure_rules(examples: Sequence[Example], seed: int) -> dict[str, Any]:
    """AUC by kind, the share of unmodified summaries with a finding, and the precision of the speaker rule."""
    others = [example.references[0] for example in examples]
    true: list[float] = []
    false: dict[str, list[float]] = {kind: [] for kind in PERTURBATIONS}
    flagged = {"unmodified": 0, "speaker rule, unmodified": 0, "speaker rule, swapped": 0}
    swapped = 0
    for example in examples:
        evidence, generator = Evidence(example.dialogue), random.Random(f"{seed} {example.id}")
        rest = [other for other in others if other not in example.references]
        for reference in example.references:
            checked = evidence.check(reference)
            true.append(checked.support)
            flagged["unmodified"] += bool(checked.findings)
            for kind in PERTURBATIONS:
                changed = perturb(reference, example.dialogue, kind, rest, generator)
                if changed is None:
                    continue
                after = evidence.check(changed)
                false[kind].append(after.support)
                if kind == "speakers":  # each pair of an original and its swapped version
                    swapped += 1
                    flagged["speaker rule, unmodified"] += any(each.kind == "speaker" for each in checked.findings)
                    flagged["speaker rule, swapped"] += any(each.kind == "speaker" for each in after.findings)
    wrong, right = flagged["speaker rule, unmodified"], flagged["speaker rule, swapped"]
    return {
        "summaries": len(true),
        "changed": {kind: len(values) for kind, values in false.items()},
        "auc": summarized(np.array(true), {kind: np.array(values) for kind, values in false.items()}),
        "flagged": flagged["unmodified"] / len(true),
        "speaker_precision": right / max(right + wrong, 1),
        "speaker_recall": right / max(swapped, 1),
    }


def measure_checker(checker: Checker, examples: Sequence[Example], count: int, seed: int) -> dict[str, Any]:
    """AUC by kind over sentences."""
    generator = random.Random(seed)
    sentences = [
        (example, text) for example in examples for reference in example.references for text in split_claims(reference)
    ]
    generator.shuffle(sentences)
    others = [example.references[0] for example in examples]
    claims: dict[str, list[tuple[str, str]]] = {"true": [(text, e.dialogue) for e, text in sentences[:count]]}
    for kind in PERTURBATIONS:
        generator.shuffle(sentences)
        claims[kind] = []
        for example, text in sentences:
            rest = [other for other in others if other not in example.references]
            changed = perturb(text, example.dialogue, kind, rest, generator) if len(claims[kind]) < count else None
            if changed is not None:
                claims[kind].append((changed, example.dialogue))
    flat = [pair for pairs in claims.values() for pair in pairs]
    scores = checker.probabilities([claim for claim, _ in flat], [dialogue for _, dialogue in flat])
    ends = np.cumsum([len(pairs) for pairs in claims.values()])
    values = dict(zip(claims, np.split(scores, ends[:-1]), strict=True))
    true = values.pop("true")
    return {
        "claims": {kind: len(pairs) for kind, pairs in claims.items()},
        "auc": summarized(true, values),
        "true_below": float(np.mean(true < UNSUPPORTED)),
        "false_below": {kind: float(np.mean(each < UNSUPPORTED)) for kind, each in values.items()},
    }


def measure_agreement(path: Path, checker: Checker | None, count: int, seed: int) -> dict[str, str]:
    """AUC and balanced accuracy against human labels of summaries."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    is_right = np.array([row["w/ Error"].strip().lower() == "no" for row in rows])
    checked = [Evidence(row["Dialogue"]).check(row["Summary"]) for row in rows]
    support, found = np.array([each.support for each in checked]), np.array([bool(each.findings) for each in checked])
    lines = {
        "human labels": f"{len(rows)} summaries, {np.mean(~is_right):.1%} with an error",
        "rules against people": f"AUC {auc(support[is_right], support[~is_right]):.3f}, balanced accuracy "
        f"{balanced(~found, is_right):.3f}",
    }
    if checker is not None:
        chosen = sorted(random.Random(seed).sample(range(len(rows)), min(count, len(rows))))
        claims = checker.check(
            [rows[index]["Summary"] for index in chosen], [rows[index]["Dialogue"] for index in chosen]
        )
        lowest = np.array([min((claim.probability for claim in each), default=0.0) for each in claims])
        right = is_right[chosen]
        lines["checker against people"] = (
            f"{len(chosen)} summaries, by their lowest claim: AUC {auc(lowest[right], lowest[~right]):.3f}, "
            f"balanced accuracy {balanced(lowest >= UNSUPPORTED, right):.3f}"
        )
    return lines


def balanced(predicted: NDArray[np.bool_], actual: NDArray[np.bool_]) -> float:
    """The mean of the accuracies of both classes."""
    return float((np.mean(predicted[actual]) + np.mean(~predicted[~actual])) / 2)


def target_lines(results: dict[str, Any]) -> list[str]:
    """Each target with its figure."""
    rules = results["rules"]
    mean = rules["auc"]["mean"]

    def verdict(holds: bool) -> str:
        return "held" if holds else "missed"

    lines = [
        f"rules: mean AUC {mean:.3f}, target {RULES_AUC:.2f}: {verdict(mean >= RULES_AUC)}",
        f"rules: {rules['flagged']:.1%} of {rules['summaries']:,} unmodified summaries have a finding, "
        f"target at most {RULES_FLAGGED:.0%}: {verdict(rules['flagged'] <= RULES_FLAGGED)}",
        f"rules: speaker findings in original and swapped summaries: "
        f"precision {rules['speaker_precision']:.2f}, recall {rules['speaker_recall']:.2f}",
    ]
    if "checker" in results:
        checker = results["checker"]
        mean = checker["auc"]["mean"]
        lines.append(f"checker: mean AUC {mean:.3f}, target {CHECKER_AUC:.2f}: {verdict(mean >= CHECKER_AUC)}")
        lines.append(f"checker: {checker['true_below']:.1%} of the true claims have a probability below {UNSUPPORTED}")
    return lines


if __name__ == "__main__":
    main()
