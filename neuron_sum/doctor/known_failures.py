"""Known causes of failures, as data: the log line, its meaning and the remedy.

The entries are the YAML files in failures/, a file for each subject. A pattern is as narrow as the message allows. If a
line may have several causes, the text says so and names the way to find out which. Each entry has a real line of a
public thread or document; the tests match each line with all entries.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "failures"
SUBJECTS = {
    "compiler": "The compiler",
    "device": "The runtime and the device",
    "host": "Memory, disk and processes of the host",
    "packages": "Packages and versions",
    "models": "Models, data and the hub",
    "training": "Training",
    "aws": "Account, S3, images and builds",
    "sagemaker": "SageMaker",
    "serving": "Serving",
}
"""The files in failures/, in the order of their causes, and their titles."""


@dataclass(frozen=True)
class Pattern:
    """A text that identifies a cause; case is ignored.

    Attributes:
        mark: Literal text in every match, in lower case; the regular expression is only tried on lines with it.
        regex: The regular expression.
        whole: Whether it matches the whole message, without the time, host or stream before it, instead of a part of
            the line.
    """

    mark: str
    regex: re.Pattern[str]
    whole: bool


@dataclass(frozen=True)
class Example:
    """A real line.

    Attributes:
        line: The line, or the part of it that identifies the cause.
        source: The address of the public thread or document.
    """

    line: str
    source: str


@dataclass(frozen=True)
class Cause:
    """One cause.

    Attributes:
        name: A short name that does not change.
        subject: A key of SUBJECTS.
        patterns: The patterns; a line matches if one of them does.
        cause: An explanation of the failure.
        remedy: The steps that fix it.
        source: The upstream issue or document.
        examples: Real lines.
        symptom: Whether the line only reports that something failed, and the reason is in other lines. It is not
            reported for a line that also states a reason.
        gives_way_to: Names of more specific causes; if one of them matches the same line, this one is not reported.
    """

    name: str
    subject: str
    patterns: tuple[Pattern, ...]
    cause: str
    remedy: str
    source: str
    examples: tuple[Example, ...]
    symptom: bool = False
    gives_way_to: tuple[str, ...] = ()


@cache
def known_failures() -> tuple[Cause, ...]:
    """All known causes, in the order of the files."""
    import yaml  # here, because commands that only print help must start at once

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return tuple(
        _cause(subject, entry)
        for subject in SUBJECTS
        for entry in yaml.load((FOLDER / f"{subject}.yaml").read_text(encoding="utf-8"), loader)
    )


def _cause(subject: str, entry: dict[str, Any]) -> Cause:
    return Cause(
        **{
            **entry,
            "subject": subject,
            "patterns": tuple(_pattern(item) for item in entry["patterns"]),
            "examples": tuple(Example(**example) for example in entry["examples"]),
            "gives_way_to": tuple(entry.get("gives_way_to", ())),
        }
    )


def _pattern(item: str | dict[str, str]) -> Pattern:
    """Read a pattern: literal text, or a mark with a regular expression for a part (`regex`) or all (`message`)."""
    if isinstance(item, str):
        item = {"mark": item, "regex": re.escape(item)}
    kind = "message" if "message" in item else "regex"
    return Pattern(item["mark"].lower(), re.compile(item[kind], re.IGNORECASE), kind == "message")
