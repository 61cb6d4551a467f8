"""Time to score LEAD-3 on a test set with three references: neuron-sum compared with plain rouge-score per reference.

    python benchmarks/rouge.py --data DIALOGSUM [--rounds 3]

Both run in turn within each round; ratios are computed within a round, and the scores must be equal.
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
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of DialogSum")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds")
    options = parser.parse_args()
    examples = load_dataset(DataConfig(source="dialogsum", path=options.data))["test"]
    predictions = [lead(example.dialogue) for example in examples]
    references = [example.references for example in examples]

    plain_s, neuron_sum_s = [], []
    for _ in range(options.rounds):
        started = time.perf_counter()
        scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
        plain_scores = [
            sum(scorer.score(text, prediction)["rouge1"].fmeasure for text in texts) / len(texts)
            for prediction, texts in zip(predictions, references, strict=True)
        ]
        plain_s.append(time.perf_counter() - started)
        started = time.perf_counter()
        scores = rouge(predictions, references, RougeProtocol())
        neuron_sum_s.append(time.perf_counter() - started)
        assert abs(100 * sum(plain_scores) / len(plain_scores) - scores["ROUGE-1"].mean()) < 1e-9

    ratio = statistics.median(plain / other for plain, other in zip(plain_s, neuron_sum_s, strict=True))
    table = console.table("scorer", "s", "ratio")
    table.add_row(f"rouge-score {version('rouge-score')}, plain", f"{statistics.median(plain_s):.2f}", "1.00")
    table.add_row("neuron_sum.evaluation.rouge", f"{statistics.median(neuron_sum_s):.2f}", f"{ratio:.2f}")
    console.emit({}, table)


if __name__ == "__main__":
    main()
