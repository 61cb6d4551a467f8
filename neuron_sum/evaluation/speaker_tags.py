"""Speaker-tag fidelity: a summary may only name speakers of the dialogue (#Person1#, never #Pork1#)."""

from collections import Counter
from collections.abc import Sequence

from neuron_sum.data.examples import invented_tags


def tag_fidelity(summaries: Sequence[str], dialogues: Sequence[str]) -> dict[str, object]:
    """Over all summaries: the share without an invented tag, the number of invented tags, and the most common ones.

    Without any dialogue (a predictions file without them) the values are None, 0 and {}.
    """
    if not any(dialogues):
        return {"faithful_percent": None, "invented": 0, "most_common": {}}
    invented = [invented_tags(*pair) for pair in zip(summaries, dialogues, strict=True)]
    counts = Counter(tag for tags in invented for tag in tags)
    return {
        "faithful_percent": round(100 * sum(not tags for tags in invented) / len(invented), 2),
        "invented": counts.total(),
        "most_common": dict(counts.most_common(5)),
    }
