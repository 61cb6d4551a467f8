"""Transcripts and chat exports as dialogues, one turn per line: "Speaker: text".

WebVTT and SRT (Zoom, Teams, Meet and others), chats of WhatsApp and Zoom, text transcripts of Zoom, Teams, Otter, and
the JSON of Teams. Time stamps, headers and system messages are left out.
"""

import html
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from neuron_sum import console, text_files
from neuron_sum.errors import DataError, reading
from neuron_sum.text_files import STDIN

INVISIBLE = dict.fromkeys([0x200B, 0x200E, 0x200F, 0x202A, 0x202B, 0x202C, 0x2066, 0x2067, 0x2068, 0x2069, 0xFEFF])
MAX_NAME = 60


@dataclass(frozen=True)
class Turn:
    """One utterance.

    Attributes:
        speaker: The name; empty if unknown.
        text: The text, in one line.
    """

    speaker: str
    text: str


@dataclass(frozen=True)
class Transcript:
    """A file as a dialogue.

    Attributes:
        dialogue: The text, one turn per line.
        form: The name of the recognized format; None if the text is unchanged.
        left_out: Number of system messages and of messages with only media.
    """

    dialogue: str
    form: str | None = None
    left_out: int = 0

    def note(self, name: str) -> str | None:
        """A note for the user about how the file was read; None if it is plain text without time stamps.

        Args:
            name: The file name.
        """
        if self.form is not None:
            count = self.dialogue.count("\n") + 1
            dropped = f"; {self.left_out} system or media messages are left out" if self.left_out else ""
            return f"{name} is read as {self.form}: {count} turns{dropped}"
        lines = [line for line in self.dialogue.split("\n") if line.strip()]
        if len(lines) > 1 and sum(bool(STAMPED.match(line)) for line in lines) * 3 >= len(lines):
            return (
                f"{name} looks like a transcript in an unknown format: it is read as plain text, with its time stamps; "
                "export it as WebVTT or SRT"
            )
        if lines and lines[0].startswith(("{", "[{", "<")) and not lines[0].startswith(("{{", "<v ")):
            return f"{name} looks like JSON or HTML, but is not a known transcript: it is read as plain text"
        return None


def read_dialogue(file: Path) -> str:
    """Reads one dialogue from a text file or a transcript, and prints a note if it is a transcript.

    Args:
        file: The file; - is standard input.

    Raises:
        DataError: If the file cannot be read, or contains no text.
    """
    if str(file) == "-":
        if sys.stdin is None or sys.stdin.closed:
            raise DataError(f"{STDIN} is closed", "use a file")
        if sys.stdin.isatty():
            console.note("reading a dialogue from standard input; press Ctrl-D to end it")
        name = STDIN
        with reading(name, DataError, "use a file"):
            content = sys.stdin.buffer.read(4 * text_files.MAX_CHARACTERS + 1)
        if len(content) > 4 * text_files.MAX_CHARACTERS:
            raise DataError(f"{name} has more than {4 * text_files.MAX_CHARACTERS:,} bytes", "split it")
        text = text_files.decode(content, name, DataError)
    else:
        name = file.name
        text = text_files.read_text(file, DataError)
    transcript = parse(text)
    if not transcript.dialogue:
        raise DataError(f"{name} contains no dialogue", "write one turn per line")
    if (note := transcript.note(name)) is not None:
        console.note(note)
    return transcript.dialogue


def parse(text: str) -> Transcript:
    """Recognizes the format of a transcript and reads its turns; other text is returned unchanged."""
    text = text.strip().removeprefix("\ufeff").strip()
    for form, parser in FORMS.items():
        turns = parser(text)
        if turns is not None:
            kept = [turn for turn in turns if turn.text]
            return Transcript(_joined(kept), form, sum(not turn.text for turn in turns))
    return Transcript(text)


def _joined(turns: list[Turn]) -> str:
    """The turns as lines; consecutive turns of a speaker become one."""
    lines: list[list[str]] = []
    last = ""
    for turn in turns:
        if turn.speaker and turn.speaker == last:
            lines[-1].append(turn.text)
        else:
            lines.append([f"{turn.speaker}: {turn.text}" if turn.speaker else turn.text])
        last = turn.speaker
    return "\n".join(" ".join(line) for line in lines)


def _turn(text: str) -> Turn:
    """A turn from text that may start with a speaker."""
    text = _one_line(text)
    if match := SPEAKER.match(text):
        return Turn(match[1].strip(), match[2].strip())
    return Turn("", text)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text.translate(INVISIBLE)).strip()


# WebVTT and SRT

VOICE = re.compile(r"<v(?:\.[^\s<>]*)?(?:\s+([^<>]*))?>(.*?)(?=<v[\s.>]|</v>|\Z)", re.DOTALL)
TAG = re.compile(r"</?(?:c|i|b|u|v|ruby|rt|lang|font|\d[\d:.]*)(?:[.\s][^<>]*)?>|\{\\[^{}]*\}")
ROLLING = re.compile(r"<\d\d:\d\d[:.\d]*>")
SRT = re.compile(r"(?:\d+\s*\n)?\s*\d+:\d\d:\d\d[.,]\d+\s*-->")


