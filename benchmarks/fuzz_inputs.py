"""Mutations of files: bytes, text, and the structure of JSON, YAML, safetensors and tar archives."""

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import PurePath
from random import Random
from typing import Any

ODD_TEXTS = (
    *("", " ", "\x00", "\x1b]0;x\x07", "\u202eabc\u2066", "\u200b\ufeff", "\u2028", "\ud800", "\udc80", "e\u0301" * 50),
    *(
        "a" * 300,
        "a" * 20_000,
        "a b;$(touch x)'\"`",
        "[red]x[/]",
        "%s{}{0}",
        "nul",
        "-",
        "--help",
        "\n\n",
        "1_000",
        "0x1f",
    ),
    *(
        "12:30",
        "on",
        "NaN",
        "null",
        "~x",
        "https://127.0.0.1:9/x",
        "file:///etc/passwd",
        "../" * 5 + "x",
        "\ufdfa" * 2000,
    ),
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, 1e308, float("nan"), float("inf")),
    *([], {}, [[]], [None], [0] * 2000, {"": None}, {"a": {"b": []}}, ["a"] * 3, [{}] * 3, *ODD_TEXTS),
)
TOKENS = {
    "@digits@": "1" * 5000,
    "@exponent@": "1e" + "9" * 30,
    "@list@": "[" * 2000 + "]" * 2000,
    "@open@": "[" * 100_000,
    "@object@": '{"a":' * 2000 + "1" + "}" * 2000,
    "@half@": '"\\ud800"',
    "@nul@": '"\\u0000"',
    "@minus@": "-",
    "@infinity@": "-Infinity",
}
"""Marks in a JSON value that `dump` replaces with text that json.dumps cannot write."""
PIECES = (
    *(
        b"\x00",
        b"\xff",
        b"\xfe\xff",
        b"\xef\xbb\xbf",
        b"\r",
        b"\r\n",
        b"\n",
        b"\t",
        b'"',
        b"'",
        b",",
        b";",
        b":",
        b"{",
        b"}",
    ),
    *(
        b"[",
        b"]",
        b"\\",
        b"\x1b[2J",
        b"\xe2\x80\xae",
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"1" * 5000,
        b"a" * 100_000,
        b"[" * 50_000,
    ),
    *(
        b"-",
        b"- ",
        b"&a ",
        b"*a",
        b"!!python/object/apply:os.system [x]",
        b"!!binary ",
        b"<<: *a",
        b"---\n",
        b"...\n",
        b"%YAML 9\n",
    ),
    *(
        b"null",
        b"NaN",
        b"1e999",
        b"0o7",
        b"12:30",
        b"? ",
        b"| ",
        b"> ",
        b"# ",
        b"sep=;\n",
        b"WEBVTT\n\n",
        b"\x85",
        b"\xe2\x80\xa8",
    ),
)


def mutate(name: str, content: bytes, random: Random) -> bytes:
    """A changed copy of a file; the changes fit its suffix in three of four cases."""
    suffixes = PurePath(name).suffixes
    structured = STRUCTURED.get(suffixes[-1] if suffixes else "")
    if structured is not None and random.random() < 0.75:
        content = structured(content, random)
        return _bytes(content, random) if random.random() < 0.1 else content
    return _bytes(content, random)


def _bytes(content: bytes, random: Random) -> bytes:
    """Changes bytes without regard to the format."""
    for _ in range(random.choice((1, 1, 2, 5))):
        start = random.randrange(len(content) + 1)
        end = min(len(content), start + random.choice((1, 4, 64, 4096)))
        kind = random.randrange(9)
        if kind == 0:
            content = content[:start]
        elif kind == 1:
            content = content[:start] + content[end:]
        elif kind == 2:
            content = content[:start] + content[start:end] * random.choice((2, 3, 500)) + content[end:]
        elif kind == 3:
            content = content[:start] + random.randbytes(end - start) + content[end:]
        elif kind == 4 and content:
            place = random.randrange(len(content))
            content = content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :]
        elif kind == 5 and random.random() < 0.3:
            encoding = random.choice(("utf-16", "utf-16-le", "utf-32", "utf-7", "cp037", "utf-8-sig", "latin-1"))
            content = content.decode("utf-8", "ignore").encode(encoding, "ignore")
        elif kind == 6 and random.random() < 0.2:
            content = random.choice((b"", b"\n", b"{}", b"[]", b"null", b"0", b'""', b"\x00" * 1000, b"\n" * 5000))
        else:
            content = content[:start] + random.choice(PIECES) + content[start:]
    return content[:5_000_000]


