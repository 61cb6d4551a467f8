"""Adapters saved by the current PEFT with transformers 5: the same logits as there, or rejected by name."""

from pathlib import Path

import pytest
import torch
from micro_models import ROOT
from safetensors.torch import load_file
from transformers5 import needs_transformers5, run_transformers5

from compile.source import open_source
from neuron_sum.errors import ModelError
from neuron_sum.models import base as models
from neuron_sum.recipes.schema import ModelConfig, TrainedTokenizer
from neuron_sum.runs.merge import merge
from neuron_sum.runs.trained import load_weights

pytestmark = needs_transformers5

CONFIGS = {
    "t5-tied": {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "llama": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
}
CODE = (ROOT / "tests" / "support" / "write_adapters.py").read_text()
ACCEPTED = (
    "plain",
    "ranks",
    "regex",
    "all-linear",
    "layers",
    "excluded",
    "norm",
    "tokens",
    "soft",
    "default-targets",
    "no-task",
)
FOR_LLAMA = ("head", "embedding", "whole", "whole-and-tokens")
REJECTED = {
    "dora": "use_dora",
    "bias": "bias",
    "indices": "trainable_token_indices",
    "prefix": "PREFIX_TUNING",
    "ia3": "IA3",
    "adalora": "ADALORA",
}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One adapter of each kind for each base, with the logits that PEFT computed."""
    folder = tmp_path_factory.mktemp("peft")
    for name, config in CONFIGS.items():
        made = ModelConfig(config=config, tokenizer=TrainedTokenizer(vocab_size=400))
        tokenizer = models.load_tokenizer(made, ["#Person1#: Hi! #Person2#: Hello, how are you?"])
        models.load_base(made, tokenizer).save_pretrained(folder / "bases" / name)
        tokenizer.save_pretrained(folder / "bases" / name)
    run_transformers5(CODE, folder / "bases", folder)
    return folder


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    labels = {} if models.is_decoder_only(model.config) else {"labels": ids}
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), **labels).logits


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("kind", [*ACCEPTED, *FOR_LLAMA])
def test_an_adapter_computes_the_same_as_in_peft(adapters: Path, tmp_path: Path, family: str, kind: str) -> None:
    folder = adapters / f"{family}-{kind}"
    if family == "t5-tied" and kind in FOR_LLAMA:
        with pytest.raises(ModelError, match=r"cannot be merged|shares it with"):
            merge(folder, tmp_path / "merged")
        return
    expected = load_file(folder / "expected.safetensors")
    model, tokenizer = load_weights(folder)
    assert len(tokenizer) == len(models.load_tokenizer(ModelConfig(name_or_path=str(adapters / "bases" / family)))) + (
        5 if "tokens" in kind else 0
    )

    def check(actual: torch.nn.Module) -> None:
        found = logits(actual, expected["ids"])
        assert torch.equal(found.argmax(-1), expected["logits"].argmax(-1))
        assert float((found - expected["logits"]).abs().max() / expected["logits"].abs().max()) < 2e-4

    check(model)
    compiled, soft_prompt = open_source(folder, "tiny", []).load_for_compile()
    assert (soft_prompt is not None) == (kind == "soft")
    if kind != "soft":
        check(compiled)
        merge(folder, tmp_path / "merged")
        check(load_weights(tmp_path / "merged")[0])


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("kind", REJECTED)
def test_another_kind_is_rejected_by_name(adapters: Path, family: str, kind: str) -> None:
    with pytest.raises(ModelError, match=REJECTED[kind]):
        load_weights(adapters / f"{family}-{kind}")
