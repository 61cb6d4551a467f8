"""Recipes that training on Neuron rejects before writing anything: for the machine, the recipe or the method."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from micro_models import NEURON

from neuron_sum.errors import PlatformError, RecipeError
from neuron_sum.models.base import load_config
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.training.neuron.backend import NeuronBackend

CommandLine = Callable[..., subprocess.CompletedProcess[str]]


def test_without_the_sdk_the_missing_packages_are_listed(tmp_path: Path, neuron_sum: CommandLine) -> None:
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
def test_a_missing_sdk_is_reported_once_before_processes_start(
    tmp_path: Path, neuron_sum: CommandLine, more: list[str]
) -> None:
    result = neuron_sum("train", "tiny", *NEURON, "--processes", "2", "--output", "run", *more)
    assert result.returncode == 13, result.stderr
    said = [line for line in result.stderr.strip().split("\n") if not line.startswith("environment:")]
    assert [line.partition(": ")[0] for line in said] == ["error", "hint"]
    assert "torch-neuronx" in said[0] and "Neuron training image" in said[1]
    assert not (tmp_path / "run").exists()


def test_an_impossible_number_of_processes_is_rejected_once(tmp_path: Path, neuron_sum: CommandLine) -> None:
    split = "train.neuron.tensor_parallel_size=2"
    result = neuron_sum("train", "tiny", *NEURON, split, "--processes", "3", "--output", "run")
    assert result.returncode == RecipeError.exit_code == 3, result.stderr
    assert result.stderr.count("error: ") == result.stderr.count("tensor_parallel_size: 2 does not divide 3") == 1
    assert "train.neuron.tensor_parallel_size=1" in result.stderr
    assert not (tmp_path / "run").exists()


def test_an_impossible_number_of_torchrun_processes_is_rejected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_recipe("tiny", [*NEURON, "train.neuron.tensor_parallel_size=4"]).train
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(RecipeError, match=r"4 does not divide 6.*tensor_parallel_size=2"):
        NeuronBackend.check(config)
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(PlatformError):  # of this machine, which has no Neuron device
        NeuronBackend.check(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.shapes.plan=dynamic"], "packed, buckets or fixed"),
        (["train.fsdp=true"], "neither fsdp nor deepspeed"),
        (["train.deepspeed=zero.json"], "neither fsdp nor deepspeed"),
        (["train.backend=torch", "train.neuron.zero_1=true"], "neuron.* requires backend neuron"),
        (
            ["train.neuron.tensor_parallel_size=2", "train.label_smoothing_factor=0.1"],
            "label_smoothing_factor must be 0",
        ),
    ],
)
def test_a_recipe_that_neuron_cannot_train_is_invalid(tmp_path: Path, overrides: list[str], message: str) -> None:
    (tmp_path / "zero.json").write_text("{}")
    overrides = [value.replace("zero.json", str(tmp_path / "zero.json")) for value in overrides]
    with pytest.raises(RecipeError, match=message.replace("*", r"\*")):
        load_recipe("tiny", [*NEURON, *overrides])


@pytest.mark.parametrize(
    ("family", "overrides", "message"),
    [
        ("micro_llama", ["method=prompt_tuning"], "accepts only LoRA adapters"),
        ("micro_llama", ["method=lora", "method.target_modules=[q_proj,v_proj]"], "all seven: q_proj"),
        ("micro", ["train.neuron.tensor_parallel_size=2"], "only data parallel"),
        ("micro", ["train.neuron.zero_1=true"], "not supported for T5"),
    ],
)
def test_a_method_that_upstream_lacks_for_a_model_is_rejected(
    request: pytest.FixtureRequest, family: str, overrides: list[str], message: str
) -> None:
    recipe = load_recipe(str(request.getfixturevalue(family)), [*NEURON, *overrides])
    with pytest.raises(RecipeError, match=message):
        NeuronBackend.check_model(load_config(recipe.model), recipe)
