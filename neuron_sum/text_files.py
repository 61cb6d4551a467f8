"""Text files of other programs: a regular file, a known encoding.

UTF-8 is the default; a byte order mark of UTF-8, UTF-16 or UTF-32 is recognized. Other encodings are rejected with the
command that converts the file, because a guess can be wrong without being noticed.
"""

import codecs
import os
import re
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from neuron_sum.errors import NeuronSumError, reading

MAX_CHARACTERS = 1 << 24
"""The maximum length of a line, and of a document that is read as a whole, such as a transcript."""

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character: a wrong escape in JSON, or a byte that `open_lines` could not decode."""

INVALID = re.compile("[\udc80-\udcff]")
"""A byte that is invalid in the encoding, as `open_lines` returns it."""

BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # starts with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
BINARY = (
    (b"\x1f\x8b", "a gzip file", "gunzip --keep {path}"),
    (b"BZh", "a bzip2 file", "bunzip2 --keep {path}"),
    (b"\xfd7zXZ", "an xz file", "unxz --keep {path}"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", "unzstd --keep {path}"),
    (b"PAR1", "a Parquet file", None),
    (b"%PDF", "a PDF", None),
    (b"\xd0\xcf\x11\xe0", "an old Office document", None),
    (b"{\\rtf", "a rich text document", None),
)
OFFICE = {".docx": "a Word document", ".xlsx": "an Excel workbook", ".pptx": "a PowerPoint file"}
STDIN = "standard input"
SAMPLE_BYTES = 1 << 16
ENCODINGS = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r"),
    *("gb18030", "big5", "cp932", "euc_jp", "euc_kr"),
)
"""The encodings that a conversion command may name; the first of equally probable ones."""
WESTERN = set("äöüßÄÖÜàáâçèéêëíîïñóôùúûœÀÇÉÈÊÑåøæÅØÆ¡¿«»‘’“”„–—…€£°·\u00a0")
"""Common characters of cp1252: in a short text, they are more reliable than statistics."""


def read_text(path: Path, error: type[NeuronSumError], *, pipes: bool = False) -> str:
    """Reads a whole text file: UTF-8, or any encoding with a byte order mark.

    Line ends become newlines.

    Args:
        path: The file.
        error: The class of the errors.
        pipes: Whether a pipe or a character device, such as /dev/stdin, is read too; a pipe without a writer is empty.

    Raises:
        NeuronSumError: `error`, if it is not a regular file, not text, too long, or in another encoding; the message
            has the byte offset of the first wrong byte.
    """
    if not (pipes and (path.is_fifo() or path.is_char_device())):
        check_file(path, error)
    with reading(path, error):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # blocks in no case, also without a writer
        os.set_blocking(descriptor, True)
        with os.fdopen(descriptor, "rb") as stream:
            content = stream.read(4 * MAX_CHARACTERS + 1)
    if len(content) > 4 * MAX_CHARACTERS:
        raise error(f"{path} is too long; the maximum is {4 * MAX_CHARACTERS:,} bytes", "split it")
    return decode(content, str(path), error)


def decode(content: bytes, name: str, error: type[NeuronSumError]) -> str:
    """Decodes the content of a text file, or of standard input.

    Args:
        content: The bytes.
        name: The file name, for messages.
        error: The class of the errors.

    Raises:
        NeuronSumError: `error`, if the content is not text in a known encoding.
    """
    encoding = encoding_of(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as caught:
        found = content[caught.start : caught.start + 1].hex()
        raise error(
            f"{name} is not {encoding.removesuffix('-sig').upper()}: byte 0x{found} at offset {caught.start}",
            _remedy(name, content) if encoding.startswith("utf-8") else "save it again in UTF-8",
        ) from caught
    _check_marked(content, name, error)
    if "\0" in text:
        raise error(f"{name} is not text: NUL at character {text.index(chr(0))}", "use a text file")
    if len(text) > MAX_CHARACTERS:
        raise error(f"{name} has {len(text):,} characters; the maximum is {MAX_CHARACTERS:,}", "split it")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_file(path: Path, error: type[NeuronSumError]) -> None:
    """Checks that a path is a regular file with text, without opening a pipe, which would block.

    Raises:
        NeuronSumError: `error`, if it is missing, a folder, a pipe or another special file, or in a binary format.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as caught:
        reason = caught.strerror if isinstance(caught, OSError) else str(caught)
        shown = str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}…"
        raise error(f"{shown} cannot be read: {reason}", "check the path") from caught
    if stat.S_ISDIR(mode):
        raise error(f"{path} is a folder", "use a file in it")
    if not stat.S_ISREG(mode):
        raise error(f"{path} is not a regular file", "save its content as a file, or pipe it to a command that reads -")
    with reading(path, error), path.open("rb") as content:
        start = content.read(8)
    for magic, kind, command in BINARY:
        if start.startswith(magic):
            plain = "save it as plain text" + (", or set data.source=hub" if magic == b"PAR1" else "")
            remedy = command.format(path=shlex.quote(str(path))) if command else None
            if remedy and path.suffix.lower() not in (".gz", ".bz2", ".xz", ".zst"):  # the programs reject other names
                remedy = _over(path, remedy.replace("--keep", "--keep --stdout"))
            raise error(f"{path} is {kind}", f"unpack it: {remedy}" if remedy else plain)
    if start.startswith(b"PK\x03\x04"):
        kind = OFFICE.get(path.suffix.lower(), "a zip archive")
        raise error(f"{path} is {kind}", "unpack it" if kind == "a zip archive" else "save or export it as plain text")


