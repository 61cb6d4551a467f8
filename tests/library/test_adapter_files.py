"""Files of adapters that others trained: keys by an allow-list, complete and finite weights, errors by name."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_adapters import CONFIG, tensors_for, write_adapter
from safetensors.torch import load_file

from neuron_sum.artifact import AdapterSpec
from neuron_sum.errors import ModelError
from neuron_sum.models import base as models
from neuron_sum.models.adapter_config import read_config
from neuron_sum.models.adapter_files import read_adapter
from neuron_sum.models.adapters import load_adapter
from neuron_sum.recipes.schema import ModelConfig
from neuron_sum.runs.trained import load_weights
from neuron_sum.runtimes.slots import AdapterSlots

Q = "base_model.model.encoder.block.0.layer.0.SelfAttention.q"
MODELING = "transformers.models.t5.modeling_t5"


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
