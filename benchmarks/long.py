r"""Long conversations: whole in pieces (data.long merge) against truncated, on real ones, with each target.

    python benchmarks/long.py RUN --aci-bench clinicalnlp_taskB_test1.csv --qmsum test.jsonl \
        [--conversations 20] [--meetings 5] [--join 384] [--lengths 2500 5000 10000 20000]

RUN is a run or an artifact. The files are those of the repositories wyim/aci-bench (data/challenge_data, CC BY 4.0:
visits to a doctor, with the doctor's note) and Yale-LILY/QMSum (data/ALL/jsonl, MIT: meetings, with the answer to
"Summarize the whole meeting."). Of the visits, --conversations are used, evenly spaced; of the meetings, the --meetings
shortest.

    lead-3     the first three turns
    truncate   the model on what fits into data.max_source_length
    merge      the model on all pieces, and on their summaries until one is left
    joined     the same with data.merge_until: summaries of up to --join tokens in all are the answer
    lead-long  the first words, as many as `joined` has for this conversation

Scores are ROUGE-1 and facts (docs/evaluation.md); differences are compared with a paired bootstrap. Then the
transcripts of the meetings, cut to --lengths tokens, are summarized one after another, with 24 new tokens: CPU time,
which other processes do not prolong, and peak memory.
"""

import argparse
import csv
import json
import resource
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from neuron_sum import console
from neuron_sum.data.examples import Example, evenly_spaced
from neuron_sum.evaluation.baselines import BASELINES
from neuron_sum.evaluation.faithfulness import FACTS, check_summary, rule_scores
from neuron_sum.evaluation.generate import summarize_all
from neuron_sum.evaluation.predictions import Prediction
from neuron_sum.evaluation.rouge import RougeProtocol, rouge
from neuron_sum.evaluation.statistics import Difference, Values, bootstrap, paired_bootstrap
from neuron_sum.evaluation.systems import load_system, parse_systems, rendered
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import EvaluateConfig, GenerateConfig, Recipe
from neuron_sum.runtimes.base import Generator

LEAD, LEAD_LONG = "lead-3", "lead-long"
MODES = {"truncate": ("truncate", 0), "merge": ("merge", 0), "joined": ("merge", None)}
"""data.long and data.merge_until of each system; None for --join."""
SIGNIFICANT, LINEAR, MEMORY = 0.05, 1.25, 1.1
"""The targets: p, time per token at the longest length by that at the shortest, and the same for peak memory."""


