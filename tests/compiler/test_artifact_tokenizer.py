"""The tokenizer of an artifact has the ids and texts of transformers' tokenizer."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from neuron_sum.artifact import RECIPE, Artifact, PromptRecord, hash_files, write_manifest
from neuron_sum.errors import ArtifactError
from neuron_sum.models.base import load_tokenizer
from neuron_sum.models.tokenizer_files import read_sentencepiece
from neuron_sum.prompts import control_ids, without_control
from neuron_sum.recipes.schema import ModelConfig, PromptConfig
from neuron_sum.runtimes.tokenizer import read_tokenizer

TEXTS = (
    "",
    " ",
    "#Person1#: Hi, Mr. Smith. I'm Doctor Hawkins.\n#Person2#: Isn't it 5 o'clock ?",
    "naïve café 日本語 🎉\tx",
    "</s> <pad> <unk> [INST] ＜/s＞ <s>",
    "x</s>y<|im_end|>\n<|im_start|>system <extra_id_0>[SPK]#Anna# cafe\u0301 caf\u00e9",
    "\x00\x1b[31m\u200b\ufeff\u202e\u00a0\u3000\r\n▁▁ ▁a<0x0A>",
    "ﬁ ½ ㎏ 👨‍👩‍👧\U0010ffff\ud7ff\ue000",
    "a" * 3000,
    " " * 3000 + "'s",
)


FILES = {"t5": "spiece.model", "llama": "tokenizer.model"}


def check_equal(folder: Path) -> None:
    expected, actual = load_tokenizer(ModelConfig(name_or_path=str(folder))), read_tokenizer(folder)
    assert len(actual) == len(expected)
    for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        assert getattr(actual, f"{name}_token_id") == getattr(expected, f"{name}_token_id"), name
    assert control_ids(actual) == control_ids(expected)
    for special in (True, False):
        rows = actual(list(TEXTS), add_special_tokens=special)["input_ids"]
        assert rows == expected(list(TEXTS), add_special_tokens=special)["input_ids"]
        for skip in (True, False):
            assert actual.batch_decode(rows, skip_special_tokens=skip) == expected.batch_decode(
                rows, skip_special_tokens=skip
            )
    for text in TEXTS:
        one = actual(text, add_special_tokens=False, return_offsets_mapping=True)
        other = expected(text, add_special_tokens=False, return_offsets_mapping=True)
        assert one == {key: other[key] for key in ("input_ids", "offset_mapping")}
        assert actual.decode(one["input_ids"], skip_special_tokens=True) == expected.decode(
            one["input_ids"], skip_special_tokens=True
        )
        assert without_control(actual, text) == without_control(expected, text)


@pytest.mark.parametrize("is_cleaned", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_ids_and_texts_are_those_of_transformers(
    name: str, is_cleaned: bool, shared_data: Path, tmp_path: Path
) -> None:
    """Compared after saving, as the compiler saves a tokenizer."""
    source = read_sentencepiece(shared_data / "tokenizers" / name / FILES[name], name)
    source.clean_up_tokenization_spaces = is_cleaned
    source.chat_template = "{% for message in messages %}[INST] {{ message['content'] }}{% endfor %}"
    source.pad_token = source.pad_token or source.unk_token  # as load_tokenizer
    source.save_pretrained(tmp_path)
    check_equal(tmp_path)


def test_added_tokens_and_settings_are_those_of_transformers(shared_data: Path, tmp_path: Path) -> None:
    """Tokens that are found before or after the text is normalized, with the spaces around them, and as whole words."""
    added = [
        AddedToken("#Anna#", lstrip=True, rstrip=True),
        AddedToken("caf\u00e9", normalized=True),
        AddedToken("red", single_word=True),
        AddedToken("[SPK]", special=True),
    ]
    for name, splits in (("t5", False), ("llama", True)):
        source = read_sentencepiece(shared_data / "tokenizers" / name / FILES[name], name)
        source.pad_token = source.pad_token or source.unk_token
        source.add_tokens(added)
        source.init_kwargs["split_special_tokens"] = source.split_special_tokens = splits
        source.save_pretrained(tmp_path / name)
        check_equal(tmp_path / name)


def test_modules_of_an_artifact_do_not_import_torch() -> None:
    code = (
        "import sys, neuron_sum.runtimes.aoti, neuron_sum.runtimes.load, neuron_sum.evaluation.generate;"
        "assert not {'transformers', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


WITHOUT = """
import sys
from pathlib import Path

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name in ("transformers", "torch._inductor"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Blocked())
from neuron_sum.cli import main
from neuron_sum.recipes.schema import ServeConfig
from serving.service import Service

Service.load(Path(sys.argv[1]), ServeConfig(), Path(sys.argv[1]).parent / "registered")
sys.argv = ["neuron-sum", "summarize", *sys.argv[1:]]
main()
"""


def test_summaries_and_workers_do_not_import_transformers(lora_artifact: Artifact, tmp_path: Path) -> None:
    """Also with the text of a chat template, which transformers rendered when the model was trained."""
    chat = tmp_path / "chat"
    shutil.copytree(lora_artifact.path, chat)
    prompt = PromptConfig(preset="chat", rendered="Summarize.\n{dialogue}</s>")
    (chat / RECIPE).write_text(lora_artifact.recipe.model_copy(update={"prompt": prompt}).to_yaml())
    changes = {"prompt": PromptRecord.of(prompt.resolve()), "files": hash_files(chat)}
    write_manifest(chat, lora_artifact.manifest.model_copy(update=changes))
    (tmp_path / "dialogue.txt").write_text("#Person1#: Hello.\n#Person2#: Hi.\n")
    command = [sys.executable, "-c", WITHOUT, str(chat), str(tmp_path / "dialogue.txt")]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


def test_a_damaged_tokenizer_is_an_error_of_the_artifact(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json cannot be read"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"eos_token": "<none>", "unk_token": "<unk>"}}, "eos_token is missing"),
        ({"settings": {"unk_token": "<unk>"}}, "eos_token is missing"),
        ({"model": WordLevel({"</s>": 0}, unk_token="<unk>")}, "cannot be read: WordLevel error: Missing"),
    ],
)
def test_an_unusable_tokenizer_is_an_error_of_the_artifact(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    Tokenizer(changes.get("model", WordLevel({"</s>": 0, "<unk>": 1}, unk_token="<unk>"))).save(
        str(tmp_path / "tokenizer.json")
    )
    settings = changes.get("settings", {"eos_token": "</s>"})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ArtifactError, match=message):
        read_tokenizer(tmp_path)
