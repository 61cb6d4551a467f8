"""The artifact: a compiled model with its origin and target; the contract between compile and serving.

    artifact/
      manifest.json         this module's `Manifest`, verified by the digest in it
      recipe.yaml           the resolved recipe of the source run
      weights.safetensors   every weight once, shared by all graphs and buckets
      graphs/*.pt2          one compiled graph per file: encode and step of every bucket
      tokenizer/            the tokenizer and config.json, as transformers saves them
      adapters/NAME/        adapters in PEFT's layout, if the graphs have adapter slots

An artifact contains machine code that is executed when it is loaded. The hashes detect damage and mix-ups; they do not
make an artifact from an untrusted source safe. A package can be signed (serving/signing.py).
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from neuron_sum import files
from neuron_sum.contents import is_file, list_files, path_fault
from neuron_sum.errors import ArtifactError, reading
from neuron_sum.prompts import Prompt
from neuron_sum.recipes.loading import load_resolved
from neuron_sum.recipes.schema import CacheWrite, Recipe, Section

FORMAT_VERSION = 2
MANIFEST, WEIGHTS, RECIPE, TOKENIZER = "manifest.json", "weights.safetensors", "recipe.yaml", "tokenizer"
GRAPHS, ADAPTERS = "graphs", "adapters"
ADAPTER_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""Pattern of an adapter's name in requests, URLs, folders, logs and metrics."""

RESTORE = "copy the artifact again, or compile again"

Dtype = Literal["fp32", "bf16", "int8"]
Size = Annotated[int, Field(ge=0, le=1 << 24)]
"""A dimension or a count."""
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
MAX_ELEMENTS = 1 << 33
"""The most elements of a bucket's cache and of all adapter stacks, for which memory is reserved."""


class Bucket(Section):
    """One fixed shape to which a batch is padded."""

    batch: Size
    source_len: Size
    """Tokens of a prompt."""
    target_len: Size
    """New tokens."""

    def __str__(self) -> str:
        return f"{self.batch}x{self.source_len}x{self.target_len}"


class AdapterSpec(Section):
    """Slots for adapters that are loaded as data: LoRA stacks and soft prompts. Slot 0 means without an adapter."""

    rank: Size
    slots: Size
    """Number of slots, including slot 0."""
    target_modules: tuple[str, ...]


class GraphFile(Section):
    """One compiled graph. `encode` does not depend on target_len and num_beams."""

    kind: Literal["encode", "step"]
    batch: Size
    source_len: Size
    target_len: Size | None = None
    num_beams: Size | None = None
    steps: int = Field(1, ge=1, le=1 << 24)
    """Steps per call. A graph of several is greedy and returns their tokens."""
    file: str


class StateSpec(Section):
    """The self-attention cache of a step: `tensors` tensors of (batch, heads, target_len * num_beams, head_dim)."""

    tensors: Size
    heads: Size
    head_dim: Size
    dtype: Literal["fp32", "bf16"]


class SpecialTokens(Section):
    """Token ids that control generation."""

    pad: TokenId
    ends: tuple[TokenId, ...] = Field(min_length=1)
    """Each of them ends a summary; the first one did in training."""
    decoder_start: TokenId | None
    """None for a decoder-only model, which starts from the last token of its prompt."""


class PromptRecord(Section):
    """The prompt used in training, and its hash."""

    template: str
    is_chat: bool
    """Whether the template already has all special tokens, so that the tokenizer adds none."""
    sha256: str

    @classmethod
    def of(cls, prompt: Prompt) -> "PromptRecord":
        """The record of a prompt."""
        return cls(template=prompt.template, is_chat=prompt.is_chat, sha256=prompt.sha256)


class SourceRecord(Section):
    """The source of the weights."""

    path: str
    fingerprint: dict[str, str]
    """The hash of each part that the weights depend on, as in the run's run.json."""
    train_examples: int | None = None
    """The number of training examples of a run; None for a checkpoint or an adapter, and in older artifacts."""


