"""The artifact: what was compiled, from what, for what: the contract between compile and serving.

    artifact/
      manifest.json         this module's `Manifest`; verified as a whole by its own digest
      recipe.yaml           the resolved recipe of the run it came from
      weights.safetensors   every weight once, shared by all graphs and buckets
      graphs/*.pt2          one compiled graph each: encode and step of every bucket
      tokenizer/            with config.json, as transformers saves them
      adapters/NAME/        where graphs have adapter slots: what fills them, in PEFT's layout

An artifact holds machine code that loading runs. The hashes show damage and mix-ups; they do not make a stranger's
artifact safe.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from neuron_sum import files
from neuron_sum.errors import ArtifactError
from neuron_sum.recipes.loading import load_resolved
from neuron_sum.recipes.schema import Recipe, Section

FORMAT_VERSION = 1
MANIFEST, WEIGHTS, RECIPE, TOKENIZER = "manifest.json", "weights.safetensors", "recipe.yaml", "tokenizer"
GRAPHS, ADAPTERS = "graphs", "adapters"
ADAPTER_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""An adapter's name, as it is used in requests, URLs, folders, logs and metrics."""

Dtype = Literal["fp32", "bf16", "int8"]


class Bucket(Section):
    """One fixed shape: what a batch is padded to."""

    batch: int
    source_len: int
    """Tokens of a prompt."""
    target_len: int
    """New tokens."""

    def __str__(self) -> str:
        return f"{self.batch}x{self.source_len}x{self.target_len}"


class AdapterSpec(Section):
    """Room for adapters that are data: LoRA stacks and soft prompts, picked by slot. Slot 0 is no adapter."""

    rank: int
    slots: int
    """Slot 0 included."""
    target_modules: tuple[str, ...]


class KeptTensor(Section):
    """One parameter that a graph keeps: state.N, constants.N, or a stack of the adapters by its own name."""

    name: str
    shape: tuple[int, ...]


class GraphFile(Section):
    """One compiled graph. `encode` does not depend on target_len and beams."""

    kind: Literal["encode", "step"]
    batch: int
    source_len: int
    target_len: int | None = None
    num_beams: int | None = None
    file: str
    kept: tuple[KeptTensor, ...] = ()
    """What a graph for Neuron keeps on its device, in the order of its parameters."""


class StateSpec(Section):
    """The self-attention cache of a step: `tensors` tensors of (batch, heads, target_len * beams, head_dim)."""

    tensors: int
    heads: int
    head_dim: int
    dtype: Literal["fp32", "bf16"]


class SpecialTokens(Section):
    """Token ids that steer generation."""

    pad: int
    eos: int
    decoder_start: int | None
    """None for a decoder-only model, whose first token is its prompt's last."""


class PromptRecord(Section):
    """The prompt that the model was trained with, and its hash."""

    template: str
    sha256: str


class SourceRecord(Section):
    """Where the weights came from."""

    path: str
    weights_sha256: str


class Check(Section):
    """The graphs of one batch size and beam width, against transformers in fp32 with the same weights."""

    batch: int
    num_beams: int
    identical: int
    """Generated texts that are transformers' own."""
    rouge_difference: dict[str, float]
    """The artifact's ROUGE minus transformers', in points."""


class Verification(Section):
    """What `neuron-sum compile verify` saw."""

    examples: int
    checks: tuple[Check, ...]
    unseen: tuple[str, ...]
    """Buckets that no example was put into."""
    max_drop: float
    """ROUGE-1 points that were allowed to be lost."""
    passed: bool
    checked: str
    """The day."""


class Compilation(Section):
    """How a Neuron compiler was called."""

    compiler: str
    """neuronx-cc's version."""
    arguments: tuple[str, ...]
    """What it was given, the same for every graph."""
    exporter: Literal["own", "optimum"]
    cache_write: Literal["in_place", "where"] | None
    """None for optimum, which has its own way."""
    inline_weights: bool
    tensor_parallel_size: int
    core: int
    sdk: str | None = None
    """The row of the platform table that has these versions; None where no row has."""


