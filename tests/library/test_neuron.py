"""Training on Neuron as far as it can be tested without a device: upstream's code on XLA's CPU device.

It runs in separate processes of the environment .venv-xla (`make test` builds it), which have optimum-neuron, with
neuronx-distributed's sources and stand-ins for closed packages (tests/support/neuron_packages.py). The results are
checked here, in the environment that users have, with plain transformers and PEFT. test_neuron_limits.py tests rejected
recipes.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from micro_models import LLAMA_CONFIG, MICRO, MICRO_LLAMA, NEURON, ROOT
from neuron_packages import make_packages
from training_runs import assert_same_weights, log, weights
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from xla_environment import LLAMA_METHODS, QWEN3_METHODS, T5_METHODS, XLA_ENVIRONMENT, XLA_PYTHON

from neuron_sum import files
from neuron_sum.models.base import load_tokenizer
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import ModelConfig
from neuron_sum.runs.folder import RunFolder, open_run
from neuron_sum.runs.trained import load_trained
from neuron_sum.training.loss import TokenLoss
from neuron_sum.training.neuron.extraction import MIN_STEPS
from neuron_sum.training.train import prepare, train

LIMIT_S = 1200

NO_DROPOUT = ["model.config.dropout_rate=0.0"]
UNEVEN = ["data.max_examples=60", "train.gradient_accumulation_steps=3"]
"""60 examples in rows of 8 and steps of 3: the last micro-batch is half empty, the last of the step entirely."""
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
ACCUMULATED = ["train.gradient_accumulation_steps=2", "train.per_device_train_batch_size=4"]
COUNTED = {"agree-buckets": [], "buckets-accumulated": ACCUMULATED}
"""Runs in buckets whose graphs are counted, each after a short one in a single shape, which compiles the others."""
SAVES = ["train.max_steps=12", "train.save_steps=4", "train.logging_steps=3", "train.gradient_accumulation_steps=2"]
"""About three epochs; a log line spans two of the checkpoints."""
RARE_SHAPE = [
    "train.shapes.plan=buckets",
    "train.shapes.sizes=[[96,32],[192,48]]",
    "train.per_device_train_batch_size=2",
    "train.gradient_accumulation_steps=2",
    "train.max_steps=36",
    "train.save_steps=7",
    "train.logging_steps=5",
    "train.warmup_ratio=0.1",
]
"""Two of an epoch's 32 micro-batches have the small shape, the first of them in the eleventh step."""
LONG = ["train.max_steps=60", "train.save_steps=5", "train.logging_steps=10"]
CONSTANT = ["train.lr_scheduler_type=constant", "train.learning_rate=0.01", "train.save_steps=100"]


def xla(*arguments: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """A process in .venv-xla; its output goes to a file, because an unread pipe fills up."""
    with (folder / f"{len(list(folder.glob('*.out')))}.out").open("w") as out:
        return subprocess.Popen(
            [str(XLA_PYTHON), *arguments],
            cwd=folder,
            env={**os.environ, **XLA_ENVIRONMENT, **environment},
            stdout=out,
            stderr=out,
            text=True,
        )


def ends_well(process: subprocess.Popen[str], folder: Path) -> None:
    code = process.wait(timeout=LIMIT_S)
    assert code == 0, "\n".join(path.read_text()[-3000:] for path in folder.glob("*.out"))


def case(name: str, recipe: Path, overrides: Sequence[str], **more: Any) -> dict[str, Any]:
    return {"name": name, "recipe": str(recipe), "overrides": [*NEURON, *overrides], **more}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "t5.yaml").write_text(MICRO)
    qwen3 = {**LLAMA_CONFIG, "model_type": "qwen3", "head_dim": 16}
    for name, config in (("llama", LLAMA_CONFIG), ("qwen3", qwen3)):
        (folder / f"{name}.yaml").write_text(MICRO_LLAMA.replace("config: null", f"config: {json.dumps(config)}"))
    return folder


