"""Adapters and artifacts that several test files create or change."""

import copy
import shutil
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import PreTrainedModel

from neuron_sum.artifact import RECIPE, Artifact, hash_files, open_artifact, write_manifest
from neuron_sum.models.adapters import load_adapter
from neuron_sum.models.base import is_decoder_only
from neuron_sum.models.families import family_of
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runs.folder import open_run
from neuron_sum.runs.trained import load_trained, load_untuned
from neuron_sum.runtimes.hugging_face import TransformersGenerator
from neuron_sum.runtimes.load import load_generator


def make_lora(base: PreTrainedModel, folder: Path, rank: int, alpha: int, seed: int, rslora: bool = False) -> Path:
    task = "CAUSAL_LM" if is_decoder_only(base.config) else "SEQ_2_SEQ_LM"
    config = peft.LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=alpha,
        target_modules=list(family_of(base.config).lora_targets),
        use_rslora=rslora,
    )
    adapted = peft.get_peft_model(copy.deepcopy(base), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def expected_by_adapter(
    run: Path, prompts: list[list[int]], asked: GenerateConfig
) -> Iterator[tuple[str | None, list[list[int]]]]:
    """The tokens of transformers with the adapter of a run, `default`, and without an adapter."""
    for load, adapter in ((load_trained, "default"), (load_untuned, None)):
        model, tokenizer = load(open_run(run))
        yield adapter, TransformersGenerator(model, tokenizer, 8).generate(prompts, asked)


def make_soft_prompt(base: PreTrainedModel, folder: Path, tokens: int) -> Path:
    task = "CAUSAL_LM" if is_decoder_only(base.config) else "SEQ_2_SEQ_LM"
    config = peft.PromptTuningConfig(task_type=task, num_virtual_tokens=tokens, num_transformer_submodules=1)
    tuned = peft.get_peft_model(copy.deepcopy(base), config)
    torch.manual_seed(tokens)
    tuned.prompt_encoder["default"].embedding.weight.data.normal_(std=3.0)
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return folder


def edited(folder: Path, **changes: Any) -> Artifact:
    """A manifest that was changed and signed again."""
    artifact = open_artifact(folder)
    write_manifest(folder, artifact.manifest.model_copy(update=changes))
    return open_artifact(folder)


def prompts_of(artifact: Artifact, run: Path, count: int = 8) -> list[list[int]]:
    recipe = open_run(run).recipe
    from neuron_sum.data.sources import load_dataset

    dialogues = [example.dialogue for example in load_dataset(recipe.data)["test"]][:count]
    tokenizer = load_trained(open_run(run))[1]
    return [entry.input_ids for entry in recipe.prompt.resolve().encode(tokenizer, dialogues, 192)]


def assert_adapters_are_swapped_under_load(artifact: Artifact, run: Path, folder: Path) -> None:
    """Swaps LoRA for a soft prompt and back under concurrent requests: every row matches its adapter, old or new."""
    base, tokenizer = load_untuned(open_run(run))
    prompts, asked = prompts_of(artifact, run, 6), GenerateConfig(max_new_tokens=12)
    folders = {"a": make_lora(base, folder / "a", 4, 64, 0), "b": make_soft_prompt(base, folder / "b", 4)}
    expected = {
        name: TransformersGenerator(load_adapter(copy.deepcopy(base), adapter), tokenizer, 6).generate(prompts, asked)
        for name, adapter in folders.items()
    }
    assert expected["a"] != expected["b"]
    generator, _ = load_generator(artifact)
    assert generator.adapters is not None
    generator.adapters.load("swapped", folders["a"])

    def ask() -> list[list[int]]:
        return generator.generate(prompts[:3], asked, ["swapped", None, "swapped"])

    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(ask) for _ in range(9)]
        for turn in range(4):
            generator.adapters.load("swapped", folders["ba"[turn % 2]])
        rows = [answer.result(timeout=60) for answer in answers]
    for first, _, third in rows:
        assert [first, third] in ([expected[name][0], expected[name][2]] for name in "ab")
    generator.adapters.load("swapped", folders["b"])
    assert ask()[0] == expected["b"][0]


def with_data(artifact: Artifact, folder: Path, **settings: Any) -> Artifact:
    """A copy of an artifact whose recipe has other settings of the data section."""
    shutil.copytree(artifact.path, folder)
    data = artifact.recipe.data.model_copy(update=settings)
    (folder / RECIPE).write_text(artifact.recipe.model_copy(update={"data": data}).to_yaml())
    write_manifest(folder, artifact.manifest.model_copy(update={"files": hash_files(folder)}))
    return open_artifact(folder)


def kernel_source(package: Path) -> str:
    """The C++ kernels of a graph for the CPU."""
    with zipfile.ZipFile(package) as members:
        [name] = [name for name in members.namelist() if name.endswith(".kernel.cpp")]
        return members.read(name).decode()