class Check(Section):
    """A comparison of the graphs of one batch size and beam width with transformers in fp32 and the same weights."""

    batch: int
    num_beams: int
    steps: int = 1
    """Greedy steps per call."""
    identical: int
    """Number of generated texts that equal those of transformers."""
    rouge_difference: dict[str, float]
    """The ROUGE scores of the artifact minus those of transformers, in points."""
    rouge1_interval: tuple[float, float] | None = None
    """The interval of the difference in ROUGE-1 by a paired bootstrap; None in older artifacts."""


class Verification(Section):
    """The result of `neuron-sum compile verify`."""

    examples: int
    checks: tuple[Check, ...]
    unseen: tuple[str, ...]
    """Buckets that no example fell into."""
    max_drop: float
    """The largest permitted loss, in ROUGE-1 points."""
    passed: bool
    undecided: bool = False
    """Whether the examples are too few to tell whether more than max_drop is lost; then it has not passed."""
    examples_needed: int | None = None
    """If undecided: about how many examples decide it; None if no number does."""
    checked: str
    """Date of the check."""


class Compilation(Section):
    """The Neuron compiler and its settings."""

    compiler: str
    """Version of neuronx-cc."""
    arguments: tuple[str, ...]
    """Command-line arguments, the same for every graph."""
    exporter: Literal["own", "optimum"]
    cache_write: CacheWrite | None
    """None for optimum, which uses its own method."""
    optimize_layout: bool = False
    """Whether the compiler chose the layout of the weights for the largest step; its graph is the manifest's first."""
    rows: Size | None = None
    """The rows of the tensors on the device that encode writes and all steps read, for prompts that join a running
    batch; None for optimum, and for older artifacts, which cannot be loaded."""
    inline_weights: bool
    tensor_parallel_size: int
    sdk: str | None = None
    """The row of the platform table with these versions; None if there is no such row."""


