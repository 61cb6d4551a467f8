"""Artifacts that are rejected when opened or loaded, naming the field or file; and the errors that verify detects."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from artifacts import edited
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from compile.verify import verify
from neuron_sum.artifact import Artifact, Manifest, hash_files, open_artifact, write_manifest
from neuron_sum.errors import ArtifactError
from neuron_sum.platform import cpu
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.runtimes import aoti
from neuron_sum.runtimes.load import load_generator
from neuron_sum.runtimes.native import Graph
from neuron_sum.runtimes.weights import MODEL, SharedWeights
from neuron_sum.training.train import train

pytestmark = pytest.mark.slow


@pytest.fixture
def small(lora_artifact: Artifact, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(lora_artifact.path, tmp_path / "artifact"))


def test_one_flipped_byte_in_any_file_is_rejected(small: Path) -> None:
    for file in sorted(path for path in small.rglob("*") if path.is_file()):
        whole = file.read_bytes()
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        with pytest.raises(ArtifactError) as error:
            open_artifact(small)
        assert file.name in error.value.message or "digest" in error.value.message
        file.write_bytes(whole)
    open_artifact(small)


def open_manifest(folder: Path) -> Manifest:
    """The manifest only, without checks."""
    content = json.loads((folder / "manifest.json").read_text())
    content.pop("digest")
    return Manifest.model_validate_json(json.dumps(content))


def test_a_changed_prompt_is_rejected(small: Path) -> None:
    manifest = open_artifact(small).manifest
    with pytest.raises(ArtifactError, match=r"prompt\.sha256"):
        edited(small, prompt=manifest.prompt.model_copy(update={"template": "Say: {dialogue}"}))


def test_a_recipe_with_another_prompt_is_rejected(small: Path) -> None:
    recipe = (small / "recipe.yaml").read_text()
    assert "preset: summarize" in recipe
    (small / "recipe.yaml").write_text(recipe.replace("preset: summarize", "preset: course"))
    manifest = open_manifest(small)
    write_manifest(small, manifest.model_copy(update={"files": hash_files(small)}))
    with pytest.raises(ArtifactError, match=r"prompt: recipe\.yaml and the manifest have different prompts"):
        open_artifact(small)


def test_another_torch_or_cpu_is_rejected_with_the_field(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = edited(small, stack={"torch": "2.7.0"})
    with pytest.raises(ArtifactError, match=r"stack\.torch: compiled with 2\.7\.0, installed is 2\.") as error:
        load_generator(artifact)
    assert "torch==2.7.0" in str(error.value.hint)
    artifact = edited(small, stack=aoti.stack())
    monkeypatch.setattr(cpu, "flags", lambda: frozenset({"sse2"}))
    with pytest.raises(ArtifactError, match=r"cpu_flags: .*avx2"):
        load_generator(artifact)


def test_missing_foreign_and_unknown_files_are_rejected(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not an artifact"):
        open_artifact(tmp_path)
    (small / "extra.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"contains extra\.txt"):
        open_artifact(small)
    (small / "extra.txt").unlink()
    (small / "tokenizer" / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"lacks tokenizer/config\.json"):
        open_artifact(small)
    manifest = json.loads((small / "manifest.json").read_text())
    (small / "manifest.json").write_text(json.dumps({**manifest, "format_version": 9}))
    with pytest.raises(ArtifactError, match="format_version is 9"):
        open_artifact(small)


def test_verify_detects_other_weights_and_a_broken_artifact(
    lora_artifact: Artifact, micro_lora_run: Path, small: Path, tmp_path: Path
) -> None:
    record = verify(open_artifact(small), None, 8, 1.0).record
    assert {(check.batch, check.num_beams): check.identical for check in record.checks} == {
        (1, 1): 8,
        (3, 1): 8,
        (1, 2): 8,
        (3, 2): 8,
    }
    assert record.passed
    assert record.unseen == ()
    with safe_open(small / "weights.safetensors", framework="pt") as stored:
        broken = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    broken["decoder.0.out.weight"] = -broken["decoder.0.out.weight"]
    save_file(broken, small / "weights.safetensors")
    manifest = open_manifest(small)
    write_manifest(small, manifest.model_copy(update={"files": hash_files(small)}))
    seen = verify(open_artifact(small), None, 8, 1.0)
    assert not seen.record.passed, "an fp32 artifact that says other things"
    assert seen.differing
    assert open_artifact(small).manifest.verified == seen.record
    retrained = Path(shutil.copytree(micro_lora_run, tmp_path / "retrained"))
    recipe = load_recipe(str(retrained / "recipe.yaml"), ["train.max_steps=1"])
    train(recipe, retrained, overwrite=True)
    with pytest.raises(ArtifactError, match="weights of the trained model"):
        verify(open_artifact(small), retrained, 8, 1.0)


@pytest.mark.parametrize(
    "change", [{"shape": [-1]}, {"data_offsets": [-16, 0]}, {"data_offsets": [0, 12]}, {"dtype": "F8"}], ids=str
)
def test_weights_with_a_wrong_header_are_rejected(tmp_path: Path, change: dict[str, Any]) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **change}}).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(ArtifactError, match="cannot be read"):
        SharedWeights(path, {}, {})


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x10\0\0\0\0\0\0\0{}"])
def test_damaged_weights_and_graphs_are_errors_of_the_artifact(tmp_path: Path, content: bytes) -> None:
    """Their hashes fit if somebody computes them anew."""
    (tmp_path / "weights.safetensors").write_bytes(content)
    (tmp_path / "step.pt2").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"weights\.safetensors cannot be read"):
        SharedWeights(tmp_path / "weights.safetensors", {}, {})
    save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
    weights = SharedWeights(tmp_path / "weights.safetensors", {}, {})
    with pytest.raises(ArtifactError, match=r"weights\.safetensors cannot be read: .*other"):
        weights.get(["other"])
    with pytest.raises(ArtifactError, match=r"step\.pt2 cannot be read"):
        aoti._Packages(tmp_path, weights).get("step.pt2")


@pytest.mark.parametrize("change", ["dtype", "shape"])
def test_weights_that_do_not_fit_the_graph_are_rejected(small: Path, change: str) -> None:
    """The graph would read other values, or beyond the end of a weight."""
    artifact, path = open_artifact(small), small / "weights.safetensors"
    stored = load_file(path)
    read = {each.removeprefix(MODEL) for each in Graph(small / artifact.manifest.graphs[0].file).constants}
    name = next(each for each in sorted(read & stored.keys()) if stored[each].dtype == torch.float32)
    stored[name] = stored[name].to(torch.bfloat16) if change == "dtype" else stored[name][:1]
    save_file({each: value.contiguous() for each, value in stored.items()}, path)
    packages = aoti._Packages(small, SharedWeights(path, artifact.manifest.aliases, stacks_of(artifact)))
    with pytest.raises(ArtifactError, match="; the graph needs"):
        for graph in artifact.manifest.graphs:
            packages.get(graph.file)


def stacks_of(artifact: Artifact) -> Mapping[str, NDArray[Any]]:
    return aoti._slots(artifact)[1]
