"""The files of an adapter in PEFT's layout, read and checked without PEFT.

PEFT never sees an adapter_config.json, because it imports the module that a file names (`megatron_core`), and ignores
missing weights. Slots and `adapters.load_adapter` read adapters here, so that both reject the same ones.
"""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from neuron_sum.errors import ModelError, reading
from neuron_sum.models.adapter_config import CONFIG, MERGE_HINT, LoraFile, PromptTuningFile, read_config, regular_file

WEIGHTS = "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model")
"""The files that contain a vocabulary; the others only add settings to it."""
PREFIX = "base_model.model."

_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save)(?=\.)")
_LORA_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<half>[AB])(\.weight)?")


@dataclass(frozen=True)
class LoraWeights:
    """The weights of one module in float32.

    Attributes:
        a: (rank, in).
        b: (out, rank).
        scale: The factor of the product.
        embedding: Whether the module is an embedding, which `a` is indexed by.
    """

    a: Tensor
    b: Tensor
    scale: float
    embedding: bool


@dataclass(frozen=True)
class Adapter:
    """A complete adapter with finite weights in float32.

    Attributes:
        folder: The folder of its files.
        config: The checked adapter_config.json.
        lora: The LoRA weights by module.
        saved: Whole parameters that replace those of the base, by their name in it: resized embeddings and
            modules_to_save.
        vectors: The vectors of a soft prompt (tokens, width); None for LoRA.
    """

    folder: Path
    config: LoraFile | PromptTuningFile
    lora: Mapping[str, LoraWeights]
    saved: Mapping[str, Tensor]
    vectors: Tensor | None

    def check_modules(self, candidates: Iterable[str], head: str) -> None:
        """Checks that the adapter has weights of exactly the modules that its configuration names.

        Args:
            candidates: All linear layers and embeddings of the base, or those with a slot.
            head: The name of the base's output layer.

        Raises:
            ModelError: With the first module that differs.
        """
        assert isinstance(self.config, LoraFile)
        names = list(candidates)
        with reading(self.folder / CONFIG, ModelError):
            for last_index in (True, False):
                expected = {name for name in names if self.config.targets(name, head, last_index=last_index)}
                if expected == self.lora.keys():
                    return
        if missing := sorted(expected - self.lora.keys()):
            raise ModelError(
                f"{self.folder} does not fit this base model, or is incomplete: it has no LoRA weights of "
                f"{missing[0]}, which {CONFIG} includes",
                "use the base model that the adapter was trained on, or copy the adapter again",
            )
        if extra := sorted(self.lora.keys() - expected):
            raise ModelError(
                f"{self.folder} does not fit this base model: it has LoRA weights of {extra[0]}, "
                f"which is not among the base's modules that {CONFIG} includes",
                "use the base model that the adapter was trained on",
            )


