"""The HTML report: one self-contained page for phones and desktops."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from neuron_sum import __version__, console, files
from neuron_sum.data.examples import SPEAKER_TAG, count_of
from neuron_sum.evaluation import charts
from neuron_sum.evaluation.compare import SIGNIFICANT, Comparison
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
    page = environment.get_template("report.html").render(
        title=title,
        data=data,
        count=count_of(len(comparison.examples), comparison.evaluations[0].metrics["available"]),
        data_license=data_license or "not stated",
        version=__version__,
        comparison=comparison,
        kinds=list(ROUGE_TYPES.values()),
        protocol=comparison.evaluations[0].metrics["protocol"]["text"],
        significant=SIGNIFICANT,
        rouge_chart=Markup(charts.rouge_chart(comparison)),
        loss_chart=Markup(charts.loss_chart(logs)) if logs else None,
        length_chart=Markup(charts.length_chart(comparison)),
        texts=[_text(comparison, index) for index in _spread(len(comparison.examples))],
    )
    files.write_text(path, page)


def mark_speaker_tags(summary: str, dialogue: str, reference: str) -> Markup:
    """A summary with marks on differing speaker tags.

    Red: the tag does not occur in the dialogue. Yellow: a different speaker than in the reference at this position.
    """
    if not dialogue:
        return Markup(escape(summary))
    known, expected = set(SPEAKER_TAG.findall(dialogue)), iter(SPEAKER_TAG.findall(reference))
    pieces: list[str] = []
    end = 0
    for match in SPEAKER_TAG.finditer(summary):
        tag, expected_tag = match.group(), next(expected, None)
        kind = "invented" if tag not in known else "other" if tag != expected_tag else ""
        pieces += [escape(summary[end : match.start()]), escape(tag)]
        if kind:
            pieces[-1] = Markup('<mark class="{}">{}</mark>').format(kind, tag)
        end = match.end()
    return Markup("").join([*pieces, escape(summary[end:])])


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
                mark_speaker_tags(evaluation.predictions[index].summary, example.dialogue, example.references[0]),
                evaluation.scores["ROUGE-1"][index],
            )
            for evaluation in comparison.evaluations
            if evaluation.system.builtin != HUMAN
        ],
    }
