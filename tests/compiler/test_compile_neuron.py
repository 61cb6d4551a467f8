"""Compile for inf2 and trn1 with the code of neuronx-distributed: load, verify, generate, serve, reject, fail.

stand_ins/neuron/torch_neuronx/__init__.py describes what replaces the closed packages, and its limits.
"""

import copy
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from artifacts import assert_adapters_are_swapped_under_load, edited, expected_by_adapter, make_lora, prompts_of
from joining import rolled
from micro_models import LORA_SHAPE, MICRO, ROOT, SHAPE
from neuron_packages import ENVIRONMENT, make_packages
from safetensors import safe_open
from service_requests import DIALOGUE, LIMITS
from transformers import LlamaConfig

from benchmarks import drill
from compile import api, cache
from compile.exporters.own import CompilePlan, build, make_plan
from compile.graphs import t5
from compile.graphs.kv_cache import ancestry_bias
from compile.machine_report import latency, make_report
from compile.source import Source, open_source
from compile.targets import device_graphs, neuron
from compile.verify import verify
from neuron_sum.artifact import Artifact, hash_files, open_artifact, write_manifest
from neuron_sum.errors import ArtifactError, CompileError, ModelError, PlatformError, RecipeError
from neuron_sum.models.adapters import load_adapter
from neuron_sum.platform.matrix import PLATFORMS
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import CompileConfig, GenerateConfig
from neuron_sum.runs.folder import open_run
from neuron_sum.runs.trained import load_trained, load_untuned
from neuron_sum.runtimes import device, neuronx
from neuron_sum.runtimes.hugging_face import TransformersGenerator
from neuron_sum.runtimes.load import load_generator
from neuron_sum.training.train import train
from serving import package
from serving.local import LocalServer, Model

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
Calls = Callable[[str], list[dict[str, Any]]]
pytestmark = pytest.mark.slow
STAND_IN = ROOT / "tests" / "stand_ins" / "neuron"
INF2 = "compile.target=inf2"
SMALLEST = ["compile.batch_sizes=[1]", "compile.num_beams=[1]"]


