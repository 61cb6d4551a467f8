"""Artifacts through optimum-neuron 0.4.5: its exporters and generate(), and neuronx-distributed's ModelBuilder.

Code that imports optimum-neuron runs in processes of the environment .venv-xla (`make test` builds it), with the
folder of tests/support/neuron_packages.py on their path, whose stand-ins replace only closed packages, and
tests/stand_ins/optimum, which replaces the machine. Their files and output are compared here with plain transformers.
"""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny_families
from micro_models import LLAMA_CONFIG, MICRO, ROOT
from neuron_packages import ENVIRONMENT, make_packages
from xla_environment import XLA_PYTHON

from compile.exporters import optimum as exporter
from compile.source import open_source
from neuron_sum.artifact import Artifact, Compilation, Manifest, open_artifact, write_manifest
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import ArtifactError, PlatformError, RecipeError
from neuron_sum.models.base import load_base, load_tokenizer
from neuron_sum.models.chat import render_chat
from neuron_sum.models.configs import make_config
from neuron_sum.models.gguf import folder_of
from neuron_sum.platform.matrix import PLATFORMS
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import GenerateConfig, ServeConfig
from neuron_sum.runs.folder import open_run
from neuron_sum.runs.trained import load_trained
from neuron_sum.runtimes import optimum
from neuron_sum.runtimes.hugging_face import TransformersGenerator
from neuron_sum.runtimes.load import load_generator
from neuron_sum.training.train import train
from serving import package, properties
from serving.local import LocalServer, Model

INSTANCE = "inf2.xlarge"
LIMIT_S = 600

LLAMA_SHAPE = ["compile.batch_sizes=[3]"]
T5_SHAPE = ["compile.neuron.exporter=optimum", "compile.batch_sizes=[1]"]
GREEDY, BEAMS = "compile.neuron.auto_cast=matmult", "compile.num_beams=[4]"

GENERATE = """
import json, sys
from pathlib import Path
from neuron_sum.artifact import open_artifact
from neuron_sum.errors import NeuronSumError
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.load import load_generator
generator, _ = load_generator(open_artifact(Path(sys.argv[1])))
generator.warm_up()
assert not generator.used
results = []
for case in json.loads(sys.argv[2]):
    by = generator.with_batch_size(case["most"]) if "most" in case else generator
    try:
        results.append(by.generate(case["prompts"], GenerateConfig(**case["settings"]), case.get("adapters")))
    except NeuronSumError as error:
        results.append(f"{type(error).__name__}: {error.message}")
print(json.dumps({"results": results, "used": [str(bucket) for bucket in generator.used]}))
"""
"""The tokens of every case, or the error that rejected it."""

OTHER_FAMILIES = """
import contextlib, json, sys
from pathlib import Path
from compile.exporters import optimum, optimum_process
from compile.source import open_source
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.load import load_generator
overrides, prompts, *folders = sys.argv[1:]
results = {}

def export(scratch, log):
    with contextlib.chdir(scratch):
        request = optimum_process.Request(**json.loads(Path("request.json").read_text()))
        arguments = optimum_process._export_causal_lm(request)
        Path("result.json").write_text(json.dumps({"compiler": "0", "arguments": arguments}))
    return 0

optimum._run = export
for folder in map(Path, folders):
    source = open_source(folder, "tiny", json.loads(overrides))
    output = folder.with_name(f"{folder.name}-artifact")
    artifact = optimum.build(source, optimum.make_plan(source), output, overwrite=False)
    generator = load_generator(artifact)[0]
    results[folder.name] = generator.generate(json.loads(prompts), GenerateConfig(max_new_tokens=12))
print(json.dumps(results))
"""
"""Exports a checkpoint of each family, and generates with it; in one process, because starting one takes long."""

TWO_CAUSES = """
import json, sys
from pathlib import Path
import torch
from transformers import GenerationConfig
from transformers.generation.beam_search import BeamSearchScorer
from neuron_sum.artifact import open_artifact
from neuron_sum.runs.folder import open_run
from neuron_sum.runtimes.load import load_generator
from neuron_sum.runs.trained import load_trained
upstream = load_generator(open_artifact(Path(sys.argv[1])))[0].model
model = load_trained(open_run(Path(sys.argv[2])))[0]

def same(early_stopping):
    config = GenerationConfig(
        num_beams=4, length_penalty=2.0, early_stopping=early_stopping, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0,
    )
    count = 0
    for prompt in json.loads(sys.argv[3]):
        inputs = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.int64)}
        rows = [by.generate(**inputs, generation_config=config, max_length=25)[0].tolist() for by in (upstream, model)]
        first, second = (row[: row.index(1)] if 1 in row else row for row in rows)
        count += first == second
    return count

found = {"as it is": same(False), "no early stop": same("never")}
for name in ("process", "finalize"):
    def told(self, *arguments, whole=getattr(BeamSearchScorer, name), **options):
        return whole(self, *arguments, **{**options, "decoder_prompt_len": 1})
    setattr(BeamSearchScorer, name, told)
found["no early stop, without the start token"] = same("never")
print(json.dumps(found))
"""
"""The number of upstream's beams that match transformers, with each difference removed."""

