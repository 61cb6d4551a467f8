"""Adapters as data: equal to the merged model row by row, swapped and mixed while others generate."""

import copy
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from artifacts import make_lora, make_soft_prompt
from transformers import PreTrainedModel

from compile.graphs.layers import GraphOptions
from compile.graphs.static import adapter_targets, eager_runtime, static_model, weights
from neuron_sum.artifact import AdapterSpec, Bucket, SpecialTokens
from neuron_sum.errors import ArtifactError, ModelError
from neuron_sum.models.adapters import load_adapter
from neuron_sum.models.base import is_decoder_only, load_base, load_tokenizer
from neuron_sum.models.families import family_of
from neuron_sum.recipes.schema import GenerateConfig, ModelConfig
from neuron_sum.runtimes.generation import StepGenerator
from neuron_sum.runtimes.graphs import GraphRuntime
from neuron_sum.runtimes.hugging_face import TransformersGenerator

RANK, SOFT_TOKENS, SOURCE_LEN, TARGET_LEN = 4, 6, 48, 16
ASKED = GenerateConfig(max_new_tokens=TARGET_LEN, num_beams=2)
TINY = {
    "t5": {
        "model_type": "t5",
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "vocab_size": 400,
        "decoder_start_token_id": 0,
    },
    "llama": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 400,
        "initializer_range": 0.2,
    },
}


@pytest.fixture(params=["t5", "llama"])
def base(request: pytest.FixtureRequest, micro_run: Path) -> PreTrainedModel:
    """A tiny model with weights so large that its choices are clear."""
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(micro_run / "checkpoint")))
    model = load_base(ModelConfig(config=TINY[request.param], tokenizer=str(micro_run / "checkpoint")), tokenizer)
    if request.param == "t5":
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(3)
    return model


def runtime_of(base: PreTrainedModel, slots: int = 4) -> GraphRuntime:
    spec = AdapterSpec(rank=RANK, slots=slots + 1, target_modules=family_of(base.config).lora_targets)
    options = GraphOptions(source_len=SOURCE_LEN, target_len=TARGET_LEN, adapters=spec, soft_prompt_tokens=SOFT_TOKENS)
    static = static_model(base.config, options)
    start = None if is_decoder_only(base.config) else base.config.decoder_start_token_id
    tokens = SpecialTokens(pad=base.config.pad_token_id, ends=(base.config.eos_token_id,), decoder_start=start)
    bucket = Bucket(batch=4, source_len=SOURCE_LEN, target_len=TARGET_LEN)
    return eager_runtime(static, weights(static, base.state_dict()), [bucket], (1, 2), tokens)


@pytest.fixture
def folders(base: PreTrainedModel, tmp_path: Path) -> dict[str, Path]:
    return {
        "full-rank": make_lora(base, tmp_path / "full-rank", RANK, 8, 1),
        "lower-rank": make_lora(base, tmp_path / "lower-rank", 2, 2, 2, rslora=True),
        "soft": make_soft_prompt(base, tmp_path / "soft", SOFT_TOKENS),
        "shorter-soft": make_soft_prompt(base, tmp_path / "shorter-soft", 3),
    }


def prompts_of(base: PreTrainedModel, count: int = 4) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(4, 400, (9 + 11 * row,), generator=generator).tolist() for row in range(count)]


def expected_rows(
    base: PreTrainedModel, folder: Path | None, prompts: list[list[int]], micro_run: Path, *, merged: bool
) -> list[list[int]]:
    """The summaries of transformers, one prompt at a time, with the adapter merged or attached."""
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(micro_run / "checkpoint")))
    model = copy.deepcopy(base)
    if folder is not None:
        model = load_adapter(model, folder)
    if merged:
        model = model.merge_and_unload()
    generator = TransformersGenerator(model, tokenizer, 1)
    return [generator.generate([prompt], ASKED)[0] for prompt in prompts]


def test_every_row_of_a_mixed_batch_matches_its_merged_model(
    base: PreTrainedModel, folders: dict[str, Path], micro_run: Path
) -> None:
    prompts = prompts_of(base)
    expected = {
        name: expected_rows(base, folder, prompts, micro_run, merged="soft" not in name)
        for name, folder in folders.items()
    }
    plain = expected_rows(base, None, prompts, micro_run, merged=False)
    assert len({str(rows) for rows in [*expected.values(), plain]}) == 5, "the adapters do not differ"

    runtime = runtime_of(base)
    assert runtime.adapters is not None
    generator = StepGenerator(runtime)
    assert generator.generate(prompts, ASKED) == plain, "empty slots change the base model"
    for name, folder in folders.items():
        runtime.adapters.load(name, folder)
    names = [*folders, None]
    for shift in range(len(names)):
        chosen = [names[(row + shift) % len(names)] for row in range(len(prompts))]
        made = generator.generate(prompts, ASKED, chosen)
        assert made == [expected[name][row] if name else plain[row] for row, name in enumerate(chosen)]


def test_logits_match_the_merged_model_within_rounding(base: PreTrainedModel, folders: dict[str, Path]) -> None:
    prompt, runtime = prompts_of(base)[2], runtime_of(base)
    assert runtime.adapters is not None
    runtime.adapters.load("one", folders["full-rank"])
    with runtime.adapters.lease(["one"]) as slots, torch.inference_mode():
        session = runtime.begin(runtime.buckets[0], 1, [prompt], slots)
        start = torch.from_numpy(session.start[:, :1])
        actual = torch.from_numpy(session.step(session.start, np.zeros_like(session.start)).all_logits()[0, 0])
        merged = load_adapter(copy.deepcopy(base), folders["full-rank"]).merge_and_unload()
        if is_decoder_only(base.config):
            expected = merged(input_ids=torch.tensor([prompt])).logits[0, -1]
        else:
            expected = merged(input_ids=torch.tensor([prompt]), decoder_input_ids=start).logits[0, -1]
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-5


