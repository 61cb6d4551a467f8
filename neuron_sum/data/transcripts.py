"""Transcripts and chat exports as dialogues, one turn per line: "Speaker: text".

WebVTT and SRT (Zoom, Teams, Meet and others), chats of WhatsApp and Zoom, text transcripts of Zoom, Teams, Otter, and
the JSON of Teams. Time stamps, headers and system messages are left out.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from neuron_sum import console, text_files
from neuron_sum.data.captions import json_turns, srt_turns, webvtt_turns
from neuron_sum.data.chats import STAMPED, Turn, block_turns, dated_chat_turns, stamped_line_turns, zoom_chat_turns
from neuron_sum.errors import DataError, reading
from neuron_sum.text_files import STDIN, SURROGATE


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
        text = text_files.read_text(file, DataError, pipes=True)
    try:
        transcript = parse(text)
    except DataError as error:
        raise DataError(f"{name}: {error.message}", error.hint) from error
    if not transcript.dialogue:
        raise DataError(f"{name} contains no dialogue", "write one turn per line")
    if found := SURROGATE.search(transcript.dialogue):
        raise DataError(f"{name} contains the lone surrogate U+{ord(found[0]):04X}", "write whole characters")
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


FORMS = {
    "WebVTT": webvtt_turns,
    "SRT": srt_turns,
    "a JSON transcript": json_turns,
    "a chat export": dated_chat_turns,
    "a Zoom chat": zoom_chat_turns,
    "a text transcript": block_turns,
    "lines with time stamps": stamped_line_turns,
}
"""The function that reads each format; None means that the text is in another one."""
