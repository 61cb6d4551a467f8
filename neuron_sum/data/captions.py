"""Turns of captions (WebVTT, SRT) and of JSON transcripts."""

import html
import re
from collections.abc import Iterator
from io import StringIO
from typing import Any

from neuron_sum import files
from neuron_sum.data.chats import SPEAKER, Turn, block_turns, is_name, one_line, turn_of
from neuron_sum.errors import DataError, reading

VOICE = re.compile(r"<v(?:\.[^\s<>]*)?(?:\s([^<>]*))?>(.*?)(?=<v[\s.>]|</v>|\Z)", re.DOTALL)
TAG = re.compile(r"</?(?:c|i|b|u|v|ruby|rt|lang|font|\d[\d:]*)(?:[.\s][^<>]*)?>|\{\\[^{}]*\}")
ROLLING = re.compile(r"<\d\d:\d\d[:.\d]*>")
STAMP = r"((?:\d{1,4}:)?[0-5]?\d:[0-5]?\d)(?:[.,:](\d{1,3})\d*)?"
TIMES = re.compile(rf"[ \t]*{STAMP}[ \t]*-->[ \t]*{STAMP}(?=[ \t]|$)")
SRT = re.compile(rf"(?:\d+[ \t]*\n)?(?=[ \t]*\d+:\d\d:\d\d){TIMES.pattern}", re.MULTILINE)
NO_CUE = ("NOTE", "STYLE", "REGION")


def webvtt_turns(text: str) -> list[Turn] | None:
    """The turns of WebVTT; None for other text."""
    return _captions(text, "vtt") if re.match(r"WEBVTT(?:\s|$)", text) else None


def srt_turns(text: str) -> list[Turn] | None:
    """The turns of SRT; None for other text, such as a transcript of Teams, which has no counters."""
    if not SRT.match(text):
        return None
    if "-->" in text.split("\n", 1)[0]:  # without counters
        turns = block_turns(text) or []
        names = [turn.speaker for turn in turns]
        if len(set(names)) < len(names) and all(turn.text and is_name(turn.speaker) for turn in turns):
            return None
        return _captions(f"WEBVTT\n\n{text}", "vtt")
    return _captions(text, "srt")


def _captions(text: str, form: str) -> list[Turn]:
    import webvtt

    repaired = _repaired(text, form)
    with reading("the transcript", DataError, "export it again as WebVTT or SRT"):
        captions = webvtt.from_buffer(StringIO(repaired), format=form)
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


def _repaired(text: str, form: str) -> str:
    """The text with uniform time lines, because `webvtt` omits a cue with a time in another form.

    Text with an arrow gets an invisible character, so that it is not a time line; a paragraph of WebVTT without a time
    line belongs to the cue before it.
    """
    point = "," if form == "srt" else "."
    blocks: list[list[str]] = [[]]
    for line in text.split("\n"):
        before, arrow, after = line.partition("-->")
        if times := TIMES.match(line):
            start, start_ms, end, end_ms = times.groups("0")
            blocks[-1].append(f"{start}{point}{start_ms:0<3} --> {end}{point}{end_ms:0<3}")
        elif arrow and len(before.split()) < 2 and re.search(r"\d:\d", f"{before} {after}"):
            raise DataError(f"the time line {line!r:.80} of a caption is damaged", "correct or remove it")
        elif line.strip():
            blocks[-1].append(line.rstrip().replace("-->", "--\u200b>"))
        elif blocks[-1]:
            blocks.append([])
    joined: list[list[str]] = []
    is_cue = False
    for block, following in zip(blocks, [*blocks[1:], []], strict=True):
        has_times = any("-->" in line for line in block)
        is_counter = len(block) == 1 and block[0].isdigit() and "-->" in "".join(following[:1])
        is_text = block and not has_times and not is_counter and not block[0].startswith(NO_CUE)
        if form == "vtt" and is_cue and is_text:
            joined[-1] += block
            continue
        is_cue = has_times
        joined.append(block)
    return "\n\n".join("\n".join(block) for block in joined)


def _cue(payload: str) -> Iterator[Turn]:
    """The turns of a cue: voices, JSON of Microsoft Graph, lines of several speakers, or text."""
    if payload.lstrip().startswith("{") and (spoken := _spoken(payload)) is not None:
        yield spoken
        return
    start = VOICE.search(payload)
    if start is not None:
        if before := _plain(payload[: start.start()]):
            yield turn_of(before)
        for voice in VOICE.finditer(payload):
            if said := _plain(voice[2]):
                yield Turn(_plain(voice[1] or ""), said)
        return
    lines = [line for line in map(_plain, payload.split("\n")) if line]
    if not lines:
        return
    starts = [index for index, line in enumerate(lines) if index == 0 or SPEAKER.match(line) or line.startswith("- ")]
    for first, following in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield turn_of(" ".join(lines[first:following]))


def _plain(text: str) -> str:
    return one_line(html.unescape(TAG.sub("", text)))


def _spoken(payload: str) -> Turn | None:
    try:
        fields = files.parse_json(payload)
    except ValueError:
        return None
    return _entry(fields)


TEXT_KEYS = ("spokenText", "text", "transcript", "content")
SPEAKER_KEYS = ("speakerName", "speakerDisplayName", "speaker", "speakerLabel", "speaker_label", "name", "from", "role")


def json_turns(text: str) -> list[Turn] | None:
    """The turns of a list of objects with a text each, as of Teams or Microsoft Graph; None for other text."""
    if not text.startswith(("{", "[")):
        return None
    try:
        content = files.parse_json(text)
    except ValueError:
        return None
    lists = [content] if isinstance(content, list) else list(content.values()) if isinstance(content, dict) else []
    for items in sorted((items for items in lists if isinstance(items, list) and items), key=len, reverse=True):
        turns = [_entry(item) for item in items]
        if all(turn is not None for turn in turns) and any(turn.text for turn in turns if turn is not None):
            return [turn for turn in turns if turn is not None]
    return None


def _entry(item: Any) -> Turn | None:
    if not isinstance(item, dict):
        return None
    said = next((item[key] for key in TEXT_KEYS if isinstance(item.get(key), str)), None)
    if said is None:
        return Turn("", "") if any(item.get(key, "") is None for key in TEXT_KEYS) else None
    speaker = next((item[key] for key in SPEAKER_KEYS if item.get(key) not in (None, "", {})), "")
    if isinstance(speaker, dict):
        speaker = speaker.get("displayName") or speaker.get("name") or ""
    return Turn(one_line(str(speaker)), one_line(said))
