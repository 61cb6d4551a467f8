"""Training targets with sections: from columns, from an object (JSON), or from a text with headings."""

import re
from collections.abc import Mapping
from typing import Any

from neuron_sum import files
from neuron_sum.data.checks import Problem
from neuron_sum.recipes.schema import Columns
from neuron_sum.sections import Sections, parse_sections, unknown_headings, write_sections

KIND = "invalid sections"


def section_texts(
    location: str, fields: Mapping[str, Any], columns: Columns, sections: Sections
) -> dict[str, str] | Problem:
    """The summaries of a row in the form of `write_sections`, by a name for messages.

    Args:
        location: File and line of the row.
        fields: The row.
        columns: The columns: one for each section, or those of the summaries.
        sections: The sections of the recipe.
    """
    if columns.sections is not None:
        return _of_columns(location, fields, columns.sections, sections)
    found: dict[str, str] = {}
    for column in columns.summaries(fields):
        if (missing := missing_column(location, fields, column)) is not None:
            return missing
        text = _of_value(fields[column], sections)
        if isinstance(text, Problem):
            return Problem(text.kind, location, f"{column!r} {text.detail}", text.remedy)
        found[column] = text
    return found


def missing_column(location: str, fields: Mapping[str, Any], column: str) -> Problem | None:
    """The problem of a row without a column; None if it has it."""
    if column in fields:
        return None
    names = ", ".join(str(key) for key in fields)
    return Problem("missing column", location, f"{column!r} is not one of {names:.500}", "map it with data.columns")


def _of_columns(
    location: str, fields: Mapping[str, Any], columns: Mapping[str, str], sections: Sections
) -> dict[str, str] | Problem:
    """One summary, or as many as a section has numbered columns, such as summary1 and summary2."""
    numbered: dict[str, list[str]] = {}
    for name, column in columns.items():
        several = sorted(key for key in fields if re.fullmatch(rf"{re.escape(column)}\d+", str(key)))
        numbered[name] = [column] if column in fields or not several else several
        if (missing := missing_column(location, fields, numbered[name][0])) is not None:
            return missing
    found = {}
    for index in range(max(map(len, numbered.values()))):
        chosen = {name: each[min(index, len(each) - 1)] for name, each in numbered.items()}
        text = _of_values({name: fields[column] for name, column in chosen.items()}, sections)
        if isinstance(text, Problem):
            return Problem(text.kind, location, text.detail, text.remedy)
        found[", ".join(chosen.values())] = text
    return found


def _of_value(value: Any, sections: Sections) -> str | Problem:
    """A text with headings, an object, or an object as a JSON text; a problem has no location."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = files.parse_json(value)
        except ValueError as error:
            return Problem(KIND, "", f"is not JSON: {error}", "write an object with a text for each section")
    if isinstance(value, dict):
        return _of_values(value, sections)
    if not isinstance(value, str):
        remedy = f"write an object or a text with the sections {_names(sections)}"
        return Problem("not text", "", f"is {value!r:.60}", remedy)
    parsed = parse_sections(value, sections)
    if parsed.outside:
        detail = f"has text before the first heading: {parsed.outside!r:.60}"
    elif parsed.repeated:
        detail = f"has the section {parsed.repeated[0]!r} twice"
    elif unknown := unknown_headings(value, sections):
        detail = f"has the unknown section {unknown[0]!r}"
    else:
        return _of_values(parsed.texts, sections)
    return Problem(
        KIND, "", detail, f"the sections are {_names(sections)}, each with a heading such as {_heading(sections)}"
    )


def _of_values(values: Mapping[str, Any], sections: Sections) -> str | Problem:
    names = [section.name for section in sections]
    if unknown := next((name for name in values if name not in names), None):
        return Problem(KIND, "", f"has the unknown section {unknown!r:.60}", f"the sections are {_names(sections)}")
    texts: dict[str, str] = {}
    for section in sections:
        value = values.get(section.name)
        if value is not None and not isinstance(value, str):
            return Problem("not text", "", f"has {value!r:.60} in the section {section.name!r}", "use a string")
        texts[section.name] = (value or "").strip()
        if section.required and not texts[section.name]:
            remedy = "fill it in, or make it optional: {name: " + section.name + ", required: false}"
            return Problem(KIND, "", f"has no text in the section {section.name!r}", remedy)
    if not any(texts.values()):
        return Problem("empty summary", "", "has no text in any section", "fill it in or remove the row")
    return write_sections(texts, sections)


def _names(sections: Sections) -> str:
    return ", ".join(section.name for section in sections)


def _heading(sections: Sections) -> str:
    return f"'{sections[0].heading}:'"
