"""mkdocs hook: generates the reference pages from the code, and adds the pages that lie outside docs/.

reference/recipe.md comes from the pydantic models of the recipe, reference/cli.md from the typer application, and
README.md is the first page of the site.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import typer.cli
import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from neuron_sum.cli import build
from neuron_sum.recipes.schema import Recipe

ROOT = Path(__file__).parent.parent
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "LICENSE": "license.txt",
}
"""Files of the repository's root and their names on the site."""

application = functools.cache(build)
"""The application, built once: `mkdocs serve` calls the hook again after each change."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for name, page in ROOT_PAGES.items():
        text = (ROOT / name).read_text("utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=_moved(text)))
    files.append(File.generated(config, "reference/recipe.md", content=recipe_reference()))
    files.append(File.generated(config, "reference/cli.md", content=command_reference(application())))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files of the repository's root lead to their pages on the site."""
    return _moved(markdown.replace("](../", "]("))


def _moved(markdown: str) -> str:
    for name, page in ROOT_PAGES.items():
        markdown = markdown.replace(f"]({name}", f"]({page}")
    return markdown


def command_reference(app: typer.Typer) -> str:
    """Every command with its arguments and options, as typer documents them."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="neuron-sum")
    return typer.cli.get_docs_for_click(obj=command, ctx=context, name="neuron-sum", title="Command line")


def recipe_reference() -> str:
    """Every field of a recipe: type, default, description."""
    schema = Recipe.model_json_schema()
    intro = f"Generated from `{Recipe.__module__}`; `neuron-sum recipes schema` prints the same as a JSON schema."
    return "\n".join(["# Recipe schema", "", intro, "", *_section("Top level", "", schema, schema["$defs"])])


def _section(title: str, path: str, section: dict[str, Any], models: dict[str, Any]) -> Iterator[str]:
    yield from (f"## {title}", "", section.get("description", ""), "")
    yield from ("| Field | Type | Default | Description |", "|---|---|---|---|")
    inner: list[tuple[str, str, dict[str, Any]]] = []
    for name, field in section["properties"].items():
        dotted = f"{path}{name}"
        choices = [models[choice] for choice in _references(field)]
        for choice in choices:
            label = f" ({choice['title']})" if len(choices) > 1 else ""
            inner.append((f"`{dotted}`{label}", f"{dotted}.", choice))
        default = "required" if name in section.get("required", ()) else f"`{json.dumps(field.get('default'))}`"
        default = "" if isinstance(field.get("default"), dict) else default
        text = " ".join(field.get("description", "").split())
        yield "| " + " | ".join(_cell(each) for each in (f"`{dotted}`", _type(field), default, text)) + " |"
    yield ""
    for heading, prefix, choice in inner:
        yield from _section(heading, prefix, choice, models)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _references(field: dict[str, Any]) -> list[str]:
    parts = [field, *field.get("anyOf", ()), *field.get("oneOf", ())]
    return [part["$ref"].rpartition("/")[2] for part in parts if "$ref" in part]


def _type(field: dict[str, Any]) -> str:
    if parts := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(part) for part in parts))
    if "$ref" in field:
        return "section"
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items') or field['prefixItems'][0])}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[key]:,}" for key, sign in signs.items() if key in field]
    return " ".join([str(field.get("type", "any")), ", ".join(limits)]).strip()
