"""The archive for Hugging Face's vLLM image: its files, its prompt, and settings that the code of upstream reads."""

import json
import os
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from in_process import neuron_sum
from micro_models import LLAMA_CONFIG, MICRO_LLAMA, ROOT
from xla_environment import XLA_ENVIRONMENT, XLA_PYTHON

from neuron_sum import __version__, files
from neuron_sum.artifact import (
    RECIPE,
    TOKENIZER,
    Bucket,
    Compilation,
    Manifest,
    PromptRecord,
    SourceRecord,
    SpecialTokens,
    hash_files,
    write_manifest,
)
from neuron_sum.errors import ModelError
from neuron_sum.models.base import load_config, load_tokenizer
from neuron_sum.platform import optimum_limits
from neuron_sum.platform.containers import CONTAINERS, VLLM
from neuron_sum.platform.matrix import PLATFORMS
from neuron_sum.prompts import PRESETS, Prompt
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import ModelConfig
from neuron_sum.runs.folder import open_run
from sagemaker_jobs.endpoint.sources import inspect
from serving.chat_template import SAMPLE, chat_template

UPSTREAM = os.environ.get("NEURON_SUM_VLLM")
"""A folder with the packages of vllm==0.11.0 and of its dependencies that .venv-xla lacks."""


def trained_llama(folder: Path, *overrides: str) -> Path:
    from neuron_sum.training.train import train

    (folder / "r.yaml").write_text(MICRO_LLAMA.replace("config: null", f"config: {json.dumps(LLAMA_CONFIG)}"))
    settings = ["train.max_steps=2", "train.learning_rate=0.05", "train.warmup_ratio=0"]
    train(load_recipe(str(folder / "r.yaml"), [*overrides, *settings]), folder / "run")
    return folder / "run"


@pytest.fixture(autouse=True)
def small_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer of the tests has 400 tokens; on each of two cores, upstream's sampler needs 256."""
    monkeypatch.setattr(optimum_limits, "SMALLEST_VOCABULARY", 150)


@pytest.fixture(scope="module")
def llama_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_llama(tmp_path_factory.mktemp("llama"))


def packed(path: Path, folder: Path, *words: str) -> dict[str, Any]:
    """The output of the command, whose archive is unpacked into the folder."""
    target = folder.with_suffix(".tar.gz")
    made = neuron_sum("package", str(path), "--container", VLLM, "--output", str(target), "--json", *words)
    assert made.exit_code == 0, made.stderr
    with tarfile.open(target) as archive:
        archive.extractall(folder, filter="data")
    found: dict[str, Any] = json.loads(made.stdout)
    record = json.loads((folder / "container.json").read_text())
    assert record == {"container": VLLM, "environment": found["environment"]}
    assert inspect(target, str(target)) == (VLLM, found["environment"], record)
    return found


def rejected(code: int, *words: str) -> str:
    done = neuron_sum("package", *words)
    assert done.exit_code == code, done.stderr or done.stdout
    return " ".join(done.stderr.splitlines()[-6:])


