"""ROUGE (Lin 2004, aclanthology.org/W04-1013) as an evaluate.Metric over rouge-score, with an explicit protocol.

`evaluate.load("rouge")` downloads its script from a hub at run time; this class needs no network. Other differences:
a stated rule for several references, scores per example (intervals need them), no unseeded bootstrap, a tokenizer for
any script, and little memory for long texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from neuron_sum import console
from neuron_sum.errors import DataError
from neuron_sum.evaluation.lcs import lcs_f1, union_lcs_f1
from neuron_sum.evaluation.tokenizers import MAX_WORDS, AsciiTokenizer, UnicodeTokenizer, lost_letters
from neuron_sum.recipes.schema import EvaluateConfig

ROUGE_TYPES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
MAX_LOST = 0.005
"""Largest share of the references' words that may lose letters in the ASCII tokenizer; a few names are below it."""

Scores = dict[str, NDArray[np.float64]]
"""ROUGE F1 in points (0 to 100) by display name, one per example: (examples,)."""


@dataclass(frozen=True)
class RougeProtocol:
    """All settings that affect a ROUGE score; docs/evaluation.md has the effect of each.

    Attributes:
        tokenizer: The words that are compared: "ascii", those of rouge-score, or "unicode".
        use_stemmer: Whether words are stemmed (Porter) before they are compared.
        references: The rule for several references: "mean" of all, only the "first", or the "best" per example.
        sentence_splitting: The sentence ends for ROUGE-Lsum: "punctuation" or each "newline".
    """

    tokenizer: str = "ascii"
    use_stemmer: bool = True
    references: str = "mean"
    sentence_splitting: str = "punctuation"

    @classmethod
    def of(cls, config: EvaluateConfig) -> "RougeProtocol":
        """The protocol of a recipe; Porter's stemmer is for English, so that Unicode words are not stemmed."""
        use_stemmer = config.use_stemmer and config.tokenizer == "ascii"
        return cls(config.tokenizer, use_stemmer, config.references, config.sentence_splitting)

    def check(self, references: Sequence[Sequence[str]]) -> None:
        """Check that the tokenizer keeps the letters of the human summaries.

        Raises:
            DataError: If it drops letters of more than a few words.
        """
        if self.tokenizer != "ascii":
            return
        lost = lost_letters(text for texts in references for text in texts)
        if lost.share > MAX_LOST:
            raise DataError(
                f"evaluate.tokenizer=ascii drops letters of the human summaries: {lost}; the scores would be wrong",
                "use `--set evaluate.tokenizer=unicode`",
            )

    def warn(self, summaries: Sequence[str], name: str) -> None:
        """Warn if the tokenizer drops letters.

        Args:
            summaries: The summaries of a system, or the human ones.
            name: The name of their author in the warning.
        """
        if self.tokenizer == "ascii" and (lost := lost_letters(summaries)).count:
            console.warn(f"{name}: the ASCII tokenizer drops letters of {lost} (evaluate.tokenizer=unicode keeps them)")

    def __str__(self) -> str:
        tokenizer = {"ascii": "ASCII", "unicode": "Unicode"}[self.tokenizer]
        stemming = "Porter stemming" if self.use_stemmer else "no stemming"
        references = {"mean": "mean over all references", "first": "first reference", "best": "best reference"}
        return (
            f"ROUGE F1 by rouge-score {version('rouge-score')}: {tokenizer} tokenizer, {stemming}, "
            f"{references[self.references]}, "
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
        tokenizer = (
            UnicodeTokenizer() if self.protocol.tokenizer == "unicode" else AsciiTokenizer(self.protocol.use_stemmer)
        )
        ngrams = RougeScorer(["rouge1", "rouge2"], tokenizer=_Words())
        rows = [
            self._combine([self._score(tokenizer, ngrams, reference, prediction) for reference in texts])
            for prediction, texts in zip(predictions, references, strict=True)
        ]
        table = np.array(rows, dtype=np.float64).reshape(len(rows), len(ROUGE_TYPES))
        return {name: table[:, column] for column, name in enumerate(ROUGE_TYPES.values())}

    def _score(
        self, tokenizer: AsciiTokenizer | UnicodeTokenizer, ngrams: RougeScorer, reference: str, prediction: str
    ) -> list[float]:
        by_sentence = []
        for text in (reference, prediction):
            sentences = [tokenizer.tokenize(sentence) for sentence in self._split_sentences(text, tokenizer)]
            if (count := sum(map(len, sentences))) > MAX_WORDS:
                raise DataError(
                    f"a summary has {count:,} words, ROUGE compares at most {MAX_WORDS:,}: {text[:60]!r} …",
                    "shorten it, or split it into several examples",
                )
            by_sentence.append(sentences)
        words = [[word for sentence in sentences for word in sentence] for sentences in by_sentence]
        scores = ngrams.score(*words)
        f1 = [scores["rouge1"].fmeasure, scores["rouge2"].fmeasure, lcs_f1(*words), union_lcs_f1(*by_sentence)]
        return [100 * score for score in f1]

    def _split_sentences(self, text: str, tokenizer: AsciiTokenizer | UnicodeTokenizer) -> list[str]:
        if self.protocol.sentence_splitting == "newline":
            return text.split("\n")
        return list(tokenizer.sentence_end.split(text.replace("\n", " ").strip()))

    def _combine(self, by_reference: list[list[float]]) -> list[float]:
        if self.protocol.references == "first":
            return by_reference[0]
        columns = zip(*by_reference, strict=True)
        return [max(column) if self.protocol.references == "best" else sum(column) / len(column) for column in columns]


class _Words(Tokenizer):  # type: ignore[misc]
    """Passes words through rouge-score, which otherwise splits texts."""

    def tokenize(self, words: list[str]) -> list[str]:
        return words


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
