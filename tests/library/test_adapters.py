"""Adapters that others trained: loaded on their base, merged and compiled, or rejected by name."""

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_adapters import DIALOGUE, tensors_for, write_adapter
from in_process import neuron_sum
from safetensors.torch import load_file, save_file

from compile.exporters.own import make_plan
from compile.source import open_source
from neuron_sum.artifact import AdapterSpec
from neuron_sum.errors import ModelError, RecipeError, RunError
from neuron_sum.models import base as models
from neuron_sum.models.adapter_config import base_of
from neuron_sum.recipes.schema import LoraMethod, ModelConfig
from neuron_sum.runs.merge import merge
from neuron_sum.runs.trained import load_weights

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