@pytest.fixture(scope="module")
def python_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PYTHONPATH of a process that trains with the neuron backend."""
    folder = tmp_path_factory.mktemp("packages")
    make_packages(folder)
    return os.pathsep.join([str(folder), str(ROOT)])


@pytest.fixture(scope="module")
def observed(recipes: Path, python_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All runs on XLA, T5 and Llama in parallel; each of them compiles separately."""
    folder = tmp_path_factory.mktemp("xla")
    t5, llama, qwen3 = (recipes / f"{name}.yaml" for name in ("t5", "llama", "qwen3"))
    seq2seq = [
        *(
            case(f"before-{name}", t5, [*AGREE["buckets"], *more, "train.shapes.plan=fixed", "train.max_steps=3"])
            for name, more in COUNTED.items()
        ),
        *(case(f"agree-{name}", t5, overrides) for name, overrides in AGREE.items()),
        case("buckets-accumulated", t5, [*AGREE["buckets"], *ACCUMULATED]),
        case(
            "diverged",
            t5,
            [*LEARNS[:1], "train.logging_steps=50", "train.learning_rate=1e30", "train.save_steps=1"],
            diverges=True,
        ),
        case("upstream", t5, [*LEARNS[:-1], "train.save_steps=4"], upstream_save=True),
        case("bf16", t5, [*UNEVEN, "train.bf16=true", "train.max_steps=5", "train.learning_rate=0.02"]),
        case(
            "dynamic",
            t5,
            ["train.per_device_train_batch_size=2", "train.max_steps=9", "train.save_steps=100"],
            dynamic=True,
        ),
        *(
            case(f"extracted-{name}", t5, [*RARE_SHAPE, *more], extract_first=True)
            for name, more in (("full", []), ("lora", ["method=lora"]))
        ),
    ]
    for name, overrides in T5_METHODS.items():
        seq2seq += [
            case(f"whole-{name}", t5, [*overrides, *SAVES]),
            case(f"first-{name}", t5, [*overrides, *SAVES], run=f"resumed-{name}", stop_after=4),
            case(f"then-{name}", t5, [*overrides, *SAVES], run=f"resumed-{name}", resume=True),
        ]
    decoder_only = [
        case("agree-llama", llama, [*LEARNS, *UNEVEN, "train.learning_rate=0.02"]),
        case("agree-llama-packed", llama, [*LEARNS, "train.shapes.plan=packed", "train.learning_rate=0.01"]),
        case("agree-qwen3", qwen3, [*LEARNS, "train.learning_rate=0.02"]),
        *(
            case(f"qwen3-lora-{count}", qwen3, [*QWEN3_METHODS["lora"], *CONSTANT, f"train.max_steps={count}"])
            for count in (6, 7)
        ),
    ]
    for name, overrides in LLAMA_METHODS.items():
        more = [*overrides, *CONSTANT]
        decoder_only += [
            case(f"llama-{name}-7", llama, [*more, "train.max_steps=7"]),
            case(
                f"first-llama-{name}",
                llama,
                [*more, "train.max_steps=6", "train.save_steps=3"],
                run=f"llama-{name}-6",
                stop_after=3,
            ),
            case(
                f"then-llama-{name}",
                llama,
                [*more, "train.max_steps=6", "train.save_steps=3"],
                run=f"llama-{name}-6",
                resume=True,
            ),
        ]
    processes = []
    for name, cases in (("t5", seq2seq), ("llama", decoder_only)):
        (folder / f"{name}.cases").write_text(json.dumps(cases))
        command = (f"{ROOT}/tests/stand_ins/xla/observe.py", f"{name}.cases", str(folder))
        processes.append(xla(*command, folder=folder, PYTHONPATH=python_path))
    for process in processes:
        ends_well(process, folder)
    yield folder


def steps(observed: Path, name: str) -> list[dict[str, Any]]:
    return list(json.loads((observed / f"{name}.json").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*AGREE, "llama", "llama-packed", "qwen3"])
def test_both_backends_have_the_same_losses(observed: Path, recipes: Path, tmp_path: Path, name: str) -> None:
    recipe = open_run(observed / f"agree-{name}").recipe
    torch_train = recipe.train.model_copy(update={"backend": "torch"})
    train(recipe.model_copy(update={"train": torch_train}), tmp_path / "torch")
    theirs, ours = (
        log(run, "loss", "grad_norm", "learning_rate", "epoch")
        for run in (tmp_path / "torch", observed / f"agree-{name}")
    )
    assert len(theirs) >= 20
    for one, other in zip(theirs, ours, strict=True):
        assert other == pytest.approx(one, abs=1e-3)
    # Ten vectors before a frozen model of random weights can learn little; the backends also agree on that.
    assert ours[-1][0] <= (1.0 if "prompt" in name else 0.8) * ours[0][0]
    left, right = weights(tmp_path / "torch"), weights(observed / f"agree-{name}")
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.allclose(value, right[key], atol=5e-3), key


@pytest.mark.slow
@pytest.mark.parametrize("method", T5_METHODS)
def test_the_optimizer_knows_its_parameters_after_a_save(observed: Path, method: str) -> None:
    seen = steps(observed, f"whole-{method}")
    assert all(step["known"] == step["trained"] > 0 for step in seen)
    moving = [step["sum"] for step in seen if step["done"] >= 1]  # the first step of a warm-up has a rate of zero
    assert len(set(moving)) == len(moving), "the weights stand still"
    assert all(norm > 0 for (norm,) in log(observed / f"whole-{method}", "grad_norm"))