# The Neuron packages, and compiling with them.


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Neuron packages; removed from this process after this file."""
    folder = tmp_path_factory.mktemp("neuron")
    make_packages(folder)
    yield folder
    vendor = ("torch_neuronx", "neuronx_distributed", "neuronxcc", "libneuronxla", "torch_xla", "_XLAC")
    for name in [name for name in sys.modules if name.split(".")[0] in vendor]:
        del sys.modules[name]


@pytest.fixture
def calls(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Puts the packages on the path of a process on inf2, and returns the recorded calls of their functions."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SM_CURRENT_INSTANCE_TYPE", "ml.inf2.xlarge")
    monkeypatch.setenv(device.VISIBLE, "")  # as if unset; monkeypatch removes the value that a test sets
    monkeypatch.setattr(device, "_claimed", None)
    monkeypatch.syspath_prepend(str(packages))
    importlib.invalidate_caches()
    log = tmp_path / "calls.jsonl"
    log.touch()
    monkeypatch.setenv("NEURON_STAND_IN_CALLS", str(log))
    return lambda name: [call for call in map(json.loads, log.read_text().splitlines()) if call["call"] == name]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate cache, for graphs that no other test may find."""
    monkeypatch.setenv("NEURON_SUM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def compile_here(source: Source, folder: Path) -> CompilePlan:
    """Compiles the missing graphs in this process, because starting a process for each takes most of the time."""
    cache.folder().mkdir(parents=True, exist_ok=True)
    while (plan := make_plan(source)).missing:
        graph = plan.missing[0]
        scratch = folder / Path(graph.file).stem
        scratch.mkdir(parents=True)
        plan.target.compile_graph(plan.model(), graph, None, scratch / "graph.pt")
        shutil.move(scratch / "graph.pt", plan.cached[graph.file])
    return plan


def compiled(run: Path, folder: Path, *overrides: str) -> Artifact:
    source = open_source(run, None, [INF2, *SHAPE, *overrides])
    return build(source, compile_here(source, folder / "scratch"), folder / "artifact", overwrite=False, jobs=None)


def expected_rows(run: Path, prompts: Sequence[Sequence[int]], asked: GenerateConfig) -> list[list[int]]:
    model, tokenizer = load_trained(open_run(run))
    return TransformersGenerator(model, tokenizer, 8).generate(prompts, asked)


def trained(folder: Path, *overrides: str) -> Path:
    (folder / "micro.yaml").write_text(MICRO)
    train(load_recipe(str(folder / "micro.yaml"), ["train.max_steps=30", *overrides]), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def learned_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, trained until the summaries differ between dialogues."""
    layers = ["model.config.num_layers=2", "model.config.num_decoder_layers=2"]
    return trained(tmp_path_factory.mktemp("learned"), *layers, "train.max_steps=80", "train.learning_rate=5e-3")


# Equal tokens.


def test_tokens_equal_those_of_transformers_with_and_without_adapter(
    calls: Calls, micro_lora_run: Path, tmp_path: Path
) -> None:
    artifact = compiled(micro_lora_run, tmp_path, *LORA_SHAPE)
    prompts, generator = prompts_of(artifact, micro_lora_run), load_generator(artifact)[0]
    for num_beams in (1, 2):
        asked = GenerateConfig(max_new_tokens=12, num_beams=num_beams)
        for adapter, expected in expected_by_adapter(micro_lora_run, prompts, asked):
            assert generator.generate(prompts, asked, [adapter] * len(prompts)) == expected
            alone = [generator.generate([prompt], asked, [adapter])[0] for prompt in prompts]
            assert alone == expected, "the graphs of one row"


@pytest.mark.parametrize("write", ["scatter", "where"])
def test_other_cache_writes_have_equal_tokens(calls: Calls, micro_run: Path, tmp_path: Path, write: str) -> None:
    settings = ["compile.batch_sizes=[1,2]", "compile.num_beams=[2]", f"compile.neuron.cache_write={write}"]
    artifact = compiled(micro_run, tmp_path, *settings)
    prompts, asked = prompts_of(artifact, micro_run), GenerateConfig(max_new_tokens=12, num_beams=2)
    generator, expected = load_generator(artifact)[0], expected_rows(micro_run, prompts, asked)
    assert generator.generate(prompts, asked) == expected
    batch = generator.roll(asked)
    assert batch is not None
    assert rolled(batch, prompts, [None] * 8, 5, 1) == (expected, 7)


def test_prompts_that_join_a_running_batch_get_the_tokens_of_transformers(
    calls: Calls, micro_lora_run: Path, tmp_path: Path
) -> None:
    """Of two source lengths, with an adapter or none, one and two at a time; graphs are loaded while others run."""
    artifact = compiled(micro_lora_run, tmp_path, *LORA_SHAPE, "compile.source_lens=[64,192]")
    assert {graph.batch for graph in artifact.manifest.graphs} == {1, 3}
    prompts = [prompt[: 40 if index % 3 else None] for index, prompt in enumerate(prompts_of(artifact, micro_lora_run))]
    names = ["default" if index % 2 else None for index in range(8)]
    generator = load_generator(artifact)[0]
    lock = generator.runtime.turn()  # type: ignore[attr-defined]
    for num_beams in (1, 2):
        asked = GenerateConfig(max_new_tokens=12, num_beams=num_beams)
        by_adapter = dict(expected_by_adapter(micro_lora_run, prompts, asked))
        expected = [by_adapter[name][index] for index, name in enumerate(names)]
        batch = generator.roll(asked)
        assert batch is not None
        for every, most in ((4, 1), (5, 2)):
            found, beside = rolled(batch, prompts, names, every, most)
            assert found == expected
            assert beside >= 2
        assert {bucket.batch for bucket in generator.used} == {1, 3}
        with pytest.raises(ModelError, match="'gone'"):
            batch.join(prompts[:1], ["gone"])
        assert not lock.locked(), "another batch can run"
        batch.join(prompts[:1], [None])
        assert lock.locked()
        batch.close()
        assert not lock.locked()
        assert generator.generate(prompts[:3], asked, names[:3]) == expected[:3]


def test_several_greedy_steps_per_call_have_equal_tokens(
    calls: Calls, micro_lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is loaded during a batch, and checked: its check restores the state."""
    settings = ["compile.num_beams=[1]", "compile.adapters.slots=2", "compile.greedy_steps=5"]
    artifact = compiled(micro_lora_run, tmp_path, *settings)
    assert artifact.manifest.greedy_steps == 5
    assert [graph.steps for graph in artifact.manifest.graphs] == [1, 1, 5], "the first one chooses the layout"
    ran, run = list[int](), neuronx._Graph.run
    monkeypatch.setattr(
        neuronx._Graph, "run", lambda graph, **inputs: (ran.append(graph.entry.steps), run(graph, **inputs))[1]
    )
    prompts, generator = prompts_of(artifact, micro_lora_run), load_generator(artifact)[0]
    single = replace(generator, one_step=True)
    for least in (0, 4):
        asked = GenerateConfig(max_new_tokens=12, min_new_tokens=least)
        for adapter, expected in expected_by_adapter(micro_lora_run, prompts, asked):
            assert generator.generate(prompts, asked, [adapter] * len(prompts)) == expected
            assert ran.count(5) > 0
            ran.clear()
            assert single.generate(prompts, asked, [adapter] * len(prompts)) == expected
            assert set(ran) == {1}
            ran.clear()
    joining, (adapter, expected) = generator.roll(asked), next(expected_by_adapter(micro_lora_run, prompts, asked))
    assert joining is not None
    assert rolled(joining, prompts, [adapter] * 8, 2, 1)[0] == expected
    assert {1, 5} == set(ran)
    [row] = latency(generator, artifact, 1)
    assert (row["greedy_steps"], row["greedy_ms"] > 0) == (5, True)


KINDS = {
    "LoRA merged, tied": ["method=lora", "train.learning_rate=0.05"],
    "untied, plain feed-forward": ["model.config.tie_word_embeddings=false", "model.config.feed_forward_proj=relu"],
    "soft prompt compiled in": ["method=prompt_tuning", "train.learning_rate=0.3"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_equal_those_of_transformers_for_one_to_eight_dialogues(calls: Calls, tmp_path: Path, kind: str) -> None:
    run = trained(tmp_path, *KINDS[kind])
    artifact = compiled(run, tmp_path, "compile.batch_sizes=[1,8]", "compile.num_beams=[1,4]")
    prompts, generator = prompts_of(artifact, run), load_generator(artifact)[0]
    for num_beams in (1, 4):
        asked = GenerateConfig(max_new_tokens=12, num_beams=num_beams)
        expected = expected_rows(run, prompts, asked)
        assert len(set(map(tuple, expected))) > 1, "all summaries are the same"
        for count in range(1, 9):
            assert generator.generate(prompts[:count], asked) == expected[:count]


def test_adapters_are_swapped_under_load(calls: Calls, micro_lora_run: Path, tmp_path: Path) -> None:
    """Several threads send requests while slots change; the graphs keep one batch's state, so batches take turns."""
    assert_adapters_are_swapped_under_load(compiled(micro_lora_run, tmp_path, *LORA_SHAPE), micro_lora_run, tmp_path)


def test_all_ways_to_write_a_column_match_the_cpu(calls: Calls) -> None:
    from compile.graphs.kv_cache import write_column, write_scatter, write_where

    for beams in (1, 3):
        cache, column = torch.randn(2, 4, 5 * beams, 8), torch.randn(2, 4, beams, 8)
        for step in range(5):
            position = torch.tensor([step, 4 - step])
            expected = write_column(cache.clone(), column, position)
            assert torch.equal(write_scatter(cache, column, position), expected)
            assert torch.equal(device_graphs.write_slice(cache, column, position), expected)
            assert torch.equal(write_where(cache, column, position), expected)


# Inputs of torch_neuronx and neuronx-cc.


def test_the_compiler_receives_the_settings(
    calls: Calls, micro_run: Path, own_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ModelBuilder adds its own defaults to arguments that it does not find."""
    for cast, warnings in (("none", 0), ("matmult", 1)):
        settings = [INF2, f"compile.neuron.auto_cast={cast}"]
        api.plan(micro_run, tmp_path / "planned", None, settings, None, overwrite=False, jobs=None)
        told = " ".join(capsys.readouterr().err.split())
        assert told.count("the compiler chooses a layout of the weights only with none") == warnings
    artifact = compiled(micro_run, tmp_path, *SMALLEST, "compile.neuron.auto_cast=matmult", "compile.neuron.optlevel=1")
    compilation = artifact.manifest.compilation
    assert compilation is not None
    expected = "--auto-cast=matmult --auto-cast-type=bf16 -O1 --target inf2 --model-type=transformer"
    assert " ".join(compilation.arguments) == expected
    for call in calls("compile"):
        assert re.fullmatch(rf"{expected} --logfile=\S+", call["compiler_args"])
        assert "layout" not in call, "upstream chooses layouts only with --auto-cast=none"
    assert compilation.compiler == PLATFORMS[0].vendor_pins["neuronx-cc"]
    assert compilation.sdk == PLATFORMS[0].name
    assert (artifact.manifest.target, artifact.manifest.runtime) == ("inf2", "neuronx")
    assert not artifact.manifest.is_exact, "fp32 weights, and products that may be computed in bf16"
    from neuronx_distributed import NxDModel

    expected_inputs = {"encode": ["input_ids", "attention_mask", "rows"], "step": ["tokens", "position"]}
    for graph in artifact.manifest.graphs:
        model = NxDModel.load(str(artifact.path / graph.file))
        declared = re.findall(r"(\w+): ", next(iter(model.input_shape_map)))
        assert declared == neuronx._Graph(model, graph)._inputs == expected_inputs[graph.kind], "all are used"


@pytest.mark.parametrize("kind", ["weight", "state"])
def test_graphs_share_buffers_by_name(
    calls: Calls, micro_lora_run: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """One decoder layer of 2 heads, width 8; 3 dialogues of 192 tokens and a soft prompt of 4, 2 beams, 12 steps.

    How torch_neuronx counts a buffer that a graph only reads is not documented: both ways work.
    """
    monkeypatch.setenv("NEURON_STAND_IN_READ", kind)
    shape = ["compile.num_beams=[2]", "compile.adapters.slots=2", "compile.adapters.soft_prompt_tokens=4"]
    artifact = compiled(micro_lora_run, tmp_path, *shape)
    from neuronx_distributed import NxDModel

    models = {graph.kind: NxDModel.load(str(artifact.path / graph.file)) for graph in artifact.manifest.graphs}
    [encode], [step] = ([*models[kind].input_shape_map] for kind in ("encode", "step"))
    assert encode == "(input_ids: [3, 192], attention_mask: [3, 192], rows: [3], slot: [3])"
    assert step == "(tokens: [3, 2], position: [3], ancestors: [3, 2, 12], slot: [3])"
    state = {"state_3x12x2_0": [3, 2, 24, 8], "state_3x12x2_1": [3, 2, 24, 8]}
    constants = {"constants_3x192_0": [3, 1, 1, 196]} | {f"constants_3x192_{i}": [3, 2, 196, 8] for i in (1, 2)}
    shapes = {
        kind: {name: shape for name, shape in model.state_initializer.shapes.items() if not name.startswith("model.")}
        for kind, model in models.items()
    }
    assert shapes == {"encode": constants, "step": state if kind == "weight" else state | constants}
    outputs = {kind: len(*model.reserved_example_outputs.values()) for kind, model in models.items()}
    assert outputs == {"encode": 1, "step": 4}
    [chosen] = [call for call in calls("compile") if "layout" in call]
    layouts = [chosen["compiler_args"]]
    described = models["step"].get_metaneff(*models["step"].get_available_keys()).input_tensors
    names = {str(tensor.parameter): tensor.checkpoint_key.decode() for tensor in described}
    marked = {names[index] for index in chosen["layout"].split(",")}
    assert "model.embedding" in marked
    assert not [name for name in marked if "lora_" in name or not name.startswith("model.")], "the host writes these"
    assert re.fullmatch(
        r"--auto-cast=none -O2 --target inf2 --model-type=transformer --enable-internal-neff-wrapper --logfile=\S+",
        layouts[0],
    )

    generator, _ = load_generator(artifact)
    prompts, asked = prompts_of(artifact, micro_lora_run, 3), GenerateConfig(max_new_tokens=12, num_beams=2)
    expected = expected_rows(micro_lora_run, prompts, asked)
    assert generator.generate(prompts, asked, ["default"] * 3) == expected
    assert len(calls("load")) == 2, "each graph once"


def test_the_next_checkpoint_of_the_same_shape_compiles_nothing(
    calls: Calls, micro_lora_run: Path, tmp_path: Path
) -> None:
    first = compiled(micro_lora_run, tmp_path, *LORA_SHAPE)
    before = len(calls("compile"))
    retrained = tmp_path / "retrained"
    train(load_recipe(str(micro_lora_run / "recipe.yaml"), ["train.seed=7"]), retrained)
    source = open_source(retrained, None, [INF2, *SHAPE, *LORA_SHAPE])
    plan = make_plan(source)
    assert plan.missing == []
    again = build(source, plan, tmp_path / "again", overwrite=False, jobs=None)
    assert len(calls("compile")) == before
    assert again.manifest.source.fingerprint != first.manifest.source.fingerprint
    assert again.manifest.quality_warning is not None, "served with a warning until it is verified"
    record = verify(again, None, 8, 1.0).record
    assert [check.identical for check in record.checks] == [8] * 4
    assert record.passed
    assert open_artifact(again.path).manifest.quality_warning is None
    assert plan.layout is not None
    chosen = plan.layout.read_bytes()
    try:
        plan.layout.write_bytes(b"another layout")
        assert make_plan(source).missing == list(plan.graphs[1:]), "they are in the layout that the first graph chose"
        with pytest.raises(CompileError, match="another process has compiled the same model"):
            build(source, plan, tmp_path / "mixed", overwrite=False, jobs=None)
        plan.layout.unlink()
        assert make_plan(source).missing == list(plan.graphs), "the first one is compiled again"
    finally:
        plan.layout.write_bytes(chosen)
    others = ("optlevel=3", "cache_write=where", "optimize_layout=false", "auto_cast=matmult")
    for other in ("compile.target=trn1", *(f"compile.neuron.{setting}" for setting in others)):
        differing = make_plan(open_source(retrained, None, [INF2, *SHAPE, *LORA_SHAPE, other]))
        assert not set(differing.cached.values()) & set(plan.cached.values()), other


def test_graphs_contain_no_weights(calls: Calls, micro_run: Path, tmp_path: Path) -> None:
    artifact = compiled(micro_run, tmp_path, *SMALLEST)
    with safe_open(artifact.path / "weights.safetensors", framework="pt") as stored:
        rows = {bytes(stored.get_tensor(name).numpy().ravel()[:8].tobytes()) for name in stored.keys()}  # noqa: SIM118
    assert len(rows) > 10
    for graph in artifact.manifest.graphs:
        content = (artifact.path / graph.file).read_bytes()
        assert not [row for row in rows if any(row) and row in content]


# Rejections, with the field.


@pytest.fixture
def artifact(calls: Calls, micro_run: Path, tmp_path: Path) -> Artifact:
    return compiled(micro_run, tmp_path, *SMALLEST)


def test_other_versions_and_devices_are_rejected_with_the_field(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = artifact.manifest.stack
    assert stack.keys() == {"torch", "torch-neuronx", "neuronx-cc", "neuronx-distributed"}
    for name in stack:
        other = edited(artifact.path, stack={**stack, name: "1.2.3"})
        with pytest.raises(ArtifactError, match=rf"stack\.{name}: compiled with 1\.2\.3, installed is {stack[name]}"):
            load_generator(other)
    whole = edited(artifact.path, stack=stack)
    for name, remedy in (
        ("trn1.2xlarge", "--target trn1"),
        ("trn2.48xlarge", "trn2 is not a valid --target"),
        ("trn1n.32xlarge", "run it on inf2"),
        ("inf1.xlarge", "run it on inf2"),
    ):
        monkeypatch.setenv("SM_CURRENT_INSTANCE_TYPE", f"ml.{name}")
        with pytest.raises(
            ArtifactError, match=rf"target: compiled for inf2, this machine is {re.escape(name)}"
        ) as error:
            load_generator(whole)
        assert remedy in str(error.value.hint)
    monkeypatch.setenv("SM_CURRENT_INSTANCE_TYPE", "ml.inf2.xlarge")
    load_generator(whole)
    assert whole.manifest.compilation is not None and whole.manifest.compilation.rows == 1
    older = edited(artifact.path, compilation=whole.manifest.compilation.model_copy(update={"rows": None}))
    with pytest.raises(ArtifactError, match=r"compilation\.rows: compiled by an earlier version"):
        load_generator(older)


@pytest.mark.parametrize(("visible", "claimed"), [("", "0"), ("1-3", "1")])
def test_a_process_reserves_one_core(
    calls: Calls, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, visible: str, claimed: str
) -> None:
    """By default the runtime would reserve every core of the machine, and no second process could start."""
    monkeypatch.setenv(device.VISIBLE, visible)
    for _ in range(2):  # `compile report` loads an artifact twice
        load_generator(artifact)[0].warm_up()
        assert os.environ[device.VISIBLE] == claimed
    assert {call["visible"] for call in calls("load")} == {claimed}


def test_a_graph_of_another_model_is_rejected(
    calls: Calls, artifact: Artifact, micro_lora_run: Path, tmp_path: Path
) -> None:
    """Its buffers have other names, or it reads adapters that the artifact does not have."""
    other = compiled(micro_lora_run, tmp_path / "other", *SMALLEST, "compile.adapters.slots=2")
    step = next(graph.file for graph in artifact.manifest.graphs if graph.kind == "step")
    shutil.copyfile(other.path / step, artifact.path / step)
    write_manifest(artifact.path, artifact.manifest.model_copy(update={"files": hash_files(artifact.path)}))
    mixed = open_artifact(artifact.path)
    with pytest.raises(ArtifactError, match=rf"{step} needs model\.\S+ \(.*\), but the artifact has no such tensor"):
        load_generator(mixed)[0].warm_up()


@pytest.mark.parametrize("what", ["the dialogues", "the encoder's outputs", "adapters"])
def test_a_graph_that_ignores_its_inputs_is_rejected(
    calls: Calls, micro_lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A step graph reads copies of what encode writes, or the host writes copies: all values can be read back."""
    artifact = compiled(micro_lora_run, tmp_path, *LORA_SHAPE)
    generator, _ = load_generator(artifact)
    from neuronx_distributed import NxDModel

    to_neuron = NxDModel.to_neuron
    start = "model." if what == "adapters" else neuronx.CONSTANT

    def copied(model: Any) -> None:
        shared = model.states
        copies = {name: tensor.clone() for name, tensor in shared[0].items() if name.startswith(start)}
        is_step = "tokens" in str(model.input_shape_map)
        if is_step and what == "the dialogues":
            model.states = model.weights = [{**shared[0], **copies}]
        to_neuron(model)
        if is_step and what != "the dialogues":
            model.states = model.weights = [{**shared[0], **copies}]

    monkeypatch.setattr(NxDModel, "to_neuron", copied)
    for _ in range(2):  # a graph that was refused is not used later
        with pytest.raises(ArtifactError, match=f"step.* do not depend on {what}") as raised:
            generator.warm_up()
        assert "neuron-sum compile report" in str(raised.value.hint)


@pytest.mark.parametrize("wrong", ["first", "none"])
def test_a_graph_that_writes_other_rows_is_rejected(
    calls: Calls, own_cache: Path, micro_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """The index of a row is a run-time value, which the compiler's list of operators excludes."""
    other = {"first": lambda rows: 0 * rows, "none": lambda rows: rows % 2}[wrong]
    rows = device_graphs.rows_slice
    form = replace(neuron.WRITES["in_place"], rows=lambda kept, values, at: rows(kept, values, other(at)))
    monkeypatch.setitem(neuron.WRITES, "in_place", form)
    artifact = compiled(micro_run, tmp_path, "compile.batch_sizes=[3]", "compile.num_beams=[1]")
    with pytest.raises(ArtifactError, match=r"encode.* writes other rows than those it is given") as raised:
        load_generator(artifact)[0].warm_up()
    assert "compile.neuron.cache_write" in str(raised.value.hint)


def test_without_neuron_packages_nothing_is_compiled_or_loaded(
    micro_run: Path, packages: Path, neuron_sum: CommandLine, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(packages))
        artifact = compiled(micro_run, tmp_path, *SMALLEST)
    with pytest.raises(
        PlatformError, match="this machine has no torch-neuronx and no neuronx-cc and no neuronx-distributed"
    ) as error:
        load_generator(artifact)
    assert "--target cpu" in str(error.value.hint)
    refused = neuron_sum("compile", str(micro_run), "--target", "inf2")
    assert refused.returncode == 13
    assert "needs packages that this machine lacks: torch-neuronx, neuronx-cc, neuronx-distributed" in refused.stderr
    assert "pip install --extra-index-url" in refused.stderr
    assert not (micro_run / "artifacts").exists()


def test_unsupported_models_and_settings_are_rejected(calls: Calls, micro_run: Path) -> None:
    with pytest.raises(RecipeError, match=r"a llama with .* = own: the static graphs for inf2 support only T5"):
        neuron.NeuronTarget(CompileConfig(target="inf2")).check(LlamaConfig())
    for setting, message in (
        ("tensor_parallel_size=2", "tensor_parallel_size = 2: T5's graphs run on one core"),
        ("exporter=optimum", "exporter = optimum: the static graphs"),
        ("inline_weights=true", "inline_weights: ModelBuilder keeps weights outside"),
    ):
        with pytest.raises(RecipeError, match=message):
            make_plan(open_source(micro_run, None, [INF2, f"compile.neuron.{setting}"]))


# A failing compiler.

FAILURES = {
    "[F137] neuronx-cc was forcibly killed - This most commonly occurs due to insufficient system memory.": (
        "compiler-killed", "of memory", "ml.trn1.32xlarge, which has 512 GiB",
    ),
    "ERROR: [NCC_EVRF001] Operator dynamic-update-slice is not supported": (
        "unsupported-operator", "that the compiler does not support", "list-operators",
    ),
    "this process is killed": ("killed, nearly always because memory ran out", "of memory", "ml.trn1.32xlarge"),
}  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_compiler_leaves_only_its_log(
    calls: Calls, micro_run: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    monkeypatch.setenv("NEURON_STAND_IN_FAILS", failure)
    monkeypatch.setattr(neuron, "total_memory", lambda: 384 * 2**30)
    source = open_source(micro_run, None, [INF2, *SHAPE, *SMALLEST])
    with pytest.raises(CompileError, match=r"step-b1-s192-t12-k1\.pt did not compile") as error:
        build(source, make_plan(source), tmp_path / "artifact", overwrite=False, jobs=1)
    told, cause, remedy = FAILURES[failure]
    assert told in error.value.message
    assert cause in error.value.message
    assert remedy in str(error.value.hint)
    log = Path(str(error.value.hint).rpartition("whole log: ")[2])
    if told in ("compiler-killed", "unsupported-operator"):
        assert log.read_text().count(failure) >= 2, "what it wrote to standard error, and its own log"
    assert not (tmp_path / "artifact").exists()
    assert [path for path in own_cache.rglob("*") if path.is_file()] == [log]


# Negative controls: errors that the tests above must detect.


def both_tokens(run: Path, folder: Path, num_beams: int) -> tuple[list[list[int]], list[list[int]]]:
    artifact = compiled(run, folder, "compile.batch_sizes=[8]", f"compile.num_beams=[{num_beams}]")
    prompts, asked = prompts_of(artifact, run), GenerateConfig(max_new_tokens=12, num_beams=num_beams)
    return load_generator(artifact)[0].generate(prompts, asked), expected_rows(run, prompts, asked)


def test_a_wrong_buffer_is_detected(
    calls: Calls, own_cache: Path, learned_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = device_graphs.DeviceStep.forward

    def swapped(self: Any, *inputs: Any, **named: Any) -> Any:
        results = forward(self, *inputs, **named)
        one, other = self.state[:2]
        keys, values = getattr(self, one), getattr(self, other)
        setattr(self, one, values)
        setattr(self, other, keys)
        return results

    swapped.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(device_graphs.DeviceStep, "forward", swapped)
    actual, expected = both_tokens(learned_run, tmp_path, 1)
    assert actual != expected, "keys as values, and values as keys"


def test_a_buffer_of_another_type_does_not_compile(
    calls: Calls, own_cache: Path, micro_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = replace(neuron.WRITES["in_place"], column=lambda cache, column, position: cache.bfloat16())
    monkeypatch.setitem(neuron.WRITES, "in_place", rounded)
    with pytest.raises(CompileError, match=r"step-b1\S+: state_1x12x1_0"):
        compiled(micro_run, tmp_path, *SMALLEST)


def test_a_missing_ancestry_is_detected(
    calls: Calls, own_cache: Path, learned_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_ancestry(bias: torch.Tensor, ancestors: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(ancestors.shape[1])[None, :, None]
        return ancestry_bias(bias, rows.expand_as(ancestors) + 0 * ancestors)

    monkeypatch.setattr(t5, "ancestry_bias", no_ancestry)
    actual, expected = both_tokens(learned_run, tmp_path, 4)
    assert actual != expected


@pytest.mark.parametrize("num_beams", [1, 4])
def test_correct_graphs_do_not_depend_on_an_earlier_batch(
    calls: Calls, learned_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_beams: int
) -> None:
    """The reference for the controls above. The cache is not cleared but filled with values that would show."""
    right = neuronx._Graphs.renew_stacks

    def into_dirt(self: Any) -> None:
        for name, tensor in self._tensors.items():
            if name.startswith(neuronx.STATE):
                tensor.fill_(1e4)
        right(self)

    monkeypatch.setattr(neuronx._Graphs, "renew_stacks", into_dirt)
    actual, expected = both_tokens(learned_run, tmp_path, num_beams)
    assert actual == expected


# The command line, and a server.


def test_the_benchmark_of_workers_compiles_its_artifact(
    calls: Calls, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    workers = importlib.import_module("workers")
    artifact = workers._artifact(tmp_path)
    assert {bucket.batch for bucket in artifact.manifest.buckets} == {1, workers.BATCH}
    assert calls("compile")


def test_the_command_line_compiles_verifies_and_reports(
    calls: Calls,
    packages: Path,
    micro_run: Path,
    neuron_sum: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In separate processes, one for each graph, as on a machine with the packages."""
    monkeypatch.setenv("PYTHONPATH", f"{packages}:{ROOT}")
    options = ["--set", "compile.batch_sizes=[2]", "--set", "compile.dtype=bf16", "--jobs", "2"]
    made = neuron_sum("compile", str(micro_run), "--target", "inf2", "--output", "artifact", *options, "--json")
    assert made.returncode == 0, made.stderr
    manifest = json.loads(made.stdout)["manifest"]
    assert (manifest["target"], manifest["dtype"]) == ("inf2", "bf16")
    assert "about" not in made.stderr.rpartition("graphs to compile")[2].splitlines()[0], "nobody has measured it"
    packed = neuron_sum("package", "artifact")
    assert packed.returncode == 0, packed.stderr
    assert "`compile verify` has not compared it with transformers" in packed.stderr
    reported = neuron_sum("compile", "report", "artifact", "--max-drop", "100", "--examples", "12")
    assert reported.returncode == 0, reported.stderr
    report = json.loads((tmp_path / "artifact-report.json").read_text())
    assert report["manifest"]["stack"] == manifest["stack"]
    assert report["verify"]["result"]["examples"] == 12
    assert report["latency"]["result"][0].keys() == {"load_and_warm_up_s"}
    assert report["latency"]["result"][1].keys() == {"bucket", "num_beams", "encode_ms", "step_ms"}
    assert {"machine", "checks", "environment"} <= report.keys()
    assert "`compile verify`" not in neuron_sum("package", "artifact", "--output", "again.tar.gz").stderr


def test_a_report_includes_failures(artifact: Artifact) -> None:
    other = edited(artifact.path, stack={**artifact.manifest.stack, "neuronx-cc": "2.0.0.0"})
    made = make_report(other, None, 4, 1.0)
    for part in ("latency", "verify"):
        assert made[part]["error"].startswith("stack.neuronx-cc: compiled with 2.0.0.0")
        assert "Traceback" in made[part]["trace"]


def test_a_report_includes_unexpected_errors(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device's packages may lack a name that comes from their documentation only."""

    def absent(artifact: Artifact) -> None:
        raise AttributeError("module 'torch_neuronx' has no attribute 'replace_weights'")

    monkeypatch.setattr("compile.machine_report.load_generator", absent)
    made = make_report(artifact, None, 4, 100.0)
    assert made["latency"]["error"] == "module 'torch_neuronx' has no attribute 'replace_weights'"
    assert "AttributeError" in made["latency"]["trace"]
    assert made["verify"]["error"] is None, "the rest goes on"


def claimed(calls: Calls, pids: Iterable[int]) -> set[str]:
    """The cores that processes made visible to the runtime."""
    return {call["visible"] for call in calls("load") if call["pid"] in set(pids)}


def test_djl_serving_answers_with_the_artifact(
    djl_serving: Path, calls: Calls, packages: Path, micro_lora_run: Path, tmp_path: Path
) -> None:
    """Packaged, unpacked, and served by the real server with a worker per core; an adapter is added at run time."""
    artifact = compiled(micro_lora_run, tmp_path, *LORA_SHAPE)
    package.write_archive(artifact, LIMITS, tmp_path / "model.tar.gz")
    folder, said = tmp_path / "model", list[str]()
    folder.mkdir()
    package.unpack(tmp_path / "model.tar.gz", folder)
    environment = {"PYTHONPATH": str(packages), "NEURON_RT_VISIBLE_CORES": "1-2"}
    image = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)])}
    command = [sys.executable, "-m", "serving.properties", str(folder)]
    printed = subprocess.run(command, env=image, capture_output=True, text=True, check=True).stdout
    names = ("SERVING_MIN_WORKERS", "SERVING_MAX_WORKERS", "SERVING_RETRY_THRESHOLD")
    assert printed == "".join(f"export {name}=2\n" for name in names)
    base, tokenizer = load_untuned(open_run(micro_lora_run))
    adapter = make_lora(base, tmp_path / "late", 4, 64, 3)
    with LocalServer([Model("model", folder)], LIMITS, on_line=said.append, environment=environment) as server:

        def ask(**parameters: Any) -> str:
            body = {"inputs": DIALOGUE, "parameters": parameters}
            answer = httpx.post(f"{server.url}/invocations", json=body, timeout=60)
            assert answer.status_code == 200, answer.text
            return str(answer.json()[0]["summary_text"])

        def ask_all() -> dict[str, list[str]]:
            return {name: [ask(adapter=name, num_beams=n) for n in (1, 2)] for name in ("default", "base", "late")}

        query = {"name": "late", "src": str(adapter)}
        adapters = f"{server.url}/models/model/adapters"
        assert httpx.post(adapters, params=query, headers=server.headers, timeout=60).status_code == 200
        answers = ask_all()
        assert ask_all() == ask_all() == answers, "both workers know the adapter"
        workers = {worker.pid: worker for worker in server.workers()}
        assert claimed(calls, workers) == {"1", "2"}
        dead = workers.popitem()[1]
        core = claimed(calls, [dead.pid])
        dead.kill()
        assert drill._until(lambda: any("Restarting python worker" in line for line in said), 60)
        assert [ask() for _ in range(6)] == [answers["default"][0]] * 6, "the other worker takes all requests"
        assert drill._until(lambda: claimed(calls, [w.pid for w in server.workers()]) == {"1", "2"}, 60)
        [restarted] = [worker.pid for worker in server.workers() if worker.pid not in workers]
        assert claimed(calls, [restarted]) == core
        assert ask_all() == ask_all() == answers, "the new worker has the adapter again"
        assert {call["pid"] for call in calls("load")} >= {restarted, *workers}
    models = {
        "default": load_trained(open_run(micro_lora_run))[0],
        "base": base,
        "late": load_adapter(copy.deepcopy(base), adapter),
    }
    prompt = artifact.recipe.prompt.resolve().encode(tokenizer, [DIALOGUE], 192)[0].input_ids
    for name, model in models.items():
        for beams, answer in zip((1, 2), answers[name], strict=True):
            asked = artifact.recipe.generate.model_copy(update={"num_beams": beams})
            [row] = TransformersGenerator(model, tokenizer, 1).generate([prompt], asked)
            assert answer == tokenizer.decode(row, skip_special_tokens=True).strip(), (name, beams)
    assert any("`compile verify` has not compared it" in line for line in said)
    assert calls("load")[0]["pid"] != os.getpid()
