"""Scoring LEAD-3 on a test set of three references: ours against rouge-score used plainly, reference by reference.

    python benchmarks/rouge.py --data DIALOGSUM [--rounds 3]

The two in turn within each round; ratios are taken within a round, and the scores must be equal.
"""

import argparse
import statistics
import time
from importlib.metadata import version

from rouge_score.rouge_scorer import RougeScorer

from neuron_sum import console
from neuron_sum.data.sources import load_dataset
from neuron_sum.evaluation.baselines import lead
from neuron_sum.evaluation.rouge import ROUGE_TYPES, RougeProtocol, rouge
from neuron_sum.recipes.schema import DataConfig


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    examples = load_dataset(DataConfig(source="dialogsum", path=options.data))["test"]
    predictions = [lead(example.dialogue) for example in examples]
    references = [example.references for example in examples]

    plain_s, ours_s = [], []
    for _ in range(options.rounds):
        started = time.perf_counter()
        scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
        found = [
            sum(scorer.score(text, prediction)["rouge1"].fmeasure for text in given) / len(given)
            for prediction, given in zip(predictions, references, strict=True)
        ]
        plain_s.append(time.perf_counter() - started)
        started = time.perf_counter()
        scores = rouge(predictions, references, RougeProtocol())
        ours_s.append(time.perf_counter() - started)
        assert abs(100 * sum(found) / len(found) - scores["ROUGE-1"].mean()) < 1e-9

    ratio = statistics.median(plain / ours for plain, ours in zip(plain_s, ours_s, strict=True))
    table = console.table("scorer", "s", "ratio")
    table.add_row(f"rouge-score {version('rouge-score')}, plainly", f"{statistics.median(plain_s):.2f}", "1.00")
    table.add_row("neuron_sum.evaluation.rouge", f"{statistics.median(ours_s):.2f}", f"{ratio:.2f}")
    console.emit({}, table)


if __name__ == "__main__":
    main()
