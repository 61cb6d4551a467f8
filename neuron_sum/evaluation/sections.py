"""ROUGE and faithfulness of each section of a summary, and the sections that are missing or unexpected."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from neuron_sum.data.examples import Example
from neuron_sum.evaluation.claims import CLAIMS, Claim, claim_scores
from neuron_sum.evaluation.faithfulness import FACTS, check_summary, rule_scores
from neuron_sum.evaluation.rouge import RougeProtocol, rouge
from neuron_sum.evaluation.statistics import bootstrap
from neuron_sum.recipes.schema import EvaluateConfig
from neuron_sum.sections import Parsed, Sections, parse_sections


def section_metrics(
    summaries: Sequence[str],
    references: Sequence[Sequence[str]],
    examples: Sequence[Example],
    sections: Sections,
    config: EvaluateConfig,
    claims: Sequence[Sequence[Claim]] | None = None,
) -> dict[str, Any]:
    """The metrics of each section, as part of metrics.json.

    A section is missing if a reference has a text for it and the summary has none, and unexpected if only the summary
    has one. ROUGE is the mean over the dialogues with a reference for the section, where a missing one counts as 0;
    `facts` and `claims` are the means over the summaries that have the section.

    Args:
        summaries: The summaries of a system, which may have no headings.
        references: The human summaries of each, with headings.
        examples: The examples with the dialogues.
        sections: The sections.
        config: The protocol, and the settings of the bootstrap.
        claims: The scored claims of each summary, with their positions in it; None without a checker.

    Returns:
        `outside`, the number of summaries with a text before the first heading, or without any heading; and by section
        the numbers of references and summaries that have it, `missing`, `unexpected` and the scores with intervals.
    """
    parsed = [parse_sections(summary, sections) for summary in summaries]
    expected = [[parse_sections(reference, sections).texts for reference in each] for each in references]
    found = {}
    for name in (section.name for section in sections):
        texts = [each.texts[name] for each in parsed]
        wanted = [[text for other in each if (text := other[name])] for each in expected]
        pairs = [pair for pair in zip(texts, wanted, strict=True) if pair[1]]
        with_dialogue = zip(texts, (example.dialogue for example in examples), strict=True)
        checks = [check_summary(*pair) for pair in with_dialogue if pair[0]]
        scores = (
            rouge([text for text, _ in pairs], [each for _, each in pairs], RougeProtocol.of(config)) if pairs else {}
        )
        if checks:
            scores |= {key: values for key, values in rule_scores(checks).items() if key == FACTS}
        if checks and claims is not None:
            scores[CLAIMS] = claim_scores(
                [_within(name, each, own) for each, own in zip(parsed, claims, strict=True) if each.texts[name]]
            )
        found[name] = {
            "references": len(pairs),
            "summaries": len(checks),
            "missing": sum(not text for text, _ in pairs),
            "unexpected": sum(bool(text) and not each for text, each in zip(texts, wanted, strict=True)),
            "scores": {key: bootstrap(np.asarray(values), config).as_dict() for key, values in scores.items()},
        }
    return {"outside": sum(bool(each.outside) for each in parsed), "by_section": found}


def _within(name: str, parsed: Parsed, claims: Sequence[Claim]) -> list[Claim]:
    """The claims in a section, which ends at the next heading."""
    starts = [start for start, _ in parsed.headings]
    bounds = zip(parsed.found, starts, [*starts[1:], math.inf], strict=False)
    spans = [(start, end) for heading, start, end in bounds if heading == name]
    return [claim for claim in claims if any(start <= claim.start < end for start, end in spans)]
