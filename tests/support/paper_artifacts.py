"""An artifact of a few kilobytes whose graphs are not code: for readers, packages and signatures; it cannot run."""

import json
from pathlib import Path
from typing import Any

from micro_models import MICRO

from neuron_sum.artifact import (
    AdapterSpec,
    Artifact,
    Bucket,
    GraphFile,
    Manifest,
    PromptRecord,
    SourceRecord,
    SpecialTokens,
    StateSpec,
    _digest,
    hash_files,
    open_artifact,
    write_manifest,
)
from neuron_sum.recipes.loading import load_recipe

CONTENTS = {
    "weights.safetensors": "weights",
    "graphs/encode.pt2": "encode",
    "graphs/step.pt2": "step",
    "tokenizer/config.json": "{}",
    "adapters/default/adapter_config.json": "{}",
    "adapters/default/adapter_model.safetensors": "adapter",
}


def paper_artifact(folder: Path) -> Artifact:
    folder.mkdir(parents=True)
    (folder / "micro.yaml").write_text(MICRO)
    recipe = load_recipe(str(folder / "micro.yaml"))
    (folder / "micro.yaml").unlink()
    for name, text in {**CONTENTS, "recipe.yaml": recipe.to_yaml()}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    prompt = recipe.prompt.resolve()
    manifest = Manifest(
        neuron_sum="0.2.0",
        model_type="t5",
        runtime="aoti",
        target="cpu",
        dtype="fp32",
        kv_dtype="fp32",
        stack={"torch": "2.8.0"},
        prompt=PromptRecord.of(prompt),
        tokens=SpecialTokens(pad=0, ends=(1,), decoder_start=0),
        buckets=(Bucket(batch=1, source_len=64, target_len=12),),
        num_beams=(1,),
        state=StateSpec(tensors=4, heads=2, head_dim=8, dtype="fp32"),
        graphs=(
            GraphFile(kind="encode", batch=1, source_len=64, file="graphs/encode.pt2"),
            GraphFile(kind="step", batch=1, source_len=64, target_len=12, num_beams=1, file="graphs/step.pt2"),
        ),
        aliases={},
        adapters=AdapterSpec(rank=4, slots=2, target_modules=("q",)),
        adapter_targets={},
        adapter_stacks={"q_a": (2, 4, 32)},
        default_adapter="default",
        source=SourceRecord(path="runs/micro", fingerprint={"weights of the trained model": "0" * 64}),
        files=hash_files(folder),
    )
    write_manifest(folder, manifest)
    return open_artifact(folder)


def rewrite_manifest(folder: Path, change: dict[str, Any]) -> None:
    """Changes keys of a manifest, given by paths with bars, as somebody does who also computes the digest anew."""
    content = json.loads((folder / "manifest.json").read_text())
    content.pop("digest")
    for path, value in change.items():
        *parents, key = path.split("|")
        place: Any = content
        for parent in parents:
            place = place[int(parent) if isinstance(place, list) else parent]
        if value is KeyError:
            del place[key]
        else:
            place[int(key) if isinstance(place, list) else key] = value
    (folder / "manifest.json").write_text(json.dumps({**content, "digest": _digest(content)}))