def open_lines(path: Path, encoding: str, error: type[NeuronSumError]) -> TextIO:
    """Opens a text file for reading line by line.

    Bytes that are invalid in the encoding become lone surrogates, so that they can be reported for each line.

    Args:
        path: The file.
        encoding: The encoding if the file has no byte order mark.
        error: The class of the errors.

    Raises:
        NeuronSumError: `error`, if it is not a regular file, not text, or the encoding is unknown.
    """
    check_file(path, error)
    try:
        if not codecs.lookup(encoding)._is_text_encoding:
            raise LookupError(f"{encoding} does not encode text")
        "".encode(encoding, "surrogateescape")
    except (LookupError, ValueError) as caught:
        raise error(f"data.encoding = {encoding!r}: {caught}", "use a name such as utf-8, latin-1, cp1252") from caught
    with reading(path, error):
        with path.open("rb") as content:
            start = content.read(4)
        if codecs.lookup(encoding).name == "utf-8":
            _check_marked(start, str(path), error, in_place=True)
        return path.open(encoding=_bom(start) or encoding, errors="surrogateescape", newline="")


def numbered(lines: TextIO) -> Iterator[tuple[int, str | None]]:
    """The lines of a file with their numbers, from 1; None instead of a line with more than `MAX_CHARACTERS`."""
    number = 0
    while line := lines.readline(MAX_CHARACTERS + 1):
        number += 1
        if len(line) <= MAX_CHARACTERS:
            yield number, line
            continue
        while line and not line.endswith(("\n", "\r")):
            line = lines.readline(MAX_CHARACTERS)
        yield number, None


def encoding_of(content: bytes) -> str:
    """The encoding that a byte order mark states; otherwise utf-8."""
    return _bom(content) or "utf-8"


def conversion_of(path: Path, *, is_data: bool = True) -> str:
    """The remedy for a file in another encoding than UTF-8.

    Args:
        path: The file.
        is_data: Whether it is a file of data.path, in which a second file would state the same split.
    """
    with path.open("rb") as stream:
        content = stream.read(MAX_CHARACTERS)
    if len(content) == MAX_CHARACTERS:
        content = content[: content.rfind(b"\n") + 1] or content  # no incomplete character at the end
    return _remedy(str(path), content, is_data=is_data)


def _remedy(name: str, content: bytes, *, is_data: bool = False) -> str:
    text = content.decode("utf-8", "surrogateescape")
    wrong = len(INVALID.findall(text))
    if not wrong and is_data:
        return "omit data.encoding, because the file is UTF-8"
    if (len(re.findall(r"[^\x00-\x7f]", text)) - wrong) >= 3 * wrong:
        found = INVALID.search(text)
        start = text[: found.start()] if found is not None else text
        return f"correct line {start.count(chr(10)) + 1}, which is damaged; most of the text is UTF-8"
    return f"convert it: {conversion(name, content, in_place=is_data)}"


def conversion(name: str, content: bytes, *, in_place: bool = False) -> str:
    """The command that converts a file to UTF-8, with the most probable encoding of its content."""
    from charset_normalizer import from_bytes

    wrong = next((at for at, byte in enumerate(content) if byte >= 0x80), 0)
    start = max(wrong - SAMPLE_BYTES // 2, 0)
    sample = content[start : start + SAMPLE_BYTES]
    foreign = set(sample.decode("cp1252", "replace")) - set(map(chr, range(128)))
    if foreign <= WESTERN and sum(byte >= 0x80 for byte in sample) * 4 < len(sample):
        return _iconv("cp1252", name, in_place)
    matches = from_bytes(sample, cp_isolation=list(ENCODINGS))
    best = matches.best()
    if best is None:
        return _iconv("ENCODING", name, in_place)
    equal = {name for match in matches if match.chaos == best.chaos for name in match.could_be_from_charset}
    return _iconv(next(encoding for encoding in ENCODINGS if encoding in equal), name, in_place)


def _iconv(encoding: str, name: str, in_place: bool = False) -> str:
    command = f"iconv -f {encoding.replace('_', '-')} -t utf-8"
    if not Path(name).is_file():  # standard input, or another pipe
        return command
    path = Path(name)
    if in_place:
        return _over(path, f"{command} {shlex.quote(name)}")
    target = path.with_name(f"{path.stem}.utf8{path.suffix}")
    return f"{command} {shlex.quote(name)} > {shlex.quote(str(target))}"


def _over(path: Path, command: str) -> str:
    """The command with its output in the same file, because a second one would state the same split."""
    part = shlex.quote(f"{path}.part")
    return f"{command} > {part} && mv {part} {shlex.quote(str(path))}"


def _check_marked(start: bytes, name: str, error: type[NeuronSumError], *, in_place: bool = False) -> None:
    """Rejects UTF-16 without a byte order mark, which would be read as UTF-8 with NUL characters."""
    if _bom(start) is None and b"\0" in start[:2] and len(start) > 1 and start[:2] != b"\0\0":
        guess = "utf-16le" if start[1] == 0 else "utf-16be"
        raise error(
            f"{name} is {guess.upper()} without a byte order mark", f"convert it: {_iconv(guess, name, in_place)}"
        )


def _bom(start: bytes) -> str | None:
    return next((encoding for mark, encoding in BOMS if start.startswith(mark)), None)
