"""The context of a Llama: longer prompts with their summaries are rejected before anything is computed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from micro_models import LLAMA_CONFIG, MICRO_LLAMA

from compile.exporters import optimum, own
from compile.source import Source
from neuron_sum.doctor.recipe_check import check_recipe
from neuron_sum.errors import RecipeError
from neuron_sum.evaluation.api import Summarizer
from neuron_sum.models.base import load_base, load_tokenizer
from neuron_sum.models.configs import make_config
from neuron_sum.models.rotary import check_positions, context_length, training_lengths
from neuron_sum.platform.matrix import INSTANCES, PLATFORMS
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import ModelConfig, Recipe, TrainedTokenizer
from neuron_sum.training.train import train

LLAMA = {**LLAMA_CONFIG, "max_position_embeddings": 64}
T5 = {"model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
LISTS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **values}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 64),
        (rope("default"), 64),
        (rope("linear", factor=4.0), 256),
        (rope("dynamic", factor=2.0), 128),
        (rope("yarn", factor=4.0), 256),
        (rope("yarn", factor=2.0, original_max_position_embeddings=32), 64),
        (rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0), 64),
        (rope("longrope", **LISTS, original_max_position_embeddings=16), 64),
        ({"rope_scaling": {"type": "linear", "factor": 3.0}}, 192),
    ],
)
def test_the_context_length_includes_the_scaling(changes: dict[str, Any], expected: int) -> None:
    assert context_length(make_config({**LLAMA, **changes}, "config.json")) == expected


def test_a_t5_has_no_context_length() -> None:
    assert context_length(make_config({**T5, "n_positions": 512}, "config.json")) is None


def llama_recipe(tmp_path: Path, *overrides: str) -> Recipe:
    (tmp_path / "micro.yaml").write_text(MICRO_LLAMA.replace("config: null", f"config: {json.dumps(LLAMA_CONFIG)}"))
    return load_recipe(str(tmp_path / "micro.yaml"), overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("data.max_target_length=128",), "max_source_length 2,000 + data.max_target_length 128 = 2,128 tokens exceed"),
        (("data.max_target_length=49",), "= 2,049 tokens exceed the model's context of 2,048"),
        (("data.max_target_length=48", "method=prompt_tuning"), "method.num_virtual_tokens 20 + "),
        (("data.max_source_length=465", "model.config.max_position_embeddings=512"), "context of 512"),
    ],
)
def test_training_beyond_the_context_is_rejected_before_it_starts(
    tmp_path: Path, overrides: tuple[str, ...], expected: str
) -> None:
    recipe = llama_recipe(tmp_path, "data.max_source_length=2000", *overrides)
    with pytest.raises(RecipeError) as raised:
        train(recipe, tmp_path / "run")
    assert expected in raised.value.message
    assert "data.max_source_length to at most" in str(raised.value.hint)
    assert not (tmp_path / "run").exists()
    check = next(
        check for check in check_recipe(recipe, INSTANCES["ml.trn1.2xlarge"], PLATFORMS[0]) if check.name == "context"
    )
    assert (check.verdict, check.found, check.remedy) == ("blocks", raised.value.message, raised.value.hint)


@pytest.mark.parametrize("overrides", [(), ("model.config.rope_scaling={rope_type: linear, factor: 2.0}",)])
def test_lengths_within_the_context_are_accepted(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    lengths = "data.max_source_length=1920" if not overrides else "data.max_source_length=3968"
    recipe = llama_recipe(tmp_path, lengths, *overrides)
    check_positions(make_config(recipe.model.config, "config.json"), training_lengths(recipe))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama whose context has 64 tokens, and its tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    config = ModelConfig(config=LLAMA, tokenizer=TrainedTokenizer(vocab_size=300))
    tokenizer = load_tokenizer(config, ["#Person1#: Hello, how are you?"])
    load_base(config, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def untrained_recipe(checkpoint: Path) -> Recipe:
    model = f"model={{name_or_path: '{checkpoint}', config: null, tokenizer: null}}"
    return load_recipe("tiny", [model, "data.max_source_length=32"])


def test_generation_beyond_the_context_is_rejected(untrained_recipe: Recipe, checkpoint: Path) -> None:
    with pytest.raises(RecipeError, match=r"max_new_tokens 33 = 65 tokens exceed the model's context of 64"):
        Summarizer(checkpoint, recipe=untrained_recipe, overrides=["generate.max_new_tokens=33"]).predict(["A: hello"])
    fitting = ["generate.max_new_tokens=32", "generate.min_new_tokens=0"]
    assert Summarizer(checkpoint, recipe=untrained_recipe, overrides=fitting, progress=True).predict(["A: hello"])


@pytest.mark.parametrize("plan", [own.make_plan, optimum.make_plan])
def test_compiling_beyond_the_context_is_rejected(
    untrained_recipe: Recipe, checkpoint: Path, plan: Callable[[Source], object]
) -> None:
    settings = untrained_recipe.compile.model_copy(update={"source_lens": (48,), "target_len": 17})
    source = Source(checkpoint, untrained_recipe.model_copy(update={"compile": settings}), None)
    with pytest.raises(RecipeError, match=r"source_lens 48 \+ compile.target_len 17 = 65 tokens exceed"):
        plan(source)
