"""Claims of summaries, scored against the dialogue by a model that answers whether a claim is true.

The score of a claim is the probability of the first token of the answer "true" against that of "false", as in MiniCheck
(Tang et al. 2024, arXiv:2404.10774). A dialogue that is too long for a prompt is checked in parts between turns, of
which the best counts, also as there; the parts are halves, where MiniCheck counts words.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuron_sum import console, files
from neuron_sum.data.sentences import claim_spans
from neuron_sum.errors import RecipeError, RunError
from neuron_sum.evaluation.reuse import Reusable
from neuron_sum.evaluation.systems import UNTUNED, System, load_system, parse_systems, parts_of
from neuron_sum.prompts import EncodedPrompt
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import CheckerConfig, ClaimsConfig, DataConfig, GenerateConfig, ModelConfig, Recipe
from neuron_sum.runs.fingerprint import digest, of_recipe

if TYPE_CHECKING:
    from neuron_sum.runtimes.base import Generator

CLAIMS = "claims"
"""The score: 100 times the mean probability of the claims of a summary."""
UNSUPPORTED = 0.5
"""The probability below which a claim is marked."""
DEFAULT_LENGTH = 512
KEPT = Reusable("claim scores", "claims.json", "claims.jsonl")


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of a summary.

    Attributes:
        text: The text in the summary.
        start: The position of its first character in the summary.
        end: The position after its last character.
        probability: The probability that it is true, from 0 to 1.
    """

    text: str
    start: int
    end: int
    probability: float

    def as_dict(self) -> dict[str, Any]:
        """The entry in summaries.jsonl."""
        return {"text": self.text, "probability": round(self.probability, 4)}


class Checker:
    """A model that scores claims.

    Args:
        config: The model, its prompt and answers.

    Attributes:
        parts: The hash of each part of the model and the settings that the scores depend on.

    Raises:
        NeuronSumError: If the model cannot be loaded, or is not a checker.
    """

    def __init__(self, config: CheckerConfig) -> None:
        system, self._recipe, answers = _checker_of(config)
        generator, tokenizer = load_system(system, self._recipe)
        self._generator: Generator = generator
        self._tokenizer = tokenizer
        self._prompt = self._recipe.prompt.resolve()
        self._length = self._recipe.data.max_source_length
        ids = [tokenizer(answer, add_special_tokens=False)["input_ids"][:1] for answer in answers]
        if not all(ids) or ids[0] == ids[1] or [tokenizer.unk_token_id] in ids:
            raise RecipeError(
                f"answers {answers[0]!r} and {answers[1]!r} begin with the same token of the tokenizer, or with an "
                "unknown one or none",
                "set other answers, such as --set 'evaluate.claims.answers=[yes, no]'",
            )
        self._answers = [ids[0][0], ids[1][0]]
        self.parts = {
            **parts_of(system, self._recipe),
            **of_recipe(self._recipe),
            "evaluate.claims.max_source_length": str(self._length),
            "evaluate.claims.answers": digest(list(answers)),
        }

    def probabilities(self, claims: Sequence[str], dialogues: Sequence[str]) -> NDArray[np.float64]:
        """The probability that each claim is true, (claims,).

        Args:
            claims: The claims.
            dialogues: The dialogue of each claim, one turn per line.
        """
        parts = [self._parts(claim, dialogue) for claim, dialogue in zip(claims, dialogues, strict=True)]
        prompts, counts = [prompt.input_ids for each in parts for prompt in each], [len(each) for each in parts]
        logits = np.zeros((len(prompts), 2), dtype=np.float64)
        # By length, and those of one dialogue next to each other: a model may compute their common tokens once.
        owners = [dialogue for each, dialogue in zip(parts, dialogues, strict=True) for _ in each]
        order = sorted(range(len(prompts)), key=lambda index: (-len(owners[index]), owners[index], prompts[index]))
        size = 2 * self._generator.batch_size
        with console.progress("checking claims", len(prompts)) as bar:
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                logits[batch] = self._generator.first_logits([prompts[index] for index in batch], self._answers)
                bar.advance(len(batch))
        probabilities = 1 / (1 + np.exp(logits[:, 1] - logits[:, 0]))
        ends = np.cumsum(counts)
        return np.array([probabilities[end - count : end].max() for count, end in zip(counts, ends, strict=True)])

    def check(self, summaries: Sequence[str], dialogues: Sequence[str]) -> list[tuple[Claim, ...]]:
        """The claims of each summary with their scores; an empty summary has none.

        Args:
            summaries: The summaries.
            dialogues: The dialogue of each summary, one turn per line.
        """
        spans = [claim_spans(summary) for summary in summaries]
        flat = [(index, start, end) for index, each in enumerate(spans) for start, end in each]
        texts = [summaries[index][start:end] for index, start, end in flat]
        scores = self.probabilities(texts, [dialogues[index] for index, _, _ in flat])
        claims: list[list[Claim]] = [[] for _ in summaries]
        for (index, start, end), text, score in zip(flat, texts, scores.tolist(), strict=True):
            claims[index].append(Claim(text, start, end, score))
        return [tuple(each) for each in claims]

    def _parts(self, claim: str, dialogue: str) -> list[EncodedPrompt]:
        """The prompts of a claim: one, or those of both halves of a dialogue that is too long.

        Raises:
            RecipeError: If a claim is too long for a prompt.
        """
        try:
            prompt = self._prompt.encode_claims(self._tokenizer, [dialogue], [claim], self._length)[0]
        except RecipeError as error:
            raise RecipeError(
                f"a claim of {len(claim.split())} words does not fit into {self._length} tokens: {claim[:60]!r}…",
                "raise evaluate.claims.max_source_length, and for an artifact compile a longer bucket",
            ) from error
        if not prompt.truncated:
            return [prompt]
        separator, pieces = "\n", dialogue.splitlines()
        if len(pieces) < 2:
            separator, pieces = " ", dialogue.split()
        if len(pieces) < 2:
            return [prompt]
        middle = len(pieces) // 2
        halves = (separator.join(pieces[:middle]), separator.join(pieces[middle:]))
        return [part for half in halves for part in self._parts(claim, half)]