def test_a_checkpoint_is_packed_with_its_environment(llama_run: Path, tmp_path: Path) -> None:
    found = packed(llama_run, tmp_path / "a")
    recipe = open_run(llama_run).recipe
    image = CONTAINERS[VLLM]
    assert found["image"] == f"{image.repository}:{image.tag}" and not found["precompiled"]
    length = recipe.data.max_source_length + recipe.generate.max_new_tokens
    assert found["environment"] == {
        "SM_ON_MODEL": "/opt/ml/model",
        "SM_ON_SERVED_MODEL_NAME": recipe.name,
        "SM_ON_BATCH_SIZE": "8",
        "SM_ON_SEQUENCE_LENGTH": str(length),
        "SM_ON_TENSOR_PARALLEL_SIZE": "2",
        "SM_ON_MAX_NUM_BATCHED_TOKENS": "2048",
        "VLLM_NO_USAGE_STATS": "1",
        "SM_ON_ALLOW_NON_CACHED_MODEL": "",
    }
    folder = tmp_path / "a"
    assert (folder / "model.safetensors").read_bytes() == (llama_run / "checkpoint" / "model.safetensors").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    generation = json.loads((folder / "generation_config.json").read_text())
    assert (generation["max_new_tokens"], generation["temperature"]) == (recipe.generate.max_new_tokens, 0)
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(folder)))
    assert generation["eos_token_id"] == [tokenizer.eos_token_id]
    text = tokenizer.apply_chat_template([{"role": "user", "content": SAMPLE}], tokenize=False)
    [expected] = recipe.prompt.resolve().encode(tokenizer, [SAMPLE], 1000)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected.input_ids
    assert packed(llama_run, tmp_path / "b")["sha256"] == found["sha256"]
    changed = packed(llama_run, tmp_path / "c", "-s", "compile.batch_sizes=[4]", "-s", "generate.max_new_tokens=9")
    assert changed["environment"]["SM_ON_BATCH_SIZE"] == "4"
    assert changed["environment"]["SM_ON_SEQUENCE_LENGTH"] == str(recipe.data.max_source_length + 9)


