"""Captured requests and answers: files of SageMaker's data capture, and inputs of a batch transform with their outputs.

A line of data capture is {"captureData": {"endpointInput": {"observedContentType", "data", "encoding"},
"endpointOutput": {…}}, "eventMetadata": {…}, "eventVersion": "0"}; `encoding` is JSON, CSV or BASE64, and either part
may be missing. A line of a batch is {"inputs": "a dialogue"}, and the same line of NAME.jsonl.out is its answer.
"""

import base64
import binascii
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
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
        dialogue: The dialogue; None if only the answer was captured, or if the rejected request has another form.
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


@dataclass(frozen=True)
class Found:
    """The files of paths.

    Attributes:
        captured: The .jsonl files, without outputs of a batch, which belong to their input.
        other: Files of the folders that are not read.
    """

    captured: Sequence[Path]
    other: Sequence[Path]

    def describe_other(self) -> str:
        """The number and the first names of the files that are not read."""
        names = ", ".join(str(path) for path in self.other[:3])
        return f"{len(self.other):,} other {'file' if len(self.other) == 1 else 'files'} ({names:.300})"


def find_files(paths: Sequence[Path]) -> Found:
    """The files to read, each once.

    Args:
        paths: Files, and folders that are searched with their subfolders.

    Raises:
        DataError: If a path does not exist, or there is no .jsonl file.
    """
    captured: dict[Path, Path] = {}
    other: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist", "use a .jsonl file or a folder with such files")
        inside = [each for each in sorted(path.rglob("*")) if each.is_symlink() or not each.is_dir()]
        found = [each for each in inside if each.suffix == ".jsonl"] if path.is_dir() else [path]
        outputs = {each.with_name(each.name + OUT) for each in found}
        other += [each for each in inside if each not in outputs and each.suffix != ".jsonl"]
        for each in found:
            captured.setdefault(each.resolve(), each)
    if not captured:
        raise DataError(
            f"{', '.join(map(str, paths))}: no .jsonl file",
            "copy the captured files first: `aws s3 sync s3://BUCKET/PREFIX FOLDER`",
        )
    return Found(list(captured.values()), other)


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
                    yield from _items(location, request[1], answer and answer[1])
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


def _items(location: str, request: str, answer: str | None) -> Iterator[Item | Unreadable]:
    """The items of a line.

    Raises:
        ValueError: If it has another form; the message contains no text of it.
    """
    read: Callable[[], list[str | None]] | None = partial(_dialogues, request, "application/json")
    results = None
    if answer is not None:
        results = _results(answer, "application/json")
    elif CAPTURE in (content := _object(parse_json(request))):
        parts = content[CAPTURE] if isinstance(content[CAPTURE], dict) else {}
        if not {INPUT, OUTPUT} & parts.keys():
            raise ValueError("neither endpointInput nor endpointOutput")
        read = partial(_captured_dialogues, parts[INPUT]) if INPUT in parts else None
        results = _results(*decode(parts[OUTPUT])) if OUTPUT in parts else None
    is_rejected = results is not None and len(results) == 1 and "error" in results[0]
    dialogues = None
    try:
        dialogues = read() if read is not None else None
    except ValueError:  # the reason for the rejection
        if not is_rejected:
            raise
    if results is None:
        yield from (_item(location, dialogue, None) for dialogue in dialogues or ())
    elif dialogues is None:
        yield from (_item(location, None, result) for result in results)
    elif is_rejected:
        yield from (_item(location, dialogue, results[0]) for dialogue in dialogues)
    elif len(results) != len(dialogues):
        raise ValueError("another number of answers than of dialogues")
    else:
        yield from (_item(location, *pair) for pair in zip(dialogues, results, strict=True))


def _object(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def _captured_dialogues(part: Any) -> list[str | None]:
    return _dialogues(*decode(part))


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


def _dialogues(text: str, kind: str) -> list[str | None]:
    """The dialogues of a request; None for a line of JSON Lines that has none, for which the answer has an error."""
    if is_json_lines(kind):
        return [_dialogue_of(line) for line in text.split("\n") if line.strip()]
    if kind == "text/plain":
        return [text]
    inputs = _object(parse_json(text)).get("inputs")
    dialogues = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(dialogues, list) or not dialogues or not all(isinstance(each, str) for each in dialogues):
        raise ValueError("a request without inputs")
    return dialogues


def _dialogue_of(line: str) -> str | None:
    try:
        (dialogue,) = _dialogues(line, "application/json")
    except ValueError:
        return None
    return dialogue


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


def _item(location: str, dialogue: str | None, result: dict[str, Any] | None) -> Item | Unreadable:
    is_rejected = result is not None and "error" in result
    summary = None if result is None or is_rejected else result["summary_text"]
    if dialogue is None and result is None:
        return Unreadable(location, "a line of a request without inputs")
    if SURROGATE.search(f"{dialogue or ''}{summary or ''}"):  # which no tokenizer reads
        return Unreadable(location, "not valid UTF-8, or half a character in an escape")
    truncated = None if result is None or is_rejected else result.get("truncated")
    return Item(location, dialogue, summary, truncated if isinstance(truncated, bool) else None, is_rejected)