COMMANDS = """
import json, os, sys
from pathlib import Path
import warm_commands
for line in sys.stdin:
    arguments, environment, folder = json.loads(line)
    os.environ.clear()
    os.environ.update(environment)
    made = warm_commands.run(tuple(arguments), Path(folder), None, 600)
    print(json.dumps([made.returncode, made.stdout, made.stderr]), flush=True)
"""
"""Runs commands of neuron-sum in forks of a process of .venv-xla that has imported torch and transformers."""


@dataclass(frozen=True)
class Upstream:
    """Processes that have optimum-neuron, neuronx-distributed and the stand-ins.

    Attributes:
        packages: The folder of the Neuron packages.
        versions: The folder that declares the installed versions of the AWS modules.
        calls: The file to which the stand-ins write their calls.
        commands: A process that runs COMMANDS.
    """

    packages: Path
    versions: Path
    calls: Path
    commands: subprocess.Popen[str]

    def environment(self, instance: str | None, **more: str) -> dict[str, str]:
        path = (ROOT / "tests" / "stand_ins" / "optimum", self.versions, self.packages, ROOT)
        device = {"NEURON_STAND_IN_INSTANCE": instance, "SM_CURRENT_INSTANCE_TYPE": instance} if instance else {}
        return {
            **ENVIRONMENT,
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "NEURON_STAND_IN_CALLS": str(self.calls),
            **device,
            **more,
        }

    def python(self, *arguments: str, instance: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs a script to its end, with any result."""
        return subprocess.run(
            [str(XLA_PYTHON), *arguments],
            env={**os.environ, **self.environment(instance, **more)},
            cwd=self.calls.parent,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def neuron_sum(self, *arguments: str, instance: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        assert self.commands.stdin is not None and self.commands.stdout is not None
        environment = {**os.environ, **self.environment(instance, **more)}
        self.commands.stdin.write(f"{json.dumps([arguments, environment, str(self.calls.parent)])}\n")
        self.commands.stdin.flush()
        return subprocess.CompletedProcess(arguments, *json.loads(self.commands.stdout.readline()))

    def generate(self, artifact: Path, *cases: dict[str, Any], **more: Any) -> dict[str, Any]:
        """The answer of GENERATE."""
        made = self.python("-c", GENERATE, str(artifact), json.dumps(cases), instance=INSTANCE, **more)
        assert made.returncode == 0, made.stderr
        answer: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
        return answer

    def taken(self) -> list[dict[str, Any]]:
        """The calls recorded since the last time."""
        calls = [json.loads(line) for line in self.calls.read_text().splitlines()] if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return calls


def write_versions(folder: Path, **others: str) -> Path:
    """Writes the metadata of installed distributions, with the platform's versions of the AWS modules."""
    for name, version in {**PLATFORMS[0].vendor_pins, **others}.items():
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    folder = tmp_path_factory.mktemp("upstream")
    make_packages(folder / "packages")
    versions, calls = write_versions(folder / "versions"), folder / "calls.jsonl"
    path = (ROOT / "tests" / "stand_ins" / "optimum", versions, folder / "packages", ROOT, ROOT / "tests" / "support")
    with subprocess.Popen(
        [str(XLA_PYTHON), "-c", COMMANDS],
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(map(str, path))},
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as commands:
        yield Upstream(folder / "packages", versions, calls, commands)


@dataclass(frozen=True)
class Exported:
    """An artifact, the environment that compiled it, and the requests to its compiler."""

    artifact: Artifact
    run: Path
    calls: list[dict[str, Any]]

    @property
    def manifest(self) -> Manifest:
        return self.artifact.manifest

    def prompts(self, count: int = 12) -> list[list[int]]:
        """Up to 12 prompts, cut to very different lengths; beyond 12, complete ones."""
        recipe = open_run(self.run).recipe
        splits = load_dataset(recipe.data)
        dialogues = [example.dialogue for split in ("test", "validation") for example in splits[split]][:count]
        if count <= 12:
            dialogues = [dialogue[: 40 + 60 * index] for index, dialogue in enumerate(dialogues)]
        tokenizer = load_trained(open_run(self.run))[1]
        length = self.manifest.buckets[0].source_len
        return [entry.input_ids for entry in recipe.prompt.resolve().encode(tokenizer, dialogues, length)]

    def expected(self, prompts: Sequence[Sequence[int]], settings: GenerateConfig) -> list[list[int]]:
        """The tokens of transformers, with LoRA attached."""
        model, tokenizer = load_trained(open_run(self.run))
        return TransformersGenerator(model, tokenizer, 8).generate(prompts, settings)


def exported(upstream: Upstream, run: Path, folder: Path, overrides: Sequence[str]) -> Exported:
    upstream.taken()
    options = [option for override in overrides for option in ("--set", override)]
    made = upstream.neuron_sum("compile", str(run), "--target", "inf2", "--output", str(folder), *options)
    assert made.returncode == 0, made.stderr
    return Exported(open_artifact(folder), run, upstream.taken())


@pytest.fixture(scope="module")
def llama_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grouped keys and values, and LoRA."""
    folder = tmp_path_factory.mktemp("llama")
    (folder / "micro.yaml").write_text(MICRO)
    overrides = [f"model.config={json.dumps(LLAMA_CONFIG)}", "prompt.preset=tinyllama-chat", "train.max_steps=40"]
    train(load_recipe(str(folder / "micro.yaml"), [*overrides, "method=lora"]), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def llama(upstream: Upstream, llama_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(upstream, llama_run, tmp_path_factory.mktemp("llama-artifact") / "artifact", LLAMA_SHAPE)


@pytest.fixture(scope="module")
def t5(upstream: Upstream, micro_lora_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("t5-artifact") / "artifact"
    return exported(upstream, micro_lora_run, folder, [*T5_SHAPE, GREEDY])


@pytest.fixture(scope="module")
def t5_beams(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """For a model that has learnt to end: among beams of equal length nothing differs."""
    folder = tmp_path_factory.mktemp("t5-beams")
    (folder / "micro.yaml").write_text(MICRO)
    learns = ["train.max_steps=150", "train.learning_rate=0.02", "train.save_steps=500", "generate.max_new_tokens=24"]
    train(load_recipe(str(folder / "micro.yaml"), learns), folder / "run")
    return exported(
        upstream, folder / "run", folder / "artifact", [*T5_SHAPE, BEAMS, "compile.neuron.inline_weights=false"]
    )


# Llama.


@pytest.mark.slow
def test_both_graphs_of_a_llama_are_compiled_like_upstream(llama: Exported) -> None:
    """Batch 3: prompts are processed one by one, tokens three at a time, over one cache of every position."""
    context, token, *compiled = llama.calls
    length = 192 + 12
    cache = [[1 + index, "float32", [3, 2, length, 8]] for index in range(2 * 2)]
    assert context["inputs"] == [["int32", [1, length]], ["int32", [1, length]], ["int32", [1]], ["float32", [1, 3]]]
    assert token["inputs"] == [["int32", [3, 1]], ["int32", [3, 1]], ["int32", [3]], ["float32", [3, 3]]]
    assert context["aliases"] == token["aliases"] == cache
    assert context["tp_degree"] == token["tp_degree"] == 1
    # ModelBuilder compiles the graph first whose layout of the weights the other follows.
    assert [Path(graph["work_dir"]).parent.name for graph in compiled] == ["token_generation", "context_encoding"]
    assert ["layout" in graph for graph in compiled] == [True, False]
    for graph in compiled:
        # The arguments of optimum-neuron 0.4.5; it passes inf2 for trn1, whose cores are the same.
        arguments, _, added = graph["compiler_args"].partition(" --logfile=")
        assert arguments == (
            "--auto-cast=none --model-type=transformer --tensorizer-options='--enable-ccop-compute-overlap "
            "--cc-pipeline-tiling-factor=2 --vectorize-strided-dma ' -O2  --lnc=1 --target trn1"
        )
        assert added.endswith("log-neuron-cc.txt" + " --enable-internal-neff-wrapper" * ("layout" in graph))
        assert llama.manifest.compilation is not None
        assert list(llama.manifest.compilation.arguments) == shlex.split(arguments)


@pytest.mark.slow
def test_the_manifest_describes_the_artifact_and_not_this_machine(llama: Exported, t5: Exported) -> None:
    for made in (llama, t5):
        manifest, compilation = made.manifest, made.manifest.compilation
        assert compilation is not None
        assert (manifest.runtime, manifest.target, compilation.exporter) == ("optimum", "inf2", "optimum")
        assert compilation.compiler == PLATFORMS[0].vendor_pins["neuronx-cc"]
        assert compilation.sdk == PLATFORMS[0].name
        assert manifest.stack.keys() == set(optimum.DISTRIBUTIONS)
        assert (manifest.graphs, manifest.state, manifest.adapters) == ((), None, None)
        assert {"recipe.yaml", "tokenizer/tokenizer.json", "optimum/config.json"} <= manifest.files.keys()
        for file in made.artifact.path.rglob("*.json"):
            if file.name != "manifest.json":
                assert str(made.artifact.path.parent) not in file.read_text(), file
        assert not [path.name for path in made.artifact.path.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_a_llama_generates_the_tokens_of_transformers(upstream: Upstream, llama: Exported) -> None:
    """Alone and in batches of different lengths: as many as the compiled batch, fewer and more."""
    prompts = llama.prompts()
    asked = [GenerateConfig(max_new_tokens=tokens) for tokens in (12, 5)]
    cases = [
        {"prompts": prompts, "settings": asked[0].model_dump()},
        {"prompts": prompts, "settings": asked[0].model_dump(), "most": 1},
        {"prompts": prompts[:2], "settings": asked[0].model_dump(), "most": 2},
        {"prompts": prompts, "settings": asked[1].model_dump()},
    ]
    full, short = (llama.expected(prompts, settings) for settings in asked)
    answer = upstream.generate(llama.artifact.path, *cases)
    assert answer["results"] == [full, full, full[:2], short]
    assert len({len(prompt) for prompt in prompts}) > 3
    assert answer["used"] == ["3x192x12"]


@pytest.mark.slow
def test_real_weights_generate_the_tokens_of_transformers(upstream: Upstream, smollm2: str, tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct, 30 layers, exported and run by upstream's code; the prompts have different lengths."""
    overrides = ["data.source=sample", "data.max_source_length=128", "generate.max_new_tokens=12"]
    recipe = load_recipe("smollm2-lora", overrides)
    tokenizer = load_tokenizer(recipe.model)
    model = load_base(recipe.model, tokenizer)
    options = [word for override in overrides for word in ("--set", override)]
    folder = tmp_path / "artifact"
    made = upstream.neuron_sum(
        *("compile", folder_of(smollm2), "--recipe", "smollm2-lora", *options, "--target", "inf2"),
        *("--set", "compile.batch_sizes=[2]", "--output", str(folder)),
    )
    assert made.returncode == 0, made.stderr
    dialogues = [example.dialogue for example in load_dataset(recipe.data)["test"][:3]]
    prompts = render_chat(recipe, tokenizer).prompt.resolve()
    texts = [dialogue[: 80 * (1 + number)] for number, dialogue in enumerate(dialogues)]
    ids = [prompt.input_ids for prompt in prompts.encode(tokenizer, texts, 128)]
    settings = GenerateConfig(max_new_tokens=12)
    expected = TransformersGenerator(model, tokenizer, 3).generate(ids, settings)
    assert upstream.generate(folder, {"prompts": ids, "settings": settings.model_dump()})["results"] == [expected]
    assert len({len(prompt) for prompt in ids}) > 1


@pytest.mark.slow
@pytest.mark.thorough
def test_a_llama_in_bf16_is_exported_loaded_and_run(upstream: Upstream, llama_run: Path, tmp_path: Path) -> None:
    """The documented command's dtype; a CPU rounds bf16 differently from a device, so not every token is compared."""
    made = exported(upstream, llama_run, tmp_path / "artifact", [*LLAMA_SHAPE, "compile.dtype=bf16"])
    assert (made.manifest.dtype, made.manifest.kv_dtype, made.manifest.is_exact) == ("bf16", "bf16", False)
    traced = [call for call in made.calls if call["call"] == "trace"]
    assert len(traced) == 2
    for graph in traced:
        assert {dtype for _, dtype, _ in graph["aliases"]} == {"bfloat16"}, "keys and values"
    prompts, settings = made.prompts(), GenerateConfig(max_new_tokens=12)
    [rows] = upstream.generate(made.artifact.path, {"prompts": prompts, "settings": settings.model_dump()})["results"]
    pairs = list(zip(rows, made.expected(prompts, settings), strict=True))
    assert sum(row[0] == other[0] for row, other in pairs) > len(pairs) / 2, "first tokens of fp32"


@pytest.mark.slow
def test_requests_beyond_the_compiled_graphs_are_rejected_before_upstream(upstream: Upstream, llama: Exported) -> None:
    prompt, settings = llama.prompts(1)[0], GenerateConfig(max_new_tokens=4)
    refused = [
        ({"prompts": [prompt * 9]}, "the longest bucket takes 192"),
        ({"prompts": [prompt] * 4, "most": 4}, "no bucket of 3x192x12"),
        ({"prompts": [prompt], "settings": {"max_new_tokens": 13}}, "no bucket of 3x192x12"),
        ({"prompts": [prompt], "settings": {"num_beams": 2}}, "compiled for 1"),
        ({"prompts": [prompt], "settings": {"no_repeat_ngram_size": 3}}, "ignores it"),
        ({"prompts": [prompt], "settings": {"min_new_tokens": 3, "max_new_tokens": 4}}, "ignores it"),
        ({"prompts": [prompt], "adapters": ["support"]}, "no adapter slots"),
        ({"prompts": [prompt[:2]]}, "a prompt has 2 tokens"),
    ]
    answer = upstream.generate(
        llama.artifact.path, *({"settings": settings.model_dump(), **case} for case, _ in refused)
    )
    for (case, words), said in zip(refused, answer["results"], strict=True):
        assert isinstance(said, str), case
        assert said.startswith("ArtifactError") and words in said


@pytest.mark.slow
def test_two_cores_are_requested_and_a_failure_leaves_only_its_log(
    upstream: Upstream, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """The stand-in has one core; whether neuronx-distributed's two cores give the same needs a device."""
    upstream.taken()
    checkpoint = tiny_families.saved("smollm2", tmp_path_factory.mktemp("smollm2"), vocab_size=600)
    sizes = ["data.max_source_length=24", "generate.max_new_tokens=12", "generate.num_beams=1"]
    overrides = [*LLAMA_SHAPE, *sizes, "compile.neuron.tensor_parallel_size=2"]
    made = upstream.neuron_sum(
        *("compile", str(checkpoint), "--recipe", "tiny", "--target", "trn1"),
        *("--output", str(tmp_path / "artifact"), *(word for each in overrides for word in ("--set", each))),
        NEURON_SUM_CACHE=str(tmp_path / "cache"),
    )
    assert made.returncode == 10
    assert "the stand-in has one core" in made.stderr
    traced = [call for call in upstream.taken() if call["call"] == "trace"]
    assert [call["tp_degree"] for call in traced] == [2, 2]
    for graph in traced:
        assert {shape[1] for _, _, shape in graph["aliases"]} == {1}, "each core has one of two heads"
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    [log] = (tmp_path / "cache" / "logs").iterdir()
    assert f"whole log: {log}" in made.stderr
    assert "Traceback" in log.read_text()


FAILURES = {
    "[F137] neuronx-cc was forcibly killed - This most commonly occurs due to insufficient system memory.": (
        ("neuronx-cc failed with -9", "compiler-killed: the compiler was killed"), True,
    ),
    "this process is killed": (("ended with -9: killed, nearly always because memory ran out",), True),
    "ERROR: [NCC_EVRF001] Operator sort is not supported": (
        ("neuronx-cc failed with 70", "unsupported-operator: "), False,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "failure",
    [pytest.param(each, marks=[pytest.mark.thorough] if number else []) for number, each in enumerate(FAILURES)],
)
def test_a_failed_compiler_is_explained(upstream: Upstream, llama_run: Path, tmp_path: Path, failure: str) -> None:
    """Usually neuronx-cc, the exporter's child, is killed; its log is in a folder that is deleted."""
    words, is_memory = FAILURES[failure]
    made = upstream.neuron_sum(
        "compile",
        str(llama_run),
        "--target",
        "inf2",
        "--output",
        str(tmp_path / "artifact"),
        "--set",
        LLAMA_SHAPE[0],
        NEURON_SUM_CACHE=str(tmp_path / "cache"),
        NEURON_STAND_IN_FAILS=failure,
    )
    upstream.taken()
    assert made.returncode == 10
    for word in ("optimum-neuron did not export the model: ", *words):
        assert word in made.stderr
    told = ("; this machine has" in made.stderr, exporter.memory_advice() in made.stderr)
    assert told == (is_memory, is_memory), made.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    [log] = (tmp_path / "cache" / "logs").iterdir()
    assert f"whole log: {log}" in made.stderr
    assert failure == "this process is killed" or failure in log.read_text()


@pytest.mark.slow
@pytest.mark.thorough
def test_other_families_generate_the_tokens_of_transformers(upstream: Upstream, tmp_path: Path) -> None:
    """Biases, normalized queries and keys with wide heads, and layers without rotation; tied and untied heads."""
    kinds, vocabulary = ("qwen2", "qwen3", "smollm3"), {"vocab_size": 300}
    folders = [tiny_families.saved(kind, tmp_path / kind, **vocabulary) for kind in kinds]
    sizes = ["data.max_source_length=24", "generate.max_new_tokens=12", "generate.num_beams=1"]
    overrides = json.dumps(["compile.target=inf2", *LLAMA_SHAPE, *sizes])
    prompts, settings = tiny_families.prompts(), GenerateConfig(max_new_tokens=12)
    made = upstream.python("-c", OTHER_FAMILIES, overrides, json.dumps(prompts), *map(str, folders), instance=INSTANCE)
    assert made.returncode == 0, made.stderr
    upstream.taken()
    for kind, rows in json.loads(made.stdout.splitlines()[-1]).items():
        model, tokenizer = tiny_families.made(kind, **vocabulary), tiny_families.tokenizer()
        assert rows == TransformersGenerator(model, tokenizer, 3).generate(prompts, settings), kind


# The machine and versions that an artifact requires.


def changed(exported: Exported, folder: Path, **update: Any) -> Path:
    """A copy with another manifest."""
    shutil.copytree(exported.artifact.path, folder)
    write_manifest(folder, exported.manifest.model_copy(update=update))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("instance", "cores", "visible", "code", "words"),
    [
        (INSTANCE, 2, "0", 9, ["compilation.tensor_parallel_size: compiled for 2 NeuronCores", "VISIBLE_CORES=0-1"]),
        (INSTANCE, 2, "0,2", 9, ["compiled for 2 NeuronCores, but this process has no consecutive ones", "=0-1"]),
        ("trn2.3xlarge", 1, "0", 9, ["target: compiled for inf2, this machine is trn2.3xlarge", "run it on inf2"]),
        ("trn1.2xlarge", 1, "0", 9, ["target: compiled for inf2, this machine is trn1.2xlarge", "--target trn1"]),
        (None, 1, "0", 13, ["no Neuron device"]),
    ],
)
def test_another_machine_is_rejected_with_the_field(
    upstream: Upstream,
    llama: Exported,
    tmp_path: Path,
    instance: str | None,
    cores: int,
    visible: str,
    code: int,
    words: list[str],
) -> None:
    assert llama.manifest.compilation is not None
    compilation = llama.manifest.compilation.model_copy(update={"tensor_parallel_size": cores})
    folder = changed(llama, tmp_path / "artifact", compilation=compilation)
    made = upstream.neuron_sum("compile", "verify", str(folder), instance=instance, NEURON_RT_VISIBLE_CORES=visible)
    assert made.returncode == code, made.stderr
    for word in words:
        assert word in made.stderr


@pytest.mark.slow
def test_upstream_counts_the_cores_of_a_range_and_not_of_a_list(upstream: Upstream) -> None:
    """The reason why a process claims two cores as 0-1, also if its user set 0,1."""
    code = "from optimum.neuron.utils.system import get_available_cores; print(get_available_cores())"
    for visible, count in (("0-1", "2"), ("0,1", "1")):
        made = upstream.python("-c", code, instance=INSTANCE, NEURON_RT_VISIBLE_CORES=visible)
        assert made.stdout.split()[-1] == count, made.stderr


@pytest.mark.slow
def test_another_sdk_is_rejected_with_the_field(upstream: Upstream, llama: Exported, tmp_path: Path) -> None:
    other = replace(upstream, versions=write_versions(tmp_path, **{"torch-neuronx": "2.9.0.1"}))
    made = other.python("-m", "neuron_sum", "compile", "verify", str(llama.artifact.path), instance=INSTANCE)
    assert made.returncode == 9
    assert f"stack.torch-neuronx: compiled with {PLATFORMS[0].vendor_pins['torch-neuronx']}" in made.stderr
    assert "installed is 2.9.0.1" in made.stderr


@pytest.mark.slow
def test_without_the_sdk_one_error_lists_the_packages(llama: Exported) -> None:
    """This process has neither optimum-neuron nor the stand-ins."""
    with pytest.raises(
        PlatformError, match="are not installed: optimum-neuron, torch-neuronx, neuronx-distributed"
    ) as error:
        load_generator(llama.artifact)
    assert f"torch-neuronx=={PLATFORMS[0].vendor_pins['torch-neuronx']}" in str(error.value.hint)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimum/model.pt", "optimum/neuron_config.json"])
def test_a_changed_file_is_rejected_by_name(llama: Exported, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(llama.artifact.path, tmp_path / "artifact"))
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"files.{name}"):
        open_artifact(folder)


# T5.


@pytest.mark.slow
def test_both_graphs_of_a_t5_are_compiled_like_upstream(t5: Exported, t5_beams: Exported) -> None:
    """On a host without a device; the state of every layer is a parameter of the decoder, aliased to an output."""
    for made, beams, cast, inline in ((t5, 1, "matmult --auto-cast-type bf16", True), (t5_beams, 4, "none", False)):
        encoder, decoder = made.calls
        arguments = f"--auto-cast {cast} --optlevel 2 --target inf2 --model-type transformer"
        tokens = ["int64", [beams, 192]]
        state = [["float32", [beams, 2, 191, 8]]] * 2 + [["float32", [beams, 2, 192, 8]]] * 2
        assert encoder["inputs"] == [["int64", [1, 192]]] * 2
        assert decoder["inputs"] == [
            ["int64", [beams, 1]],
            tokens,
            ["float32", [beams, 192, 32]],
            tokens,
            ["int64", [beams]],
            ["float32", [beams]],
        ]
        first = 1 if beams == 1 else 3
        assert decoder["aliases"] == [[first + index, *kind] for index, kind in enumerate(state)]
        for graph in (encoder, decoder):
            assert (graph["compiler_args"], graph["cpu_backend"], graph["inline_weights"]) == (arguments, True, inline)
            assert made.manifest.compilation is not None
            assert list(made.manifest.compilation.arguments) == arguments.split()
            assert made.manifest.compilation.inline_weights is inline


@pytest.mark.slow
def test_a_t5_generates_the_tokens_of_transformers_for_one_prompt_at_a_time(upstream: Upstream, t5: Exported) -> None:
    prompts, settings = t5.prompts(), GenerateConfig(max_new_tokens=12)
    shorter = GenerateConfig(max_new_tokens=3)
    upstream.taken()
    answer = upstream.generate(
        t5.artifact.path,
        {"prompts": prompts, "settings": settings.model_dump()},
        {"prompts": prompts, "settings": shorter.model_dump()},
        {"prompts": prompts[:1], "settings": {"no_repeat_ngram_size": 2}},
    )
    assert answer["results"][:2] == [t5.expected(prompts, settings), t5.expected(prompts, shorter)]
    assert "ignores it" in answer["results"][2]
    started = [call for call in upstream.taken() if call["call"] == "initialize"]
    assert [call["visible"] for call in started] == ["0"], "one core, and the others are free"


@pytest.mark.slow
@pytest.mark.thorough
def test_beams_of_a_t5_differ_in_scoring_and_stopping(upstream: Upstream, t5_beams: Exported) -> None:
    """Without a length penalty they match transformers; with one, two differences of upstream change some of them."""
    prompts = t5_beams.prompts(24)
    none, high = (GenerateConfig(max_new_tokens=24, num_beams=4, length_penalty=penalty) for penalty in (0.0, 2.0))
    answer = upstream.generate(
        t5_beams.artifact.path, *({"prompts": prompts, "settings": settings.model_dump()} for settings in (none, high))
    )
    assert answer["results"][0] == t5_beams.expected(prompts, none)
    assert answer["results"][1] != t5_beams.expected(prompts, high)
    made = upstream.python(
        "-c", TWO_CAUSES, str(t5_beams.artifact.path), str(t5_beams.run), json.dumps(prompts), instance=INSTANCE
    )
    assert made.returncode == 0, made.stderr
    same = json.loads(made.stdout.splitlines()[-1])
    assert same["as it is"] < same["no early stop"] < same["no early stop, without the start token"] == len(prompts)


# Rejections before anything is compiled.


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ["compile.batch_sizes = [1, 8]: an export has one batch size", "compile.batch_sizes=[8]"]),
        (["compile.source_lens=[96,192]"], ["an export has one length"]),
        (["compile.num_beams=[4]"], ["beams: 4; upstream's llama has only greedy search"]),
        (["generate.num_beams=2"], ["beams: 2; upstream's llama has only greedy search"]),
        (["generate.no_repeat_ngram_size=3", "generate.min_new_tokens=2"],
         ["generate.no_repeat_ngram_size = 3", "generate.min_new_tokens = 2", "ignores it"]),
        (["compile.adapters.slots=2"], ["compile.adapters: its graphs have no adapter slots; LoRA is merged"]),
        (["compile.kv_dtype=bf16"], ["keys and values have the weights' dtype"]),
        (["compile.neuron.auto_cast=all"], ["--auto-cast=none -O2", "compile.dtype=bf16"]),
        (["compile.neuron.optlevel=1"], ["--auto-cast=none -O2"]),
        (["compile.neuron.tensor_parallel_size=2"], ["a vocabulary of 400", "at least 256 on each of 2 cores"]),
        (["compile.neuron.inline_weights=true"], ["stores its weights separately"]),
        (["compile.neuron.cache_write=where"], ["compile.neuron.cache_write"]),
    ],
)  # fmt: skip
def test_unsupported_llama_settings_are_reported_at_once(
    llama_run: Path, overrides: list[str], words: list[str]
) -> None:
    source = open_source(llama_run, None, ["compile.target=inf2", *overrides])
    assert exporter.is_chosen(source)
    with pytest.raises(RecipeError) as error:
        exporter.make_plan(source)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["compile.batch_sizes=[8]"], ["correct for one prompt at a time", "compile.neuron.exporter=own"]),
        (["compile.dtype=bf16"], ["does not export with other weights", "compile.neuron.auto_cast=matmult"]),
        (["compile.neuron.tensor_parallel_size=2"], ["only decoder-only models support it"]),
        (["compile.neuron.auto_cast=all"], ["not tested for T5"]),
        (["compile.num_beams=[1,4]"], ["an export has one beam width"]),
        (["generate.no_repeat_ngram_size=3"], ["ignores it"]),
    ],
)
def test_unsupported_t5_settings_are_reported_at_once(micro_run: Path, overrides: list[str], words: list[str]) -> None:
    source = open_source(micro_run, None, ["compile.target=inf2", *T5_SHAPE, *overrides])
    with pytest.raises(RecipeError) as error:
        exporter.make_plan(source)
    for word in words:
        assert word in str(error.value)