def test_no_row_uses_another_adapter_while_adapters_are_swapped(
    base: PreTrainedModel, folders: dict[str, Path], micro_run: Path, tmp_path: Path
) -> None:
    """Threads generate with every adapter while one name repeatedly alternates between two adapters."""
    prompts = prompts_of(base)
    folders["swap-a"] = make_lora(base, tmp_path / "swap-a", RANK, 4, 10)
    folders["swap-b"] = make_lora(base, tmp_path / "swap-b", RANK, 4, 11)
    expected = {
        name: expected_rows(base, folders[name], prompts, micro_run, merged="soft" not in name)
        for name in ("full-rank", "soft", "swap-a", "swap-b")
    }
    assert expected["swap-a"] != expected["swap-b"]
    runtime = runtime_of(base, slots=4)
    slots = runtime.adapters
    assert slots is not None
    for name, folder in (("full-rank", "full-rank"), ("soft", "soft"), ("swapped", "swap-a")):
        slots.load(name, folders[folder])
    done = threading.Event()

    def swap() -> int:
        count = 0
        while not done.is_set():
            slots.load("swapped", folders["swap-b" if count % 2 == 0 else "swap-a"])
            count += 1
        return count

    def ask(seed: int) -> None:
        names = ["full-rank", "soft", "swapped"]
        for turn in range(6):
            chosen = [names[(seed + turn + row) % 3] for row in range(len(prompts))]
            made = StepGenerator(runtime).generate(prompts, ASKED, chosen)
            swapped = {row: made[row] for row, name in enumerate(chosen) if name == "swapped"}
            for row, name in enumerate(chosen):
                if name != "swapped":
                    assert made[row] == expected[name][row]
            # All rows of a batch use the same one of the two, completely.
            assert any(
                all(tokens == expected[side][row] for row, tokens in swapped.items()) for side in ("swap-a", "swap-b")
            )

    with ThreadPoolExecutor(4) as threads:
        swapping = threads.submit(swap)
        asking = [threads.submit(ask, seed) for seed in range(3)]
        try:
            for future in asking:
                future.result(timeout=120)
        finally:
            done.set()
        assert swapping.result() > 2


def test_adapters_that_do_not_fit_the_slots_are_rejected(
    base: PreTrainedModel, folders: dict[str, Path], tmp_path: Path
) -> None:
    runtime = runtime_of(base, slots=2)
    slots = runtime.adapters
    assert slots is not None
    with pytest.raises(ModelError, match="rank 8"):
        slots.load("x", make_lora(base, tmp_path / "high", 8, 8, 5))
    with pytest.raises(ModelError, match="a soft prompt of 9 tokens, the graphs accept at most 6"):
        slots.load("x", make_soft_prompt(base, tmp_path / "long", 9))
    with pytest.raises(ModelError, match="is not an adapter"):
        slots.load("x", tmp_path)
    for pipe in ("adapter_config.json", "adapter_model.safetensors"):  # opening one would block forever
        broken = shutil.copytree(folders["full-rank"], tmp_path / pipe)
        (broken / pipe).unlink()
        os.mkfifo(broken / pipe)
        with pytest.raises(ModelError, match=f"{pipe} is not a file"):
            slots.load("x", broken)
    slots.load("a", folders["full-rank"])
    slots.load("b", folders["lower-rank"])
    with pytest.raises(ModelError, match="all 2 adapter slots are taken: a, b"):
        slots.load("c", folders["soft"])
    assert slots.names == ["a", "b"]
    with pytest.raises(ModelError, match="no adapter 'c'") as error, slots.lease(["a", "c"]):
        pass
    assert error.value.hint == "loaded: a, b"
    slots.load("a", folders["soft"])  # a replacement needs no free slot
    slots.unload("b")
    with pytest.raises(ModelError):
        slots.unload("b")
    with pytest.raises(ArtifactError, match="no adapter slots"):
        bare = GraphRuntime(runtime.buckets, runtime.num_beams, runtime.tokens, runtime.encode, runtime.open)
        StepGenerator(bare).generate([[5]], ASKED, ["a"])


def test_an_adapter_on_other_modules_is_rejected(base: PreTrainedModel, tmp_path: Path) -> None:
    task, module = ("CAUSAL_LM", "lm_head") if is_decoder_only(base.config) else ("SEQ_2_SEQ_LM", "wo")
    config = peft.LoraConfig(task_type=task, r=2, target_modules=[module])
    peft.get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path / "other", save_embedding_layers=False)
    slots = runtime_of(base).adapters
    assert slots is not None
    with pytest.raises(ModelError, match="but the graphs have no slot for it"):
        slots.load("x", tmp_path / "other")


def test_every_target_module_of_a_family_has_a_slot(base: PreTrainedModel) -> None:
    modules = tuple({name.rpartition(".")[2] for name, m in base.named_modules() if isinstance(m, torch.nn.Linear)})
    static = static_model(base.config, GraphOptions(adapters=AdapterSpec(rank=2, slots=2, target_modules=modules)))
    linears = {name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    assert adapter_targets(static).keys() == linears
