"""Captured requests and answers: files of SageMaker's data capture, and inputs of a batch transform with their outputs.

A line of data capture is {"captureData": {"endpointInput": {"observedContentType", "data", "encoding"},
"endpointOutput": {…}}, "eventMetadata": {…}, "eventVersion": "0"}; `encoding` is JSON, CSV or BASE64, and either part
may be missing. A line of a batch is {"inputs": "a dialogue"}, and the same line of NAME.jsonl.out is its answer.
"""

import base64
import binascii
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from neuron_sum import files
from neuron_sum.errors import DataError
from neuron_sum.text_files import SURROGATE, numbered, open_lines

OUT = ".out"
"""What a batch transform adds to the name of its input."""
CAPTURE, INPUT, OUTPUT = "captureData", "endpointInput", "endpointOutput"


@dataclass(frozen=True)
class Item:
    """One dialogue of a request, and its answer.

    Attributes:
        location: File and line.
        dialogue: The dialogue; None if only the answer was captured.
        summary: The summary; None if the dialogue was rejected, or if only the request was captured.
        truncated: Whether the endpoint truncated the dialogue; None without an answer that says so.
        rejected: Whether the answer is an error.
    """

    location: str
    dialogue: str | None = None
    summary: str | None = None
    truncated: bool | None = None
    rejected: bool = False


@dataclass(frozen=True)
class Unreadable:
    """A line or a file that cannot be read.

    Attributes:
        location: File and line.
        reason: The reason, without text of the line.
    """

    location: str
    reason: str


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The .jsonl files of paths, without outputs of a batch, which belong to their input.

    Args:
        paths: Files, and folders that are searched with their subfolders.

    Raises:
        DataError: If a path does not exist, or there is no such file.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist", "use a .jsonl file or a folder with such files")
        found.update(dict.fromkeys(sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]))
    if not found:
        raise DataError(
            f"{', '.join(map(str, paths))}: no .jsonl file",
            "copy the captured files first: `aws s3 sync s3://BUCKET/PREFIX FOLDER`",
        )
    return list(found)


def read_items(path: Path) -> Iterator[Item | Unreadable]:
    """The dialogues and answers of a file, one line in memory at a time.

    Args:
        path: A file of data capture, or the input of a batch.
    """
    try:
        with ExitStack() as stack:
            requests = numbered(stack.enter_context(open_lines(path, "utf-8", DataError)))
            out = path.with_name(path.name + OUT)
            answers: Iterator[tuple[int, str | None]] = iter(())
            if has_answers := out.exists():
                answers = numbered(stack.enter_context(open_lines(out, "utf-8", DataError)))
            for request, answer in zip_longest(requests, answers):
                if request is None:
                    yield Unreadable(f"{out}:{answer[0]}", "an answer without a request")
                    continue
                location = f"{path}:{request[0]}"
                try:
                    if request[1] is None or (answer is not None and answer[1] is None):
                        raise ValueError("the line is too long")
                    if not request[1].strip():
                        continue
                    if has_answers and answer is None:
                        raise ValueError("the request has no answer in the .out file")
                    yield from _checked(_items(location, parse_json(request[1]), answer and answer[1]))
                except ValueError as error:
                    yield Unreadable(location, str(error))
    except DataError as error:
        yield Unreadable(str(path), error.message.removeprefix(f"{path} "))


def parse_json(text: str) -> Any:
    """Parse JSON.

    Args:
        text: The text.

    Raises:
        ValueError: If it is invalid; the message contains no text of it.
    """
    try:
        return files.parse_json(text)
    except ValueError:
        raise ValueError("not valid JSON") from None


def _items(location: str, content: Any, answer: str | None) -> Iterator[Item]:
    """The items of a line.

    Raises:
        ValueError: If it has another form; the message contains no text of it.
    """
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    if CAPTURE not in content:
        dialogues: list[str] | None = _dialogues_of(content)
        results = None if answer is None else _results(answer, "application/json")
    else:
        parts = content[CAPTURE] if isinstance(content[CAPTURE], dict) else {}
        if not {INPUT, OUTPUT} & parts.keys():
            raise ValueError("neither endpointInput nor endpointOutput")
        dialogues = _dialogues(*decode(parts[INPUT])) if INPUT in parts else None
        results = _results(*decode(parts[OUTPUT])) if OUTPUT in parts else None
    if dialogues is None:
        yield from (_item(location, None, result) for result in results or ())
    elif results is None:
        yield from (Item(location, dialogue) for dialogue in dialogues)
    elif len(results) == 1 and "error" in results[0]:  # the whole request was rejected
        yield from (_item(location, dialogue, results[0]) for dialogue in dialogues)
    elif len(results) != len(dialogues):
        raise ValueError("another number of answers than of dialogues")
    else:
        yield from (_item(location, *pair) for pair in zip(dialogues, results, strict=True))


def _checked(items: Iterator[Item]) -> list[Item]:
    """All items of a line, or none of them.

    Raises:
        ValueError: If a text is not valid Unicode, which no tokenizer reads.
    """
    checked = list(items)
    if any(SURROGATE.search(f"{item.dialogue or ''}{item.summary or ''}") for item in checked):
        raise ValueError("not valid UTF-8, or half a character in an escape")
    return checked


def decode(part: Any) -> tuple[str, str]:
    """The text of endpointInput or endpointOutput, and its content type.

    Args:
        part: The part of a line.

    Raises:
        ValueError: If it has another form.
    """
    if not isinstance(part, dict) or not isinstance(part.get("data"), str):
        raise ValueError("endpointInput or endpointOutput without data")
    text = part["data"]
    if part.get("encoding") == "BASE64":
        try:
            text = base64.b64decode(text, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise ValueError("BASE64 data that is not UTF-8 text") from error
    return text, str(part.get("observedContentType") or "application/json").split(";")[0].strip().lower()


def is_json_lines(kind: str) -> bool:
    """Whether a content type is one of the names of JSON Lines."""
    return "jsonl" in kind or "ndjson" in kind


def _dialogues(text: str, kind: str) -> list[str]:
    if is_json_lines(kind):
        return [each for line in text.split("\n") if line.strip() for each in _dialogues_of(parse_json(line))]
    if kind == "text/plain":
        return [text]
    return _dialogues_of(parse_json(text))


def _dialogues_of(content: Any) -> list[str]:
    inputs = content.get("inputs") if isinstance(content, dict) else None
    dialogues = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(dialogues, list) or not all(isinstance(each, str) for each in dialogues):
        raise ValueError("a request without inputs")
    return dialogues


def _results(text: str, kind: str) -> list[dict[str, Any]]:
    if is_json_lines(kind):
        content = [parse_json(line) for line in text.split("\n") if line.strip()]
    elif kind == "text/plain":
        content = [{"summary_text": text}]
    else:
        content = parse_json(text)
    results = content if isinstance(content, list) else [content]
    for result in results:
        if not isinstance(result, dict) or not ("error" in result or isinstance(result.get("summary_text"), str)):
            raise ValueError("an answer with neither summary_text nor error")
    return results


def _item(location: str, dialogue: str | None, result: dict[str, Any]) -> Item:
    if "error" in result:
        return Item(location, dialogue, rejected=True)
    truncated = result.get("truncated")
    return Item(location, dialogue, result["summary_text"], truncated if isinstance(truncated, bool) else None)
