"""Write the bundled sample data: short invented dialogues with summaries, in the format of the DialogSum data set.

The dialogues are generated from the scenarios in ``sample_scenarios.yaml``. Each one has a unique combination of slot
values, so that the validation and test splits contain only combinations that are not in the training split.

Run from anywhere::

    python tools/make_sample.py            # write the four files
    python tools/make_sample.py --check    # exit with 1 if the files are out of date
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

SAMPLE_DIR = Path(__file__).resolve().parent.parent / "neuron_sum" / "data" / "sample"
SEED = 2024

TURN_LIMITS = (4, 8)
DIALOGUE_WORD_LIMITS = (35, 80)
SUMMARY_WORD_LIMITS = (9, 20)

Values = dict[str, str]
Entry = dict[str, str]
Phrasings = Sequence[str]
"""Equivalent phrasings, one of which is drawn at random."""


@dataclass(frozen=True)
class Scenario:
    """One kind of dialogue between an asker, who wants something, and a helper.

    All texts are ``str.format`` templates that may name the scenario's slots. The summaries may also name ``{asker}``
    and ``{helper}``, which become the speaker tags. The two speak in turn, and whoever speaks first is ``#Person1#``:
    the helper in a dialogue with the optional opening, otherwise the asker.

    Attributes:
        topic: The topic of the dialogue in a few words.
        slots: The possible values of each slot.
        opening: An optional first turn, spoken by the helper.
        turns: The turns of every dialogue; the asker speaks the first one.
        closing: Optional last turns, of which a dialogue has none, some or all, in order.
        summary: The usual wording of the summary.
        paraphrases: Alternative summaries, used as additional references of the test split.
    """

    topic: str
    slots: Mapping[str, Sequence[str]]
    opening: Phrasings
    turns: Sequence[Phrasings]
    closing: Sequence[Phrasings]
    summary: str
    paraphrases: Phrasings


def read_scenarios() -> tuple[Scenario, ...]:
    """Read the scenarios, in their order."""
    content = yaml.safe_load(Path(__file__).with_name("sample_scenarios.yaml").read_text(encoding="utf-8"))
    return tuple(Scenario(**scenario) for scenario in content["scenarios"])


@dataclass(frozen=True)
class Split:
    """One of the files, with its scenarios and the number of examples per scenario."""

    name: str
    prefix: str
    scenarios: Sequence[Scenario]
    per_scenario: int
    references: int = 1


SCENARIOS = read_scenarios()
TASK, OTHERS = SCENARIOS[:12], SCENARIOS[12:]
"""Scenarios for tuning and testing a model, and for training its base; they do not overlap."""

SPLITS = (
    Split("train", "train", TASK, per_scenario=42),
    Split("validation", "dev", TASK, per_scenario=4),
    Split("test", "test", TASK, per_scenario=4, references=3),
    Split("pretrain", "pretrain", OTHERS, per_scenario=42),
)


@dataclass(frozen=True)
class Example:
    """A dialogue with its summaries and slot values."""

    topic: str
    values: tuple[str, ...]
    dialogue: str
    summaries: tuple[str, ...]


def value_combinations(scenario: Scenario) -> Iterator[Values]:
    """Yield every combination of the scenario's slot values without repeated values."""
    for values in itertools.product(*scenario.slots.values()):
        if len(set(values)) == len(values):
            yield dict(zip(scenario.slots, values, strict=True))


def draw_combinations(scenario: Scenario, count: int, rng: random.Random) -> list[Values]:
    """Draw different combinations of slot values, in random order, so that every value occurs about equally often."""
    candidates = list(value_combinations(scenario))
    if len(candidates) < count:
        raise ValueError(f"{scenario.topic!r} has only {len(candidates)} combinations of slot values")
    rng.shuffle(candidates)
    uses: Counter[str] = Counter()
    drawn = []
    for _ in range(count):
        values = min(candidates, key=lambda candidate: sum(uses[value] for value in candidate.values()))
        candidates.remove(values)
        uses.update(values.values())
        drawn.append(values)
    rng.shuffle(drawn)
    return drawn


def draw_turns(scenario: Scenario, with_opening: bool, rng: random.Random) -> list[str]:
    """Draw a phrasing for every turn, ending the dialogue at a random point of the closing."""
    turns: list[Phrasings] = [scenario.opening] if with_opening else []
    turns += scenario.turns
    turns += scenario.closing[: rng.randint(0, len(scenario.closing))]
    return [rng.choice(phrasings) for phrasings in turns]


