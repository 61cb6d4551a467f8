"""From a run to an artifact on the CPU: the compiled graphs themselves, and the files that a build writes.

test_artifact.py tests rejected artifacts.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from artifacts import assert_adapters_are_swapped_under_load, expected_by_adapter, kernel_source, prompts_of
from in_process import neuron_sum as in_process
from micro_models import LLAMA_CONFIG, LORA_SHAPE, MICRO, SHAPE, compiled
from numpy.typing import NDArray
from safetensors import safe_open

from compile.exporters.own import build, make_plan
from compile.graphs.layers import GraphOptions
from compile.source import open_source
from compile.targets import attention
from compile.targets import cpu as cpu_target
from compile.verify import verify
from neuron_sum.artifact import Artifact, open_artifact
from neuron_sum.errors import CompileError, ResourceError, RunError
from neuron_sum.platform import cpu
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runs.folder import open_run
from neuron_sum.runs.trained import load_trained
from neuron_sum.runtimes import rolling
from neuron_sum.runtimes.base import Candidates
from neuron_sum.runtimes.hugging_face import TransformersGenerator
from neuron_sum.runtimes.load import load_generator
from neuron_sum.training.train import train

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.slow


QWEN3 = {**LLAMA_CONFIG, "model_type": "qwen3", "head_dim": 32, "attention_bias": True}
"""With biases: its graphs contain all that those of a Llama do, and more."""
WIDE = {"t5": "model.config.d_kv=32", "qwen3": f"model.config={json.dumps(QWEN3)}"}
"""Changes of the micro recipe, for heads that are wide enough for the attention kernel."""


@pytest.fixture
def wide_run(family: str, tmp_path: Path) -> Path:
    (tmp_path / "micro.yaml").write_text(MICRO)
    prompt = ["prompt.preset=tinyllama-chat"] if family == "qwen3" else []
    recipe = load_recipe(str(tmp_path / "micro.yaml"), [WIDE[family], *prompt, "train.max_steps=40"])
    train(recipe, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_compiled_t5_generates_the_tokens_of_transformers(
    lora_artifact: Artifact, micro_lora_run: Path, num_beams: int
) -> None:
    prompts, asked = prompts_of(lora_artifact, micro_lora_run), GenerateConfig(max_new_tokens=12, num_beams=num_beams)
    generator, _ = load_generator(lora_artifact)
    for adapter, expected in expected_by_adapter(micro_lora_run, prompts, asked):
        assert generator.generate(prompts, asked, [adapter] * len(prompts)) == expected
        alone = [generator.generate([prompt], asked, [adapter])[0] for prompt in prompts]
        assert alone == expected, "the graphs of one row"
    assert generator.generate(prompts, asked) == generator.generate(prompts, asked, ["default"] * len(prompts))


def test_several_greedy_steps_per_call_generate_the_tokens_of_transformers(
    lora_artifact: Artifact, micro_lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other graphs are those of the artifact; this one is compiled here, without a process."""
    several_steps = ["compile.batch_sizes=[3]", "compile.num_beams=[1]", "compile.greedy_steps=5"]
    source = open_source(micro_lora_run, None, [*SHAPE, *LORA_SHAPE, *several_steps])
    plan = make_plan(source)
    [graph] = plan.missing
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # compiling sets it
    plan.target.compile_graph(plan.model(), graph, None, tmp_path / "graph.pt2")
    shutil.move(tmp_path / "graph.pt2", plan.cached[graph.file])
    artifact = build(source, plan, tmp_path / "artifact", overwrite=False, jobs=None)
    assert [graph.steps for graph in artifact.manifest.graphs] == [1, 1, 5]
    prompts, generator = prompts_of(artifact, micro_lora_run), load_generator(artifact)[0]
    calls, opened = list[int](), generator.runtime.open

    def recorded(*batch: Any) -> Any:
        step = opened(*batch)
        return lambda *inputs: (calls.append(inputs[-1]), step(*inputs))[1]

    generator.runtime.open = recorded
    for least in (0, 4):
        asked = GenerateConfig(max_new_tokens=12, min_new_tokens=least)
        for adapter, expected in expected_by_adapter(micro_lora_run, prompts, asked):
            assert generator.generate(prompts, asked, [adapter] * len(prompts)) == expected
            assert calls.count(5) > 0
            calls.clear()
    checks = verify(artifact, None, 8, 1.0).record.checks
    assert [(check.steps, check.identical) for check in checks] == [(1, 8), (5, 8)]


