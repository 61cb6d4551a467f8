"""Baselines without a model. A model that does not beat them has not learned to summarize.

The definitions are those of Chen et al. 2021 (DialogSum, aclanthology.org/2021.findings-acl.449); speaker tags remain.
"""

TURNS = 3


def lead(dialogue: str, turns: int = TURNS) -> str:
    """LEAD-n: the first n turns."""
    return "\n".join(dialogue.splitlines()[:turns])


def longest(dialogue: str, turns: int = TURNS) -> str:
    """LONGEST-n: the n turns with the most white-space separated words (the earlier at a tie), in dialogue order."""
    lines = dialogue.splitlines()
    chosen = sorted(range(len(lines)), key=lambda index: -len(lines[index].split()))[:turns]
    return "\n".join(lines[index] for index in sorted(chosen))


BASELINES = {"lead-3": lead, "longest-3": longest}
