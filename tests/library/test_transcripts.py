"""Transcripts and chat exports as turns with speakers."""

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from in_process import neuron_sum

from neuron_sum.data.transcripts import parse, read_dialogue
from neuron_sum.errors import DataError

EXPECTED = "Alice: Hi there.\nBob: Hello."
CAPTIONS = "00:00:00.000 --> 00:00:01.000"


def cues(*payloads: str, header: str = "WEBVTT") -> str:
    return f"{header}\n\n" + "\n\n".join(f"{CAPTIONS}\n{payload}" for payload in payloads)


def srt(*payloads: str) -> str:
    time_line = CAPTIONS.replace(".", ",")
    return "\n\n".join(f"{number}\n{time_line}\n{payload}" for number, payload in enumerate(payloads, 1))


@pytest.mark.parametrize(
    "text",
    [
        cues("<v Alice>Hi</v>", "<v Alice>there.</v>", "<v Bob>Hello.</v>"),
        cues("<v Alice>Hi there.", "<v.loud Bob>Hello."),
        cues("<v Alice>Hi there.</v> <v Bob>Hello.</v>"),
        cues("Alice: Hi", "Alice: there.", "Bob: Hello."),
        cues("Alice: Hi there.\nBob: Hello."),
        cues("<c.yellow>Alice:</c> <i>Hi</i>\nthere.", "Bob:&nbsp;Hello."),
        cues("Alice: Hi there.", "Bob: Hello.", header="WEBVTT - a title\nKind: captions\nLanguage: en"),
        cues("x").replace(
            f"\n\n{CAPTIONS}\nx", "\n\nSTYLE\n::cue { color: red }\n\nNOTE\na: b\n\nREGION\nid:a\n\nid 1\n"
        )
        + f"{CAPTIONS} align:start position:0%\nAlice: Hi there.\n\n{CAPTIONS} line:0\nBob: Hello.",
        cues(
            '{"startDateTime":"2023","speakerName":"Alice","spokenText":"Hi there.","spokenLanguage":"en-us"}',
            '{"speakerName":"Bob","spokenText":"Hello."}',
        ),
        srt("Alice: Hi there.", "<b>Bob: Hello.</b>"),
        srt("Alice: Hi", "{\\an8}Alice: there.", "<font color=#fff>Bob: Hello.</font>"),
        '{"type": "Transcript", "entries": [{"text": "Hi there.", "speakerDisplayName": "Alice", "at": "0:01"},'
        ' {"text": "Hello.", "speakerDisplayName": "Bob"}]}',
        '[{"speaker": "Alice", "text": "Hi there."}, {"speaker": "Bob", "text": "Hello."}]',
        '{"value": [{"from": {"displayName": "Alice"}, "content": "Hi there."}, {"from": null, "speaker": "Bob", '
        '"content": "Hello."}]}',
        "00:05:12\t From Alice to Everyone: Hi there.\n00:05:13\t From Bob : Hello.",
        "10:15:32 From  Alice  to  Everyone:\n\tHi there.\n10:16:00 From  Bob  to  Alice(Direct Message):\n\tHello.",
        "2023-05-01 10:15:32 From Alice to Everyone: Hi there.\n2023-05-01 10:15:32 From Bob to Everyone: Hello.",
        cues("Alice: Hi there.").replace(".000", ",000") + f"\n\n{CAPTIONS}\nBob: Hello.",
        cues("Alice: Hi there.").replace(".000", "") + f"\n\n{CAPTIONS}\nBob: Hello.",
        cues("Alice: Hi\n\nthere.", "Bob: Hello."),
        srt("Alice: Hi there.", "Bob: Hello.").replace("\n", " \n"),
        "[5/12/2024, 10:15 AM] Alice\nHi there.\n\n[5/12/2024, 10:16 AM] Bob\nHello.",
        "00:00:00.000 --> 00:00:01.000\nAlice\nHi\n\n00:00:01.000 --> 00:00:02.000\nAlice\nthere.\n\n"
        "00:00:03.000 --> 00:00:04.000\nBob\nHello.",
        "[Alice] 10:15:32\nHi\nthere.\n\n[Bob] 10:15:40\nHello.\n",
        "Alice   0:03\nHi there.\n\nBob   0:05\nHello.\n",
        "Alice  10:15 AM\nHi there.\nBob (10:16 AM):\nHello.",
        "0:0:0.0 --> 0:0:3.210\nAlice\nHi there.\n\n0:0:3.0 --> 0:0:5.210\nBob\nHello.",
        "[00:01:02] Alice: Hi there.\n[00:01:05] Bob: Hello.",
        "00:01 - 00:03 Alice: Hi\nthere.\n00:04 - 00:05 Bob: Hello.",
        "Alice (00:01:02): Hi there.\nBob (00:01:04): Hello.",
        "[10:03 AM] Alice\nHi there.\n\n[1/2/24 10:04 AM] Bob\nHello.",
        "00:00:00\n \nAlice: Hi\nAlice: there.\n\n00:05:00\n\nBob: Hello.",
    ],
)
def test_a_transcript_becomes_turns_with_speakers(text: str) -> None:
    for variant in (text, f"\ufeff{text}\n\n", f"\n\n{text}"):
        transcript = parse(variant)
        assert transcript.dialogue == EXPECTED
        assert transcript.form is not None
        assert f"{transcript.form}: 2 turns" in str(transcript.note("a.txt"))