def test_adapters_of_a_compiled_artifact_are_swapped_under_load(
    lora_artifact: Artifact, micro_lora_run: Path, tmp_path: Path
) -> None:
    """Without compiling or loading again."""
    assert_adapters_are_swapped_under_load(lora_artifact, micro_lora_run, tmp_path)


@pytest.mark.parametrize("family", WIDE)
def test_the_attention_kernel_generates_the_tokens_of_transformers(family: str, wide_run: Path, tmp_path: Path) -> None:
    """Also by several greedy steps per call."""
    artifact = compiled(wide_run, tmp_path / family, "compile.num_beams=[1,4]", "compile.greedy_steps=3")
    assert artifact.manifest.greedy_steps == 3
    for graph in artifact.manifest.graphs:
        assert ("neuron_sum::attend<" in kernel_source(artifact.path / graph.file)) == attention.is_compiled()
    model, tokenizer = load_trained(open_run(wide_run))
    prompts, generator = prompts_of(artifact, wide_run), load_generator(artifact)[0]
    for num_beams in (1, 4):
        asked = GenerateConfig(max_new_tokens=12, num_beams=num_beams)
        expected = TransformersGenerator(model, tokenizer, 8).generate(prompts, asked)
        assert generator.generate(prompts, asked) == expected


@pytest.mark.parametrize("dtype", [pytest.param("bf16", marks=pytest.mark.thorough), "int8"])
def test_bf16_and_int8_are_stored_in_that_type_and_verified(
    micro_run: Path, lora_artifact: Artifact, tmp_path: Path, dtype: str
) -> None:
    if lacking := cpu.missing(dtype):
        pytest.skip(f"this CPU has no {lacking}")
    artifact = compiled(micro_run, tmp_path / dtype, f"compile.dtype={dtype}", "compile.batch_sizes=[1]")
    with safe_open(artifact.path / "weights.safetensors", framework="pt") as stored:
        matrices = [stored.get_tensor(name) for name in stored.keys() if name.endswith(".weight")]  # noqa: SIM118
    linears = [matrix for matrix in matrices if matrix.dim() == 2]  # the others are norms
    assert {matrix.dtype for matrix in linears} == {torch.int8 if dtype == "int8" else torch.bfloat16}
    model, _ = load_trained(open_run(micro_run))
    expected = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    tied = model.lm_head.weight.numel() if artifact.manifest.aliases else 0
    assert bool(tied) == (dtype == "bf16"), "a tied head is stored once where both have one dtype"
    assert sum(matrix.numel() for matrix in linears) == expected - tied, "every matrix once"
    weights = (artifact.path / "weights.safetensors").stat().st_size
    assert weights < (lora_artifact.path / "weights.safetensors").stat().st_size * 0.6
    assert first_logits_error(artifact, model) < (0.02 if dtype == "bf16" else 0.04)
    found = verify(artifact, None, 12, 100.0)
    recorded = open_artifact(artifact.path).manifest.verified
    assert recorded == found.record
    assert recorded is not None
    assert recorded.examples == 12
    assert recorded.checks[0].rouge_difference.keys() == {"ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum"}


def test_an_answer_needs_neither_cuda_nor_torchs_python_modules(micro_run: Path, tmp_path: Path) -> None:
    """Each would take longer to load than the rest of torch."""
    if lacking := cpu.missing("int8"):
        pytest.skip(f"this CPU has no {lacking}")
    artifact = compiled(micro_run, tmp_path / "int8", "compile.dtype=int8", "compile.batch_sizes=[1]")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from neuron_sum import Summarizer\n"
        f"Summarizer({str(artifact.path)!r}).summarize(['Ann: Hi Bob.'])\n"
        "print('/libtorch.so' in Path('/proc/self/maps').read_text(), 'torch' in sys.modules)\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.splitlines()[-1] == "False False"


