"""Text files: encodings, files that are not text, and limits of JSON."""

import gzip
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from neuron_sum.errors import DataError, RequestError
from neuron_sum.files import parse_json
from neuron_sum.text_files import conversion_of, decode, numbered, open_lines, read_text

TEXT = "Anna: Grüße, wie geht's?\nBob: “Gut”, danke – und dir?\n"


def failure(path: Path) -> DataError:
    with pytest.raises(DataError) as raised:
        read_text(path, DataError)
    assert raised.value.hint
    return raised.value


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_byte_order_mark_decides(tmp_path: Path, encoding: str, newline: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT.replace("\n", newline).encode(encoding))
    assert read_text(path, DataError) == TEXT
    with open_lines(path, "utf-8", DataError) as lines:
        assert [line.strip() for _, line in numbered(lines) if line] == TEXT.splitlines()


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", TEXT),
        ("cp1252", "A: Grüße,Hallo"),
        ("cp1252", "A: café"),
        ("cp1250", "A: Zażółć gęślą jaźń.\nB: Dziękuję, proszę."),
        ("latin-1", "A: Café, señor?\nB: Où est l'hôtel, s'il vous plaît ?"),
        ("cp1251", "А: Привет, как дела?\nБ: Хорошо, спасибо большое."),
        ("gb18030", "客服：您好，请问有什么可以帮您？\n客户：我想退货。"),
        ("cp932", "A：こんにちは。元気ですか。\nB：はい、元気です。"),
    ],
)
def test_another_encoding_is_rejected_with_a_command_that_converts_it(tmp_path: Path, encoding: str, text: str) -> None:
    path = tmp_path / "it's a file.txt"
    path.write_bytes(text.encode(encoding))
    error = failure(path)
    offset = next(at for at, byte in enumerate(path.read_bytes()) if byte >= 0x80)
    assert f"at offset {offset}" in error.message
    command = str(error.hint).partition(": ")[2]
    subprocess.run(command, shell=True, check=True, timeout=20)
    converted = tmp_path / shlex.split(command.partition(" > ")[2])[0]
    assert read_text(converted, DataError) == text


def test_utf16_without_a_mark_is_not_read_as_utf8(tmp_path: Path) -> None:
    for encoding in ("utf-16-le", "utf-16-be"):
        (tmp_path / "a.txt").write_bytes("A: hi".encode(encoding))
        assert "without a byte order mark" in failure(tmp_path / "a.txt").message
        assert f"iconv -f {encoding.replace('16-', '16')}" in str(failure(tmp_path / "a.txt").hint)
        with pytest.raises(DataError, match="without a byte order mark"):
            open_lines(tmp_path / "a.txt", "UTF8", DataError)
    (tmp_path / "a.txt").write_bytes(b"A: h\0i")
    assert "NUL at character 4" in failure(tmp_path / "a.txt").message


@pytest.mark.parametrize(
    ("content", "name", "kind", "remedy"),
    [
        (b"\x1f\x8b\x08", "a.jsonl.gz", "a gzip file", "gunzip --keep"),
        (b"PK\x03\x04....", "talk.docx", "a Word document", "export it as plain text"),
        (b"PK\x03\x04....", "talk.zip", "a zip archive", "unpack it"),
        (b"%PDF-1.7", "talk.pdf", "a PDF", "plain text"),
        (b"PAR1", "train.jsonl", "a Parquet file", "plain text, or set data.source=hub"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "talk.doc", "an old Office document", "plain text"),
    ],
)
def test_binary_files_are_rejected_by_name(tmp_path: Path, content: bytes, name: str, kind: str, remedy: str) -> None:
    (tmp_path / name).write_bytes(content)
    error = failure(tmp_path / name)
    assert kind in error.message
    assert remedy in str(error.hint)


def test_special_files_never_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in failure(tmp_path / "pipe").message
    assert "is a folder" in failure(tmp_path).message
    assert "No such file" in failure(tmp_path / "none").message
    assert "File name too long" in failure(tmp_path / ("x" * 5000)).message
    assert len(failure(tmp_path / ("x" * 5000)).message) < 400
    assert "null byte" in failure(tmp_path / "a\0b").message


def test_the_caller_chooses_the_class_of_the_error() -> None:
    with pytest.raises(RequestError, match="standard input is not UTF-8: byte 0xe9 at offset 3"):
        decode(b"caf\xe9", "standard input", RequestError)


def test_long_lines_and_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuron_sum.text_files.MAX_CHARACTERS", 10)
    path = tmp_path / "a.txt"
    path.write_text("short\n" + "x" * 35 + "\nend\n" + "y" * 11)
    with open_lines(path, "utf-8", DataError) as lines:
        assert list(numbered(lines)) == [(1, "short\n"), (2, None), (3, "end\n"), (4, None)]
    assert "the maximum is" in failure(path).message
    path.write_text("z" * 11)
    assert "11 characters; the maximum is 10" in failure(path).message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5_000 + "}", "too many digits"),
        ('{"a": 1, "b": 2, "a": 3}', "duplicate key 'a'"),
        ("{", "Expecting property name"),
    ],
)
def test_json_is_parsed_within_limits(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_one_damaged_line_of_utf8_is_named_instead_of_a_conversion(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("A: Grüße, schöne Grüße\n".encode() + b"B: caf\xe9\n")
    assert failure(path).hint == "correct line 2, which is damaged; most of the text is UTF-8"
    path.write_text("A: Grüße")
    assert conversion_of(path) == "omit data.encoding, because the file is UTF-8"


def test_hints_for_data_leave_one_file(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    for content, packed in (("A: Grüße".encode("cp1252"), False), (gzip.compress("A: Grüße".encode()), True)):
        path.write_bytes(content)
        hint = str(failure(path).hint) if packed else conversion_of(path)
        subprocess.run(hint.partition(": ")[2], shell=True, check=True, timeout=20)
        assert read_text(path, DataError) == "A: Grüße"
        assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_read_on_request_and_never_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"A: hi\r\n")
    os.close(writer)
    assert read_text(Path(f"/dev/fd/{reader}"), DataError, pipes=True) == "A: hi\n"
    os.close(reader)
    reader, writer = os.pipe()
    os.write(writer, b"caf\xe9")
    os.close(writer)
    with pytest.raises(DataError, match="byte 0xe9") as raised:
        read_text(Path(f"/dev/fd/{reader}"), DataError, pipes=True)
    os.close(reader)
    assert raised.value.hint == "convert it: iconv -f cp1252 -t utf-8"
    os.mkfifo(tmp_path / "pipe")
    assert read_text(tmp_path / "pipe", DataError, pipes=True) == ""
    monkeypatch.setattr("neuron_sum.text_files.MAX_CHARACTERS", 10)
    with pytest.raises(DataError, match="maximum is 40 bytes"):
        read_text(Path("/dev/zero"), DataError, pipes=True)
