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
HINT = "use a function in a module of the current folder, such as redaction:without_addresses"
MAX_DEPTH = 100
"""Levels of nested lists and objects of a line that is redacted; a line with more becomes {}."""


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
    if not module or not function:
        raise RecipeError(f"--redact {name} is not MODULE:FUNCTION", HINT)
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        with reading(f"--redact {name}", RecipeError, HINT):
            hook = getattr(importlib.import_module(module), function)
    finally:
        sys.path.remove(folder)
    if not callable(hook):
        raise RecipeError(f"--redact {name}: {function} is not a function", "use the name of a function")
    return hook  # type: ignore[no-any-return]


def redact_files(paths: Sequence[Path], hook: Hook) -> Redacted:
    """Replace captured files, and the outputs of a batch, by redacted ones.

    Every string of requests and answers is passed to the hook, as are the custom attributes of a request; keys and
    numbers stay, as do other metadata (event id, inference id, time). A line that cannot be read becomes {}, because
    it may contain text.

    Args:
        paths: The files.
        hook: Takes a text and returns the redacted text.

    Raises:
        DataError: If the hook fails, or a file is not text or has another hard link; no file is changed.
    """
    outputs = [path.with_name(path.name + OUT) for path in paths]
    every = dict.fromkeys(path.resolve() for path in [*paths, *outputs] if path.exists())
    temporaries: dict[Path, Path] = {}
    try:
        emptied = 0
        for path in every:
            if path.stat().st_nlink > 1:
                raise DataError(f"{path} has another hard link, which would keep the texts", "delete all but one link")
            temporaries[path] = path.with_name(f".{path.name}.tmp-{os.getpid()}")
            emptied += _write_redacted(path, temporaries[path], hook)
        for path, temporary in temporaries.items():
            with files.writing(path):
                temporary.replace(path)
    finally:
        for temporary in temporaries.values():
            with suppress(OSError):
                temporary.unlink()
    return Redacted(len(every), emptied)


def _write_redacted(path: Path, target: Path, hook: Hook) -> int:
    """Write the redacted copy of a file; returns the number of lines that cannot be read."""
    emptied = 0
    with (
        files.writing(path),
        open_lines(path, "utf-8", DataError) as lines,
        target.open("w", encoding="utf-8") as output,
    ):
        target.chmod(path.stat().st_mode & 0o777)
        for number, line in numbered(lines):
            text = "{}"
            if line is not None and not line.strip():
                text = ""
            else:
                try:
                    redacted = _redact_line(parse_json(line or ""), _Checked(hook, f"{path}:{number}"))
                    text = files.to_json(redacted, ascii_only=True)
                except (ValueError, RecursionError):
                    emptied += 1
            output.write(text + "\n")
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
                "correct the function, and run the command again; no file is changed",
            ) from error
        if not isinstance(redacted, str):
            raise DataError(
                f"{self._location}: the function of --redact returned {type(redacted).__name__} instead of str",
                "return the redacted text; no file is changed",
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


def _redact_strings(value: Any, hook: Hook, depth: int = MAX_DEPTH) -> Any:
    """Every string in nested lists and objects; keys stay.

    Raises:
        ValueError: If the lists and objects are nested too deeply.
    """
    if isinstance(value, str):
        return hook(value)
    if isinstance(value, list | dict) and not depth:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return [_redact_strings(each, hook, depth - 1) for each in value]
    if isinstance(value, dict):
        return {key: _redact_strings(each, hook, depth - 1) for key, each in value.items()}
    return value