def test_the_rounding_of_an_evaluated_dialogue_depends_on_no_other(
    micro_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a continued evaluation has the summaries of one that was not interrupted."""
    if lacking := cpu.missing("int8"):
        pytest.skip(f"this CPU has no {lacking}")
    artifact = compiled(micro_run, tmp_path / "int8", "compile.dtype=int8", "compile.batch_sizes=[1,20]")
    generator, seen, step = load_generator(artifact)[0], list[NDArray[np.float32]](), rolling.RollingSession.step

    def observed(*arguments: Any) -> Candidates:
        found = step(*arguments)
        seen.append(np.array(found.all_logits()))
        return found

    monkeypatch.setattr(rolling.RollingSession, "step", observed)
    settings = GenerateConfig(max_new_tokens=8, min_new_tokens=8)

    def logits(*lengths: int, row: int = 0, independent: bool = True) -> NDArray[np.float32]:
        """The logits of the prompt in a row in each step, next to prompts of the other lengths."""
        batch = generator.roll(settings, independent=independent)
        assert batch is not None
        seen.clear()
        for length in lengths:
            batch.join([list(range(5, 5 + length))], [None])
        while batch.running:
            batch.step()
        return np.stack([rows[row] for rows in seen])

    for independent in (True, False):
        alone, beside = (logits(*lengths, independent=independent) for lengths in ((20,), (20, 25, 40, 9)))
        assert np.array_equal(alone, beside) == independent
    assert np.array_equal(logits(20), logits(25, 40, 9, 20, row=3))


def first_logits_error(artifact: Artifact, model: torch.nn.Module) -> float:
    """The largest error of a first logit compared with fp32, relative to the largest logit."""
    runtime = load_generator(artifact)[0].runtime
    prompt = list(range(5, 45))
    with torch.inference_mode():
        session = runtime.begin(runtime.buckets[0], 1, [prompt], [0])
        start = torch.from_numpy(session.start[:, :1])
        actual = torch.from_numpy(session.step(session.start, np.zeros_like(session.start)).all_logits()[0, 0])
        expected = model(input_ids=torch.tensor([prompt]), decoder_input_ids=start).logits[0, -1]
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("rows", [1, 4, 17])
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("bf16", 0.01), ("int8", 0.02)])
def test_every_projection_multiplies_with_its_weight(dtype: str, tolerance: float, rows: int) -> None:
    """One row, a few and many use different code."""
    if lacking := cpu.missing(dtype):
        pytest.skip(f"this CPU has no {lacking}")
    torch.manual_seed(0)
    parts, state = {"one": 48, "two": 16}, {"one.weight": torch.randn(48, 64), "two.weight": torch.randn(16, 64)}
    options = GraphOptions(dtype=torch.float32 if dtype == "fp32" else torch.bfloat16)
    layer = cpu_target.LINEARS[dtype](parts, 64, options)
    stored = layer.weights(state)
    pack = torch.ops.onednn.qlinear_prepack if dtype == "int8" else torch.ops.mkldnn._reorder_linear_weight
    packed = pack(stored["weight"], None)
    for name, tensor in stored.items():
        setattr(layer, name, torch.nn.Parameter(tensor, requires_grad=False) if name == "weight" else tensor)
    del layer.packed
    object.__setattr__(layer, "packed", packed)
    inputs = torch.randn(1, rows, 64)
    expected = inputs @ torch.cat(list(state.values())).t()
    with torch.inference_mode():
        actual = layer(inputs, torch.zeros(1, dtype=torch.int64))
    assert float((actual - expected).abs().max() / expected.abs().max()) < tolerance


def test_weights_are_stored_once_and_graphs_hold_none(lora_artifact: Artifact) -> None:
    """Two beam widths and an encoder, without a single weight in their packages."""
    with safe_open(lora_artifact.path / "weights.safetensors", framework="pt") as stored:
        names = (
            set(stored.keys()) | lora_artifact.manifest.adapter_stacks.keys() | lora_artifact.manifest.aliases.keys()
        )
    for graph in lora_artifact.manifest.graphs:
        package = torch._inductor.aoti_load_package(str(lora_artifact.path / graph.file))
        asked = {name.removeprefix("model.").replace(".packed", ".weight") for name in package.get_constant_fqns()}
        assert asked <= names
        with pytest.raises(RuntimeError):
            package.load_constants({}, check_full_update=True)


# Building: the cache, the machine, interruption.


def test_the_next_checkpoint_of_the_same_shape_compiles_nothing(
    micro_lora_run: Path, lora_artifact: Artifact, tmp_path: Path
) -> None:
    """Graphs depend on dimensions, not on weights."""
    retrained = tmp_path / "retrained"
    train(load_recipe(str(micro_lora_run / "recipe.yaml"), ["train.seed=7"]), retrained)
    source = open_source(retrained, None, [*SHAPE, *LORA_SHAPE])
    plan = make_plan(source)
    assert plan.missing == []
    again = build(source, plan, tmp_path / "again", overwrite=False, jobs=None)
    assert again.manifest.source.fingerprint != lora_artifact.manifest.source.fingerprint
    assert [check.identical for check in verify(again, None, 8, 1.0).record.checks] == [8] * 4
    wider = open_source(retrained, None, [*SHAPE, *LORA_SHAPE, "compile.adapters.slots=3"])
    assert len(make_plan(wider).missing) == 6
    with pytest.raises(RunError, match="already contains an artifact"):
        build(source, plan, tmp_path / "again", overwrite=False, jobs=None)


def test_a_cpu_without_the_instructions_is_rejected_unless_fallback_is_set(
    micro_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu, "flags", lambda: frozenset({"avx2", "avx512f", "avx512_vnni"}))
    monkeypatch.setattr(cpu, "name", lambda: "a CPU of 2018")
    with pytest.raises(ResourceError, match=r"compile\.dtype = bf16 needs a CPU with avx512_bf16 or amx_bf16"):
        make_plan(open_source(micro_run, None, ["compile.dtype=bf16"]))
    plan = make_plan(open_source(micro_run, None, ["compile.dtype=bf16", "compile.fallback=true"]))
    assert plan.settings.dtype == "fp32"
    assert "compiling fp32 instead of bf16" in capsys.readouterr().err
    assert make_plan(open_source(micro_run, None, ["compile.dtype=int8"])).settings.dtype == "int8"


def test_fp32_runs_where_onednn_has_only_avx2(lora_artifact: Artifact, micro_lora_run: Path) -> None:
    """oneDNN's packed weights are created when the artifact is loaded, for the current CPU."""
    script = (
        "import sys, json; from pathlib import Path; from neuron_sum.artifact import open_artifact;"
        "from neuron_sum.runtimes.load import load_generator; from neuron_sum.recipes.schema import GenerateConfig;"
        "g, _ = load_generator(open_artifact(Path(sys.argv[1])));"
        "print(json.dumps(g.generate(json.loads(sys.argv[2]), GenerateConfig(max_new_tokens=12))))"
    )
    prompts = prompts_of(lora_artifact, micro_lora_run, 3)
    made = subprocess.run(
        [sys.executable, "-c", script, str(lora_artifact.path), json.dumps(prompts)],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = load_generator(lora_artifact)[0].generate(prompts, GenerateConfig(max_new_tokens=12))
    assert json.loads(made.stdout.splitlines()[-1]) == expected


def test_without_a_compiler_the_error_names_the_package(micro_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompileError, match="no-such-compiler is not installed") as error:
        cpu_target.check_host("fp32")
    assert "apt-get install g++" in str(error.value.hint)


def test_a_graph_that_fails_leaves_a_log_and_no_artifact(
    micro_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler itself fails here: it knows only its version."""
    fake = tmp_path / "g++"
    fake.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "fake 1.0" && exit 0\necho "fatal: no headers" >&2; exit 1\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    monkeypatch.setenv("NEURON_SUM_CACHE", str(tmp_path / "cache"))
    cpu_target._known_compiler.cache_clear()
    source = open_source(micro_run, None, SHAPE)
    with pytest.raises(CompileError, match="did not compile") as error:
        build(source, make_plan(source), tmp_path / "artifact", overwrite=False, jobs=1)
    cpu_target._known_compiler.cache_clear()
    log = Path(str(error.value.hint).removeprefix("whole log: "))
    assert "fatal: no headers" in log.read_text()
    assert not (tmp_path / "artifact").exists()
    assert [path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".log"]


@contextmanager
def compiling_second_graph(run: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that runs the C++ compiler for the second graph; the first is compiled if the cache lacks it."""
    command = ("compile", str(run), "--output", "artifact", "--jobs", "1", "--set", "compile.batch_sizes=[1]")
    with subprocess.Popen(
        [sys.executable, "-m", "neuron_sum", *command],
        cwd=folder,
        env={**os.environ, "NEURON_SUM_CACHE": str(folder / "cache"), "TMPDIR": str(folder)},
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            deadline = time.monotonic() + 240
            while not (list((folder / "cache").rglob("*.pt2")) and runs_compiler(process)):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield process
        finally:
            process.kill()


def runs_compiler(process: subprocess.Popen[str]) -> bool:
    with suppress(psutil.NoSuchProcess):  # one that ends meanwhile
        return any(each.name() == "cc1plus" for each in psutil.Process(process.pid).children(recursive=True))
    return False


@pytest.mark.parametrize(
    "signals", [(signal.SIGINT, signal.SIGKILL), pytest.param((signal.SIGTERM,), marks=pytest.mark.thorough)]
)
def test_an_interrupted_compile_leaves_no_partial_files_and_resumes(
    micro_run: Path,
    neuron_sum: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signals: Sequence[signal.Signals],
) -> None:
    """Once per signal; the second time, the first graph is in the cache."""
    for how in signals:
        with compiling_second_graph(micro_run, tmp_path) as process:
            workers = psutil.Process(process.pid).children(recursive=True)
            assert workers
            process.send_signal(how)
            _, err = process.communicate(timeout=60)
        assert process.returncode == (130 if how != signal.SIGKILL else -signal.SIGKILL), err
        psutil.wait_procs(workers, timeout=20)
        assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
        assert not (tmp_path / "artifact").exists()
        assert len(list((tmp_path / "cache").rglob("*.pt2"))) == 1
        if how != signal.SIGKILL:
            assert "repeat the command to continue" in err
            assert not list(tmp_path.glob("neuron-sum-compile-*")), "scratch folders stay behind"
    monkeypatch.setenv("NEURON_SUM_CACHE", str(tmp_path / "cache"))
    planned = neuron_sum("compile", str(micro_run), "--set", "compile.batch_sizes=[1]", "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    assert len(json.loads(planned.stdout)["to_compile"]) == 1, "the finished graph is not made again"


# The command line.


def test_commands_accept_an_artifact_in_place_of_a_checkpoint(
    lora_artifact: Artifact, micro_lora_run: Path, neuron_sum: CommandLine, tmp_path: Path
) -> None:
    artifact, run = str(lora_artifact.path), str(shutil.copytree(micro_lora_run, tmp_path / "run"))
    compared = neuron_sum("compare", f"compiled={artifact}", f"trained={run}", "lead-3", "--json")
    assert compared.returncode == 0, compared.stderr
    scores = {s["system"]: s["scores"]["ROUGE-1"]["value"] for s in json.loads(compared.stdout)["systems"]}
    assert scores["compiled"] == scores["trained"]
    dialogue = "#Person1#: Hi, a table for two on Friday, please.\n#Person2#: At seven?\n"
    said = [json.loads(neuron_sum("summarize", path, "--json", stdin=dialogue).stdout) for path in (artifact, run)]
    assert said[0] == said[1]
    assert neuron_sum("evaluate", artifact, "--set", "prompt.preset=course").returncode == 9
    beams = neuron_sum("evaluate", artifact, "--set", "generate.num_beams=4")
    assert beams.returncode == 9
    assert "compiled for 1, 2" in beams.stderr


def test_compile_prints_its_plan_and_missing_arguments(
    micro_run: Path, neuron_sum: CommandLine, tmp_path: Path
) -> None:
    planned = neuron_sum("compile", str(micro_run), "--dry-run", "--set", "compile.num_beams=[1,4]")
    assert planned.returncode == 0, planned.stderr
    assert "step-b8-s192-t12-k4" in planned.stderr
    assert "6 of 6 graphs to compile" in planned.stderr
    assert not (micro_run / "artifacts").exists()
    nothing = neuron_sum("compile")
    assert nothing.returncode == 2
    assert neuron_sum("compile", "--plan", "sample").returncode == 3
    assert neuron_sum("compile", str(tmp_path)).returncode == 8
    checkpoint = neuron_sum("compile", str(micro_run / "checkpoint"), "--dry-run")
    assert "--recipe NAME" in checkpoint.stderr
    unknown = neuron_sum("compile", str(micro_run), "--dry-run", "--set", "compile.adapters.slot=2")
    assert unknown.returncode == 3
    assert "slots" in unknown.stderr
    shorter = neuron_sum("compile", str(micro_run), "--dry-run", "--output", str(micro_run / "recipe.yaml"))
    assert shorter.returncode == 8
    assert "is a file" in shorter.stderr
    (tmp_path / "run").mkdir()
    assert "neuron-sum compile ./run" in neuron_sum("compile", "run", "--dry-run").stderr
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("x")
    assert neuron_sum("compile", str(micro_run), "--output", "taken").returncode == 8


def test_the_suggested_lengths_come_with_the_options_of_the_source(micro_run: Path) -> None:
    for run, option in ((str(micro_run), ""), (str(micro_run / "checkpoint"), " --recipe tiny")):
        made = in_process("compile", run, *option.split(), "--set", "compile.num_beams=[1]", "--plan", "sample")
        expected = f"next: neuron-sum compile {run}{option} --set 'compile.num_beams=[1]' --set 'compile.source_lens=["
        assert expected in made.stdout, made.output