def test_a_llama_with_different_attention_upstream_is_rejected(llama_run: Path) -> None:
    source = open_source(llama_run, None, ["compile.target=inf2", *LLAMA_SHAPE])
    config = source.config()
    for update, words in (
        ({"attention_bias": True}, "omits the biases"),
        ({"head_dim": 16}, "head_dim = 16"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling dynamic"),
        ({"vocab_size": 200}, "a vocabulary of 200"),
    ):
        other = type(config).from_dict({**config.to_dict(), **update})
        assert any(words in fault for fault in exporter._causal_lm(other, source)), words


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("mistral", {}, "model_type mistral: optimum-neuron 0.4.5 does not export this family"),
        ("mistral", {}, "or a model of t5, llama, qwen2, qwen3, smollm3"),
        ("qwen2", {"head_dim": 16}, "head_dim = 16"),
        ("qwen3", {"attention_bias": True}, "upstream's qwen3 omits the biases"),
        ("smollm3", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "upstream's smollm3 has none"),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 80}, "upstream's smollm3 has no sliding window"),
        ("qwen2", {}, None),
        ("qwen3", {}, None),
        ("smollm3", {}, None),
    ],
)
def test_what_upstream_lacks_for_a_family_is_rejected(
    llama_run: Path, kind: str, changes: dict[str, Any], words: str | None
) -> None:
    source = open_source(llama_run, None, ["compile.target=inf2", *LLAMA_SHAPE])
    config = make_config(tiny_families.values_of(kind, vocab_size=300, **changes), "config.json")
    faults = list(exporter._causal_lm(config, source))
    assert not faults if words is None else any(words in fault for fault in faults), faults


