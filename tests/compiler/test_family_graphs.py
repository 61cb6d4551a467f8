"""Static graphs of every decoder-only family: the tokens of transformers, with adapters, and in a compiled artifact."""

import copy
from pathlib import Path

import pytest
import torch
from artifacts import make_lora, make_soft_prompt
from tiny_families import END, KINDS, PAD, made, prompts, tokenizer
from transformers import PreTrainedModel

from compile.graphs.layers import GraphOptions
from compile.graphs.static import eager_runtime, static_model, weights
from compile.targets.cpu import LINEARS
from neuron_sum.artifact import AdapterSpec, Bucket, SpecialTokens
from neuron_sum.errors import ModelError
from neuron_sum.models.adapters import load_adapter, merge
from neuron_sum.models.families import PROJECTIONS
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.generation import StepGenerator
from neuron_sum.runtimes.hugging_face import TransformersGenerator

SOURCE_LEN, TARGET_LEN, RANK, SOFT = 24, 12, 4, 5
GREEDY, BEAMS = (GenerateConfig(max_new_tokens=TARGET_LEN, num_beams=beams) for beams in (1, 3))
TOKENS = SpecialTokens(pad=PAD, ends=(END,), decoder_start=None)


def runtime_of(model: PreTrainedModel, adapters: AdapterSpec | None = None, soft: int = 0) -> StepGenerator:
    options = GraphOptions(source_len=SOURCE_LEN, target_len=TARGET_LEN, adapters=adapters, soft_prompt_tokens=soft)
    static = static_model(model.config, options)
    bucket = Bucket(batch=3, source_len=SOURCE_LEN, target_len=TARGET_LEN)
    return StepGenerator(eager_runtime(static, weights(static, model.state_dict()), [bucket], (1, 3), TOKENS))


@pytest.mark.parametrize("kind", KINDS)
def test_static_graphs_generate_the_tokens_of_transformers(kind: str) -> None:
    model = made(kind)
    actual, expected = runtime_of(model), TransformersGenerator(model, tokenizer(), 3)
    for asked in (GREEDY, BEAMS):
        rows = expected.generate(prompts(), asked)
        assert actual.generate(prompts(), asked) == rows
        assert len({token for row in rows for token in row}) > 8, "the choices are not clear"


@pytest.mark.parametrize("kind", KINDS)
def test_slots_have_the_tokens_of_the_merged_adapter_and_of_the_soft_prompt(kind: str, tmp_path: Path) -> None:
    model = made(kind)
    lora, soft = make_lora(model, tmp_path / "lora", RANK, 8, 1), make_soft_prompt(model, tmp_path / "soft", SOFT)
    merged, difference = merge(load_adapter(copy.deepcopy(model), lora))
    assert difference < 1e-5
    tuned = load_adapter(copy.deepcopy(model), soft)
    by_name = {"lora": merged, "soft": tuned, None: model}
    asked = prompts()
    # One prompt at a time, because a batch of transformers has one adapter.
    expected = [
        TransformersGenerator(by_name[name], tokenizer(), 1).generate([prompt], BEAMS)[0]
        for name, prompt in zip(by_name, asked, strict=True)
    ]
    spec = AdapterSpec(rank=RANK, slots=3, target_modules=PROJECTIONS)
    actual = runtime_of(model, spec, SOFT)
    slots = actual.runtime.adapters
    assert slots is not None
    slots.load("lora", lora)
    slots.load("soft", soft)
    assert actual.generate(asked, BEAMS, list(by_name)) == expected
    assert actual.generate(asked, BEAMS) != expected


@pytest.mark.parametrize("dtype", LINEARS)
def test_every_kind_of_projection_adds_its_biases_in_float32(dtype: str) -> None:
    options = GraphOptions(linear=LINEARS[dtype], dtype=torch.float32 if dtype == "fp32" else torch.bfloat16)
    layer = options.linear({"a": 6, "b": 10}, 8, options, bias=True)
    generator = torch.Generator().manual_seed(0)
    state = {
        f"{name}.{kind}": torch.randn(shape, generator=generator)
        for name, width in layer.parts.items()
        for kind, shape in (("weight", (width, 8)), ("bias", (width,)))
    }
    layer.load_state_dict(layer.weights(state), strict=False)
    row = torch.randn(1, 1, 8, generator=generator)
    expected = torch.cat([torch.nn.functional.linear(row, state[f"{n}.weight"], state[f"{n}.bias"]) for n in "ab"], -1)
    assert torch.allclose(
        layer(row, torch.zeros(1, dtype=torch.int64)), expected, atol=1e-5 if dtype == "fp32" else 0.1
    )


def test_rotations_that_change_with_the_length_have_no_static_form() -> None:
    config = made("llama3", rope_scaling={"rope_type": "dynamic", "factor": 2.0}).config
    with pytest.raises(ModelError, match="changes with the length of the prompt"):
        static_model(config, GraphOptions())
