"""The tokenizer of an artifact."""

from pathlib import Path

from tokenizers import Tokenizer

from neuron_sum import files
from neuron_sum.artifact import RESTORE
from neuron_sum.errors import ArtifactError, reading
from neuron_sum.models.fast_tokenizer import FastTokenizer

BACKEND, SETTINGS, TEMPLATES = "tokenizer.json", "tokenizer_config.json", "*.jinja"
"""The files that are read; the last one matches chat templates."""


def read_tokenizer(folder: Path) -> FastTokenizer:
    """The tokenizer of an artifact.

    Args:
        folder: The folder of tokenizer.json and tokenizer_config.json, as transformers 4 writes them.

    Raises:
        ArtifactError: If a file is missing or damaged, or the tokenizer has no end token.
    """
    settings = files.read_json(folder / SETTINGS, ArtifactError, RESTORE)
    with reading(folder / BACKEND, ArtifactError, RESTORE):
        backend = Tokenizer.from_file(str(folder / BACKEND))
        backend.encode("a dialogue")  # some wrong settings are found only here
    with reading(folder, ArtifactError, RESTORE):
        template = "".join(path.read_text(encoding="utf-8") for path in folder.rglob(TEMPLATES))
    tokenizer = FastTokenizer(backend, settings, template or None)
    if tokenizer.eos_token_id is None:
        raise ArtifactError(f"{folder / SETTINGS}: eos_token is missing, or not in {BACKEND}", RESTORE)
    return tokenizer
