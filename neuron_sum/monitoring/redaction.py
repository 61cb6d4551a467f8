"""Redaction of captured files by a function of the user; the redacted file replaces the original."""

import base64
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuron_sum import files
from neuron_sum.errors import DataError, RecipeError, reading
from neuron_sum.monitoring.requests import CAPTURE, INPUT, OUT, OUTPUT, decode, is_json_lines, parse_json
from neuron_sum.text_files import numbered, open_lines

Hook = Callable[[str], str]


@dataclass(frozen=True)
class Redacted:
    """The result of a redaction.

    Attributes:
        files: Number of replaced files.
        emptied: Number of lines that are replaced by {} because they cannot be read.
    """

    files: int
    emptied: int


def load_hook(name: str) -> Hook:
    """The function MODULE:FUNCTION, from the current folder or an installed package.

    Args:
        name: The name.

    Raises:
        RecipeError: If it cannot be imported, or is not a function.
    """
    module, _, function = name.partition(":")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        with reading(f"--redact {name}", RecipeError, "use MODULE:FUNCTION, such as redaction:without_names"):
            hook = getattr(importlib.import_module(module), function)
    finally:
        sys.path.remove(folder)
    if not callable(hook):
        raise RecipeError(f"--redact {name}: {function} is not a function", "use the name of a function")
    return hook  # type: ignore[no-any-return]


def redact_files(paths: Sequence[Path], hook: Hook) -> Redacted:
    """Replace captured files, and the outputs of a batch, by redacted ones.

    Every string of requests and answers is passed to the hook, as are the custom attributes of a request. Other
    metadata (event id, inference id, time) stay. A line that cannot be read becomes {}, because it may contain text.

    Args:
        paths: The files.
        hook: Takes a text and returns the redacted text.

    Raises:
        DataError: If the hook fails; the file of that line and all later ones are unchanged.
    """
    outputs = [path.with_name(path.name + OUT) for path in paths]
    every = [*paths, *(path for path in outputs if path.exists())]
    return Redacted(len(every), sum(_redact_file(path, hook) for path in every))


def _redact_file(path: Path, hook: Hook) -> int:
    """Replace one file; returns the number of lines that cannot be read."""
    temporary, emptied = path.with_name(f".{path.name}.tmp-{os.getpid()}"), 0
    try:
        with (
            files.writing(path),
            open_lines(path, "utf-8", DataError) as lines,
            temporary.open("w", encoding="utf-8") as output,
        ):
            temporary.chmod(path.stat().st_mode & 0o777)
            for number, line in numbered(lines):
                redacted: Any = {}
                try:
                    redacted = _redact_line(parse_json(line or ""), _Checked(hook, f"{path}:{number}"))
                except ValueError:
                    emptied += 1
                output.write(files.to_json(redacted, ascii_only=True) + "\n")
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()
    return emptied


class _Checked:
    """A hook whose failure names the line."""

    def __init__(self, hook: Hook, location: str) -> None:
        self._hook, self._location = hook, location

    def __call__(self, text: str) -> str:
        try:
            redacted = self._hook(text)
        except Exception as error:
            raise DataError(
                f"{self._location}: the function of --redact failed with {type(error).__name__}",
                "correct the function, and run the command again; this file is unchanged",
            ) from error
        if not isinstance(redacted, str):
            raise DataError(
                f"{self._location}: the function of --redact returned {type(redacted).__name__} instead of str",
                "return the redacted text; this file is unchanged",
            )
        return redacted


def _redact_line(content: Any, hook: Hook) -> Any:
    if not isinstance(content, dict) or not isinstance(content.get(CAPTURE), dict):
        return _redact_strings(content, hook)
    redacted = {**content, CAPTURE: dict(content[CAPTURE])}
    for name in {INPUT, OUTPUT} & redacted[CAPTURE].keys():
        part = redacted[CAPTURE][name]
        text = _redact_body(*decode(part), hook)
        if part.get("encoding") == "BASE64":
            text = base64.b64encode(text.encode()).decode()
        redacted[CAPTURE][name] = {**part, "data": text}
    if isinstance(metadata := redacted.get("eventMetadata"), dict) and "customAttributes" in metadata:
        redacted["eventMetadata"] = {
            **metadata,
            "customAttributes": _redact_strings(metadata["customAttributes"], hook),
        }
    return redacted


def _redact_body(text: str, kind: str, hook: Hook) -> str:
    if kind == "text/plain":
        return hook(text)
    if is_json_lines(kind):
        lines = [_redact_strings(parse_json(line), hook) for line in text.split("\n") if line.strip()]
        return "".join(files.to_json(line) + "\n" for line in lines)
    return files.to_json(_redact_strings(parse_json(text), hook))


def _redact_strings(value: Any, hook: Hook) -> Any:
    """Every string in nested lists and objects; keys stay."""
    if isinstance(value, str):
        return hook(value)
    if isinstance(value, list):
        return [_redact_strings(each, hook) for each in value]
    if isinstance(value, dict):
        return {key: _redact_strings(each, hook) for key, each in value.items()}
    return value
