"""Training on Neuron, as far as a machine without a device can show it: upstream's own code on XLA's CPU device.

That runs in processes of its own, by the environment .venv-xla (`make test` builds it): the modules that only AWS has
are stood in for (tests/xla/stand_ins.py), and stand-ins stay in sys.modules. What they leave is looked at here, in the
environment that users have, with plain transformers and PEFT.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LLAMA_CONFIG, MICRO, MICRO_LLAMA, ROOT
from hypothesis import given
from hypothesis import strategies as st
from training_runs import assert_same_weights, log, weights
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from neuron_sum import cpu, files
from neuron_sum.data.layouts import Row, Shape
from neuron_sum.errors import PlatformError, RecipeError, ResourceError
from neuron_sum.models import load_config, load_tokenizer
from neuron_sum.recipe import ModelConfig, TrainConfig
from neuron_sum.recipe_loading import load_recipe
from neuron_sum.run_folder import open_run
from neuron_sum.trained import load_trained
from neuron_sum.training import launch
from neuron_sum.training.extraction import FEWEST_STEPS, extraction_rows, save_step
from neuron_sum.training.loss import TokenLoss
from neuron_sum.training.memory import available_to_processes
from neuron_sum.training.micro_batches import MicroBatches, Tokens
from neuron_sum.training.neuron import NeuronBackend
from neuron_sum.training.train import prepare, train

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
XLA_PYTHON = Path(os.environ.get("NEURON_SUM_XLA_PYTHON", ROOT / ".venv-xla" / "bin" / "python"))
XLA_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "PJRT_DEVICE": "CPU",
    "OMP_NUM_THREADS": "1",
    # A third of the time to compile; the graphs are the same.
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}
LIMIT_S = 1200
NEURON = ("train.backend=neuron", "train.shapes.plan=fixed")

NO_DROPOUT = ["model.config.dropout_rate=0.0"]
UNEVEN = ["data.max_examples=60", "train.gradient_accumulation_steps=3"]
"""60 examples in rows of 8 and steps of 3: the last micro-batch is half empty, and the last of the step wholly."""
LEARNS = ["train.max_steps=20", "train.logging_steps=1", "train.save_steps=100"]
AGREE = {
    "full": [*NO_DROPOUT, *LEARNS, "train.learning_rate=0.02", "train.warmup_ratio=0.1", "train.weight_decay=0.01"],
    "uneven": [*NO_DROPOUT, *UNEVEN, *LEARNS, "train.learning_rate=0.02"],
    "lora": [*NO_DROPOUT, *LEARNS, "method=lora", "method.lora_dropout=0.0", "train.learning_rate=0.02",
             "method.target_modules=[q,k,v,o,wi_0,wi_1,wo]"],
    "prompt_tuning": [*NO_DROPOUT, *LEARNS, "method=prompt_tuning", "train.learning_rate=0.3"],
    "packed": [*NO_DROPOUT, *LEARNS, "train.shapes.plan=packed", "train.per_device_train_batch_size=4",
               "train.learning_rate=0.02", "train.gradient_accumulation_steps=2"],
    "packed_prompt": [*NO_DROPOUT, *LEARNS, "method=prompt_tuning", "train.shapes.plan=packed",
                      "train.learning_rate=0.3"],
    "buckets": [*NO_DROPOUT, *LEARNS, "train.shapes.plan=buckets", "train.shapes.buckets=2",
                "train.learning_rate=0.02", "train.max_steps=24"],
}  # fmt: skip
SAVES = ["train.max_steps=12", "train.save_steps=4", "train.logging_steps=3", "train.gradient_accumulation_steps=2"]
"""About three epochs; a log line spans two of the checkpoints."""
RARE_SHAPE = ["train.shapes.plan=buckets", "train.shapes.sizes=[[96,32],[192,48]]",
              "train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=2", "train.max_steps=36",
              "train.save_steps=7", "train.logging_steps=5", "train.warmup_ratio=0.1"]  # fmt: skip
"""Two of an epoch's 32 micro-batches have the small one, the first of them in the eleventh step."""
METHODS = {"full": [], "lora": ["method=lora"], "prompt_tuning": ["method=prompt_tuning"]}
LONG = ["train.max_steps=60", "train.save_steps=5", "train.logging_steps=10"]
CONSTANT = ["train.lr_scheduler_type=constant", "train.learning_rate=0.01", "train.save_steps=100"]
LLAMA = {
    "full": [],
    "lora": ["method=lora", "method.lora_dropout=0.0"],
}


