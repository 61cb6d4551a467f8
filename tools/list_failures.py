"""Print docs/known-failures.md, the list of the causes that `neuron-sum explain` knows.

python tools/list_failures.py > docs/known-failures.md
"""

from neuron_sum.doctor.known_failures import SUBJECTS, known_failures

HEAD = """\
# Known failures

`neuron-sum explain LOG` finds these {count} causes in a log ([Explain a log](platform.md#explain-a-log)). Each was
recognized in a real line of a public thread or document; the lines and their addresses are in
`neuron_sum/doctor/failures/`. A cause with "symptom" only says that something failed, and the reason is in other lines
of the log.

This page is written by `python tools/list_failures.py`."""


def main() -> None:
    """Print the page."""
    causes = known_failures()
    print(HEAD.format(count=len(causes)))
    for subject, title in SUBJECTS.items():
        print(f"\n## {title}")
        for cause in (cause for cause in causes if cause.subject == subject):
            print(f"\n**`{cause.name}`**{' (symptom)' if cause.symptom else ''}: {_sentence(cause.cause)}")
            print(f"Remedy: {_sentence(cause.remedy)} ([source]({cause.source}))")


def _sentence(text: str) -> str:
    return f"{text.rstrip('.').replace('<', '&lt;')}."


if __name__ == "__main__":
    main()