def _webvtt(text: str) -> list[Turn] | None:
    return _captions(text, "vtt") if re.match(r"WEBVTT(?:\s|$)", text) else None


def _srt(text: str) -> list[Turn] | None:
    return _captions(text, "srt") if SRT.match(text) else None


def _captions(text: str, form: str) -> list[Turn]:
    import webvtt

    with reading("the transcript", DataError, "export it again as WebVTT or SRT"):
        captions = webvtt.from_buffer(StringIO(text), format=form)
    turns: list[Turn] = []
    is_rolling = ROLLING.search(text) is not None  # each caption repeats the last line of the one before
    shown = ""
    for caption in captions:
        payload = caption.raw_text
        if is_rolling:
            new = [line for line in map(_plain, payload.split("\n")) if line and line != shown]
            shown = new[-1] if new else shown
            payload = "\n".join(new)
        turns += _cue(payload)
    return turns


def _cue(payload: str) -> Iterator[Turn]:
    """The turns of a cue: voices, JSON of Microsoft Graph, lines of several speakers, or text."""
    if payload.lstrip().startswith("{") and (spoken := _spoken(payload)) is not None:
        yield spoken
        return
    start = VOICE.search(payload)
    if start is not None:
        if before := _plain(payload[: start.start()]):
            yield _turn(before)
        for voice in VOICE.finditer(payload):
            if said := _plain(voice[2]):
                yield Turn(_plain(voice[1] or ""), said)
        return
    lines = [line for line in map(_plain, payload.split("\n")) if line]
    if not lines:
        return
    starts = [index for index, line in enumerate(lines) if index == 0 or SPEAKER.match(line) or line.startswith("- ")]
    for first, following in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield _turn(" ".join(lines[first:following]))


def _plain(text: str) -> str:
    return _one_line(html.unescape(TAG.sub("", text)))


def _spoken(payload: str) -> Turn | None:
    try:
        fields = text_files.parse_json(payload)
    except ValueError:
        return None
    return _entry(fields)


# JSON of Teams, Microsoft Graph and speech recognizers

TEXT_KEYS = ("spokenText", "text", "transcript", "content")
SPEAKER_KEYS = ("speakerName", "speakerDisplayName", "speaker", "speakerLabel", "speaker_label", "name", "from", "role")


def _json(text: str) -> list[Turn] | None:
    if not text.startswith(("{", "[")):
        return None
    try:
        content = text_files.parse_json(text)
    except ValueError:
        return None
    lists = [content] if isinstance(content, list) else list(content.values()) if isinstance(content, dict) else []
    for items in lists:
        if isinstance(items, list) and items:
            turns = [_entry(item) for item in items]
            if all(turn is not None for turn in turns):
                return [turn for turn in turns if turn is not None]
    return None


def _entry(item: Any) -> Turn | None:
    if not isinstance(item, dict):
        return None
    said = next((item[key] for key in TEXT_KEYS if isinstance(item.get(key), str)), None)
    if said is None:
        return None
    speaker = next((item[key] for key in SPEAKER_KEYS if item.get(key)), "")
    if isinstance(speaker, dict):
        speaker = speaker.get("displayName") or speaker.get("name") or ""
    return Turn(_one_line(str(speaker)), _one_line(said))


# Chats and text transcripts