def score_claims(
    checker: Checker, summaries: Sequence[str], dialogues: Sequence[str], folder: Path
) -> list[tuple[Claim, ...]]:
    """The claims of each summary with their scores, which are reused if the model, settings and texts are the same.

    Args:
        checker: The model.
        summaries: The summaries.
        dialogues: The dialogue of each summary, one turn per line.
        folder: The folder of claims.json and claims.jsonl.

    Raises:
        RunError: If claims.json is damaged.
    """
    texts = {"summaries": digest(list(summaries)), "dialogues": digest(list(dialogues))}
    parts = {**checker.parts, **texts}
    if (entries := KEPT.read(folder, parts)) is not None:
        return [tuple(Claim(**claim) for claim in entry["claims"]) for entry in entries]
    files.check_writable(folder, 0)
    claims = checker.check(summaries, dialogues)
    KEPT.write(folder, parts, (files.to_json({"claims": [asdict(claim) for claim in each]}) for each in claims))
    return claims


def claim_scores(claims: Sequence[Sequence[Claim]]) -> NDArray[np.float64]:
    """The score of each summary in points; 0 for one without a claim."""
    return np.array([100 * float(np.mean([claim.probability for claim in each] or [0.0])) for each in claims])


def _checker_of(config: CheckerConfig) -> tuple[System, Recipe, tuple[str, str]]:
    """The system of a checker, its recipe, and its answers."""
    is_local = Path(config.model).exists()
    system = parse_systems([config.model])[0] if is_local else System("checker", builtin=UNTUNED)  # a hub id
    generate = GenerateConfig(max_new_tokens=1, batch_size=config.batch_size)
    if system.recipe_path is None:
        length = config.max_source_length or DEFAULT_LENGTH
        data = DataConfig(claims=ClaimsConfig(answers=config.answers), max_source_length=length)
        model = ModelConfig(name_or_path=config.model)
        return (
            system,
            Recipe(name="checker", model=model, prompt=config.prompt, data=data, generate=generate),
            config.answers,
        )
    recipe = load_recipe(str(system.recipe_path))
    if recipe.data.claims is None:
        raise RunError(
            f"{config.model} was not trained to check claims: its recipe has no data.claims",
            "train a checker with `neuron-sum train smollm2-claims`",
        )
    length = config.max_source_length or recipe.data.max_source_length
    if system.artifact is not None:
        length = min(length, max(bucket.source_len for bucket in system.artifact.manifest.buckets))
    data = recipe.data.model_copy(update={"max_source_length": length})
    defaults = CheckerConfig.model_fields
    if config.prompt != defaults["prompt"].default or config.answers != defaults["answers"].default:
        raise RecipeError(
            f"evaluate.claims.prompt and .answers cannot be set for {config.model}, which has its own",
            "leave them out",
        )
    return system, recipe.model_copy(update={"generate": generate, "data": data}), recipe.data.claims.answers
