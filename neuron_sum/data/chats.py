"""Turns of chat exports and text transcripts: WhatsApp, Zoom, Teams, Otter, and lines with time stamps."""

import re
from dataclasses import dataclass

INVISIBLE = dict.fromkeys([0x200B, 0x200E, 0x200F, 0x202A, 0x202B, 0x202C, 0x2066, 0x2067, 0x2068, 0x2069, 0xFEFF])
MAX_NAME = 60
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
CAPITALIZED = r"[^\W\d_a-z][\w.'-]*(?:\s[^\W\d_a-z][\w.'-]*){0,3}"
BLOCK = re.compile(
    rf"\[([^\]\n]{{1,{MAX_NAME}}})\]\s?{TIME}|({NAME})[\s|,–-]+[(\[]?{TIME}[)\]]?\s?:?"
    rf"|\[(?:{DATE}[,\s]+)?{TIME}\]\s?({CAPITALIZED})"
)
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


@dataclass(frozen=True)
class Turn:
    """One utterance.

    Attributes:
        speaker: The name; empty if unknown.
        text: The text, in one line.
    """

    speaker: str
    text: str


def turn_of(text: str) -> Turn:
    """A turn from text that may start with a speaker."""
    text = one_line(text)
    if match := SPEAKER.match(text):
        return Turn(match[1].strip(), match[2].strip())
    return Turn("", text)


def one_line(text: str) -> str:
    """A text without line breaks, repeated spaces and invisible characters."""
    return re.sub(r"\s+", " ", text.translate(INVISIBLE)).strip()


def is_name(text: str) -> bool:
    """Whether a text is up to four words without lower case at their starts, as most names are."""
    words = text.split()
    return 0 < len(words) < 5 and not any(word[0].islower() for word in words) and text[-1] not in "?!,;"


def dated_chat_turns(text: str) -> list[Turn] | None:
    """A chat with date and time before each message; a line without them continues the message before it."""
    lines = text.split("\n")
    invisible = "".join(map(chr, INVISIBLE))
    if not DATED.match(lines[0].lstrip(invisible)):
        return None
    messages: list[tuple[str, list[str]]] = []
    for line in lines:
        if (match := DATED.match(line.lstrip(invisible))) is None:
            messages[-1][1].append(line)
            continue
        sender = SENDER.match(match[1].lstrip("\u200e"))
        is_notice = sender is None or re.search(r"[\"“”„«»]", sender[1]) or (sender[2] or "").startswith("\u200e")
        name = "" if sender is None or is_notice else one_line(sender[1])
        messages.append((name, [sender[2] or ""] if sender is not None else [""]))
    undated = [line for _, parts in messages for line in parts[1:] if line.strip()]
    if undated and (len(messages) < 2 or _has_speakers(undated, len(messages))):
        return None
    # Without senders, the text is not in the same line: another format, unless there are only system messages.
    if undated and sum(bool(name) for name, _ in messages) <= sum(
        not name and any(parts[1:]) for name, parts in messages
    ):
        return None
    turns = []
    for name, parts in messages:
        said = [part for part in (EDITED.sub("", part).strip() for part in parts) if not MEDIA.fullmatch(part)]
        is_left_out = not name or (said and NOTICE.match(said[0]))
        turns.append(Turn(name, "" if is_left_out else one_line(" ".join(said))))
    return turns


def zoom_chat_turns(text: str) -> list[Turn] | None:
    """The turns of a saved chat of Zoom; None for other text."""
    return _by_header(text, ZOOM_CHAT, at_least=1)


def stamped_line_turns(text: str) -> list[Turn] | None:
    """The turns of lines with a name, and a time stamp in or between the lines; None for other text."""
    lines = [line for line in map(one_line, text.split("\n")) if line]
    named = [line for line in lines if not re.fullmatch(TIME, line)]
    if named and len(named) < len(lines) and all(map(SPEAKER.match, named)):
        return [turn_of(line) for line in named]
    turns = _by_header(text, STAMPED_TURN, at_least=2)
    return turns if turns is not None and len(turns) * 2 > len([line for line in text.split("\n") if line]) else None


def block_turns(text: str) -> list[Turn] | None:
    """Headers with a name and a time, each above its text; in Teams, the name is the line after the times."""
    lines = text.split("\n")
    if TEAMS_BLOCK.fullmatch(lines[0]):
        found = [line for line in lines if line.strip()]
        starts = [index for index, line in enumerate(found) if TEAMS_BLOCK.fullmatch(line)]
        parts = [found[first + 1 : end] for first, end in zip(starts, [*starts[1:], len(found)], strict=True)]
        return [Turn(one_line(part[0]), one_line(" ".join(part[1:]))) for part in parts if part]
    turns = _by_header(text, BLOCK, at_least=2)
    return turns if turns is not None and all(turn.text for turn in turns) else None


def _by_header(text: str, header: re.Pattern[str], at_least: int) -> list[Turn] | None:
    """Turns that each start with a line that matches a pattern: the name, and the text if it is in the same line."""
    turns: list[tuple[str, list[str]]] = []
    for line in text.translate(INVISIBLE).split("\n"):
        if match := header.fullmatch(" ".join(line.split())):
            name, *said = [group for group in match.groups() if group is not None]
            turns.append((name, said))
        elif turns:
            turns[-1][1].append(line)
        else:
            return None
    if len(turns) < at_least:
        return None
    if at_least > 1:  # a header without a keyword may be an ordinary line that ends with a time
        names = [one_line(name) for name, _ in turns]
        bodies = [line for _, said in turns for line in (said[1:] if header is STAMPED_TURN else said)]
        if _has_speakers(bodies, len(turns)) or (len(set(names)) == len(names) and not all(map(is_name, names))):
            return None
    return [Turn(one_line(name), one_line(" ".join(said))) for name, said in turns]


def _has_speakers(lines: list[str], headers: int) -> bool:
    """Whether many lines below headers start with a speaker themselves."""
    return 2 * sum(SPEAKER.match(one_line(line)) is not None for line in lines) >= headers