def change(value: Any, random: Random) -> Any:
    """A copy of a value of JSON with one part replaced, removed, renamed, repeated or nested."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        action = random.randrange(12)
        if action == 0:
            return {name: part for name, part in value.items() if name != key}
        if action == 1:
            return {random.choice(ODD_TEXTS) if name == key else name: part for name, part in value.items()}
        if action == 2:
            return {**value, random.choice((*ODD_TEXTS, "x", "auto_map", "extends", "<<")): random.choice(ODD_VALUES)}
        if action == 3:
            return {**value, key: value[random.choice(list(value))]}
        if action == 4:  # a second key of the same name, which `dump` renames back
            return {**value, f"@again@{key}": change(value[key], random)}
        return {**value, key: change(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        place = random.randrange(len(value))
        action = random.randrange(6)
        if action == 0:
            return value[:place] + value[place + 1 :]
        if action == 1:
            return value[:place] + [value[place]] * random.choice((2, 100)) + value[place:]
        return [*value[:place], change(value[place], random), *value[place + 1 :]]
    if isinstance(value, str) and value and random.random() < 0.3:
        place = random.randrange(len(value))
        return value[:place] + random.choice(ODD_TEXTS) + value[place:]
    if isinstance(value, int | float) and not isinstance(value, bool) and random.random() < 0.3:
        return random.choice((-value, value + 1, value * 1000, str(value), float(value % 10**9), [value]))
    return random.choice((*ODD_VALUES, *TOKENS))


def dump(value: Any, **options: Any) -> str:
    """JSON text with duplicate keys and with the tokens of `TOKENS`."""
    text = json.dumps(value, **options).replace('"@again@', '"')
    for mark, token in TOKENS.items():
        text = text.replace(f'"{mark}"', token)
    return text


def _json(content: bytes, random: Random) -> bytes:
    value = json.loads(content)
    for _ in range(random.choice((1, 1, 1, 3))):
        value = change(value, random)
    return _encoded(dump(value, ensure_ascii=random.random() < 0.5))


def _json_lines(content: bytes, random: Random) -> bytes:
    lines = content.splitlines()
    place = random.randrange(len(lines))
    lines[place] = _json(lines[place], random).replace(b"\n", b" ")
    return b"\n".join(lines) + b"\n"


def _yaml(content: bytes, random: Random) -> bytes:
    import yaml

    if random.random() < 0.2:
        lines = content.splitlines(keepends=True)
        place = random.randrange(len(lines))
        start = lines[place].split(b":")[0]
        odd = random.choice((*PIECES, b"on", b"yes", b"1_000", b"0x1f", b".inf", b"2001-01-01", b"=", b"!x y"))
        return b"".join([*lines[:place], start + b": " + odd + b"\n", *lines[place + random.randrange(2) :]])
    # JSON is YAML, so that the changes of JSON and its tokens are available.
    return _json(json.dumps(yaml.safe_load(content)).encode(), random)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _safetensors(content: bytes, random: Random) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + length], content[8 + length :]
    kind = random.randrange(5)
    if kind == 0:  # a length that does not fit
        return struct.pack("<Q", random.choice((0, 1, length - 1, length + 1, 2**31, 2**62, 2**64 - 1))) + content[8:]
    if kind == 1:  # other data
        start = random.randrange(max(len(data), 1))
        data = random.choice((data[:start], data + b"\x00" * 8, data[:start] + b"\xff" * (len(data) - start), b""))
    else:
        header = _json(header, random)
    return struct.pack("<Q", len(header)) + header + data


def _tar(content: bytes, random: Random) -> bytes:
    """Members with odd names, types and sizes, or a damaged stream."""
    raw, target = gzip.decompress(content), io.BytesIO()
    if random.random() < 0.3:
        return gzip.compress(_bytes(raw, random), 1, mtime=0)
    with (
        tarfile.open(fileobj=io.BytesIO(raw)) as old,
        tarfile.open(fileobj=target, mode="w", format=random.randrange(3)) as new,
    ):
        for member in old:
            body = old.extractfile(member)
            if random.random() < 0.3:
                names = (
                    "../x",
                    "/x/../y",
                    "a/" * 500 + "x",
                    "x" * 300,
                    "\udc80",
                    "a\nb",
                    "adapters/../../x",
                    "",
                    ".",
                    "a/",
                )
                member.name = random.choice((*names, member.name, "serving.properties"))
                member.type = random.choice(
                    (tarfile.REGTYPE,) * 3 + (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"S", b"Z")
                )
                member.linkname = random.choice(("", "../x", "serving.properties"))
                member.mode = random.choice((0, 0o644, 0o7777))
                member.mtime = random.choice((0, -1, 2**40))
            try:
                new.addfile(member, body if member.isreg() else None)
            except (ValueError, OSError, UnicodeError):  # not writable by tarfile
                continue
        if random.random() < 0.2:  # 50 MB of zeros in 50 kB
            large = tarfile.TarInfo("zeros")
            large.size = 50_000_000
            new.addfile(large, io.BytesIO(bytes(large.size)))
    packed = gzip.compress(target.getvalue(), 1, mtime=0)
    return _bytes(packed, random) if random.random() < 0.2 else packed


STRUCTURED: dict[str, Callable[[bytes, Random], bytes]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".yaml": _yaml,
    ".safetensors": _safetensors,
    ".gz": _tar,
}