class Manifest(Section):
    """Everything that a runtime must know and check before it runs an artifact."""

    format_version: Literal[2] = 2
    neuron_sum: str
    """Version of this package."""
    model_type: str
    runtime: Literal["aoti", "neuronx", "optimum"]
    """The module of neuron_sum/runtimes that runs the artifact."""
    target: Literal["cpu", "inf2", "trn1"]
    dtype: Dtype
    kv_dtype: Literal["fp32", "bf16"]
    stack: dict[str, str]
    """Package versions that must be identical on the machine that runs the artifact."""
    cpu_flags: tuple[str, ...] = ()
    """CPU instruction sets that the machine code may use."""
    compilation: Compilation | None = None
    """Only for inf2 and trn1."""
    prompt: PromptRecord
    tokens: SpecialTokens
    buckets: tuple[Bucket, ...]
    source_step: int | None = Field(None, ge=1)
    """Encode graphs take each multiple of it up to the bucket's source length; None if they take only that length."""
    num_beams: tuple[Size, ...]
    state: StateSpec | None
    """None if an upstream runtime manages the cache (optimum)."""
    graphs: tuple[GraphFile, ...]
    """The graphs that neuron-sum exported; empty for optimum."""
    aliases: dict[str, str]
    """Graph tensor -> the tensor of weights.safetensors that it shares (a tied head)."""
    adapters: AdapterSpec | None
    adapter_targets: dict[str, str]
    """Module name in the transformers model -> prefix of its stacks."""
    adapter_stacks: dict[str, tuple[Size, ...]]
    """Shapes of the tensors that adapters fill."""
    default_adapter: str | None
    """The adapter for requests that do not name one; None for the base model."""
    source: SourceRecord
    files: dict[str, str]
    """Relative path -> SHA-256 of every file except the manifest."""
    verified: Verification | None = None

    @field_validator("files")
    @classmethod
    def _check_files(cls, value: dict[str, str]) -> dict[str, str]:
        for name, digest in value.items():
            if fault := path_fault(name) or ("is the manifest itself" if name == MANIFEST else None):
                raise ValueError(f"{name[:200]!r} {fault}")
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ValueError(f"{name}: {digest[:80]!r} is not a SHA-256")
            place = name.split("/")
            if place[0] == ADAPTERS and (len(place) < 3 or not ADAPTER_NAME.fullmatch(place[1])):
                raise ValueError(f"{name} is not a file of {ADAPTERS}/NAME, where NAME matches {ADAPTER_NAME.pattern}")
        if missing := {RECIPE}.difference(value):
            raise ValueError(f"{missing.pop()} is missing")
        return value

    @model_validator(mode="after")
    def _check_consistency(self) -> "Manifest":
        """Checks that the graphs exist for every bucket, and are files of the artifact."""
        for graph in self.graphs:
            if graph.file not in self.files:
                raise ValueError(f"graphs: {graph.file[:200]!r} is not listed in files")
        if self.default_adapter is not None and self.default_adapter not in self.adapter_names:
            raise ValueError(f"default_adapter: {self.default_adapter[:80]!r} has no folder in {ADAPTERS}/")
        if not self.buckets or not self.num_beams:
            raise ValueError("buckets or num_beams is empty")
        if self.runtime != "optimum":
            self._check_graphs()
        if sum(map(math.prod, self.adapter_stacks.values())) > MAX_ELEMENTS:
            raise ValueError(f"adapter_stacks: more than {MAX_ELEMENTS} elements")
        return self

    def _check_graphs(self) -> None:
        if self.state is None:
            raise ValueError("state is null")
        listed = {(g.kind, g.batch, g.source_len, g.target_len, g.num_beams, g.steps) for g in self.graphs}
        widths = [(beams, 1) for beams in self.num_beams] + [(1, self.greedy_steps)] * (self.greedy_steps > 1)
        for bucket in self.buckets:
            shape = bucket.batch, bucket.source_len
            steps = [("step", *shape, bucket.target_len, *width) for width in widths]
            if not listed.issuperset([("encode", *shape, None, None, 1), *steps]):
                raise ValueError(f"graphs: bucket {bucket} lacks a graph")
            elements = self.state.tensors * bucket.batch * self.state.heads * self.state.head_dim
            if elements * bucket.target_len * max(self.num_beams) > MAX_ELEMENTS:
                raise ValueError(f"state: more than {MAX_ELEMENTS} elements for bucket {bucket}")

    @property
    def greedy_steps(self) -> int:
        """The number of greedy steps of the graphs that generate several tokens per call; 1 without such graphs."""
        return max((graph.steps for graph in self.graphs), default=1)

    @property
    def adapter_names(self) -> list[str]:
        """The names of the adapters whose files the manifest lists."""
        return sorted({name.split("/")[1] for name in self.files if name.startswith(f"{ADAPTERS}/")})

    def check_stack(self, installed: Mapping[str, str | None]) -> None:
        """Checks that this machine has the package versions of the compilation.

        Args:
            installed: Version by distribution; None if it is not installed.

        Raises:
            ArtifactError: With the first version that differs.
        """
        for name in {**self.stack, **installed}:
            if (compiled := self.stack.get(name)) != installed.get(name):
                raise ArtifactError(
                    f"stack.{name}: compiled with {compiled}, installed is {installed.get(name)}",
                    f"install {name}=={compiled}, or compile again",
                )

    @property
    def is_exact(self) -> bool:
        """Whether everything is computed in fp32, so that almost no text may differ from that of transformers.

        neuronx-cc casts products without the option `--auto-cast none`.
        """
        uncast = self.compilation is None or re.search(r"--auto-cast[ =]none\b", " ".join(self.compilation.arguments))
        return self.dtype == "fp32" and bool(uncast)

    @property
    def quality_warning(self) -> str | None:
        """A reason why summaries may be worse than those of the source model, or None.

        The tests of this package compare fp32 on a CPU with transformers token by token; only `compile verify` compares
        anything else.
        """
        if self.verified is not None:
            if self.verified.undecided:
                return f"`compile verify` could not decide with {self.verified.examples} examples whether it is worse"
            return None if self.verified.passed else "`compile verify` found it worse than its source model"
        if self.target == "cpu" and self.is_exact:
            return None
        return f"{self.dtype} for {self.target}, and `compile verify` has not compared it with transformers"