def test_an_adapter_is_merged_first(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    run = trained_llama(tmp_path, "method=lora")
    packed(run, tmp_path / "packed")
    assert neuron_sum("merge", str(run)).exit_code == 0
    one, other = (load_file(path / "model.safetensors") for path in (tmp_path / "packed", run / "merged"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert not list((tmp_path / "packed").glob("adapter*"))


@pytest.mark.parametrize("run", ["micro_run", "micro_lora_run"])
def test_a_t5_is_rejected_in_one_sentence(request: pytest.FixtureRequest, run: str) -> None:
    error = rejected(5, str(request.getfixturevalue(run)), "--container", VLLM)
    assert "is a t5 model; hf-vllm serves only llama, qwen2, qwen3, smollm3" in error
    assert "neuron-sum compile RUN" in error


def test_settings_that_upstream_lacks_are_rejected(llama_run: Path, tmp_path: Path) -> None:
    words = (str(llama_run), "--container", VLLM, "--output", str(tmp_path / "a.tar.gz"), "-s")
    for setting, name in (
        ("generate.num_beams=4", "generate.num_beams = 4"),
        ("generate.no_repeat_ngram_size=3", "generate.no_repeat_ngram_size = 3"),
        ("generate.min_new_tokens=2", "generate.min_new_tokens = 2"),
        ("compile.source_lens=[4000]", "4,012"),
        ("compile.dtype=fp32", "--set compile.dtype=fp32: hf-vllm does not use it"),
        ("serve.max_items=1", "hf-vllm does not use it"),
        ("train.seed=1", "hf-vllm does not use it"),
    ):
        assert name in rejected(3, *words, setting)
    assert "does not read signatures" in rejected(9, *words[:5], "--sign", "k.pem")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change", [{"model_type": "mistral"}, {"attention_bias": True}, {"head_dim": 32}, {"vocab_size": 200}], ids=str
)
def test_models_that_upstream_computes_differently_are_rejected(
    llama_run: Path, tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving import vllm_container

    config = load_config(ModelConfig(name_or_path=str(llama_run / "checkpoint")))
    for name, value in change.items():
        monkeypatch.setattr(type(config), name, value) if name == "model_type" else setattr(config, name, value)
    monkeypatch.setattr(vllm_container.models, "load_config", lambda _: config)
    with pytest.raises(Exception, match="serves only llama|" + next(iter(change))[:10].replace("_size", "")) as caught:
        vllm_container.write_archive(open_run(llama_run), tmp_path / "a.tar.gz")
    assert type(caught.value).__name__ in ("ModelError", "RecipeError")


TEMPLATES = {
    **{name: template for name, template in PRESETS.items() if "{claim}" not in template},
    "quotes": 'It\'s "{dialogue}"\\n{{ x }} {% raw %} é 🙂\r\n',
    "chat": "<s>[user] {dialogue} [/user]",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_chat_template_has_the_tokens_of_the_prompt(llama_run: Path, name: str) -> None:
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(llama_run / "checkpoint")))
    prompt = Prompt(TEMPLATES[name], is_chat=name == "chat")
    tokenizer.chat_template = chat_template(prompt, tokenizer)
    for dialogue in (SAMPLE, "", " ", "</s><s>x</s>", "{{ 7 }}", "\n\n"):
        text = tokenizer.apply_chat_template([{"role": "user", "content": dialogue}], tokenize=False)
        [expected] = prompt.encode(tokenizer, [dialogue], 1000)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected.input_ids
    for messages in ([{"role": "system", "content": "a"}], [{"role": "user", "content": "a"}] * 2):
        with pytest.raises(Exception, match="send one message with the role user"):
            tokenizer.apply_chat_template(messages, tokenize=False)


def test_a_prompt_that_a_template_cannot_keep_is_rejected(llama_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(llama_run / "checkpoint")))
    monkeypatch.setattr("serving.chat_template._added", lambda _: ("<s><s>", ""))
    with pytest.raises(ModelError, match="reads the prompt in a chat template differently"):
        chat_template(Prompt(PRESETS["course"]), tokenizer)


def exported(run: Path, folder: Path, sdk: str | None = PLATFORMS[0].name, **changes: Any) -> Path:
    """An artifact in the form of optimum-neuron's exporter, without real graphs."""
    opened = open_run(run)
    recipe, tokenizer = opened.recipe, load_tokenizer(ModelConfig(name_or_path=str(run / "checkpoint")))
    (folder / "optimum" / "checkpoint" / "weights").mkdir(parents=True)
    config = load_config(ModelConfig(name_or_path=str(run / "checkpoint")))
    config.dtype = "bfloat16"
    for place in ("optimum", TOKENIZER):
        config.save_pretrained(folder / place)
    tokenizer.save_pretrained(folder / TOKENIZER)
    (folder / "optimum" / "model.pt").write_bytes(b"graphs")
    for rank in range(2):
        (folder / f"optimum/checkpoint/weights/tp{rank}_sharded_checkpoint.safetensors").write_bytes(b"weights")
    neuron = {
        "_serialized_key": "NxDNeuronConfig",
        "batch_size": 4,
        "sequence_length": 204,
        "tp_degree": 2,
        "torch_dtype": "bfloat16",
        "target": "trn1",
        "continuous_batching": True,
        "fused_qkv": True,
        "on_device_sampling": True,
        "optimum_neuron_version": PLATFORMS[0].optimum_neuron,
        "neuronxcc_version": PLATFORMS[0].vendor_pins["neuronx-cc"],
    }
    files.write_json(folder / "optimum" / "neuron_config.json", neuron)
    files.write_text(folder / RECIPE, recipe.to_yaml())
    compilation = Compilation(
        compiler="2.21.33363.0",
        arguments=(),
        exporter="optimum",
        cache_write=None,
        inline_weights=False,
        tensor_parallel_size=2,
        sdk=sdk,
    )
    values: dict[str, Any] = {
        "neuron_sum": __version__,
        "model_type": "llama",
        "runtime": "optimum",
        "target": "inf2",
        "dtype": "bf16",
        "kv_dtype": "bf16",
        "stack": {},
        "compilation": compilation,
        "prompt": PromptRecord.of(recipe.prompt.resolve()),
        "tokens": SpecialTokens(pad=0, ends=(1,), decoder_start=None),
        "buckets": (Bucket(batch=4, source_len=192, target_len=12),),
        "num_beams": (1,),
        "state": None,
        "graphs": (),
        "aliases": {},
        "adapters": None,
        "adapter_targets": {},
        "adapter_stacks": {},
        "default_adapter": None,
        "source": SourceRecord(path="run", fingerprint={}),
        "files": hash_files(folder),
    }
    write_manifest(folder, Manifest(**{**values, **changes}))
    return folder


def test_an_export_is_packed_with_its_graphs(llama_run: Path, tmp_path: Path) -> None:
    found = packed(exported(llama_run, tmp_path / "artifact"), tmp_path / "a")
    environment = found["environment"]
    assert found["precompiled"] and environment["HF_HUB_OFFLINE"] == "1"
    assert "SM_ON_ALLOW_NON_CACHED_MODEL" not in environment
    neuron = json.loads((tmp_path / "a" / "neuron_config.json").read_text())
    for name, key in (
        ("BATCH_SIZE", "batch_size"),
        ("SEQUENCE_LENGTH", "sequence_length"),
        ("TENSOR_PARALLEL_SIZE", "tp_degree"),
    ):
        assert environment[f"SM_ON_{name}"] == str(neuron[key])
    names = {str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert {
        "model.pt",
        "config.json",
        "checkpoint/weights/tp1_sharded_checkpoint.safetensors",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
    } < names


def test_other_artifacts_are_rejected(llama_run: Path, tmp_path: Path) -> None:
    t5 = {"model_type": "t5", "tokens": SpecialTokens(pad=0, ends=(1,), decoder_start=0)}
    error = rejected(9, str(exported(llama_run, tmp_path / "t5", **t5)), "--container", VLLM)
    assert "is a t5 model compiled for inf2; hf-vllm serves only llama, qwen2, qwen3, smollm3, exported by" in error
    folder = exported(llama_run, tmp_path / "artifact")
    assert "already compiled" in rejected(3, str(folder), "--container", VLLM, "-s", "generate.max_new_tokens=9")
    folder = exported(llama_run, tmp_path / "other", sdk=None)
    assert "compiled with other versions" in rejected(9, str(folder), "--container", VLLM)


SERVE = """
import json, os, sys
import vllm.entrypoints.openai.api_server as server
import optimum.commands.neuron.serve as serve
from optimum.commands.optimum_cli import main
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.chat_utils import apply_hf_chat_template
from vllm.platforms import current_platform
from vllm.transformers_utils.tokenizer import get_tokenizer

async def run_server(args):
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
    model, tokenizer = config.model_config, get_tokenizer(args.model)
    text = apply_hf_chat_template(tokenizer, [{"role": "user", "content": DIALOGUE}], None, None,
                                  model_config=model, tokenize=False, add_generation_prompt=True)
    print("RESULT", json.dumps({
        "platform": type(current_platform).__name__, "port": args.port, "served": model.served_model_name,
        "dtype": str(model.dtype), "length": model.max_model_len, "batch": config.scheduler_config.max_num_seqs,
        "tokens": config.scheduler_config.max_num_batched_tokens, "cores": config.parallel_config.tensor_parallel_size,
        "block": config.cache_config.block_size, "prefix": config.cache_config.enable_prefix_caching,
        "extra": config.load_config.model_loader_extra_config, "defaults": model.get_diff_sampling_param(),
        "prompt": tokenizer(text, add_special_tokens=False)["input_ids"]}), flush=True)

serve.run_server = run_server
serve.select_hub_cached_entries = lambda *args, **options: []
DIALOGUE, words = sys.argv[1], json.loads(sys.argv[2])
sys.argv[1:] = ["neuron", "serve", *words]
main()
"""


def options(environment: dict[str, str], folder: Path) -> Sequence[str]:
    """The command line of the image's entrypoint: an option for each variable, with its value unless that is empty."""
    words = ["--port", "8080"]
    for name, value in {**environment, "SM_ON_MODEL": str(folder)}.items():
        if name.startswith("SM_ON_"):
            words += [f"--{name.removeprefix('SM_ON_').lower()}", *([value] if value else [])]
    return words


PARSE = """
import json, sys
from argparse import ArgumentParser
from optimum.commands.neuron.serve import ServeCommand

parser = ArgumentParser()
ServeCommand.parse_args(parser)
known, others = parser._original_parse_known_args(sys.argv[1:])
print("RESULT", json.dumps([vars(known), others]))
"""


@pytest.mark.slow
def test_the_options_are_those_of_the_plugin(llama_run: Path, tmp_path: Path) -> None:
    """The parser of optimum-neuron's `neuron serve`, which passes options that it does not know to vLLM."""
    if not XLA_PYTHON.exists():
        pytest.skip("no optimum-neuron: run `make .venv-xla/.installed`")
    environment = packed(llama_run, tmp_path / "run")["environment"]
    made = subprocess.run(
        [XLA_PYTHON, "-c", PARSE, *options(environment, Path("/model"))],
        env={**os.environ, **XLA_ENVIRONMENT, "PYTHONPATH": str(ROOT / "tests" / "stand_ins" / "optimum")},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    known, others = json.loads(made.stdout.split("RESULT ")[1].splitlines()[0])
    assert known == {
        "model": "/model",
        "served_model_name": open_run(llama_run).recipe.name,
        "task": "generate",
        "tensor_parallel_size": 2,
        "batch_size": 8,
        "sequence_length": 204,
        "port": 8080,
        "allow_non_cached_model": True,
    }
    assert others == ["--max_num_batched_tokens", "2048"], "vLLM's"


@pytest.mark.slow
def test_upstream_reads_the_settings(llama_run: Path, tmp_path: Path) -> None:
    """The real `optimum-cli neuron serve`, plugin, argument parser and configuration of vLLM, up to the engine."""
    if UPSTREAM is None or not XLA_PYTHON.exists():
        pytest.skip("no vLLM: set NEURON_SUM_VLLM to a folder with vllm==0.11.0 and its dependencies")
    for name, version in PLATFORMS[0].vendor_pins.items():
        info = tmp_path / "versions" / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    run = packed(llama_run, tmp_path / "run")
    artifact = packed(exported(llama_run, tmp_path / "artifact"), tmp_path / "graphs")
    commands = [
        options(run["environment"], tmp_path / "run"),
        options(artifact["environment"], tmp_path / "graphs"),
    ]
    path = [ROOT / "tests" / "stand_ins" / "optimum", tmp_path / "versions", UPSTREAM]
    dialogue = SAMPLE + "</s>"
    results = []
    for words in commands:
        made = subprocess.run(
            [XLA_PYTHON, "-c", SERVE, dialogue, json.dumps(words)],
            env={
                **os.environ,
                **XLA_ENVIRONMENT,
                "PYTHONPATH": os.pathsep.join(map(str, path)),
                "NEURON_STAND_IN_INSTANCE": "inf2.xlarge",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert made.returncode == 0, made.stderr[-3000:]
        results.append(json.loads(made.stdout.split("RESULT ")[1].splitlines()[0]))
    recipe = open_run(llama_run).recipe
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(llama_run / "checkpoint")))
    [prompt] = recipe.prompt.resolve().encode(tokenizer, [dialogue], 1000)
    for result, batch, extra in zip(results, (8, 4), ("allow_non_cached_model", {}), strict=True):
        assert result == {
            "platform": "OptimumNeuronPlatform",
            "port": 8080,
            "served": recipe.name,
            "dtype": "torch.bfloat16",
            "length": 204,
            "batch": batch,
            "tokens": 2048,
            "cores": 2,
            "block": 204,
            "prefix": False,
            "extra": extra,
            "defaults": {"max_tokens": recipe.generate.max_new_tokens, "temperature": 0.0},
            "prompt": prompt.input_ids,
        }
