"""The files of a checkpoint, in a local folder or on a hub, and readers of its JSON files."""

import math
from pathlib import Path
from typing import Any

from neuron_sum import files
from neuron_sum.errors import ModelError, reading
from neuron_sum.recipes.schema import ModelConfig

HUB_HINT = "check the name and the network; without a network, use a local folder: model.name_or_path=FOLDER"
DAMAGED_HINT = "copy or download the file again"


def find_file(source: str, name: str, revision: str | None = None, *, required: bool = False) -> Path | None:
    """The path of a file of a checkpoint; a hub's file is downloaded into the cache.

    Args:
        source: A local folder or a hub id.
        name: The name of the file.
        revision: The commit on the hub.
        required: Whether a missing file or an unreachable hub is an error.

    Raises:
        ModelError: If a required file does not exist.
    """
    if Path(source).is_dir():
        path = Path(source) / name
        if required and not path.is_file():
            raise ModelError(f"{source} contains no {name}", HUB_HINT)
        return path if path.is_file() else None
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(source)
    except HFValidationError:
        raise ModelError(f"{source!r} is neither a folder nor a hub id", HUB_HINT) from None
    from transformers.utils import cached_file  # artifacts with adapters use this module, and do not need transformers

    with reading(f"{source} ({name})", ModelError, HUB_HINT):
        found = cached_file(
            source,
            name,
            revision=revision,
            _raise_exceptions_for_missing_entries=required,
            _raise_exceptions_for_connection_errors=required,
        )
    return Path(found) if found is not None else None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelError: If the file is not valid JSON, or contains another type, a lone surrogate, or NaN.
    """
    return files.read_json(path, ModelError, DAMAGED_HINT)


def read_inline(config: ModelConfig) -> tuple[dict[str, Any], str]:
    """The content of a recipe's `model.config`, and its name for error messages.

    Raises:
        ModelError: If it is a file that is not a JSON object.
    """
    if isinstance(config.config, dict):
        return dict(config.config), "model.config"
    path = Path(str(config.config))
    return read_object(path), f"model.config = {str(path)!r}"


def is_number(value: object) -> bool:
    """Whether a JSON value is a finite number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def shorten(value: object, length: int = 60) -> str:
    """A value for an error message, in one short line."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"