class Manifest(Section):
    """Everything a runtime must know and check before it runs an artifact."""

    format_version: Literal[1] = 1
    neuron_sum: str
    """Version of this package."""
    model_type: str
    runtime: Literal["aoti", "neuronx", "optimum"]
    """Which module of neuron_sum/runtimes runs it."""
    target: Literal["cpu", "inf2", "trn1"]
    dtype: Dtype
    kv_dtype: Literal["fp32", "bf16"]
    stack: dict[str, str]
    """Versions that must be the same where it runs."""
    cpu_flags: tuple[str, ...] = ()
    """Instructions that machine code for the CPU may use."""
    compilation: Compilation | None = None
    """For inf2 and trn1."""
    prompt: PromptRecord
    tokens: SpecialTokens
    buckets: tuple[Bucket, ...]
    num_beams: tuple[int, ...]
    state: StateSpec | None
    """None where an upstream runtime keeps it (optimum)."""
    graphs: tuple[GraphFile, ...]
    """The graphs that are ours; none for optimum."""
    aliases: dict[str, str]
    """Graph tensors that are another one of weights.safetensors (a tied head)."""
    adapters: AdapterSpec | None
    adapter_targets: dict[str, str]
    """Module name in transformers' model -> prefix of its stacks."""
    adapter_stacks: dict[str, tuple[int, ...]]
    """Shapes of what adapters fill."""
    default_adapter: str | None
    """Who answers where no adapter is asked for; None for the base model."""
    source: SourceRecord
    files: dict[str, str]
    """Relative path -> sha256, of every file but the manifest."""
    verified: Verification | None = None

    def check_stack(self, here: Mapping[str, str | None]) -> None:
        """Whether this machine has the versions that were compiled with.

        Args:
            here: By distribution; None for what is not installed.

        Raises:
            ArtifactError: With the first that differs.
        """
        for name in {**self.stack, **here}:
            if (compiled := self.stack.get(name)) != here.get(name):
                raise ArtifactError(
                    f"stack.{name}: compiled with {compiled}, this is {here.get(name)}",
                    f"install {name}=={compiled}, or compile again",
                )

    @property
    def is_exact(self) -> bool:
        """Whether all is computed in fp32, so that next to no text may differ from transformers'.

        neuronx-cc casts products unless it is told not to.
        """
        told = self.compilation is None or re.search(r"--auto-cast[ =]none\b", " ".join(self.compilation.arguments))
        return self.dtype == "fp32" and bool(told)

    @property
    def doubt(self) -> str | None:
        """Why its summaries may be worse than those of the model it was compiled from; None where they are not.

        fp32 for a CPU is held to transformers' tokens by this package's tests; anything else by `compile verify` alone.
        """
        if self.verified is not None:
            return None if self.verified.passed else "`compile verify` found it worse than what it was compiled from"
        if self.target == "cpu" and self.is_exact:
            return None
        return f"{self.dtype} for {self.target}, and no `compile verify` has held it against transformers"


@dataclass(frozen=True)
class Artifact:
    """A whole and undamaged artifact.

    Attributes:
        path: Its folder.
        manifest: What it is.
        recipe: The resolved recipe of its run.
    """

    path: Path
    manifest: Manifest
    recipe: Recipe


def is_artifact(path: Path) -> bool:
    """Whether a folder claims to be one."""
    return (path / MANIFEST).is_file()


def artifact_name(path: Path) -> str:
    """What an artifact is called: its folder's name, after its run's where it lies in one."""
    parent, own = path.resolve().parent, path.resolve().name
    return f"{parent.parent.name}-{own}" if parent.name == "artifacts" else own


def open_artifact(path: Path) -> Artifact:
    """Reads an artifact and checks every file against the manifest, and the manifest against its own digest.

    Raises:
        ArtifactError: With the field or file that differs.
    """
    if not is_artifact(path):
        raise ArtifactError(f"{path} is not an artifact: it holds no {MANIFEST}", "neuron-sum compile RUN makes one")
    manifest = _read_manifest(path / MANIFEST)
    found = set(_files(path))
    if missing := sorted(manifest.files.keys() - found):
        raise ArtifactError(f"{path} lacks {', '.join(missing)}", "copy it again, or compile again")
    if unknown := sorted(found - manifest.files.keys()):
        raise ArtifactError(f"{path} holds {', '.join(unknown)}, which its manifest does not name", "remove it")
    for name, expected in manifest.files.items():
        if (actual := files.sha256(path / name)) != expected:
            raise ArtifactError(
                f"files.{name}: sha256 is {actual[:12]}…, the manifest says {expected[:12]}…: the file was changed",
                "copy the artifact again, or compile again",
            )
    if hashlib.sha256(manifest.prompt.template.encode()).hexdigest() != manifest.prompt.sha256:
        raise ArtifactError("prompt.sha256 is not that of prompt.template: the prompt was changed", "compile again")
    recipe = load_resolved(path / RECIPE)
    if recipe.prompt.resolve().sha256 != manifest.prompt.sha256:
        raise ArtifactError("prompt: the artifact's recipe.yaml has another prompt than its manifest", "compile again")
    return Artifact(path, manifest, recipe)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes a manifest with its digest."""
    content = manifest.model_dump(mode="json")
    files.write_json(folder / MANIFEST, {**content, "digest": _digest(content)})


def hash_files(folder: Path) -> dict[str, str]:
    """What `Manifest.files` holds for a folder."""
    return {name: files.sha256(folder / name) for name in sorted(_files(folder))}


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file() and path != folder / MANIFEST:
            yield path.relative_to(folder).as_posix()


def _read_manifest(path: Path) -> Manifest:
    try:
        content: dict[str, Any] = files.read_json(path)
        digest = content.pop("digest", None)
        version = content.get("format_version")
    except (ValueError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{path} is no manifest: {error}", "copy the artifact again, or compile again") from error
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"format_version is {version!r}, this neuron-sum reads {FORMAT_VERSION}", "compile again with this version"
        )
    if digest != _digest(content):
        raise ArtifactError(
            f"digest: {path} was changed after it was written", "copy the artifact again, or compile again"
        )
    try:
        return Manifest.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {field}: {first['msg']}", "compile again with this version") from error


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
