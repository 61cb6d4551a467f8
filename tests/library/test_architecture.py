"""The structure of the packages: directions of imports, imports at start-up, and versions in a single place."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml
from micro_models import ROOT

from neuron_sum.recipes.loading import load_recipe, shipped_recipes

LEVELS = {
    "neuron_sum": "errors command_group files contents text_files console local_page subprocesses prompts recipes "
                  "sections artifact "
                  "models data platform "
                  "calls runs training doctor runtimes evaluation monitoring results demo cli __main__",
    "compile": "bucket_choice graphs targets cache source verify machine_report failures workers exporters api "
               "command preflight receipt",
    "serving": "schema limits other_formats parsing batching transport client chat playground properties signing "
               "archive djl local package dockerfile neuronx_container chat_template vllm_container other_containers "
               "command metrics worker adapters service model",
    "sagemaker_jobs": "aws stack launch cleanup image jobs endpoint batch cost receipt rehearsal commands",
}  # fmt: skip
"""Each package's folders and top-level modules, from low to high. A module imports its own folder or lower ones."""

PACKAGES = tuple(LEVELS)
HEAVY = ("torch", "transformers", "peft", "datasets", "evaluate", "numpy", "matplotlib", "pyarrow", "yaml")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""


def modules(package: str) -> dict[str, Path]:
    """The package's modules by name; a folder's `__init__` has the folder's name."""
    paths = (path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py"))
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): ROOT / path for path in paths}


@cache
def imports(package: str) -> dict[str, set[str]]:
    """The modules of the same package that each module imports, at its top or in a function."""
    there = modules(package)
    found: dict[str, set[str]] = {name: set() for name in there}
    for name, path in there.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= {each if each in there else str(node.module) for each in names}
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
        found[name] = {each for each in found[name] if each in there and each not in (name, package)}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_between_folders_run_in_one_direction(package: str) -> None:
    levels = LEVELS[package].split()
    folder = {name: name.split(".")[1] for name in modules(package) if name != package}
    assert set(folder.values()) == set(levels), "LEVELS has exactly the package's folders and top-level modules"
    upward = [
        f"{name} imports {other}"
        for name, others in imports(package).items()
        for other in others
        if name != package and levels.index(folder[other]) > levels.index(folder[name])
    ]
    assert not upward


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_have_no_import_cycles(package: str) -> None:
    try:
        tuple(TopologicalSorter(imports(package)).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_the_architecture_page_lists_every_module_once() -> None:
    listed, folder = [], ""
    for line in (ROOT / "docs" / "architecture.md").read_text().splitlines():
        if line.startswith("#"):
            folder = line.lstrip("# ")
        elif found := re.match(r"- `(\w+\.py)`: \S", line):
            listed.append(f"{folder}/{found[1]}")
    paths = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert sorted(listed) == sorted(path for path in paths if not path.endswith("/__init__.py"))


def test_no_test_file_imports_another_test_file() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        crossing = {name for name in imported(path) if name == "conftest" or name.startswith("test_")}
        assert not crossing, f"{path.relative_to(ROOT)} imports {crossing}; shared code is in tests/support/"


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_neuron_sum_and_not_each_other(package: str) -> None:
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
        "import typer\n"
        "from typer.testing import CliRunner\n"
        "from neuron_sum.cli import build\n"
        "app = build()\n"
        "names = list(typer.main.get_command(app).commands)\n"
        "recipes = [['recipes', name] for name in ('list', 'show', 'check', 'schema')]\n"
        "for words in [[], *([name] for name in names), *recipes]:\n"
        "    assert CliRunner().invoke(app, [*words, '--help']).exit_code == 0, words\n"
        f"print(len(names), sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(" ", 1)
    assert int(made[0]) >= 8
    assert made[1].strip() == "[]"


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_start_with_their_command(name: str) -> None:
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
    for path in (*(ROOT / "constraints").rglob("*.txt"), ROOT / "pyproject.toml", ROOT / "Makefile"):
        assert "://" not in path.read_text(), path


def test_ci_runs_the_checks_and_the_tests() -> None:
    commands = (ROOT / ".ci" / "run").read_text().splitlines()
    assert commands[-2:] == ["make check", "make test"]
    assert "make test" in (ROOT / "README.md").read_text()
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert {"make demo", "make test", "make check"} <= set(steps)


def test_other_yaml_parsers_read_the_shipped_recipes() -> None:
    for path in shipped_recipes().values():
        assert isinstance(yaml.safe_load(path.read_text()), dict)