def test_the_exporter_is_chosen_by_target_family_and_recipe(micro_run: Path, llama_run: Path) -> None:
    def chosen(run: Path, *overrides: str) -> bool:
        return exporter.is_chosen(open_source(run, None, overrides))

    assert not chosen(llama_run)
    assert chosen(llama_run, "compile.target=trn1")
    assert not chosen(micro_run, "compile.target=inf2")
    assert chosen(micro_run, "compile.target=inf2", "compile.neuron.exporter=optimum")


def test_without_the_sdk_compile_prints_the_install_command(
    llama_run: Path, neuron_sum: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    made = neuron_sum("compile", str(llama_run), "--target", "inf2", "--set", LLAMA_SHAPE[0])
    assert made.returncode == 13
    assert "are not installed: optimum-neuron, torch-neuronx, neuronx-distributed" in made.stderr
    assert not (llama_run / "artifacts").exists()
    planned = neuron_sum("compile", str(llama_run), "--target", "inf2", "--set", LLAMA_SHAPE[0], "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    assert "--jobs" not in planned.stderr
    assert json.loads(planned.stdout)["sequence_length"] == 192 + 12
    at_once = neuron_sum(
        "compile", str(llama_run), "--target", "inf2", "--set", LLAMA_SHAPE[0], "--dry-run", "--jobs", "2"
    )
    assert at_once.returncode == 0 and "--jobs 2 is ignored" in at_once.stderr


# Like any artifact: verify, package, the handler and the real DJL Serving.


@pytest.mark.slow
def test_verify_and_summarize_accept_the_artifact(
    upstream: Upstream, llama: Exported, llama_run: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(llama.artifact.path, tmp_path / "artifact"))
    made = upstream.neuron_sum("compile", "verify", str(folder), instance=INSTANCE)
    assert made.returncode == 0, made.stderr
    verified = open_artifact(folder).manifest.verified
    assert verified is not None and verified.passed
    assert [(check.batch, check.num_beams, check.identical) for check in verified.checks] == [(3, 1, 32)]
    assert verified.unseen == ()
    for noise in optimum.NOISY_MESSAGES:
        assert noise not in made.stderr


@pytest.mark.slow
def test_a_report_measures_whole_batches(upstream: Upstream, llama: Exported, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama.artifact.path, tmp_path / "artifact"))
    made = upstream.neuron_sum(
        "compile",
        "report",
        str(folder),
        "--output",
        str(tmp_path / "report.json"),
        "--examples",
        "1",
        instance=INSTANCE,
    )
    assert made.returncode == 0, made.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    loaded, timed = report["latency"]["result"]
    assert loaded["load_and_warm_up_s"] > 0 < timed["generate_ms"]
    assert (timed["bucket"], timed["num_beams"]) == ("3x192x12", 1)
    assert 1 <= timed["new_tokens"] <= 12
    assert report["verify"]["error"] is None


@pytest.mark.slow
def test_a_real_djl_serving_answers_with_the_summaries_of_transformers(
    upstream: Upstream, llama: Exported, djl_serving: Path, tmp_path: Path
) -> None:
    """The worker's Python is that of .venv-xla; package, handler and server are as for any artifact."""
    limits = ServeConfig()
    archive, folder = tmp_path / "model.tar.gz", tmp_path / "model"
    package.write_archive(llama.artifact, limits, archive)
    folder.mkdir()
    package.unpack(archive, folder)
    assert (folder / properties.ARTIFACT / "optimum" / "model.pt").is_file()
    environment = upstream.environment(INSTANCE, PYTHON_EXECUTABLE=str(XLA_PYTHON))
    dialogues = [example.dialogue for example in load_dataset(llama.artifact.recipe.data)["test"]][:7]
    tokenizer = load_trained(open_run(llama.run))[1]
    encoded = llama.artifact.recipe.prompt.resolve().encode(tokenizer, dialogues, 192)
    expected = llama.expected([entry.input_ids for entry in encoded], GenerateConfig(max_new_tokens=12))
    with LocalServer([Model("model", folder)], limits, environment=environment) as server:

        def ask(body: dict[str, Any]) -> httpx.Response:
            return httpx.post(f"{server.url}/invocations", json=body, timeout=60)

        answer = ask({"inputs": dialogues})
        assert answer.status_code == 200, answer.text
        assert [summary["summary_text"] for summary in answer.json()] == [
            tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in expected
        ]
        assert [summary["output_tokens"] for summary in answer.json()] == [len(tokens) for tokens in expected]
        for parameter in ({"num_beams": 2}, {"no_repeat_ngram_size": 3}, {"max_new_tokens": 13}):
            [name] = parameter
            refused = ask({"inputs": "a", "parameters": parameter})
            assert (refused.status_code, refused.json()["error"]["field"]) == (422, f"parameters.{name}")
        assert ask({"inputs": "a", "parameters": {"adapter": "x"}}).status_code == 404


@pytest.mark.parametrize(
    ("arguments", "exact"),
    [
        (("--auto-cast", "none"), True),
        (("--auto-cast=none", "-O2"), True),
        (("--auto-cast", "matmult", "--auto-cast-type", "bf16"), False),
        (("--optlevel", "2"), False),
    ],
)
def test_artifacts_with_cast_products_may_differ_from_fp32_tokens(arguments: tuple[str, ...], exact: bool) -> None:
    """auto_cast=matmult is verified by ROUGE, as bf16 is."""
    compilation = Compilation.model_construct(arguments=arguments)
    assert Manifest.model_construct(dtype="fp32", compilation=compilation).is_exact is exact
    assert not Manifest.model_construct(dtype="bf16", compilation=compilation).is_exact
