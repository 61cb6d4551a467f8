"""Adapters that others trained: read by an allow-list, complete and finite, equal to PEFT, or rejected by name."""

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_adapters import CONFIG, tensors_for, write_adapter
from in_process import neuron_sum
from safetensors.torch import load_file, save_file

from compile.exporters.own import make_plan
from compile.source import open_source
from neuron_sum.artifact import AdapterSpec
from neuron_sum.errors import ModelError, RecipeError, RunError
from neuron_sum.models import base as models
from neuron_sum.models.adapter_config import base_of, read_config
from neuron_sum.models.adapter_files import read_adapter
from neuron_sum.models.adapters import load_adapter
from neuron_sum.recipes.schema import LoraMethod, ModelConfig, TrainedTokenizer
from neuron_sum.runs.merge import merge
from neuron_sum.runs.trained import load_weights
from neuron_sum.runtimes.slots import AdapterSlots

Q = "base_model.model.encoder.block.0.layer.0.SelfAttention.q"
MODELING = "transformers.models.t5.modeling_t5"
DIALOGUE = "#Person1#: Hi, a table for two on Friday, please.\n#Person2#: At seven?\n"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models with random weights and a tokenizer: t5 and llama, with a tied head and without."""
    folder = tmp_path_factory.mktemp("bases")
    for family, config in (("t5", T5), ("llama", LLAMA)):
        for name, tied in ((family, False), (f"{family}-tied", True)):
            made = ModelConfig(
                config={**config, "tie_word_embeddings": tied}, tokenizer=TrainedTokenizer(vocab_size=400)
            )
            tokenizer = models.load_tokenizer(made, [DIALOGUE])
            models.load_base(made, tokenizer).save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    return folder


def loaded(base: Path) -> Any:
    config = ModelConfig(name_or_path=str(base))
    return models.load_base(config, models.load_tokenizer(config))


def slots_of(base: Path, rank: int = 8) -> AdapterSlots:
    """Slots for q and v of a base."""
    shapes = load_file(base / "model.safetensors")
    names = [name.removesuffix(".weight") for name in shapes if name.endswith((".q.weight", ".v.weight"))]
    stacks = {}
    for name in names:
        out, width = shapes[f"{name}.weight"].shape
        stacks[f"{name}_a"], stacks[f"{name}_b"] = torch.zeros(2, rank, width), torch.zeros(2, out, rank)
    spec = AdapterSpec(rank=rank, slots=2, target_modules=("q", "v"))
    return AdapterSlots(spec, stacks, {name: name for name in names})


# adapter_config.json.


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("peft_type", kind)
            for kind in ("PREFIX_TUNING", "IA3", "ADALORA", "LOHA", "LOKR", "VERA", "OFT", "", None, 7)
        ),
        ("use_dora", True),
        ("use_qalora", True),
        ("lora_bias", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("fan_in_fan_out", True),
        ("layer_replication", [[0, 1]]),
        ("target_parameters", ["q.weight"]),
        ("trainable_token_indices", [5]),
        ("trainable_token_indices", {"embed_tokens": [5]}),
        ("alora_invocation_tokens", [4, 5]),
        ("ensure_weight_tying", True),
        *(("init_lora_weights", kind) for kind in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga")),
        ("loftq_config", {"loftq_bits": 4}),
        *((f"{kind}_config", {"a": 1}) for kind in ("corda", "arrow", "kasa", "velora", "monteclora", "lora_ga")),
        ("use_bdlora", {"nblocks": 2}),
        ("megatron_core", "os"),
        ("megatron_config", {"a": 1}),
        ("auto_mapping", {"base_model_class": "T5ForConditionalGeneration", "parent_library": "os"}),
        ("auto_mapping", {"base_model_class": "T5EncoderModel", "parent_library": MODELING}),
        ("auto_mapping", {"base_model_class": "T5ForConditionalGeneration", "parent_library": MODELING, "a": 1}),
        ("auto_mapping", "auto"),
        ("task_type", "SEQ_CLS"),
        ("a_key_of_the_next_version", 1),
        ("a_key_of_the_next_version", "on"),
        ("r", 0),
        ("r", "4"),
        ("r", True),
        ("lora_alpha", None),
        ("lora_alpha", float("inf")),
        ("lora_alpha", float("nan")),
        ("rank_pattern", {"q": 0}),
        ("alpha_pattern", {"q": float("inf")}),
        ("modules_to_save", "lm_head"),
        ("target_modules", [1]),
    ],
)
def test_a_key_that_is_not_supported_is_rejected_by_name(tmp_path: Path, key: str, value: object) -> None:
    folder = write_adapter(tmp_path / "adapter", None, {}, **{key: value})
    with pytest.raises(ModelError) as error:
        read_config(folder)
    assert key in error.value.message
    assert str(folder) in error.value.message


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "null", '{"peft_type": "LORA"}', "[" * 100_000, '{"r": ' + "9" * 5000]
)
def test_a_damaged_configuration_is_rejected(tmp_path: Path, content: str) -> None:
    folder = write_adapter(tmp_path / "adapter", None, {})
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        read_config(folder)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_an_adapter_saved_without_a_task_is_accepted(bases: Path, tmp_path: Path, family: str) -> None:
    model, name = loaded(bases / family), {"t5": "q", "llama": "q_proj"}[family]
    mapping = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
    tensors = tensors_for(bases / family, [name])
    changes = {"target_modules": [name], "task_type": None, "auto_mapping": mapping}
    load_adapter(model, write_adapter(tmp_path / "adapter", None, tensors, **changes))


def test_neutral_values_of_unknown_keys_are_accepted(bases: Path, tmp_path: Path) -> None:
    new = {"key_one": None, "key_two": False, "key_three": {}, "key_four": [], "init_lora_weights": "gaussian"}
    folder = write_adapter(tmp_path / "adapter", bases / "t5", **new, eva_config={"rho": 2.0})
    load_adapter(loaded(bases / "t5"), folder)
    old = {key: CONFIG[key] for key in ("peft_type", "r", "lora_alpha", "target_modules")}  # PEFT 0.3
    (folder / "adapter_config.json").write_text(json.dumps(old))
    load_adapter(loaded(bases / "t5"), folder)


def test_no_module_named_in_a_configuration_is_imported(
    bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    config = {"megatron_core": "hostile_module", "megatron_config": {"tensor_model_parallel_size": 1}}
    folder = write_adapter(tmp_path / "adapter", bases / "t5", **config)
    with pytest.raises(ModelError, match="megatron_core"):
        load_weights(folder)
    assert "hostile_module" not in sys.modules


def test_a_regular_expression_that_never_ends_is_stopped(bases: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", bases / "t5", target_modules=r"((\w|\.)*)*!")
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        load_weights(folder)


# The weights: everywhere an adapter is read, by slots and on its base.


def without(*parts: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {key: value for key, value in tensors.items() if not any(part in key for part in parts)}


def replaced(key: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {**tensors, key: value}


DAMAGES = {
    "no tensors": (without(""), {}),
    "lora_A alone": (without("lora_B"), {}),
    "lora_B alone": (without("lora_A"), {}),
    "one lora_B missing": (without(f"{Q}.lora_B"), {}),
    "a module missing": (without(f"{Q}."), {}),
    "a layer missing": (without("block.1."), {}),
    "a target missing": (without(".v."), {}),
    "a module too many": (lambda tensors: tensors, {"target_modules": ["q"]}),
    "other names": (lambda tensors: {f"x.{key}": value for key, value in tensors.items()}, {}),
    "nan": (replaced(f"{Q}.lora_A.weight", torch.full((4, 32), float("nan"))), {}),
    "infinite": (replaced(f"{Q}.lora_B.weight", torch.full((32, 4), float("inf"))), {}),
    "infinite product with the scale": (replaced(f"{Q}.lora_B.weight", torch.full((32, 4), 3e38)), {"lora_alpha": 400}),
    "huge scale": (lambda tensors: tensors, {"lora_alpha": 1e300}),
    "integers": (replaced(f"{Q}.lora_A.weight", torch.ones(4, 32, dtype=torch.int64)), {}),
    "ranks that differ": (replaced(f"{Q}.lora_A.weight", torch.ones(3, 32)), {}),
    "another r": (lambda tensors: tensors, {"r": 8}),
    "another rank_pattern": (lambda tensors: tensors, {"rank_pattern": {"q": 2}}),
    "another width": (replaced(f"{Q}.lora_A.weight", torch.ones(4, 31)), {}),
    "another height": (replaced(f"{Q}.lora_B.weight", torch.ones(33, 4)), {}),
    "three dimensions": (replaced(f"{Q}.lora_A.weight", torch.ones(4, 32, 1)), {}),
    "twice": (replaced(f"{Q}.lora_A", torch.ones(4, 32)), {}),
    "a bias": (replaced(f"{Q}.bias", torch.ones(32)), {}),
    "a magnitude of DoRA": (replaced(f"{Q}.lora_magnitude_vector", torch.ones(32)), {}),
    "a norm": (replaced("base_model.model.encoder.final_layer_norm.weight", torch.ones(32)), {}),
    "an unknown tensor": (replaced("classifier.weight", torch.ones(2, 32)), {}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_that_do_not_fit_are_rejected_everywhere(bases: Path, tmp_path: Path, damage: str) -> None:
    change, config = DAMAGES[damage]
    base = bases / "t5"
    folder = write_adapter(tmp_path / "adapter", base, change(tensors_for(base)), **config)
    for load in (lambda: load_adapter(loaded(base), folder), lambda: slots_of(base).load("x", folder)):
        with pytest.raises(ModelError) as error:
            load()
        assert str(folder) in error.value.message


@pytest.mark.parametrize(
    ("key", "tensor", "expected"),
    [
        (f"{Q}.lora_magnitude_vector", torch.ones(32), "contains KEY, which is not supported"),
        (f"{Q}.lora_magnitude_vector.weight", torch.ones(32), "contains KEY, which is not supported"),
        (f"{Q}.lora_A.other.weight", torch.ones(4, 32), "contains KEY, which is not supported"),
        (f"{Q}.lora_B.bias", torch.ones(32), "contains KEY, which is not supported"),
        (f"{Q}.lora_A.weight", torch.ones(4, 32, dtype=torch.int8), "KEY has dtype int8"),
        (f"{Q}.lora_A.weight", torch.ones(4, 32, dtype=torch.bool), "KEY has dtype bool"),
    ],
)
def test_tensors_of_another_kind_are_named(tmp_path: Path, key: str, tensor: torch.Tensor, expected: str) -> None:
    pair = {f"{Q}.lora_A.weight": torch.ones(4, 32), f"{Q}.lora_B.weight": torch.ones(32, 4)}
    folder = write_adapter(tmp_path / "adapter", None, {**pair, key: tensor})
    with pytest.raises(ModelError) as error:
        read_adapter(folder)
    assert expected.replace("KEY", key) in error.value.message
    assert "merge_and_unload" in str(error.value.hint)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_truncated_file_is_rejected_with_its_name(bases: Path, tmp_path: Path, size: int) -> None:
    folder = write_adapter(tmp_path / "adapter", bases / "t5")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    for load in (lambda: load_weights(folder), lambda: slots_of(bases / "t5").load("x", folder)):
        with pytest.raises(ModelError, match=r"adapter_model\.safetensors cannot be read"):
            load()


def test_slots_apply_the_rank_and_the_scale_of_each_module(bases: Path, tmp_path: Path) -> None:
    base = bases / "t5"
    tensors = {**tensors_for(base, ["q"], r=4), **tensors_for(base, ["v"], r=2)}
    config = {"rank_pattern": {"v": 2}, "alpha_pattern": {r"decoder\..*\.q": 3}, "use_rslora": True}
    folder = write_adapter(tmp_path / "adapter", base, tensors, **config)
    slots = slots_of(base)
    slots.load("x", folder)
    adapted = load_adapter(loaded(base), folder)
    adapted.merge_adapter()
    before, after = loaded(base).state_dict(), adapted.get_base_model().state_dict()
    for name in ("encoder.block.0.layer.0.SelfAttention.v", "decoder.block.1.layer.0.SelfAttention.q"):
        product = slots.stacks[f"{name}_b"][1] @ slots.stacks[f"{name}_a"][1]
        torch.testing.assert_close(product, after[f"{name}.base_layer.weight"] - before[f"{name}.weight"])
    with pytest.raises(ModelError, match="rank 4, the graphs are compiled for 2"):
        slots_of(base, rank=2).load("x", folder)


# Commands.


def test_an_adapter_with_a_whole_model_beside_it_is_loaded_on_the_base_that_it_names(
    bases: Path, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "adapter", bases / "t5")
    expected = load_weights(folder)[0].state_dict()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(bases / "t5-tied" / name, folder)
    assert all(torch.equal(value, expected[name]) for name, value in load_weights(folder)[0].state_dict().items())
    with pytest.raises(ModelError, match="holds an adapter beside the weights of a model"):
        models.load_base(
            ModelConfig(name_or_path=str(folder)), models.load_tokenizer(ModelConfig(name_or_path=str(bases / "t5")))
        )


def test_only_a_vocabulary_counts_as_the_tokenizer_of_an_adapter(bases: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", bases / "t5")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(bases / "t5" / name, folder)
    (folder / "added_tokens.json").write_text("{}")
    expected = models.load_tokenizer(ModelConfig(name_or_path=str(bases / "t5")))
    assert load_weights(folder)[1].get_vocab() == expected.get_vocab()
    shutil.copy(bases / "t5" / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer_config\.json beside its tokenizer\.json"):
        load_weights(folder)


def test_commands_take_an_adapter_without_a_tokenizer(
    bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the tokenizer of its base, which it names, or which --base names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dialogue.txt").write_text(DIALOGUE)
    named = write_adapter(tmp_path / "named", bases / "t5")
    nameless = write_adapter(tmp_path / "nameless", None, tensors_for(bases / "t5"))
    base = ["--base", str(bases / "t5")]
    assert neuron_sum("merge", str(named), "--output", "merged").exit_code == 0
    assert neuron_sum("merge", str(nameless), "--output", "other", *base).exit_code == 0
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(value, merged[key]) for key, value in load_file("other/model.safetensors").items())
    short = ["--recipe", "tiny", "--set", "generate.max_new_tokens=8", "--json"]
    texts = [
        json.loads(neuron_sum("summarize", folder, "dialogue.txt", *short, *option).stdout)["summary_text"]
        for folder, option in (("named", []), ("nameless", base), ("merged", []))
    ]
    assert texts[0] == texts[1] == texts[2]
    few = ["--set", "data.max_test_examples=2", "--output", "evaluated"]
    assert neuron_sum("evaluate", "nameless", *short, *few, *base).exit_code == 0
    planned = neuron_sum("compile", "nameless", "--recipe", "tiny", "--dry-run", *base)
    assert planned.exit_code == 0
    for words in (["merge"], ["summarize", "--recipe", "tiny"], ["compile", "--recipe", "tiny"]):
        lost = neuron_sum(words[0], "nameless", *words[1:])
        assert lost.exit_code == 5
        assert "--base" in lost.stderr
    assert neuron_sum("summarize", "named", "dialogue.txt").exit_code == 8
    assert "--recipe" in neuron_sum("compile", "named").stderr
    assert neuron_sum("merge", "named", "--output", "x", "--base", "missing/base").exit_code == 5
    assert neuron_sum("compile", str(bases / "t5"), "--recipe", "tiny", "--dry-run", *base).exit_code == 8


@pytest.mark.parametrize("name", [None, "", "/no/such/folder", "./base", "a/b/c", "https://example.org/base"])
def test_without_a_base_the_option_is_named(tmp_path: Path, name: str | None) -> None:
    folder = write_adapter(tmp_path / "adapter", None, {}, base_model_name_or_path=name)
    with pytest.raises(ModelError) as error:
        base_of(folder)
    assert "--base" in str(error.value.hint)
    assert base_of(folder, "google/flan-t5-base").name_or_path == "google/flan-t5-base"
    assert base_of(folder, str(tmp_path)).name_or_path == str(tmp_path.resolve())


def test_an_adapter_in_a_subfolder_or_as_a_pickle_is_found_with_a_hint(bases: Path, tmp_path: Path) -> None:
    nested = write_adapter(tmp_path / "models--a--b" / "snapshots" / "c0ffee", bases / "t5")
    outer = tmp_path / "models--a--b"
    for command in ("merge", "summarize", "evaluate", "compile"):
        lost = neuron_sum(command, str(outer), *(["--recipe", "tiny"] if command != "merge" else []))
        assert lost.exit_code == 8
        assert str(nested) in lost.stderr.replace("\n", "")
    weights = nested / "adapter_model.safetensors"
    torch.save(load_file(weights), nested / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(ModelError, match=r"only adapter_model\.bin") as error:
        load_weights(nested)
    assert error.value.hint is not None
    command = error.value.hint.partition("python -c ")[2]
    exec(shlex.split(command)[0], {})  # the printed program
    load_weights(nested)


def test_a_base_of_another_shape_or_family_is_rejected(bases: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", bases / "t5")
    with pytest.raises(ModelError, match="does not fit this base model"):
        load_weights(folder, ModelConfig(name_or_path=str(bases / "llama")))


# Layers that share their weights (case 21), and embeddings.


def adapt_head(base: Path, folder: Path, **config: Any) -> Path:
    width = next(iter(load_file(base / "model.safetensors").values())).shape[1]
    vocabulary = json.loads((base / "config.json").read_text())["vocab_size"]
    head = {
        "base_model.model.lm_head.lora_A.weight": torch.randn(4, width),
        "base_model.model.lm_head.lora_B.weight": torch.randn(vocabulary, 4),
    }
    return write_adapter(folder, base, head, target_modules=["lm_head"], **config)


@pytest.mark.parametrize("family", ["t5-tied", "llama-tied"])
def test_lora_on_a_tied_head_is_neither_merged_nor_compiled(bases: Path, tmp_path: Path, family: str) -> None:
    folder = adapt_head(bases / family, tmp_path / "adapter", task_type=None)
    load_weights(folder)  # evaluating it is right
    with pytest.raises(ModelError, match="LoRA on lm_head cannot be merged"):
        merge(folder, tmp_path / "merged")
    with pytest.raises(ModelError, match="LoRA on lm_head cannot be merged"):
        make_plan(open_source(folder, "tiny", []))
    whole = {"base_model.model.lm_head.base_layer.weight": torch.zeros(4)}  # as PEFT saves it
    save_file({**load_file(folder / "adapter_model.safetensors"), **whole}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"contains lm_head\.weight, but slots hold only LoRA"):
        make_plan(open_source(folder, "tiny", ["compile.adapters.slots=1"]))
    make_plan(open_source(adapt_head(bases / family.removesuffix("-tied"), tmp_path / "untied"), "tiny", []))


def test_the_method_of_the_training_cannot_be_replaced(micro_lora_run: Path, bases: Path, tmp_path: Path) -> None:
    own = open_source(micro_lora_run, None, [])
    assert own.lora == LoraMethod()
    full = open_source(micro_lora_run, "tiny", ["compile.adapters.slots=2"])
    assert (full.lora, full.recipe.method) == (own.lora, own.lora)
    open_source(micro_lora_run, None, ["method=lora", "method.r=32"])  # its own
    adapter = write_adapter(tmp_path / "adapter", bases / "t5")
    prompt = ["method=prompt_tuning", "method.num_virtual_tokens=8"]
    for path, recipe, overrides in (
        (micro_lora_run, None, ["method.r=3"]),
        (micro_lora_run, None, prompt),
        (micro_lora_run, "tiny", prompt),
        (adapter, "tiny", prompt),
        (bases / "t5", "tiny", ["method=lora"]),
    ):
        with pytest.raises(RecipeError, match=f"was trained with another method than .*{overrides[-1]}"):
            open_source(path, recipe, overrides)


def test_the_base_of_an_artifact_keeps_its_revision(bases: Path, tmp_path: Path) -> None:
    base = ModelConfig(name_or_path=str(bases / "t5"), revision="abc")
    source = open_source(write_adapter(tmp_path / "adapter", None, tensors_for(bases / "t5")), "tiny", [], base)
    assert source.base == source.recipe.model == base


def test_compile_verifies_the_merge_before_it_compiles(
    bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compile.exporters import own

    source = open_source(write_adapter(tmp_path / "adapter", bases / "t5"), "tiny", [])
    model, _ = source.load()
    monkeypatch.setattr(type(model.base_model), "merge_and_unload", type(model.base_model).unload)
    monkeypatch.setattr(own, "compile_all", lambda *_: pytest.fail("compiled"))
    with pytest.raises(ModelError, match="logits differ"):
        own.build(source, make_plan(source), tmp_path / "artifact", overwrite=False, jobs=None)


def test_compile_loads_and_merges_the_adapter_once(
    bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compile.exporters import own

    def compile_all(jobs: list[Any], processes: int) -> Iterator[Any]:
        for job in jobs:
            job.path.write_bytes(b"PK\x05\x06" + bytes(18))  # an empty archive
            yield job

    monkeypatch.setenv("NEURON_SUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(own, "compile_all", compile_all)
    loads, load = list[str](), own.Source.load_for_compile
    monkeypatch.setattr(own.Source, "load_for_compile", lambda source: loads.append("once") or load(source))
    source = open_source(write_adapter(tmp_path / "adapter", bases / "t5"), "tiny", ["compile.batch_sizes=[1]"])
    own.build(source, make_plan(source), tmp_path / "artifact", overwrite=False, jobs=None)
    assert loads == ["once"]


def test_optimum_refuses_an_adapter_that_cannot_be_merged(bases: Path, tmp_path: Path) -> None:
    from compile.exporters import optimum

    overrides = [
        "compile.target=inf2",
        "compile.batch_sizes=[1]",
        "compile.source_lens=[64]",
        "compile.num_beams=[1]",
        "compile.dtype=fp32",
    ]
    source = open_source(adapt_head(bases / "t5-tied", tmp_path / "adapter", task_type=None), "tiny", overrides)
    with pytest.raises(ModelError, match="LoRA on lm_head cannot be merged"):
        optimum.make_plan(source)


def test_adapters_that_do_not_fit_the_slots_are_rejected_before_compiling(bases: Path, tmp_path: Path) -> None:
    base, slots = bases / "t5", ["compile.adapters.slots=1"]
    folder = write_adapter(tmp_path / "adapter", base)
    assert make_plan(open_source(folder, "tiny", slots)).options.adapters == AdapterSpec(
        rank=4, slots=2, target_modules=("q", "v")
    )
    for change, message in (("rank=2", "has rank 4"), ("target_modules=[q]", "has no slot for it|have no slot for it")):
        with pytest.raises(ModelError, match=message):
            make_plan(open_source(folder, "tiny", [*slots, f"compile.adapters.{change}"]))
    with pytest.raises(RunError, match="without a recipe"):
        open_source(folder, None, slots)


def grown(base: Path, folder: Path, rows: int, names: tuple[str, ...], **config: Any) -> Path:
    """An adapter that saved resized embeddings."""
    width = next(iter(load_file(base / "model.safetensors").values())).shape[1]
    whole = {f"base_model.model.{name}": torch.randn(rows, width) for name in names}
    return write_adapter(folder, base, {**tensors_for(base), **whole}, **config)


def test_resized_embeddings_are_loaded_merged_and_compiled(bases: Path, tmp_path: Path) -> None:
    base = bases / "t5"
    rows = json.loads((base / "config.json").read_text())["vocab_size"] + 3
    folder = grown(base, tmp_path / "adapter", rows, ("shared.weight", "lm_head.weight"))
    tokenizer = models.load_tokenizer(ModelConfig(name_or_path=str(base)))
    tokenizer.add_tokens(["<one>", "<two>", "<three>"])
    tokenizer.save_pretrained(folder)
    model, own = load_weights(folder)
    saved = load_file(folder / "adapter_model.safetensors")
    assert len(own) == rows
    assert torch.equal(model.get_input_embeddings().weight, saved["base_model.model.shared.weight"])
    assert torch.equal(model.get_base_model().encoder.embed_tokens.weight, saved["base_model.model.shared.weight"])
    merge(folder, tmp_path / "merged")
    merged, again = load_weights(tmp_path / "merged")
    assert len(again) == rows
    ids = torch.tensor([[5, rows - 1, rows - 3, 1]])
    with torch.inference_mode():
        expected, actual = (one(input_ids=ids, decoder_input_ids=ids).logits for one in (model, merged))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    source = open_source(folder, "tiny", [])
    assert make_plan(source).config.vocab_size == rows
    assert source.load_for_compile()[0].get_output_embeddings().weight.shape[0] == rows
    with pytest.raises(ModelError, match="slots hold only LoRA"):
        make_plan(open_source(folder, "tiny", ["compile.adapters.slots=1"]))


def test_new_tokens_without_saved_embeddings_are_rejected(bases: Path, tmp_path: Path) -> None:
    """Their embeddings would be random."""
    base = bases / "t5"
    vocabulary = json.loads((base / "config.json").read_text())["vocab_size"]
    folder = write_adapter(tmp_path / "adapter", base)
    tokenizer = models.load_tokenizer(ModelConfig(name_or_path=str(base)))
    tokenizer.add_tokens([f"<new {number}>" for number in range(vocabulary)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="entries"):
        load_weights(folder)
    half = grown(base, tmp_path / "half", vocabulary + 3, ("shared.weight",))
    with pytest.raises(ModelError, match="resized only some of its embeddings"):
        load_weights(half)
    tied = bases / "t5-tied"
    differing = grown(tied, tmp_path / "differing", vocabulary + 3, ("shared.weight", "lm_head.weight"))
    with pytest.raises(ModelError, match="but the base model shares it with"):
        load_weights(differing)
    shutil.rmtree(differing)
    load_weights(grown(tied, differing, vocabulary + 3, ("shared.weight",)))