DATE = r"\d{1,4}\s?[./\-年년]\s?\d{1,2}\s?[./\-月월]\s?\d{1,4}(?:[.日일]|\s?г\.)?"
CLOCK = r"(?:[^\W\d]{1,4}\.?\s?)?\d{1,2}[:.]\d{2}(?:[:.]\d{2})?(?:\s?[^\W\d]{1,3}\.?(?:\s?[^\W\d]{1,2}\.?)?)?"
TIME = r"\d{1,2}:\d{2}(?::\d{2})?(?:[.,]\d{1,3})?(?:\s?[AaPp]\.?\s?[Mm]\.?)?"
NAME = rf"(?=[^\W\d_]|#)[^:\n]{{1,{MAX_NAME}}}?"
SPEAKER = re.compile(rf"(?:-\s*)?({NAME})\s*(?:：|:\s)\s*(\S.*)")
STAMPED = re.compile(rf"[\[(<]?(?:{DATE}[,T\s]+)?{TIME}(?!\d)")
DATED = re.compile(rf"\[?{DATE}[,،]?\s{{1,3}}{CLOCK}\s?(?:\]\s?|\s?[-–—]\s|,\s)(.*)")
SENDER = re.compile(rf"(?:~\s?)?([^:\n]{{1,{MAX_NAME}}}?)\s?:(?:\s(.*)|$)")
ZOOM_CHAT = re.compile(
    rf"(?:{DATE}\s)?\d{{1,2}}:\d{{2}}:\d{{2}}\s+(?:From|Von|De|Da|Van)\s+([^:\n]{{1,80}}?)"
    r"(?:\s+(?:to|an|à|a|para|aan)\s+[^:\n]{1,80}?)?\s*:\s*(.*)"
)
BLOCK = re.compile(rf"(?:\[([^\]\n]{{1,{MAX_NAME}}})\]\s*{TIME}|({NAME})[\s|,–-]+[(\[]?{TIME}[)\]]?\s*:?)\s*")
TEAMS_BLOCK = re.compile(r"\d+:\d+:\d+\.\d+\s*-->\s*\d+:\d+:\d+\.\d+\s*")
STAMPED_TURN = re.compile(
    rf"[\[(]?{TIME}(?:\s*(?:-->|[-–]|to)\s*{TIME})?[\])]?\s*[-–|]?\s*({NAME}):\s+(.*)"
    rf"|({NAME})\s*[\[(]?{TIME}[\])]?:\s+(.*)"
)
MEDIA = re.compile(r"<[^<>]{3,60}>|\S.{0,200}\.\w{2,4} \([^()]{3,40}\)")
EDITED = re.compile("\u200e?<This message was edited>|\u200e<[^<>]{1,200}>")
NOTICE = re.compile(
    r"(?:This message was deleted|You deleted this message|Diese Nachricht wurde gelöscht|Du hast diese Nachricht "
    r"gelöscht|(?:Se )?elimin(?:ó|aste) este mensaje|Ce message a été supprimé|Vous avez supprimé ce message|Questo "
    r"messaggio è stato eliminato|Mensagem apagada|Dit bericht is verwijderd)\.?$|(?:Messages and calls are end-to-end "
    r"encrypted|Nachrichten und Anrufe sind Ende-zu-Ende|Los mensajes y las llamadas|Les messages et les appels)",
    re.IGNORECASE,
)


def _dated_chat(text: str) -> list[Turn] | None:
    """A chat with date and time before each message; a line without them continues the message before it."""
    lines = text.split("\n")
    if not DATED.match(lines[0].translate(INVISIBLE)):
        return None
    messages: list[tuple[str, list[str]]] = []
    for line in lines:
        if (match := DATED.match(line.lstrip("".join(map(chr, INVISIBLE))))) is None:
            messages[-1][1].append(line)
            continue
        sender = SENDER.match(match[1].lstrip("\u200e"))
        is_notice = sender is None or re.search(r"[\"“”„«»]", sender[1]) or (sender[2] or "").startswith("\u200e")
        name = "" if sender is None or is_notice else _one_line(sender[1])
        messages.append((name, [sender[2] or ""] if sender is not None else [""]))
    turns = []
    for name, parts in messages:
        said = [part for part in (EDITED.sub("", part).strip() for part in parts) if not MEDIA.fullmatch(part)]
        is_left_out = not name or (said and NOTICE.match(said[0]))
        turns.append(Turn(name, "" if is_left_out else _one_line(" ".join(said))))
    return turns


def _zoom_chat(text: str) -> list[Turn] | None:
    return _by_header(text, ZOOM_CHAT, at_least=1)


def _stamped_lines(text: str) -> list[Turn] | None:
    turns = _by_header(text, STAMPED_TURN, at_least=2)
    return turns if turns is not None and len(turns) * 2 > len([line for line in text.split("\n") if line]) else None


def _blocks(text: str) -> list[Turn] | None:
    """Headers with a name and a time, each above its text; in Teams, the name is the line after the times."""
    lines = text.split("\n")
    if TEAMS_BLOCK.fullmatch(lines[0]):
        found = [line for line in lines if line.strip()]
        starts = [index for index, line in enumerate(found) if TEAMS_BLOCK.fullmatch(line)]
        parts = [found[first + 1 : end] for first, end in zip(starts, [*starts[1:], len(found)], strict=True)]
        return [Turn(_one_line(part[0]), _one_line(" ".join(part[1:]))) for part in parts if part]
    turns = _by_header(text, BLOCK, at_least=2)
    return turns if turns is not None and all(turn.text for turn in turns) else None


def _by_header(text: str, header: re.Pattern[str], at_least: int) -> list[Turn] | None:
    """Turns that each start with a line that matches a pattern: the name, and the text if it is in the same line."""
    turns: list[tuple[str, list[str]]] = []
    for line in text.translate(INVISIBLE).split("\n"):
        if match := header.fullmatch(line.strip()):
            name, *said = [group for group in match.groups() if group is not None]
            turns.append((name, said))
        elif turns:
            turns[-1][1].append(line)
        else:
            return None
    if len(turns) < at_least:
        return None
    return [Turn(_one_line(name), _one_line(" ".join(said))) for name, said in turns]


FORMS = {
    "WebVTT": _webvtt,
    "SRT": _srt,
    "a JSON transcript": _json,
    "a chat export": _dated_chat,
    "a Zoom chat": _zoom_chat,
    "a text transcript": _blocks,
    "lines with time stamps": _stamped_lines,
}