class Remembered:
    """A generator that computes each prompt once, because several systems have the same pieces.

    Args:
        generator: The generator.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator, self._known = generator, dict[tuple[int, ...], list[int]]()
        self.ends, self.batch_size, self.first_logits = generator.ends, generator.batch_size, generator.first_logits

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerateConfig) -> list[list[int]]:
        """The tokens of `Generator.generate`."""
        if missing := [prompt for prompt in prompts if tuple(prompt) not in self._known]:
            for prompt, tokens in zip(missing, self._generator.generate(missing, settings), strict=True):
                self._known[tuple(prompt)] = tokens
        return [self._known[tuple(prompt)] for prompt in prompts]


def main() -> None:
    """Measure the systems on both data sets, then time and memory, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run or an artifact")
    parser.add_argument("--aci-bench", type=Path, help="a CSV file of aci-bench")
    parser.add_argument("--qmsum", type=Path, help="a JSON Lines file of QMSum")
    parser.add_argument("--conversations", type=int, default=20, help="number of visits")
    parser.add_argument("--meetings", type=int, default=5, help="number of meetings")
    parser.add_argument("--join", type=int, default=384, help="tokens up to which summaries are joined")
    parser.add_argument("--lengths", type=int, nargs="*", default=[2500, 5000, 10_000, 20_000], help="tokens")
    parser.add_argument("--texts", type=Path, help="JSON Lines file for the summaries")
    options = parser.parse_args()
    system = parse_systems([options.run])[0]
    recipe = rendered(system, load_recipe(str(system.recipe_path)))
    generator, tokenizer = load_system(system, recipe)
    meetings = read_qmsum(options.qmsum) if options.qmsum is not None else []
    shortest = sorted(meetings, key=lambda each: len(each.dialogue))
    data = {"QMSum": tuple(shortest[: options.meetings])} if meetings and options.meetings else {}
    if options.aci_bench is not None:
        data = {"aci-bench": evenly_spaced(read_aci_bench(options.aci_bench), options.conversations), **data}
    results: dict[str, Any] = {}
    table = console.table("data", "system", "ROUGE-1", "facts", "words", "covered", "against truncate", "p")
    lines, remembered, texts = list[str](), Remembered(generator), list[str]()
    for name, examples in data.items():
        predictions = {LEAD: [Prediction(each.id, BASELINES[LEAD](each.dialogue)) for each in examples]}
        for mode, (long, until) in MODES.items():
            changed = with_long(recipe, long, options.join if until is None else until)
            ids, dialogues = [each.id for each in examples], [each.dialogue for each in examples]
            predictions[mode] = summarize_all(
                remembered, tokenizer, changed, ids, dialogues, description=f"{name}: {mode}"
            )
        predictions[LEAD_LONG] = lead_long(examples, predictions["joined"])
        results[name] = measured(examples, predictions)
        lines += target_lines(name, results[name])
        for system_name, row in results[name].items():
            table.add_row(name, system_name, *(str(cell) for cell in row["cells"]))
        texts += [
            json.dumps({"data": name, "id": each.id, **{key: made[at].summary for key, made in predictions.items()}})
            for at, each in enumerate(examples)
        ]
        if options.texts is not None:  # after each data set, because the rest takes long
            options.texts.write_text("".join(f"{line}\n" for line in texts), encoding="utf-8")
    cost = console.table("tokens", "pieces' tokens", "CPU seconds", "seconds per 1,000 tokens", "peak memory")
    if options.lengths and meetings:
        results["cost"] = measure_cost(generator, tokenizer, recipe, meetings, options.lengths)
        for row in results["cost"]:
            seconds, tokens = row["seconds"], row["input_tokens"]
            peak = console.size(row["peak_bytes"])
            cost.add_row(
                f"{row['tokens']:,}", f"{tokens:,}", f"{seconds:.1f}", f"{1000 * seconds / row['tokens']:.2f}", peak
            )
        lines += cost_lines(results["cost"])
    versions = {name: version(name) for name in ("neuron-sum", "torch", "transformers")}
    console.emit({**results, "versions": versions}, table, cost, *lines, f"versions: {versions}")


def read_aci_bench(path: Path) -> list[Example]:
    """The visits of a CSV file with encounter_id, dialogue and note."""
    with path.open(encoding="utf-8", newline="") as file:
        return [Example(row["encounter_id"], row["dialogue"], (row["note"],)) for row in csv.DictReader(file)]


def read_qmsum(path: Path) -> list[Example]:
    """The meetings of a JSON Lines file, each with the answer to its first general query."""
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        meeting = json.loads(line)
        turns = [f"{turn['speaker']}: {' '.join(turn['content'].split())}" for turn in meeting["meeting_transcripts"]]
        answer = meeting["general_query_list"][0]["answer"]
        examples.append(Example(f"meeting-{number}", "\n".join(turns), (answer,)))
    return examples


