"""Compile for inf2 and trn1 with a stand-in for torch_neuronx: load, verify, generate, refuse; see neuron_stand_in/."""

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import LORA_SHAPE, SHAPE
from test_compile import prompts_of

from compile.build import CompilePlan, build, make_plan
from compile.source import open_source
from neuron_sum.artifact import Artifact
from neuron_sum.recipe import GenerateConfig
from neuron_sum.run_folder import open_run
from neuron_sum.runtimes.hugging_face import TransformersGenerator
from neuron_sum.runtimes.load import load_generator
from neuron_sum.stack import PLATFORMS
from neuron_sum.trained import load_trained, load_untuned

STAND_IN = Path(__file__).parent / "neuron_stand_in"
INF2 = "compile.target=inf2"


def write_packages(folder: Path, **versions: str) -> Path:
    """The stand-in, and what pip would say of it."""
    shutil.copytree(STAND_IN, folder, dirs_exist_ok=True)
    for name in ("torch-neuronx", "neuronx-cc"):
        version = versions.get(name.replace("-", "_"), PLATFORMS[0].vendor_pins[name])
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """The Neuron packages on the path, and what is called of them."""
    monkeypatch.syspath_prepend(str(write_packages(tmp_path / "packages")))
    monkeypatch.setenv("NEURON_STAND_IN_CALLS", str(tmp_path / "calls.jsonl"))
    importlib.invalidate_caches()
    yield lambda name: [
        call for call in map(json.loads, (tmp_path / "calls.jsonl").read_text().splitlines()) if call["call"] == name
    ]
    for name in [name for name in sys.modules if name.split(".")[0] == "torch_neuronx"]:
        del sys.modules[name]


def compile_here(plan: CompilePlan, folder: Path) -> None:
    """The missing graphs, in this process: starting one for each takes most of the time."""
    for graph in plan.missing:
        scratch = folder / Path(graph.file).stem
        scratch.mkdir(parents=True)
        plan.target.compile_graph(plan.model(), graph, None, scratch / "graph.pt")
        plan.cached[graph.file].parent.mkdir(parents=True, exist_ok=True)
        shutil.move(scratch / "graph.pt", plan.cached[graph.file])


def compiled(run: Path, folder: Path, *overrides: str) -> Artifact:
    source = open_source(run, None, [INF2, *SHAPE, *overrides])
    plan = make_plan(source)
    compile_here(plan, folder / "scratch")
    return build(source, plan, folder / "artifact", overwrite=False, jobs=None)


@pytest.mark.parametrize("write", ["in_place", "where"])
def test_tokens_are_those_of_transformers(calls: Any, micro_lora_run: Path, tmp_path: Path, write: str) -> None:
    artifact = compiled(micro_lora_run, tmp_path, *LORA_SHAPE, f"compile.neuron.cache_write={write}")
    prompts, generator = prompts_of(artifact, micro_lora_run), load_generator(artifact)[0]
    for num_beams in (1, 2):
        asked = GenerateConfig(max_new_tokens=12, num_beams=num_beams)
        for load, adapter in ((load_trained, "default"), (load_untuned, None)):
            model, tokenizer = load(open_run(micro_lora_run))
            expected = TransformersGenerator(model, tokenizer, 8).generate(prompts, asked)
            assert generator.generate(prompts, asked, [adapter] * len(prompts)) == expected
            alone = [generator.generate([prompt], asked, [adapter])[0] for prompt in prompts]
            assert alone == expected, "the graphs of one row"
