"""The HTML report: one self-contained page for phones and desktops."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from neuron_sum import __version__, console, files
from neuron_sum.data.examples import SPEAKER_TAG, count_of
from neuron_sum.evaluation import charts
from neuron_sum.evaluation.claims import CLAIMS, UNSUPPORTED, Claim
from neuron_sum.evaluation.compare import SIGNIFICANT, Comparison
from neuron_sum.evaluation.faithfulness import FACTS, SUPPORT, Checked
from neuron_sum.evaluation.rouge import ROUGE_TYPES
from neuron_sum.evaluation.systems import HUMAN

TEXTS_SHOWN = 12


def write_report(path: Path, comparison: Comparison, title: str, data: str, data_license: str | None) -> None:
    """Write the page.

    Args:
        path: The file to write.
        comparison: One or more evaluations.
        title: The page's heading.
        data: The origin of the dialogues.
        data_license: The licence of the data, shown because the page quotes them; None if not stated.
    """
    runs = {evaluation.system.name: evaluation.system.run for evaluation in comparison.evaluations}
    logs = {name: run.read_log() for name, run in runs.items() if run is not None}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["size"] = console.size
    faithfulness = [
        name
        for name in (FACTS, SUPPORT, CLAIMS)
        if any(name in evaluation.faithfulness for evaluation in comparison.evaluations)
    ]
    page = environment.get_template("report.html").render(
        title=title,
        data=data,
        count=count_of(len(comparison.examples), comparison.evaluations[0].metrics["available"]),
        data_license=data_license or "not stated",
        version=__version__,
        comparison=comparison,
        kinds=list(ROUGE_TYPES.values()),
        faithfulness=faithfulness,
        sectioned=[name for name in faithfulness if name != SUPPORT],
        sections=list(comparison.evaluations[0].metrics.get("sections", {}).get("by_section", ())),
        protocol=comparison.evaluations[0].metrics["protocol"]["text"],
        significant=SIGNIFICANT,
        rouge_chart=Markup(charts.rouge_chart(comparison)),
        loss_chart=Markup(charts.loss_chart(logs)) if logs else None,
        length_chart=Markup(charts.length_chart(comparison)),
        texts=[_text(comparison, index) for index in _spread(len(comparison.examples))],
    )
    files.write_text(path, page)


@dataclass(frozen=True)
class Mark:
    """A marked part of a summary.

    Attributes:
        start: The position of its first character.
        end: The position after its last character.
        kind: The CSS class.
        title: The explanation.
    """

    start: int
    end: int
    kind: str
    title: str


def marks_of(summary: str, reference: str, checked: Checked | None, claims: Sequence[Claim] = ()) -> list[Mark]:
    """The marks of a summary: unsupported facts, other speakers than in a reference, and improbable claims.

    Args:
        summary: The summary.
        reference: A human summary, whose speaker tags are expected at the same positions.
        checked: The findings of the rules; None without a dialogue, which gives no marks.
        claims: The claims of the summary with their scores.
    """
    if checked is None:
        return []
    marks = [Mark(each.start, each.end, "invented", each.message) for each in checked.findings]
    found = {(mark.start, mark.end) for mark in marks}
    expected = iter(SPEAKER_TAG.findall(reference))
    for match in SPEAKER_TAG.finditer(summary):
        if match.group() != next(expected, None) and match.span() not in found:
            marks.append(Mark(*match.span(), "other", "another speaker than in the human summary"))
    marks += [
        Mark(claim.start, claim.end, "claim", f"probability {claim.probability:.2f}")
        for claim in claims
        if claim.probability < UNSUPPORTED
    ]
    return marks


def mark_summary(summary: str, marks: Sequence[Mark]) -> Markup:
    """A summary with its marks, of which some contain others."""
    ordered = sorted(marks, key=lambda mark: (mark.start, -mark.end))
    pieces: list[Markup] = []
    position, open_ends = 0, list[int]()

    def close_until(at: int) -> None:
        nonlocal position
        while open_ends and open_ends[-1] <= at:
            end = open_ends.pop()
            pieces.append(escape(summary[position:end]) + Markup("</mark>"))
            position = end

    for mark in ordered:
        close_until(mark.start)
        pieces.append(escape(summary[position : mark.start]))
        pieces.append(Markup('<mark class="{}" title="{}">').format(mark.kind, mark.title))
        position = mark.start
        open_ends.append(min(mark.end, open_ends[-1]) if open_ends else mark.end)
    close_until(len(summary))
    return Markup("").join([*pieces, escape(summary[position:])])


def _spread(count: int) -> Sequence[int]:
    number = min(count, TEXTS_SHOWN)
    return [index * count // number for index in range(number)]


def _text(comparison: Comparison, index: int) -> dict[str, Any]:
    example = comparison.examples[index]
    return {
        "id": example.id,
        "topic": example.topic,
        "turns": [re.split(r"(?<=:)\s", line, maxsplit=1) for line in example.dialogue.splitlines()],
        "references": example.references,
        "summaries": [
            (
                evaluation.system.name,
                mark_summary(
                    summary := evaluation.predictions[index].summary,
                    marks_of(
                        summary,
                        example.references[0],
                        evaluation.checks[index],
                        evaluation.claims[index] if evaluation.claims is not None else (),
                    ),
                ),
                evaluation.scores["ROUGE-1"][index],
            )
            for evaluation in comparison.evaluations
            if evaluation.system.builtin != HUMAN
        ],
    }