@pytest.mark.parametrize(
    "start",
    [
        *("12/31/23, 9:41 PM - ", "12/31/23, 9:41\u202fPM - ", "31/12/2023, 21:41 - ", "31.12.23, 21:41 - "),
        *("2023-12-31 21:41 - ", "31-12-2023 21:41 - ", "31.12.2023 klo 21.41 - ", "31/12/23 21.41 - "),
        *("31/12/23, 9:41 p.\u00a0m. - ", "31/12/23, 9:41 pm - ", "2023/12/31 下午9:41 - ", "2023. 12. 31. 21:41 - "),
        *("[31/12/2023, 21:41:05] ", "[12/31/23, 9:41:05 PM] ", "[31.12.23, 21:41:05] ", "\u200e[31.12.23, 21:41:05] "),
        *(
            "[2023/12/31 下午9:41:05] ",
            "2023년 12월 31일 오후 9:41, ",
            "31.12.23 г., 21:41 ч. - ",
            "[31/12/23 21:41:05] ",
        ),
        *("\u200f٣١/١٢/٢٠٢٣، ٩:٤١ م - ", "12/31/23, 21:41 – ", "31/12/2023 à 21:41 - ", "[2023-12-31, 9:41:05 a.m.] "),
    ],
)
def test_chats_of_whatsapp_in_several_locales(start: str) -> None:
    lines = (
        "\u200eMessages and calls are end-to-end encrypted. No one outside of this chat can read them",
        'Alice changed the subject from "Plan: A" to "Plan: B"',
        "Alice: Hi",
        "~\u202fAlice: there.",
        "Alice: <Media omitted>",
        "Alice: \u200eimage omitted",
        "Bob: IMG-20231231-WA0001.jpg (file attached)",
        "Bob: This message was deleted",
        "Bob: Hello. <This message was edited>",
    )
    transcript = parse("\n".join(f"{start}{line}" for line in lines))
    assert transcript.dialogue == EXPECTED
    assert transcript.left_out == 6
    assert "6 system or media messages are left out" in str(transcript.note("chat.txt"))


def test_a_message_of_several_lines_and_colons() -> None:
    start = "12/31/23, 9:41 PM - "
    text = f"{start}Alice: List: a\n\n- b: c\n{start}Bob: at 10:30\n{start}Bob: https://example.org\n{start}Al left"
    assert parse(text).dialogue == "Alice: List: a - b: c\nBob: at 10:30 https://example.org"


def test_rolling_captions_are_not_repeated() -> None:
    text = cues("a<00:00:01.000><c> b</c>", "a b", "a b\nc<00:00:02.000><c> d</c>", "c d")
    assert parse(text).dialogue == "a b\nc d"


def test_json_transcripts_with_numbers_as_speakers_and_several_lists() -> None:
    entries = [{"speaker": 0, "text": "Hi."}, {"speaker": 1, "text": None}, {"speaker": 1, "text": "Hello."}]
    transcript = parse(json.dumps({"topics": [{"text": "greeting"}], "utterances": entries}))
    assert transcript.dialogue == "0: Hi.\n1: Hello."
    assert transcript.left_out == 1


@pytest.mark.parametrize("made", [cues, srt])
def test_an_arrow_in_the_text_of_a_caption_is_text(made: Callable[..., str]) -> None:
    assert parse(made("Alice: a --> b", "Bob: c -->", "--> d")).dialogue == "Alice: a --> b\nBob: c -->\n--> d"


def test_captions_without_counters_and_with_lone_counters() -> None:
    line = CAPTIONS.replace(".", ",")
    assert parse(f"{line}\nHello there.\n\n{line}\nHow are\nyou?").dialogue == "Hello there.\nHow are you?"
    assert parse(cues("A: x") + f"\n\n2\n\n{line}\nB: y").dialogue == "A: x\nB: y"
    assert parse("Speaker 1  0:03\nHi\n\nSpeaker 2  0:05\nHello").dialogue == "Speaker 1: Hi\nSpeaker 2: Hello"