def has_tokenizer(folder: Path) -> bool:
    """Whether an adapter has its own tokenizer; without one, that of its base is used."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def read_adapter(folder: Path) -> Adapter:
    """Reads an adapter, and checks everything that can be checked without its base.

    Raises:
        ModelError: If a file is missing or damaged, a key is not supported, or the weights are incomplete, not finite,
            or of another rank than the configuration.
    """
    config, path = read_config(folder), _weights_file(folder)
    with reading(path, ModelError, "copy the adapter again"), safe_open(path, "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(f"{path}: {key} has dtype {dtype}, which is not a floating-point type", MERGE_HINT)
        if not torch.isfinite(tensor.float()).all():
            raise ModelError(f"{path}: {key} contains values that are not finite numbers", "train the adapter again")
    if isinstance(config, PromptTuningFile):
        return Adapter(folder, config, {}, {}, _vectors(path, config, tensors))
    halves: dict[str, dict[str, Tensor]] = {}
    saved, embeddings = dict[str, Tensor](), set[str]()
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if match := _LORA_KEY.fullmatch(name):
            if match["half"] in halves.setdefault(match["module"], {}):
                raise ModelError(f"{path} contains LoRA weights of {match['module']} twice", "save the adapter again")
            halves[match["module"]][match["half"]] = tensor.float()
            embeddings |= {match["module"]} if match["embedding"] else set()
        elif not (config.modules_to_save and ".original_module." in name):
            if ".lora_" in name:
                raise ModelError(f"{path} contains {key}, which is not supported (lora_A and lora_B are)", MERGE_HINT)
            whole = _WRAPPERS.sub("", name)
            if not torch.equal(saved.setdefault(whole, tensor.float()), tensor.float()):
                raise ModelError(f"{path} contains two different {whole}", "save the adapter again")
    if not halves:
        raise ModelError(f"{path} contains no LoRA weights", "copy the adapter again")
    with reading(folder / CONFIG, ModelError):
        lora = {name: _lora(path, config, name, pair, name in embeddings) for name, pair in halves.items()}
    return Adapter(folder, config, lora, saved, None)


def saved_rows(folder: Path) -> dict[str, int]:
    """The rows of each embedding and output layer that an adapter saved as a whole; reads no weights."""
    path = _weights_file(folder)
    with reading(path, ModelError, "copy the adapter again"), safe_open(path, "pt") as opened:
        names = {
            key: _WRAPPERS.sub("", key.removeprefix(PREFIX))
            for key in opened.keys()  # noqa: SIM118 (not a mapping)
        }
        names = {
            key: name
            for key, name in names.items()
            if name.endswith(("shared.weight", "embed_tokens.weight", "lm_head.weight"))
        }
        return {name: opened.get_slice(key).get_shape()[0] for key, name in names.items()}


def _lora(path: Path, config: LoraFile, module: str, pair: Mapping[str, Tensor], embedding: bool) -> LoraWeights:
    if lacking := {"A", "B"} - pair.keys():
        raise ModelError(f"{path} lacks lora_{lacking.pop()} of {module}", "copy the adapter again")
    a, b, rank, scale = pair["A"], pair["B"], config.rank(module), config.scale(module)
    shapes = f"lora_A is {tuple(a.shape)} and lora_B {tuple(b.shape)}"
    if a.dim() != 2 or b.dim() != 2 or len(a) != rank or b.shape[1] != rank:
        raise ModelError(f"{path}: the rank of {module} is {rank} in {CONFIG}, but {shapes}", "save the adapter again")
    if not torch.isfinite(b * scale).all():
        raise ModelError(f"{path}: lora_B of {module} times the scale {scale:g} is not finite", "check lora_alpha")
    return LoraWeights(a, b, scale, embedding)


def _vectors(path: Path, config: PromptTuningFile, tensors: Mapping[str, Tensor]) -> Tensor:
    """The soft prompt. By default, PEFT stores a second, unused half for the decoder of T5."""
    tokens, vectors = config.num_virtual_tokens, tensors.get("prompt_embeddings")
    if unknown := sorted(tensors.keys() - {"prompt_embeddings"}):
        raise ModelError(f"{path} contains {unknown[0]}, which is not supported in a soft prompt", "save it without")
    if vectors is None or vectors.dim() != 2 or len(vectors) not in (tokens, 2 * tokens):
        found = "is missing" if vectors is None else f"is {tuple(vectors.shape)}"
        raise ModelError(f"{path}: prompt_embeddings {found}; {CONFIG} has {tokens} tokens", "save the adapter again")
    return vectors[:tokens].float()


def _weights_file(folder: Path) -> Path:
    if not (folder / WEIGHTS).exists() and (binary := folder / "adapter_model.bin").is_file():
        code = (
            "import torch; from safetensors.torch import save_file; "
            f"weights = torch.load({str(binary)!r}, map_location='cpu', weights_only=True); "
            f"save_file({{name: w.clone().contiguous() for name, w in weights.items()}}, {str(folder / WEIGHTS)!r})"
        )
        raise ModelError(
            f"{folder} contains no {WEIGHTS}, only {binary.name}, which may contain code",
            f"convert it, if you trust its source: python -c {shlex.quote(code)}",
        )
    return regular_file(folder, WEIGHTS)
