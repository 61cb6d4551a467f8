"""The house: who may import whom, what a --help may load, and that versions live in one place."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from neuron_sum.recipes.loading import load_recipe, shipped_recipes

PACKAGES = ("neuron_sum", "compile", "serving", "sagemaker_jobs")
HEAVY = ("torch", "transformers", "peft", "datasets", "evaluate", "numpy", "matplotlib", "pyarrow", "yaml")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_point_one_way(package: str) -> None:
    forbidden = set(PACKAGES) - {package} - ({"neuron_sum"} if package != "neuron_sum" else set())
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        crossing = {name for name in imported(path) if name.split(".")[0] in forbidden}
        assert not crossing, f"{path.relative_to(ROOT)} imports {crossing}"


def test_nothing_imports_compile_as_a_name() -> None:
    for path in ROOT.rglob("*.py"):
        if not any(part.startswith(".venv") for part in path.parts):
            plain = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import)]
            bound = {alias.asname or alias.name.split(".")[0] for node in plain for alias in node.names}
            assert "compile" not in bound, f"{path}: `import compile` hides the builtin; use `from compile.x import …`"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from neuron_sum.cli import build\n"
        "app = build()\n"
        "names = [c.name for c in app.registered_commands] + [g.name for g in app.registered_groups]\n"
        "recipes = [['recipes', name] for name in ('list', 'show', 'check', 'schema')]\n"
        "for words in [[], *([name] for name in names), *recipes]:\n"
        "    assert CliRunner().invoke(app, [*words, '--help']).exit_code == 0, words\n"
        f"print(len(names), sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(" ", 1)
    assert int(made[0]) >= 8
    assert made[1].strip() == "[]"


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_say_how_to_run_them(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert shipped_recipes()[name].read_text().startswith(f"# neuron-sum train {name}")


def test_a_resolved_recipe_reads_back_the_same(tmp_path: Path) -> None:
    for name in shipped_recipes():
        recipe = load_recipe(name)
        (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
        assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


def test_no_registry_host_is_named() -> None:
    for path in (*(ROOT / "constraints").iterdir(), ROOT / "pyproject.toml", ROOT / "Makefile"):
        assert "://" not in path.read_text(), path


def test_make_test_is_what_ci_runs() -> None:
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("make test")
    assert "make test" in (ROOT / "README.md").read_text()


def test_recipes_are_yaml_that_other_tools_read() -> None:
    for path in shipped_recipes().values():
        assert isinstance(yaml.safe_load(path.read_text()), dict)