@pytest.mark.slow
def test_after_an_upstream_save_the_weights_stop_changing(observed: Path) -> None:
    """The negative control of the test above."""
    seen = steps(observed, "upstream")
    assert [step["known"] > 0 for step in seen] == [step["done"] < 4 for step in seen]
    assert len({step["sum"] for step in seen if step["done"] >= 4}) == 1
    assert [norm > 0 for (norm,) in log(observed / "upstream", "grad_norm")] == [True] * 4 + [False] * 16


@pytest.mark.slow
@pytest.mark.parametrize("method", T5_METHODS)
def test_a_stopped_run_resumes_like_an_uninterrupted_one(observed: Path, method: str) -> None:
    """With dropout; stopped by SIGTERM, which saves first."""
    assert steps(observed, f"first-{method}")[-1]["done"] < 11
    assert steps(observed, f"then-{method}")[0]["done"] == steps(observed, f"first-{method}")[-1]["done"] + 1
    whole, resumed = observed / f"whole-{method}", observed / f"resumed-{method}"
    keys = ("step", "loss", "grad_norm", "learning_rate", "epoch")
    assert log(whole, *keys) == log(resumed, *keys)
    assert_same_weights(whole, resumed)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(recipes: Path, python_path: str, tmp_path: Path) -> None:
    """SIGKILL of the command line, with dropout."""
    command = (f"{ROOT}/tests/stand_ins/xla/run.py", "train", str(recipes / "t5.yaml"), *NEURON, *LONG)
    process = xla(*command, "--output", "killed", folder=tmp_path, PYTHONPATH=python_path)
    mark = tmp_path / "killed" / "checkpoints" / "checkpoint-10" / "complete"
    deadline = time.monotonic() + LIMIT_S
    while not mark.exists():
        assert process.poll() is None, (tmp_path / "0.out").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "all_results.json").exists()
    resumed = xla(*command, "--output", "killed", "--resume", folder=tmp_path, PYTHONPATH=python_path)
    whole = xla(*command, "--output", "whole", folder=tmp_path, PYTHONPATH=python_path)
    ends_well(resumed, tmp_path)
    ends_well(whole, tmp_path)
    assert "continuing from checkpoint-" in (tmp_path / "1.out").read_text()
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    assert log(tmp_path / "killed", "step", "loss") == log(tmp_path / "whole", "step", "loss")


@pytest.mark.slow
def test_a_diverged_run_keeps_its_good_checkpoint(observed: Path) -> None:
    run = RunFolder(observed / "diverged", load_recipe(str(observed / "diverged" / "recipe.yaml")))
    message = (observed / "diverged-error.txt").read_text()
    assert "training diverged: the training loss or a weight is not a finite number" in message
    assert str(run.last_checkpoint()) in message
    assert not run.is_complete
    assert not run.weights.exists()


@pytest.mark.slow
def test_a_graph_extraction_runs_a_few_steps_and_trains_nothing(
    recipes: Path, python_path: str, tmp_path: Path
) -> None:
    command = (f"{ROOT}/tests/stand_ins/xla/run.py", "train", str(recipes / "t5.yaml"), *NEURON, "--output", "run")
    ends_well(xla(*command, folder=tmp_path, NEURON_EXTRACT_GRAPHS_ONLY="1", PYTHONPATH=python_path), tmp_path)
    assert len(log(tmp_path / "run", "step")) == MIN_STEPS
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert not list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
    assert "nothing was trained" in (tmp_path / "0.out").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "lora"])
def test_an_extraction_has_every_graph_of_a_run_in_buckets(observed: Path, name: str) -> None:
    """In one process, where XLA keeps compiled graphs; with the saves of the run, and a rare shape."""
    assert open_run(observed / f"extracted-{name}").read_results()["shapes"]["graphs"] == 4
    assert files.read_json(observed / f"extracted-{name}-compiled.json")["graphs"] == 0


@pytest.mark.slow
def test_processes_agree_to_stop_and_wait_for_each_other(tmp_path: Path) -> None:
    if not XLA_PYTHON.exists():
        pytest.skip(f"no {XLA_PYTHON}: make test builds it")
    torchrun = (
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=127.0.0.1:0",
    )
    ends_well(xla(*torchrun, f"{ROOT}/tests/stand_ins/xla/agree_to_stop.py", str(tmp_path), folder=tmp_path), tmp_path)
    assert (tmp_path / "0.out").read_text().count("agreed") == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED)
