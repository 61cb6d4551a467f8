"""Comparisons as tables and texts for the terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from neuron_sum import console
from neuron_sum.data.examples import count_of
from neuron_sum.evaluation.claims import CLAIMS
from neuron_sum.evaluation.compare import SIGNIFICANT, Comparison
from neuron_sum.evaluation.faithfulness import FACTS
from neuron_sum.evaluation.rouge import ROUGE_TYPES

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
            "" if metrics["coverage_percent"] is None else f"{metrics['coverage_percent']:.0f} %",
            f"{run['trainable_parameters']:,}" if run else "",
            console.size(size) if size else "",
        )
    return table


def _faithfulness(comparison: Comparison) -> list[str]:
    """The scores `facts` and `claims`, if a system has them; the report also has `support`."""
    return [name for name in (FACTS, CLAIMS) if any(name in each.faithfulness for each in comparison.evaluations)]


def _points(score: dict[str, float] | None) -> str:
    return "" if score is None else f"{score['value']:.1f}"


def _improvements(comparison: Comparison) -> Table:
    columns = (*ROUGE_TYPES.values(), *_faithfulness(comparison))
    table = console.table(f"points above {comparison.reference}", *columns)
    for name, by_score in comparison.differences.items():
        cells = [
            f"{difference.interval.value:+.2f}{'*' if difference.p_value < SIGNIFICANT else ' '} "
            f"[{difference.interval.low:+.1f}, {difference.interval.high:+.1f}]"
            if (difference := by_score.get(column)) is not None
            else ""
            for column in columns
        ]
        table.add_row(name, *cells)
    return table


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