@dataclass(frozen=True)
class Artifact:
    """A complete and undamaged artifact.

    Attributes:
        path: The folder of the artifact.
        manifest: The contents of manifest.json.
        recipe: The resolved recipe of the source run.
    """

    path: Path
    manifest: Manifest
    recipe: Recipe


def is_artifact(path: Path) -> bool:
    """Whether a folder contains a manifest."""
    return is_file(path / MANIFEST)


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest that neuron-sum wrote, of any version, and not another program's manifest.json."""
    try:
        return {"format_version", "neuron_sum", "digest"} <= files.read_json(path, ArtifactError).keys()
    except ArtifactError:
        return False


def artifact_name(path: Path) -> str:
    """An artifact's name: RUN-FOLDER inside a run's artifacts folder, otherwise the name of its folder."""
    parent, name = path.resolve().parent, path.resolve().name
    return f"{parent.parent.name}-{name}" if parent.name == "artifacts" else name


def open_artifact(path: Path) -> Artifact:
    """Reads an artifact and checks every file against the manifest, and the manifest against its digest.

    Raises:
        ArtifactError: With the first field or file that differs.
    """
    if not is_artifact(path):
        raise ArtifactError(
            f"{path} is not an artifact: it does not contain {MANIFEST}", "run `neuron-sum compile RUN` to create one"
        )
    found = set(_files(path))
    manifest = read_manifest(path / MANIFEST)
    if missing := sorted(manifest.files.keys() - found):
        raise ArtifactError(f"{path} lacks {', '.join(missing)}", RESTORE)
    if unknown := sorted(found - manifest.files.keys()):
        raise ArtifactError(f"{path} contains {', '.join(unknown)}, not listed in its manifest", "remove these files")
    for name, expected in manifest.files.items():
        with reading(path / name, ArtifactError, RESTORE):
            actual = files.sha256(path / name)
        if actual != expected:
            raise ArtifactError(
                f"files.{name}: sha256 is {actual[:12]}…, expected {expected[:12]}…: the file was changed", RESTORE
            )
    prompt = manifest.prompt
    if Prompt(prompt.template, prompt.is_chat).sha256 != prompt.sha256:
        raise ArtifactError("prompt.sha256 does not match prompt.template: the prompt was changed", "compile again")
    recipe = load_resolved(path / RECIPE)
    if recipe.prompt.resolve().sha256 != manifest.prompt.sha256:
        raise ArtifactError("prompt: recipe.yaml and the manifest have different prompts", "compile again")
    return Artifact(path, manifest, recipe)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes a manifest with its digest."""
    content = manifest.model_dump(mode="json")
    files.write_json(folder / MANIFEST, {**content, "digest": _digest(content)})


def hash_files(folder: Path) -> dict[str, str]:
    """The value of `Manifest.files` for a folder."""
    return {name: files.sha256(folder / name) for name in _files(folder)}


def _files(folder: Path) -> list[str]:
    return [name for name in list_files(folder, ArtifactError) if name != MANIFEST]


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest without checking the files that it lists.

    Raises:
        ArtifactError: If it is damaged, or of another format version.
    """
    content = files.read_json(path, ArtifactError, RESTORE, nan=False)
    digest, version = content.pop("digest", None), content.get("format_version")
    with reading(path, ArtifactError, RESTORE):
        actual, text, shown = _digest(content), json.dumps(content), json.dumps(version)[:80]
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format_version is {shown}, this neuron-sum reads {FORMAT_VERSION}",
            "compile again with this version, or install the version that wrote the artifact",
        )
    if digest != actual:
        raise ArtifactError(f"digest: {path} was changed after it was written", RESTORE)
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        message = f"{path}: {field}: {reason}" if field else f"{path}: {reason}"
        raise ArtifactError(message, "compile again with this version") from error


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
