"""ROUGE (Lin 2004, aclanthology.org/W04-1013) as an evaluate.Metric over rouge-score, with an explicit protocol.

`evaluate.load("rouge")` downloads its script from a hub at run time; this class needs no network. Other differences:
a stated rule for several references, scores per example (intervals need them), and no unseeded bootstrap.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from neuron_sum.recipes.schema import EvaluateConfig

ROUGE_TYPES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
TOKENIZER_CACHE = 100_000

Scores = dict[str, NDArray[np.float64]]
"""ROUGE F1 in points (0 to 100) by display name, one per example: (examples,)."""


@dataclass(frozen=True)
class RougeProtocol:
    """All settings that affect a ROUGE score; docs/evaluation.md has the effect of each.

    Attributes:
        use_stemmer: Whether words are stemmed (Porter) before they are compared.
        references: The rule for several references: "mean" of all, only the "first", or the "best" per example.
        sentence_splitting: The sentence ends for ROUGE-Lsum: "punctuation" or each "newline".
    """

    use_stemmer: bool = True
    references: str = "mean"
    sentence_splitting: str = "punctuation"

    @classmethod
    def of(cls, config: EvaluateConfig) -> "RougeProtocol":
        """The protocol of a recipe."""
        return cls(config.use_stemmer, config.references, config.sentence_splitting)

    def __str__(self) -> str:
        stemming = "Porter stemming" if self.use_stemmer else "no stemming"
        references = {"mean": "mean over all references", "first": "first reference", "best": "best reference"}
        return (
            f"ROUGE F1 by rouge-score {version('rouge-score')}: {stemming}, {references[self.references]}, "
            f"sentences split at {self.sentence_splitting}"
        )


class Rouge(evaluate.Metric):  # type: ignore[misc]
    """ROUGE-1, -2, -L and -Lsum per example.

    `Rouge(protocol).compute(predictions=[str, …], references=[[str, …], …])` returns Scores; predictions (examples,),
    references (examples, one or more).
    """

    def __init__(self, protocol: RougeProtocol) -> None:
        self.protocol = protocol
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="ROUGE F1 per example, in points.",
            citation="Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]], **_: Any) -> Scores:
        scorer = RougeScorer(list(ROUGE_TYPES), tokenizer=_CachingTokenizer(self.protocol.use_stemmer))
        rows = [
            self._combine([self._score(scorer, reference, prediction) for reference in texts])
            for prediction, texts in zip(predictions, references, strict=True)
        ]
        table = np.array(rows, dtype=np.float64).reshape(len(rows), len(ROUGE_TYPES))
        return {name: table[:, column] for column, name in enumerate(ROUGE_TYPES.values())}

    def _score(self, scorer: RougeScorer, reference: str, prediction: str) -> list[float]:
        scores = scorer.score(self._split_sentences(reference), self._split_sentences(prediction))
        return [100 * scores[kind].fmeasure for kind in ROUGE_TYPES]

    def _split_sentences(self, text: str) -> str:
        """One sentence per line, as rouge-score's rougeLsum requires; the other types treat this as white space."""
        if self.protocol.sentence_splitting == "newline":
            return text
        return "\n".join(SENTENCE_END.split(text.replace("\n", " ").strip()))

    def _combine(self, by_reference: list[list[float]]) -> list[float]:
        if self.protocol.references == "first":
            return by_reference[0]
        columns = zip(*by_reference, strict=True)
        return [max(column) if self.protocol.references == "best" else sum(column) / len(column) for column in columns]


class _CachingTokenizer(DefaultTokenizer):  # type: ignore[misc]
    """rouge-score's default tokenizer with a cache, because texts repeat and stemming is slow."""

    def __init__(self, use_stemmer: bool) -> None:
        super().__init__(use_stemmer)
        self.tokenize = functools.lru_cache(TOKENIZER_CACHE)(super().tokenize)


def rouge(predictions: Sequence[str], references: Sequence[Sequence[str]], protocol: RougeProtocol) -> Scores:
    """Score each prediction against its references."""
    if not predictions:
        raise ValueError("no predictions to score")
    scores: Scores = Rouge(protocol).compute(predictions=list(predictions), references=[list(r) for r in references])
    return scores


def human_agreement(references: Sequence[Sequence[str]], protocol: RougeProtocol) -> Scores:
    """Score each reference as a prediction against the others of its example: the agreement between human authors.

    Args:
        references: Two or more references per example.
        protocol: The ROUGE protocol.

    Returns:
        Per example, the mean over its references.
    """
    predictions = [reference for texts in references for reference in texts]
    others = [[*texts[:index], *texts[index + 1 :]] for texts in references for index in range(len(texts))]
    scores = rouge(predictions, others, protocol)
    ends = np.cumsum([len(texts) for texts in references])[:-1]
    return {name: np.array([part.mean() for part in np.split(values, ends)]) for name, values in scores.items()}
