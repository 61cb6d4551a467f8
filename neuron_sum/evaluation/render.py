"""Comparisons as tables and texts for the terminal."""

import math

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from neuron_sum import console
from neuron_sum.data.examples import count_of
from neuron_sum.evaluation.claims import CLAIMS
from neuron_sum.evaluation.compare import SIGNIFICANT, Comparison
from neuron_sum.evaluation.faithfulness import FACTS
from neuron_sum.evaluation.preferences import Preferences
from neuron_sum.evaluation.rouge import ROUGE_TYPES
from neuron_sum.evaluation.statistics import Difference, Interval

SHOWN = 2


def render(comparison: Comparison) -> RenderableType:
    """The table, the protocol, and the summaries of some dialogues side by side."""
    first = comparison.evaluations[0].metrics
    parts: list[RenderableType] = [
        Text(f"{count_of(first['examples'], first['available'])} dialogues: {first['data']}, {first['split']} split"),
        _scores(comparison),
        Text(first["protocol"]["text"], style="dim"),
    ]
    if comparison.differences:
        parts += [Text(), _improvements(comparison), Text(f"paired bootstrap; * p < {SIGNIFICANT}", style="dim")]
    if "sections" in first:
        parts += [Text(), *_sections(comparison)]
    if comparison.ratings is not None and comparison.ratings.ratings:
        parts += [Text(), render_ratings(comparison.ratings)]
    step = max(1, len(comparison.examples) // SHOWN)
    for index in range(0, min(len(comparison.examples), SHOWN * step), step):
        parts += [Text(), *_side_by_side(comparison, index)]
    return Group(*parts)


def _scores(comparison: Comparison) -> Table:
    names = _faithfulness(comparison)
    table = console.table(
        "system", *ROUGE_TYPES.values(), *names, "words", "tags right", "covered", "trainable", "size"
    )
    for evaluation in comparison.evaluations:
        metrics, run = evaluation.metrics, evaluation.metrics.get("run")
        size = (run or {}).get("weights_bytes") or metrics.get("artifact", {}).get("bytes")
        tags_right = metrics["speaker_tags"]["faithful_percent"]
        table.add_row(
            evaluation.system.name,
            *(f"{score['value']:.2f}" for score in metrics["scores"].values()),
            *(_points(metrics["faithfulness"]["scores"].get(name)) for name in names),
            f"{metrics['words_mean']:.0f}",
            "" if tags_right is None else f"{tags_right:.0f} %",
            "" if metrics["coverage_percent"] is None else f"{int(metrics['coverage_percent'])} %",
            f"{run['trainable_parameters']:,}" if run else "",
            console.size(size) if size else "",
        )
    return table


def _sections(comparison: Comparison) -> list[RenderableType]:
    names = (*ROUGE_TYPES.values(), *_faithfulness(comparison))
    table = console.table("section", "system", *names, "missing", "unexpected")
    for name in comparison.evaluations[0].metrics["sections"]["by_section"]:
        for evaluation in comparison.evaluations:
            found = evaluation.metrics["sections"]["by_section"][name]
            scores = [_points(found["scores"].get(score)) for score in names]
            missing = f"{found['missing']} of {found['references']}"
            table.add_row(name, evaluation.system.name, *scores, missing, str(found["unexpected"]))
    outside = {each.system.name: each.metrics["sections"]["outside"] for each in comparison.evaluations}
    counts = ", ".join(f"{name} {count}" for name, count in outside.items() if count)
    return [table, *([Text(f"summaries with text outside the sections: {counts}")] if counts else [])]


def _faithfulness(comparison: Comparison) -> list[str]:
    """The scores `facts` and `claims`, if a system has them; the report also has `support`."""
    return [name for name in (FACTS, CLAIMS) if any(name in each.faithfulness for each in comparison.evaluations)]


def _points(score: dict[str, float] | None) -> str:
    return "" if score is None else f"{score['value']:.1f}"


def _improvements(comparison: Comparison) -> Table:
    columns = (*ROUGE_TYPES.values(), *_faithfulness(comparison))
    table = console.table(f"points above {comparison.reference}", *columns)
    for name, by_score in comparison.differences.items():
        table.add_row(name, *(_difference(by_score.get(column)) for column in columns))
    return table


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return ""
    star = "*" if difference.p_value < SIGNIFICANT else " "
    return f"{difference.interval.value:+.2f}{star} [{difference.interval.low:+.1f}, {difference.interval.high:+.1f}]"


def render_ratings(ratings: Preferences) -> RenderableType:
    """The win rates, the agreement of the raters, and the correlations of the scores with the ratings."""
    rates = console.table(
        "human ratings, %", "first better", "second better", "difference", "equal", "both bad", "dialogues", "ratings"
    )
    for each in ratings.win_rates:
        rates.add_row(
            f"{each.systems[0]} : {each.systems[1]}",
            *(_interval(value, 1) for value in each.preferred),
            _difference(each.difference),
            f"{each.equal:.1f}",
            f"{each.both_bad:.1f}",
            str(each.dialogues),
            str(each.ratings),
        )
    parts: list[RenderableType] = [rates, Text(ratings.agreement.describe(ratings.raters), style="dim")]
    if ratings.correlations:
        correlations = console.table("rank correlation", *ratings.correlations)
        correlations.add_row("with the ratings", *(_interval(value, 2) for value in ratings.correlations.values()))
        parts += [Text(), correlations]
    return Group(*parts)


def _interval(interval: Interval, digits: int) -> str:
    if math.isnan(interval.value):
        return ""
    bounds = "" if math.isnan(interval.low) else f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
    return f"{interval.value:.{digits}f}{bounds}"


def _side_by_side(comparison: Comparison, index: int) -> list[RenderableType]:
    example = comparison.examples[index]
    parts: list[RenderableType] = [Text(f"{example.id}  {example.topic or ''}".rstrip(), style="bold")]
    parts.append(Text("\n".join(f"  {line}" for line in example.dialogue.splitlines()), style="dim"))
    texts = Table.grid(padding=(0, 2))
    texts.add_column(style="bold", no_wrap=True)
    texts.add_column(ratio=1)
    for number, reference in enumerate(example.references, 1):
        texts.add_row(f"  human {number}" if len(example.references) > 1 else "  human", reference)
    for evaluation in comparison.evaluations:
        if evaluation.system.builtin != "human":
            texts.add_row(f"  {evaluation.system.name}", evaluation.predictions[index].summary.replace("\n", " / "))
    return [*parts, texts]
