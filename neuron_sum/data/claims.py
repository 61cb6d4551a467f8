"""Claims for the training of a checker: the sentences of summaries, and false versions of them."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from neuron_sum.data.examples import Example
from neuron_sum.data.perturbations import perturb
from neuron_sum.data.sentences import split_claims
from neuron_sum.recipes.schema import ClaimsConfig


def generate_claims(examples: Sequence[Example], config: ClaimsConfig) -> tuple[Example, ...]:
    """The claims about each dialogue, as examples whose reference is the answer.

    Each sentence of a dialogue's summaries is a true claim; changes of random kinds make false claims of it. The same
    examples and seed always give the same claims.

    Args:
        examples: Dialogues with their summaries.
        config: The kinds and the number of the false claims, the answers, and the seed.
    """
    summaries = [example.references[0] for example in examples]
    return tuple(
        replace(example, id=f"{example.id}-{number}", claim=claim, references=(config.answers[0 if is_true else 1],))
        for index, example in enumerate(examples)
        for number, (claim, is_true) in enumerate(
            _claims(example, [*summaries[:index], *summaries[index + 1 :]], config)
        )
    )


def _claims(example: Example, others: Sequence[str], config: ClaimsConfig) -> Iterator[tuple[str, bool]]:
    """The claims about one dialogue, each once, and whether they are true."""
    generator = random.Random(f"{config.seed} {example.id}")
    texts: dict[str, bool] = {}
    for reference in example.references:
        for text in split_claims(reference):
            texts[text] = True
            made = 0
            for kind in generator.sample(config.kinds, len(config.kinds)):
                false = perturb(text, example.dialogue, kind, others, generator) if made < config.per_sentence else None
                if false is not None and false not in texts:
                    texts[false] = False
                    made += 1
    yield from texts.items()