def make_example(scenario: Scenario, values: Values, references: int, rng: random.Random) -> Example:
    """Make an example of the scenario with the given slot values."""
    helper_begins = rng.random() < 0.5
    turns = draw_turns(scenario, helper_begins, rng)
    lines = [f"#Person{1 + i % 2}#: {turn.format(**values)}" for i, turn in enumerate(turns)]

    asker, helper = ("#Person2#", "#Person1#") if helper_begins else ("#Person1#", "#Person2#")
    wordings = [scenario.summary, *rng.sample(scenario.paraphrases, references - 1)]
    summaries = tuple(wording.format(asker=asker, helper=helper, **values) for wording in wordings)

    example = Example(scenario.topic, tuple(values.values()), "\n".join(lines), summaries)
    check_example(example)
    return example


def check_example(example: Example) -> None:
    """Raise ValueError if the example breaks a size limit or lacks one of the slot values."""
    check_limits(example.dialogue.count("\n") + 1, TURN_LIMITS, example.dialogue)
    check_limits(count_words(example.dialogue), DIALOGUE_WORD_LIMITS, example.dialogue)
    for summary in example.summaries:
        check_limits(count_words(summary), SUMMARY_WORD_LIMITS, summary)
    for text in (example.dialogue, *example.summaries):
        for value in example.values:
            if value not in text:
                raise ValueError(f"{value!r} is missing in: {text}")


def check_limits(count: int, limits: tuple[int, int], text: str) -> None:
    """Raise ValueError if a count of the text is outside the limits."""
    low, high = limits
    if not low <= count <= high:
        raise ValueError(f"{count} is not within {low} to {high}: {text}")


def count_words(text: str) -> int:
    """Count the words of a text, without the tags that begin the turns of a dialogue."""
    return sum(not word.endswith("#:") for word in text.split())


def make_splits(rng: random.Random) -> dict[str, list[Example]]:
    """Make the shuffled examples of every split; no two examples of a scenario share their slot values."""
    examples: dict[str, list[Example]] = {split.name: [] for split in SPLITS}
    for scenario in SCENARIOS:
        splits = [split for split in SPLITS if scenario in split.scenarios]
        unused = iter(draw_combinations(scenario, sum(split.per_scenario for split in splits), rng))
        for split in splits:
            drawn = itertools.islice(unused, split.per_scenario)
            examples[split.name] += [make_example(scenario, values, split.references, rng) for values in drawn]
    for split in SPLITS:
        rng.shuffle(examples[split.name])
    check_distinct(list(itertools.chain.from_iterable(examples.values())))
    return examples


def check_distinct(examples: Sequence[Example]) -> None:
    """Raise ValueError if two examples have the same dialogue, or the same scenario and slot values."""
    dialogues = {example.dialogue for example in examples}
    contents = {(example.topic, example.values) for example in examples}
    if not len(dialogues) == len(contents) == len(examples):
        raise ValueError("an example occurs twice")


def to_entry(example: Example, fname: str) -> Entry:
    """Return the example under the keys that DialogSum uses."""
    if len(example.summaries) == 1:
        summaries = {"summary": example.summaries[0]}
    else:
        summaries = {f"summary{number}": summary for number, summary in enumerate(example.summaries, start=1)}
    return {"fname": fname, "dialogue": example.dialogue, **summaries, "topic": example.topic}


def render_files() -> dict[Path, bytes]:
    """Return the content of every file of the sample."""
    examples = make_splits(random.Random(SEED))
    files = {}
    for split in SPLITS:
        entries = (to_entry(example, f"{split.prefix}_{i}") for i, example in enumerate(examples[split.name]))
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        files[SAMPLE_DIR / f"{split.name}.jsonl"] = text.encode("ascii")
    return files


def differs(path: Path, content: bytes) -> bool:
    """Return whether the file is missing or has different content."""
    return not path.is_file() or path.read_bytes() != content


def main() -> int:
    """Write or check the files and return the exit status."""
    parser = argparse.ArgumentParser(description="Write the bundled sample data.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    check_only = parser.parse_args().check

    files = render_files()
    if check_only:
        outdated = [path for path, content in files.items() if differs(path, content)]
        for path in outdated:
            print(f"out of date: {path}", file=sys.stderr)
        return 1 if outdated else 0

    SAMPLE_DIR.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        path.write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
