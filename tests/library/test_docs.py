"""The README's length, the tables of docs/status.md, and the reference that tools/make_reference.py generates."""

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from micro_models import ROOT
from pydantic import BaseModel

from neuron_sum.cli import build
from neuron_sum.recipes.schema import Recipe

STATUS = (ROOT / "docs" / "status.md").read_text(encoding="utf-8")
PACKAGES = "optimum-neuron torch-neuronx neuronx-distributed transformers-neuronx transformers datasets peft sagemaker"


def test_the_readme_has_at_most_750_words() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 750


def test_the_cells_of_the_status_page_have_at_most_12_words() -> None:
    rows = [line.strip("|").split("|") for line in STATUS.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {3}
    assert max(len(cell.split()) for row in rows for cell in row) <= 12


@pytest.mark.parametrize("package", [*PACKAGES.split(), "DJL tooling", "evaluate"])
def test_the_status_page_has_a_row_for_each_package(package: str) -> None:
    assert STATUS.count(f"\n| {package} | ") == 1


@pytest.fixture(scope="module")
def reference() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "tools"))
    import make_reference

    yield make_reference
    sys.path.remove(str(ROOT / "tools"))


def fields(model: type[BaseModel], path: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{path}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{path}{name}.")


def test_the_reference_has_every_recipe_field(reference: Any) -> None:
    page = reference.recipe_reference()
    found = list(fields(Recipe))
    assert "train.neuron.zero_1" in found
    for name in [*found, "method.lora_alpha", "compile.adapters.slots"]:
        assert page.count(f"\n| `{name}` | ") == 1, name
    assert "| `train.seed` | integer ≥ 0, ≤ 4,294,967,295 | `42` | " in page
    assert "| `data.skip_bad` | boolean | `false` | Leave out bad rows" in page


def test_every_setting_of_the_benchmarks_exists(reference: Any) -> None:
    sections, page = "|".join(Recipe.model_fields), reference.recipe_reference()
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    found = set(re.findall(rf"[\"']((?:{sections})\.[\w.]+)=", code))
    assert len(found) > 20
    assert not [name for name in found if f"\n| `{name}` | " not in page]


def commands(command: Any, words: str) -> Iterator[str]:
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{words} {name}")


def test_the_reference_has_every_command(reference: Any) -> None:
    headings = [
        line.strip("# `") for line in reference.command_reference(build()).splitlines() if line.startswith("##")
    ]
    found = list(commands(typer.main.get_command(build()), "neuron-sum"))
    assert "neuron-sum aws deploy" in found
    assert sorted(headings) == sorted(found[1:])