def test_buckets_compile_the_planned_number_of_graphs(observed: Path, name: str) -> None:
    """All of them in the first of three epochs."""
    plan = open_run(observed / name).read_results()["shapes"]
    told = files.read_json(observed / f"{name}-compiled.json")
    assert told == {"graphs": plan["graphs"], "shapes": len(plan["shapes"])}
    assert plan["graphs"] == (4 if name == "buckets-accumulated" else 2)
    compiled = [step["compiled"] for step in steps(observed, name)]
    assert len(compiled) == 24 and len(set(compiled[8:])) == 1, compiled


@pytest.mark.slow
def test_the_number_of_graphs_is_limited_except_with_dynamic_shapes(observed: Path) -> None:
    for name in ("full", "packed"):
        compiled = [step["compiled"] for step in steps(observed, f"agree-{name}")]
        assert len(set(compiled[3:])) == 1, (name, compiled)
        assert files.read_json(observed / f"agree-{name}-compiled.json")["shapes"] == 1
    saving = [step["compiled"] for step in steps(observed, "whole-full")]
    assert len(set(saving[5:])) == 1, saving  # the first save reads the loss so far
    dynamic = [step["compiled"] for step in steps(observed, "dynamic")]
    assert dynamic[-1] >= dynamic[3] + 2, dynamic
    assert files.read_json(observed / "dynamic-compiled.json")["shapes"] > 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "agree-full",
        *(f"whole-{method}" for method in T5_METHODS),
        *(f"llama-{name}-6" for name in LLAMA_METHODS),
        "agree-qwen3",
        "qwen3-lora-6",
    ],
)
def test_plain_transformers_and_peft_load_the_files(observed: Path, name: str) -> None:
    run = open_run(observed / name)
    if run.weights.name == "checkpoint":
        loader = AutoModelForCausalLM if "llama" in name or "qwen3" in name else AutoModelForSeq2SeqLM
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
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "adapter_config.json",
        "adapter_model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_statistics.json",
    }
    assert sorted(path.name for path in run.path.iterdir()) == sorted(
        ["all_results.json", "base", run.weights.name, "log.jsonl", "recipe.yaml", "run.json"]
    )
    load_tokenizer(ModelConfig(name_or_path=str(run.weights)))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(f"llama-{name}" for name in LLAMA_METHODS), "qwen3-lora"])
def test_a_consolidated_model_equals_the_trained_one(observed: Path, name: str) -> None:
    """Its loss on the seventh batch equals an uninterrupted run's; Llama's first six steps were stopped and resumed."""
    run = open_run(observed / f"{name}-6")
    model, _ = load_trained(run)
    torch_train = run.recipe.train.model_copy(update={"backend": "torch"})
    made = prepare(run.recipe.model_copy(update={"train": torch_train}), run.path.with_name(f"probe-{name}"))
    examples = [made.data.train[example] for row in made.plan.batches(0)[6] for example in row.examples]
    losses = 0.0
    for features in examples:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([features["input_ids"]])).logits
        labels = torch.tensor([features["labels"]])
        losses += float(TokenLoss(shifted=True, label_smoothing=0.0)({"logits": logits}, labels, 1))
    tokens = sum(label >= 0 for features in examples for label in features["labels"])
    assert log(observed / f"{name}-7", "loss")[6][0] == pytest.approx(losses / tokens, abs=1e-3)
    assert log(observed / f"{name}-7", "loss")[:6] == log(run.path, "loss")


@pytest.mark.slow
def test_bf16_is_autocast_and_padding_rows_do_not_count(observed: Path) -> None:
    losses = log(observed / "bf16", "loss", "grad_norm")
    assert losses[-1][0] < losses[0][0] and all(norm > 0 for _, norm in losses)
    assert all(value.dtype == torch.float32 for value in weights(observed / "bf16").values())


@pytest.mark.slow
def test_the_torch_backend_does_not_use_an_installed_xla(recipes: Path, tmp_path: Path) -> None:
    if not XLA_PYTHON.exists():
        pytest.skip(f"no {XLA_PYTHON}: make test builds it")
    command = ("-m", "neuron_sum", "train", str(recipes / "t5.yaml"), "train.max_steps=4", "--output", "there")
    process = xla(*command, folder=tmp_path)
    train(load_recipe(str(recipes / "t5.yaml"), ["train.max_steps=4"]), tmp_path / "here")
    ends_well(process, tmp_path)
    assert_same_weights(tmp_path / "here", tmp_path / "there")
