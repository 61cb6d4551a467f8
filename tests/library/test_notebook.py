"""examples/workshop.ipynb: executed in a Jupyter kernel with micro models, whose graphs other tests have compiled."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from typing import Any

import pytest
from micro_models import LORA_SHAPE, MICRO, ROOT, SHAPE

from neuron_sum.recipes.loading import shipped_recipes

NOTEBOOK = ROOT / "examples" / "workshop.ipynb"
LORA = """
name: micro-lora
extends: micro.yaml
model: {name_or_path: set-by-the-notebook}
method: {name: lora}
"""


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


@pytest.fixture(scope="module")
def notebook() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return content


def test_the_notebook_is_valid_and_stored_without_outputs(notebook: dict[str, Any]) -> None:
    import nbformat

    nbformat.validate(notebook)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"]]


def test_the_recipes_of_the_notebook_exist(notebook: dict[str, Any]) -> None:
    code = "".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "code")
    named = set(re.findall(r'"((?:tiny|smollm2|trn1)-[\w-]+)"', code))
    assert {"tiny-lora", "smollm2-full", "trn1-tinyllama-lora"} < named <= set(shipped_recipes())


@pytest.fixture(scope="module")
def outputs(notebook: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each cell prints, by its id; `ID:stderr` is its standard error."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "micro.yaml").write_text(MICRO)
    (folder / "micro-lora.yaml").write_text(LORA)
    (folder / "micro-full.yaml").write_text(LORA.replace("lora", "full"))
    cells = {cell["id"]: cell for cell in notebook["cells"]}
    settings, count = re.subn("^(CHANGES|SERVER) = .*", r"\1 = None", source(cells["settings"]), flags=re.MULTILINE)
    assert count == 2
    cells["settings"]["source"] = f"{settings}\nCHANGES = {['train.max_steps=2', *SHAPE, *LORA_SHAPE]}"
    recipes = source(cells["recipes"])
    family = '("tiny-base", "tiny-full", "tiny-lora")'
    assert family in recipes
    cells["recipes"]["source"] = recipes.replace(family, '("micro.yaml", "micro-full.yaml", "micro-lora.yaml")')
    (folder / "workshop.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    finished = subprocess.run(
        [sys.executable, "-c", "from nbclient.cli import main; main()", "--inplace", "workshop.ipynb"],
        cwd=folder,
        env={**os.environ, "JUPYTER_PATH": "", "JUPYTER_DATA_DIR": str(folder), "IPYTHONDIR": str(folder / "ipython")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    executed = json.loads((folder / "workshop.ipynb").read_text(encoding="utf-8"))
    printed: dict[str, str] = defaultdict(str)
    for cell in executed["cells"]:
        for output in cell.get("outputs", ()):
            stream = ":stderr" if output["name"] == "stderr" else ""
            printed[cell["id"] + stream] += "".join(output["text"])
    return printed


def test_progress_is_printed_as_plain_lines(outputs: dict[str, str]) -> None:
    assert "2 optimizer steps" in outputs["full:stderr"]
    assert re.search(r"^training 2/2 loss", outputs["full:stderr"], re.MULTILINE)
    moved = [name for name, text in outputs.items() if re.search(r"\x1b\[[^m]*[A-Za-ln-z]", text)]
    assert not moved, "these cells print more than text and colors, such as a bar that is redrawn"
    warnings = re.findall(r"\w*Warning: .*", "\n".join(outputs.values()))
    assert all("truncated at generate.max_new_tokens" in warning for warning in warnings), warnings


def test_data_and_prompt_are_displayed(outputs: dict[str, str]) -> None:
    assert "data: the bundled sample" in outputs["data"]
    assert "human 3: " in outputs["data"]
    dialogue = outputs["data"].split("\n\n")[1]
    assert dialogue in outputs["prompt"] and outputs["prompt"].strip() != dialogue


def test_lora_trains_fewer_parameters(outputs: dict[str, str]) -> None:
    found = re.findall(r"(full|lora): ([\d,]+) of ([\d,]+) parameters trained", outputs["lora"])
    counts = {name: [int(count.replace(",", "")) for count in both] for name, *both in found}
    assert counts["full"][0] == counts["full"][1]
    assert counts["lora"][0] < counts["lora"][1] / 2


def test_systems_are_compared_with_people(outputs: dict[str, str]) -> None:
    for name in ("human", "untuned", "full", "lora", "lead-3"):
        assert len(re.findall(rf"^  {name} ", outputs["compare"], re.MULTILINE)) == 2
    assert "report: runs/workshop-tiny/comparison/report.html" in outputs["compare"]
    scores = dict(re.findall(r"^(\S+) +ROUGE-1 +(\d+\.\d+) \[", outputs["rouge"], re.MULTILINE))
    assert list(scores) == ["untuned", "full", "lora", "lead-3", "human"]
    assert float(scores["human"]) > float(scores["lead-3"]) > float(scores["untuned"])
    assert re.search(r"points above untuned\nfull +ROUGE-1 [+-]\d+\.\d+ \[.*p = ", outputs["rouge"])


def test_the_compiled_model_answers_like_its_source(outputs: dict[str, str]) -> None:
    assert outputs["compile"].startswith("8 of 8 summaries are the same")
    assert "DJL Serving is not used: SERVER is False" in outputs["serve"]
    assert re.search("without a server: .+", outputs["serve"])


def test_the_cost_is_planned_without_an_account(outputs: dict[str, str]) -> None:
    assert re.search(r"worst case: \$\d+\.\d\d", outputs["cost"])
    assert "ml.inf2.xlarge" in outputs["cost"]