def xla(*arguments: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """A process with the stand-ins; its output goes to a file, for a pipe that nobody reads fills up."""
    with (folder / f"{len(list(folder.glob('*.out')))}.out").open("w") as out:
        return subprocess.Popen(
            [str(XLA_PYTHON), *arguments],
            cwd=folder, env={**os.environ, **XLA_ENVIRONMENT, **environment}, stdout=out, stderr=out, text=True,
        )  # fmt: skip


def ends_well(process: subprocess.Popen[str], folder: Path) -> None:
    code = process.wait(timeout=LIMIT_S)
    assert code == 0, "\n".join(path.read_text()[-3000:] for path in folder.glob("*.out"))


def case(name: str, recipe: Path, overrides: Sequence[str], **more: Any) -> dict[str, Any]:
    return {"name": name, "recipe": str(recipe), "overrides": [*NEURON, *overrides], **more}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "t5.yaml").write_text(MICRO)
    (folder / "llama.yaml").write_text(MICRO_LLAMA.replace("config: null", f"config: {json.dumps(LLAMA_CONFIG)}"))
    return folder


@pytest.fixture(scope="module")
def observed(recipes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All runs on XLA, T5 and Llama side by side; each of them compiles for itself."""
    if not XLA_PYTHON.exists():
        pytest.skip(f"no {XLA_PYTHON}: make test builds it")
    folder, t5, llama = tmp_path_factory.mktemp("xla"), recipes / "t5.yaml", recipes / "llama.yaml"
    seq2seq = [
        *(case(f"agree-{name}", t5, overrides) for name, overrides in AGREE.items()),
        case("upstream", t5, [*LEARNS[:-1], "train.save_steps=4"], upstream_save=True),
        case("bf16", t5, [*UNEVEN, "train.bf16=true", "train.max_steps=5", "train.learning_rate=0.02"]),
        case("dynamic", t5, ["train.per_device_train_batch_size=2", "train.max_steps=9", "train.save_steps=100"],
             dynamic=True),
        *(case(f"extracted-{name}", t5, [*RARE_SHAPE, *more], extract_first=True)
          for name, more in (("full", []), ("lora", ["method=lora"]))),
    ]  # fmt: skip
    for name, overrides in METHODS.items():
        seq2seq += [
            case(f"whole-{name}", t5, [*overrides, *SAVES]),
            case(f"first-{name}", t5, [*overrides, *SAVES], run=f"resumed-{name}", stop_after=4),
            case(f"then-{name}", t5, [*overrides, *SAVES], run=f"resumed-{name}", resume=True),
        ]
    decoder_only = [
        case("agree-llama", llama, [*LEARNS, *UNEVEN, "train.learning_rate=0.02"]),
        case("agree-llama-packed", llama, [*LEARNS, "train.shapes.plan=packed", "train.learning_rate=0.01"]),
    ]
    for name, overrides in LLAMA.items():
        more = [*overrides, *CONSTANT]
        decoder_only += [
            case(f"llama-{name}-7", llama, [*more, "train.max_steps=7"]),
            case(f"first-llama-{name}", llama, [*more, "train.max_steps=6", "train.save_steps=3"],
                 run=f"llama-{name}-6", stop_after=3),
            case(f"then-llama-{name}", llama, [*more, "train.max_steps=6", "train.save_steps=3"],
                 run=f"llama-{name}-6", resume=True),
        ]  # fmt: skip
    processes = []
    for name, cases in (("t5", seq2seq), ("llama", decoder_only)):
        (folder / f"{name}.cases").write_text(json.dumps(cases))
        processes.append(xla(f"{ROOT}/tests/xla/observe.py", f"{name}.cases", str(folder), folder=folder))
    for process in processes:
        ends_well(process, folder)
    yield folder


def steps(observed: Path, name: str) -> list[dict[str, Any]]:
    return list(files.read_json(observed / f"{name}.json"))


# On XLA's CPU device


@pytest.mark.slow
@pytest.mark.parametrize("name", [*AGREE, "llama", "llama-packed"])
def test_both_backends_lose_the_same(observed: Path, recipes: Path, tmp_path: Path, name: str) -> None:
    recipe = open_run(observed / f"agree-{name}").recipe
    torch_train = recipe.train.model_copy(update={"backend": "torch"})
    train(recipe.model_copy(update={"train": torch_train}), tmp_path / "torch")
    theirs, ours = (log(run, "loss", "grad_norm", "learning_rate", "epoch")
                    for run in (tmp_path / "torch", observed / f"agree-{name}"))  # fmt: skip
    assert len(theirs) >= 20
    for one, other in zip(theirs, ours, strict=True):
        assert other == pytest.approx(one, abs=1e-3)
    # Ten vectors before a frozen model of random weights can do little; the backends agree on that too.
    assert ours[-1][0] <= (1.0 if "prompt" in name else 0.8) * ours[0][0]
    left, right = weights(tmp_path / "torch"), weights(observed / f"agree-{name}")
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.allclose(value, right[key], atol=5e-3), key


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_optimizer_knows_its_parameters_after_a_save(observed: Path, method: str) -> None:
    seen = steps(observed, f"whole-{method}")
    assert all(step["known"] == step["trained"] > 0 for step in seen)
    moving = [step["sum"] for step in seen if step["done"] >= 1]  # the first step of a warm-up has a rate of zero
    assert len(set(moving)) == len(moving), "the weights stand still"
    assert all(norm > 0 for (norm,) in log(observed / f"whole-{method}", "grad_norm"))


@pytest.mark.slow
def test_upstreams_own_save_ends_the_learning(observed: Path) -> None:
    """The negative control of the test above."""
    seen = steps(observed, "upstream")
    assert [step["known"] > 0 for step in seen] == [step["done"] < 4 for step in seen]
    assert len({step["sum"] for step in seen if step["done"] >= 4}) == 1
    assert [norm > 0 for (norm,) in log(observed / "upstream", "grad_norm")] == [True] * 4 + [False] * 16


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(observed: Path, method: str) -> None:
    """With dropout; stopped by SIGTERM, which saves first."""
    assert steps(observed, f"first-{method}")[-1]["done"] < 11
    assert steps(observed, f"then-{method}")[0]["done"] == steps(observed, f"first-{method}")[-1]["done"] + 1
    whole, resumed = observed / f"whole-{method}", observed / f"resumed-{method}"
    keys = ("step", "loss", "grad_norm", "learning_rate", "epoch")
    assert log(whole, *keys) == log(resumed, *keys)
    assert_same_weights(whole, resumed)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(observed: Path, recipes: Path, tmp_path: Path) -> None:
    """SIGKILL, by the command line, with dropout."""
    command = (f"{ROOT}/tests/xla/run.py", "train", str(recipes / "t5.yaml"), *NEURON, *LONG)
    process = xla(*command, "--output", "killed", folder=tmp_path)
    mark = tmp_path / "killed" / "checkpoints" / "checkpoint-10" / "complete"
    deadline = time.monotonic() + LIMIT_S
    while not mark.exists():
        assert process.poll() is None, (tmp_path / "0.out").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "all_results.json").exists()
    resumed = xla(*command, "--output", "killed", "--resume", folder=tmp_path)
    whole = xla(*command, "--output", "whole", folder=tmp_path)
    ends_well(resumed, tmp_path)
    ends_well(whole, tmp_path)
    assert "going on from checkpoint-" in (tmp_path / "1.out").read_text()
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    assert log(tmp_path / "killed", "step", "loss") == log(tmp_path / "whole", "step", "loss")


@pytest.mark.slow
def test_an_extraction_of_graphs_takes_a_few_steps_and_trains_nothing(recipes: Path, tmp_path: Path) -> None:
    if not XLA_PYTHON.exists():
        pytest.skip(f"no {XLA_PYTHON}: make test builds it")
    command = (f"{ROOT}/tests/xla/run.py", "train", str(recipes / "t5.yaml"), *NEURON, "--output", "run")
    ends_well(xla(*command, folder=tmp_path, NEURON_EXTRACT_GRAPHS_ONLY="1"), tmp_path)
    assert len(log(tmp_path / "run", "step")) == FEWEST_STEPS
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert not list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
    assert "nothing was trained" in (tmp_path / "0.out").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "lora"])
def test_an_extraction_has_every_graph_of_a_run_in_buckets(observed: Path, name: str) -> None:
    """In one process, where XLA keeps what it has compiled; with the saves of the run, and a shape that is rare."""
    assert files.read_json(observed / f"extracted-{name}" / "all_results.json")["shapes"]["graphs"] == 2
    assert files.read_json(observed / f"extracted-{name}-graphs.json") == 0


@pytest.mark.slow
def test_processes_agree_to_stop_and_wait_for_each_other(tmp_path: Path) -> None:
    if not XLA_PYTHON.exists():
        pytest.skip(f"no {XLA_PYTHON}: make test builds it")
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d",
                "--rdzv_endpoint=127.0.0.1:0")  # fmt: skip
    ends_well(xla(*torchrun, f"{ROOT}/tests/xla/agree_to_stop.py", str(tmp_path), folder=tmp_path), tmp_path)
    assert (tmp_path / "0.out").read_text().count("agreed") == 2


@pytest.mark.slow
def test_graphs_stop_growing_with_one_shape_and_not_with_any(observed: Path) -> None:
    for name in ("full", "packed"):
        compiled = [step["compiled"] for step in steps(observed, f"agree-{name}")]
        assert len(set(compiled[3:])) == 1, (name, compiled)
    saving = [step["compiled"] for step in steps(observed, "whole-full")]
    assert len(set(saving[5:])) == 1, saving  # the first save reads the loss so far
    dynamic = [step["compiled"] for step in steps(observed, "dynamic")]
    assert dynamic[-1] >= dynamic[3] + 2, dynamic


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["agree-full", *(f"whole-{method}" for method in METHODS), *(f"llama-{name}-6" for name in LLAMA)],
)
def test_plain_transformers_and_peft_take_the_files(observed: Path, name: str) -> None:
    run = open_run(observed / name)
    if run.weights.name == "checkpoint":
        loader = AutoModelForCausalLM if "llama" in name else AutoModelForSeq2SeqLM
        model, info = loader.from_pretrained(run.weights, output_loading_info=True)
        assert not any(info.values()), info
        assert model.config.use_cache
    else:
        saved = weights(run.path)
        model, _ = load_trained(run)
        own = {key.replace(".default", ""): value for key, value in model.state_dict().items()}
        for key, value in saved.items():
            assert torch.equal(own[key] if key in own else own["prompt_encoder.embedding.weight"], value), key
        assert len(saved) == sum("lora_" in key or "prompt_encoder" in key for key in own)
    assert {path.name for path in run.weights.iterdir()} <= {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "adapter_config.json",
        "adapter_model.safetensors", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert sorted(path.name for path in run.path.iterdir()) == sorted(
        ["all_results.json", "base", run.weights.name, "log.jsonl", "recipe.yaml"]
    )
    load_tokenizer(ModelConfig(name_or_path=str(run.weights)))


@pytest.mark.slow
@pytest.mark.parametrize("name", LLAMA)
def test_a_consolidated_llama_is_the_one_that_was_trained(observed: Path, name: str) -> None:
    """Its loss on the seventh batch is that of a run which went on; the first six steps were stopped and resumed."""
    run = open_run(observed / f"llama-{name}-6")
    model, _ = load_trained(run)
    torch_train = run.recipe.train.model_copy(update={"backend": "torch"})
    made = prepare(run.recipe.model_copy(update={"train": torch_train}), run.path.with_name(f"probe-{name}"))
    examples = [made.data.train[example] for row in made.plan.batches(0)[6] for example in row.examples]
    losses = 0.0
    for features in examples:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([features["input_ids"]])).logits
        labels = torch.tensor([features["labels"]])
        losses += float(TokenLoss(decoder_only=True, label_smoothing=0.0)({"logits": logits}, labels, 1))
    tokens = sum(label >= 0 for features in examples for label in features["labels"])
    assert log(observed / f"llama-{name}-7", "loss")[6][0] == pytest.approx(losses / tokens, abs=1e-3)
    assert log(observed / f"llama-{name}-7", "loss")[:6] == log(run.path, "loss")


@pytest.mark.slow
def test_bf16_is_autocast_and_padding_rows_do_no_harm(observed: Path) -> None:
    losses = log(observed / "bf16", "loss", "grad_norm")
    assert losses[-1][0] < losses[0][0] and all(norm > 0 for _, norm in losses)
    assert all(value.dtype == torch.float32 for value in weights(observed / "bf16").values())


@pytest.mark.slow
def test_the_torch_backend_does_not_turn_to_xla_where_that_is_installed(recipes: Path, tmp_path: Path) -> None:
    if not XLA_PYTHON.exists():
        pytest.skip(f"no {XLA_PYTHON}: make test builds it")
    command = ("-m", "neuron_sum", "train", str(recipes / "t5.yaml"), "train.max_steps=4", "--output", "there")
    process = xla(*command, folder=tmp_path)
    train(load_recipe(str(recipes / "t5.yaml"), ["train.max_steps=4"]), tmp_path / "here")
    ends_well(process, tmp_path)
    assert_same_weights(tmp_path / "here", tmp_path / "there")


# Without any of it


def test_a_machine_without_the_sdk_is_told_what_is_missing(tmp_path: Path, neuron_sum: CommandLine) -> None:
    result = neuron_sum("train", "tiny", *NEURON, "--output", "run")
    assert result.returncode == PlatformError.exit_code == 13, result.stderr
    for word in (
        "torch-neuronx",
        "neuronx-distributed",
        "a Neuron device",
        "train.backend=torch",
        "Neuron training image",
    ):
        assert word in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [[], ["--precompile"]])
def test_it_is_told_so_once_before_processes_are_started(
    tmp_path: Path, neuron_sum: CommandLine, more: list[str]
) -> None:
    result = neuron_sum("train", "tiny", *NEURON, "--processes", "2", "--output", "run", *more)
    assert result.returncode == 13, result.stderr
    said = [line for line in result.stderr.strip().split("\n") if not line.startswith("environment:")]
    assert [line.partition(": ")[0] for line in said] == ["error", "hint"]
    assert "torch-neuronx" in said[0] and "Neuron training image" in said[1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.shapes.plan=dynamic"], "packed, buckets or fixed"),
        (["train.fsdp=true"], "neither fsdp nor deepspeed"),
        (["train.deepspeed=zero.json"], "neither fsdp nor deepspeed"),
        (["train.backend=torch", "train.neuron.zero_1=true"], "neuron.* is for backend neuron"),
        (
            ["train.neuron.tensor_parallel_size=2", "train.label_smoothing_factor=0.1"],
            "label_smoothing_factor must be 0",
        ),
    ],
)
def test_a_recipe_that_neuron_cannot_train_does_not_hold(tmp_path: Path, overrides: list[str], message: str) -> None:
    (tmp_path / "zero.json").write_text("{}")
    overrides = [value.replace("zero.json", str(tmp_path / "zero.json")) for value in overrides]
    with pytest.raises(RecipeError, match=message.replace("*", r"\*")):
        load_recipe("tiny", [*NEURON, *overrides])


@pytest.mark.parametrize(
    ("family", "overrides", "message"),
    [
        ("llama", ["method=prompt_tuning"], "takes LoRA adapters only"),
        ("llama", ["method=lora", "method.target_modules=[q_proj,v_proj]"], "all seven: q_proj"),
        ("t5", ["train.neuron.tensor_parallel_size=2"], "data parallel only"),
        ("t5", ["train.neuron.zero_1=true"], "not for T5"),
    ],
)
def test_a_method_that_upstream_lacks_for_a_model_is_refused(
    recipes: Path, family: str, overrides: list[str], message: str
) -> None:
    recipe = load_recipe(str(recipes / f"{family}.yaml"), [*NEURON, *overrides])
    with pytest.raises(RecipeError, match=message):
        NeuronBackend.check_model(load_config(recipe.model), recipe)


@pytest.fixture
def trainium(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """This machine passes for a host with so much memory free, where torchrun has started so many processes."""

    def pretend(free: float, processes: int = 2, hosts: int = 1, instance: str | None = "ml.trn1.2xlarge") -> None:
        monkeypatch.setattr(NeuronBackend, "check", staticmethod(lambda config: None))
        monkeypatch.setattr(cpu, "available_memory", lambda: free)
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes // hosts))
        monkeypatch.delenv("SM_CURRENT_INSTANCE_TYPE", raising=False)
        if instance is not None:
            monkeypatch.setenv("SM_CURRENT_INSTANCE_TYPE", instance)

    return pretend


@pytest.mark.parametrize("instance", ["ml.trn1.2xlarge", "ml.trn9.2xlarge", None])
def test_a_batch_that_a_core_cannot_hold_is_refused_though_the_host_could(
    recipes: Path, tmp_path: Path, trainium: Callable[..., None], instance: str | None
) -> None:
    trainium(free=1e12, instance=instance)
    large = [*NEURON, "train.per_device_train_batch_size=20000"]
    with pytest.raises(ResourceError, match=r"of memory, each NeuronCore has 17\.2 GB$") as raised:
        prepare(load_recipe(str(recipes / "t5.yaml"), large), tmp_path / "run")
    remedy, _, force = str(raised.value.hint).partition(";")
    assert force == " --force tries all the same"
    smaller = prepare(load_recipe(str(recipes / "t5.yaml"), [*NEURON, *remedy.split()]), tmp_path / "run")
    assert smaller.estimate.memory.fits
    assert "on each NeuronCore (weights" in str(smaller.estimate)
    told = smaller.estimate.as_dict()
    assert (told["available"], told["processes"]) == (16 * 2**30, 2)
    assert {"steps", "disk", "host", "host_available", "weights", "memory"} <= told.keys()


def test_processes_that_the_host_cannot_hold_are_refused(
    recipes: Path, tmp_path: Path, trainium: Callable[..., None]
) -> None:
    recipe = load_recipe(str(recipes / "t5.yaml"), NEURON)
    trainium(free=8e9, processes=32)
    with pytest.raises(ResourceError, match=r"about 35\.\d GB of main memory for 32 processes, the host has") as raised:
        prepare(recipe, tmp_path / "run")
    assert "fewer processes" in str(raised.value.hint)
    prepare(recipe, tmp_path / "run", force=True)
    trainium(free=8e9, processes=32, hosts=16)
    assert prepare(recipe, tmp_path / "run").estimate.as_dict()["processes"] == 2
    trainium(free=1e6, processes=32)
    large = load_recipe(str(recipes / "t5.yaml"), [*NEURON, "train.per_device_train_batch_size=20000"])
    with pytest.raises(ResourceError, match=r"each NeuronCore has .*; and about .* for 32 processes"):
        prepare(large, tmp_path / "run")


def test_what_a_llama_shards_over_the_cores_is_counted_so(
    recipes: Path, tmp_path: Path, trainium: Callable[..., None]
) -> None:
    trainium(free=1e12, processes=8)

    def core(*layout: str) -> dict[str, Any]:
        recipe = load_recipe(str(recipes / "llama.yaml"), [*NEURON, *layout])
        return prepare(recipe, tmp_path / "run").estimate.as_dict()

    whole, parts, zero_1 = core(), core("train.neuron.tensor_parallel_size=2"), core("train.neuron.zero_1=true")
    assert parts["weights"] == whole["weights"] / 2
    assert zero_1["optimizer"] == whole["optimizer"] / 8
    assert zero_1["weights"] == whole["weights"]


def test_memory_that_the_processes_of_a_run_hold_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun's children, of which this is one, have loaded the model already; it is counted as needed."""
    monkeypatch.setattr(cpu, "available_memory", lambda: 0.0)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    alone = available_to_processes()
    assert alone > 1e8
    code = "from neuron_sum.training.memory import available_to_processes as there\nprint(there(), flush=True); input()"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    command = f"from neuron_sum import cpu\ncpu.available_memory = lambda: 0.0\n{code}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen([sys.executable, "-c", command], **pipes)
    one = float(first.stdout.readline())
    second = subprocess.Popen([sys.executable, "-c", command], **pipes)
    two = float(second.stdout.readline())
    for process in (first, second):
        process.communicate("\n")
    assert two > one + 1e8


def test_the_environment_is_the_callers_where_he_has_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NEURON_FUSE_SOFTMAX", "MALLOC_ARENA_MAX", "NEURON_COMPILE_CACHE_URL", "USE_TORCH_XLA"):
        monkeypatch.setenv(name, "theirs")
        if name != "NEURON_FUSE_SOFTMAX":
            monkeypatch.delenv(name)
    for name in launch.NEURON_ENVIRONMENT:
        monkeypatch.setenv(name, os.environ.get(name, launch.NEURON_ENVIRONMENT[name]))
    neuron = {"cache_url": "s3://bucket/cache"}
    launch.set_environment(TrainConfig(backend="neuron", shapes={"plan": "fixed"}, neuron=neuron))
    assert os.environ["NEURON_FUSE_SOFTMAX"] == "theirs"
    assert os.environ["NEURON_COMPILE_CACHE_URL"] == "s3://bucket/cache"
    assert "USE_TORCH_XLA" not in os.environ
    launch.set_environment(TrainConfig())
    assert os.environ["USE_TORCH_XLA"] == "0"


def test_precompile_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(backend="neuron", shapes={"plan": "fixed"})
    with pytest.raises(RecipeError, match="compiles nothing ahead"):
        launch.check_options(TrainConfig(), 2, precompile=True)
    with pytest.raises(RecipeError, match="needs --processes N"):
        launch.check_options(config, None, precompile=True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(RecipeError, match="torchrun has started this process"):
        launch.check_options(config, 2, precompile=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(PlatformError, match="neuron_parallel_compile, which is not on the PATH"):
        launch.start(["tiny"], 2, precompile=True)


def test_precompile_runs_the_command_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / launch.EXTRACTOR
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$(dirname "$0")/arguments"\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert launch.start(["trn1", "train.seed=1"], 2, precompile=True) == 3
    arguments = (tmp_path / "arguments").read_text().split("\n")
    assert arguments[:4] == [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    assert arguments[5:10] == ["-m", "neuron_sum", "train", "trn1", "train.seed=1"]
    assert not Path(arguments[11]).parent.exists()


@given(
    chunks=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    chunk=st.integers(1, 4),
    accumulation=st.integers(1, 3),
)
def test_an_extraction_begins_as_the_run_and_has_three_whole_steps_of_each_shape(
    chunks: list[int], chunk: int, accumulation: int
) -> None:
    rows = [Row((index,), Shape(8 * (1 + size), 8)) for index, size in enumerate(chunks) for _ in range(chunk)]
    step_rows = chunk * accumulation
    made = extraction_rows(rows, step_rows)
    assert len(made) % step_rows == 0
    steps = [made[at : at + step_rows] for at in range(0, len(made), step_rows)]
    assert made[: 3 * step_rows][: len(rows)] == rows[: 3 * step_rows]
    for shape in {row.shape for row in rows}:
        assert sum({row.shape for row in step} == {shape} for step in steps) >= 3
    assert FEWEST_STEPS <= len(steps) <= max(FEWEST_STEPS + 3, 3 + 3 * len(set(chunks)))
    assert 3 < save_step(len(steps)) <= len(steps) - 2 and save_step(len(steps)) % 2 == 1


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    devices=st.integers(1, 3),
    first=st.integers(0, 3),
)
def test_micro_batches_hold_every_example_once_and_always_as_many_rows(
    count: int, batch_size: int, accumulation: int, devices: int, first: int
) -> None:
    def made(rank: int) -> MicroBatches[tuple[int, ...]]:
        return MicroBatches(
            rows=lambda epoch: [((index + epoch) % count,) for index in range(count)],
            empty=lambda _: (),
            tokens=lambda row: Tokens(sum(index + 1 for index in row), len(row)),
            collate=lambda rows: {"rows": rows},  # type: ignore[dict-item]
            batch_size=batch_size,
            accumulation=accumulation,
            devices=devices,
            rank=rank,
        )

    whole = [made(rank) for rank in range(devices)]
    steps_per_epoch = whole[0].steps_per_epoch
    last = 2 * steps_per_epoch
    batches = [[batch["rows"] for batch in one_process(part, 0, last)] for part in whole]
    assert all(len(part) == last * accumulation for part in batches)
    assert all(len(rows) == batch_size for part in batches for rows in part)
    for epoch in range(2):
        of_epoch = [part[epoch * len(part) // 2 : (epoch + 1) * len(part) // 2] for part in batches]
        assert sorted(index for part in of_epoch for rows in part for row in rows for index in row) == list(
            range(count)
        )
    first = min(first, last)
    rest = [batch["rows"] for batch in one_process(made(0), first, last)]
    assert rest == batches[0][first * accumulation :]
    assert sum(whole[0].tokens(step).labels for step in range(steps_per_epoch)) == count * (count + 1) // 2


def one_process(part: MicroBatches[Any], first: int, last: int) -> list[dict[str, Any]]:
    stream = part.between(first, last)
    return [stream[index] for index in range(len(stream))]