@pytest.mark.parametrize("line", ["00:00:0x.000 --> 00:00:01.000", "00:00:00.000 -->", "00:99:00.000 --> 01:99:00.000"])
def test_a_damaged_time_line_is_an_error(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.vtt").write_text(cues("A: a", "B: b") + f"\n\n{line}\nC: c")
    with pytest.raises(DataError, match=r"a\.vtt: the time line '00:.*' of a caption is damaged"):
        read_dialogue(tmp_path / "a.vtt")


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("#Person1#: Shall we meet at 10:30?\n#Person2#: Yes: at 10:30.", None),
        ("A: I said\nB: 12/31/23, 9:41 PM - nothing", None),
        ("[doctor] hi , how are you ?\n[patient] fine .", None),
        ("WEBVTTX is a word", None),
        ("Let's meet at 10:30\nand talk", None),
        ("1\n2\n3", None),
        ("12/31/23, 9:41 PM - Notes: a\nAnna: hi\nBob: hello\nAnna: bye", None),
        ("12/31/23, 9:41 PM - The meeting begins\nWe talk.", "time stamps"),
        ("12/31/23, 9:41 PM - Notes: a\nWe talk.", "time stamps"),
        ("Meeting at 10:00\nAnna: hi\nBob: hello\nLunch at 12:00\nAnna: bye", None),
        ("Meeting at 10:00\nwith all\nLunch at 12:00\nwith some", None),
        ("The first at 10:00: a\nThe second at 11:00: b", None),
        ("00:01 hello\n00:03 there\n00:05 bye", "time stamps"),
        ("(00:01) hello\nyes\n(00:05) bye", "time stamps"),
        ("[00:01] hello\nyes\n[00:05] bye", "time stamps"),
        ('{"some": "object"}', "JSON or HTML"),
        ("<html><p>Hi</p></html>", "JSON or HTML"),
    ],
)
def test_other_text_is_unchanged(text: str, note: str | None) -> None:
    transcript = parse(text)
    assert (transcript.dialogue, transcript.form) == (text, None)
    assert transcript.note("a.txt") is None if note is None else note in str(transcript.note("a.txt"))


def test_files_and_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "meeting.vtt"
    path.write_text(cues("<v Alice>Hi there.", "<v Bob>Hello."), encoding="utf-16")
    assert read_dialogue(path) == EXPECTED
    assert "meeting.vtt is read as WebVTT: 2 turns" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(EXPECTED.replace("\n", "\r\n").encode())))
    assert read_dialogue(Path("-")) == EXPECTED
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("A: Grüße".encode("cp1252"))))
    with pytest.raises(DataError, match="standard input is not UTF-8: byte 0xfc at offset 5") as raised:
        read_dialogue(Path("-"))
    assert raised.value.hint == "convert it: iconv -f cp1252 -t utf-8"
    path.write_text('[{"text": "\\ud800"}]')
    with pytest.raises(DataError, match=r"lone surrogate U\+D800"):
        read_dialogue(path)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="standard input is closed"):
        read_dialogue(Path("-"))


@pytest.mark.parametrize(
    "text", ["", " \n ", "\ufeff", "WEBVTT", "WEBVTT\n\nNOTE nothing", "12/31/23, 9:41 PM - A left"]
)
def test_a_file_without_a_dialogue(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError, match=r"a\.txt contains no dialogue"):
        read_dialogue(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "text",
    [
        cues("<v " * 100_000),
        cues("<v" + " " * 200_000),
        cues("<1" + "." * 200_000),
        srt("{\\" * 100_000),
        "00:05:12 From " + "a to " * 50_000,
        "12/31/23, 9:41 PM - Alice: " + "<" * 200_000,
        "12/31/23, 9:41 PM - Alice: " + "a.jpg (" * 30_000,
        "Alice 0:03 " * 20_000,
        "\n".join(["12/31/23, 9:41 PM - Alice: hi"] * 5_000),
        "[" * 200_000,
        "1" * 200_000,
        "WEBVTT\n\n" + "x -->\n" * 20_000,
        "1" + "\n" * 100_000 + "x",
        *(f"{start}{' ' * 200_000}x" for start in ("00:01", "A 0:03", "[A]", "00:05:12 From A", "12/31/23", "A:")),
        "[00:01] " + "A" * 200_000,
        "[00:01] " + "A " * 100_000,
    ],
    ids=range(21),
)
def test_the_time_is_linear_in_the_text(text: str) -> None:
    started = time.process_time()
    parse(text)
    assert time.process_time() - started < 3


@pytest.mark.parametrize("command", [["summarize", "run", "--recipe", "tiny"], ["request", "http://127.0.0.1:9"]])
def test_the_commands_read_files_through_one_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run", "config.json").touch()
    Path("talk.docx").write_bytes(b"PK\x03\x04")
    Path("talk.txt").write_bytes("A: Grüße".encode("latin-1"))
    for name, reason in (("talk.docx", "is a Word document"), ("talk.txt", "is not UTF-8: byte 0xfc at offset 5")):
        made = neuron_sum(*command, name)
        assert made.exit_code == DataError.exit_code
        assert reason in made.stderr.replace("\n", " ")


def test_lines_of_a_request_file_have_limits(tmp_path: Path) -> None:
    lines = ['{"inputs": "a"}', "", '{"inputs": "\\ud800"}', "[" * 100_000, '{"inputs": ' + "9" * 5000 + "}", "{}"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    made = neuron_sum("request", "http://127.0.0.1:9", str(tmp_path / "a.jsonl"))
    assert made.exit_code == DataError.exit_code
    assert "line 3 is not UTF-8, or has half a surrogate pair" in made.stderr
    assert "line 4 is not JSON: nested too deeply" in made.stderr
    assert "line 5 is not JSON: an integer has too many digits; and 1 more lines" in made.stderr