def lead_long(examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[Prediction]:
    """The start of each dialogue with as many words as a summary has."""
    return [
        Prediction(each.id, " ".join(each.dialogue.split()[: len(made.summary.split())]))
        for each, made in zip(examples, predictions, strict=True)
    ]


def with_long(recipe: Recipe, long: str, merge_until: int) -> Recipe:
    """The recipe with other settings for long dialogues."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"long": long, "merge_until": merge_until})})


def measured(examples: Sequence[Example], predictions: dict[str, list[Prediction]]) -> dict[str, dict[str, Any]]:
    """The scores of each system, and its difference to `truncate`."""
    config = EvaluateConfig()
    protocol = RougeProtocol.of(config)
    references = [example.references for example in examples]
    scores: dict[str, tuple[Values, Values]] = {}
    for name, made in predictions.items():
        checks = [check_summary(each.summary, example.dialogue) for each, example in zip(made, examples, strict=True)]
        rouge_1 = rouge([each.summary for each in made], references, protocol)["ROUGE-1"]
        scores[name] = rouge_1, rule_scores(checks)[FACTS]
    rows: dict[str, dict[str, Any]] = {}
    for name, (rouge_1, facts) in scores.items():
        words = sum(len(each.summary.split()) for each in predictions[name]) / len(examples)
        shares = [each.coverage for each in predictions[name] if each.coverage is not None]
        covered = sum(shares) / len(shares) if shares else None
        differences = {
            other: paired_bootstrap(rouge_1, scores[other][0], config)
            for other in ("truncate", LEAD, LEAD_LONG)
            if other != name
        }
        facts_differences = {other: paired_bootstrap(facts, scores[other][1], config) for other in differences}
        against = differences.get("truncate")
        interval = bootstrap(rouge_1, config)
        rows[name] = {
            "rouge_1": interval.as_dict(),
            "facts": float(facts.mean()),
            "words": words,
            "coverage": covered,
            "differences": {other: as_dict(each) for other, each in differences.items()},
            "facts_differences": {other: as_dict(each) for other, each in facts_differences.items()},
            "cells": [
                f"{interval.value:.2f} [{interval.low:.1f}, {interval.high:.1f}]",
                f"{facts.mean():.0f}",
                f"{words:.0f}",
                "" if covered is None else f"{100 * covered:.0f} %",
                "" if against is None else f"{against.interval.value:+.2f}",
                "" if against is None else f"{against.p_value:.3f}",
            ],
        }
    return rows


def as_dict(difference: Difference) -> dict[str, float]:
    """A difference for --json."""
    return {**difference.interval.as_dict(), "p_value": difference.p_value}


def measure_cost(
    generator: Generator, tokenizer: Any, recipe: Recipe, meetings: Sequence[Example], lengths: Sequence[int]
) -> list[dict[str, float]]:
    """CPU time and peak memory of merging conversations of increasing lengths."""
    turns = "\n".join(meeting.dialogue for meeting in meetings)[: 8 * max(lengths)]
    ends = [end for _, end in tokenizer(turns, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]]
    recipe = with_long(recipe, "merge", 0).model_copy(
        update={"generate": recipe.generate.model_copy(update={"max_new_tokens": 24, "min_new_tokens": 0})}
    )
    summarize_all(generator, tokenizer, recipe, ["warm-up"], [turns[: ends[1000]]], quiet=True)
    rows = []
    for length in sorted(lengths):
        started = time.process_time()
        [made] = summarize_all(generator, tokenizer, recipe, ["a"], [turns[: ends[length - 1]]], quiet=True)
        rows.append(
            {
                "tokens": length,
                "input_tokens": made.input_tokens or 0,
                "seconds": time.process_time() - started,
                "coverage": made.coverage or 0.0,
                "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            }
        )
        console.note(f"{length:,} tokens: {rows[-1]['seconds']:.1f} s")
    return rows


def verdict(holds: bool) -> str:
    """The word for a target."""
    return "held" if holds else "missed"


def target_lines(name: str, rows: dict[str, dict[str, Any]]) -> list[str]:
    """The targets of one data set."""
    covered = min(rows[mode]["coverage"] for mode in ("merge", "joined"))
    lines = [f"{name}: coverage {100 * covered:.1f} %, target 100 %: {verdict(covered == 1)}"]
    for mode in ("merge", "joined"):
        for other in ("truncate", LEAD, LEAD_LONG):
            found = rows[mode]["differences"][other]
            lines.append(
                f"{name}: {mode} against {other}: ROUGE-1 {found['value']:+.2f} [{found['low']:+.2f}, "
                f"{found['high']:+.2f}], p = {found['p_value']:.3f}, target above 0 with p < {SIGNIFICANT}: "
                f"{verdict(found['value'] > 0 and found['p_value'] < SIGNIFICANT)}"
            )
            facts = rows[mode]["facts_differences"][other]
            lines.append(f"{name}: {mode} against {other}: facts {facts['value']:+.0f}, p = {facts['p_value']:.3f}")
    return lines


def cost_lines(rows: Sequence[dict[str, float]]) -> list[str]:
    """The targets of time and memory."""
    first, last = rows[0], rows[-1]
    ratio = last["seconds"] / last["tokens"] / (first["seconds"] / first["tokens"])
    memory = last["peak_bytes"] / first["peak_bytes"]
    lengths = f"at {last['tokens']:,} tokens by that at {first['tokens']:,}"
    return [
        f"time per token {lengths}: {ratio:.2f}, target at most {LINEAR}: {verdict(ratio <= LINEAR)}",
        f"peak memory {lengths}: {memory:.2f}, target at most {MEMORY}: {verdict(memory <= MEMORY)}",
        f"coverage at {last['tokens']:,} tokens: {100 * last['coverage']:.1f} %, target 100 %: "
        f"{verdict(last['coverage'] == 1)}",
    ]


if __name__ == "__main__":
    main()
