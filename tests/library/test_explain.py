"""Known causes: each matches a real line of a public thread or document, in order, quoted, without guesses."""

import io
import json
import random
import re
import string
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from micro_models import ROOT

from neuron_sum.doctor import explain as explaining
from neuron_sum.doctor.explain import Explanation, explain
from neuron_sum.doctor.known_failures import CAUSES

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
LINES = [
    (entry["cause"], entry["line"], entry["origin"])
    for entry in map(json.loads, (ROOT / "tests" / "known_lines.jsonl").read_text().splitlines())
]
"""The content of known_lines.jsonl: a cause, a real line, and its source, a thread or document."""


def read(*lines: str) -> Explanation:
    return explain(io.BytesIO("".join(f"{line}\n" for line in lines).encode()))


@pytest.mark.parametrize(("name", "line", "origin"), LINES, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(LINES)])
def test_a_real_line_matches_its_cause_and_no_other(name: str, line: str, origin: str) -> None:
    assert "://" in origin or "no thread found" in origin
    told = read("Compiler status PASS", line, "epoch 1")
    assert [(finding.cause.name, finding.line, finding.times) for finding in told.findings] == [(name, 2, 1)]


def test_every_cause_has_a_real_line_a_remedy_and_a_source() -> None:
    names = [cause.name for cause in CAUSES]
    assert len(set(names)) == len(names)
    assert {name for name, _, _ in LINES} == set(names)
    for cause in CAUSES:
        assert cause.cause and cause.remedy and cause.source.startswith("https://")
        assert re.fullmatch(r"[a-z0-9-]+", cause.name)


HEALTHY = [
    "2023-08-25 21:51:36.000433: INFO ||NCC_WRAPPER||: Compile cache path: /var/tmp/neuron-compile-cache",
    "2023-Jul-07 13:56:06.0950 1358943:1359077 [0] init.cc:138 CCOM WARN OFI plugin initNet() failed is EFA enabled?",
    "Compiler status PASS",
    "2024-Oct-21 20:15:03.169055  7340:7340   INFO   NRT:nrt_init        Found neuron driver: 2.18",
    "2024-12-24 10:46:40.000063:  802786  INFO ||NEURON_CACHE||: Current remaining items are 0, locked are 3, "
    "failed are 0, done are 4, total is 7",
    '"SecondaryStatus": "Training",',
    "algo-1 | loss 2.31 grad_norm 0.4",
    "INFO PyProcess Python engine started.",
    "fatal: something nobody has seen before failed with error code 9: killed by nobody",
]


def test_unknown_lines_match_nothing() -> None:
    told = read(*HEALTHY)
    assert told == Explanation((), len(HEALTHY))
    noise = random.Random(0)
    lines = ["".join(noise.choices(string.printable, k=200)).replace("\n", " ") for _ in range(2000)]
    assert not read(*lines).findings
    assert explain(io.BytesIO(b"")) == Explanation((), 0)


def test_several_causes_are_reported_in_order_and_counted() -> None:
    told = read("Killed", *HEALTHY, "exec format error", "x", "Killed", "No space left on device", "Killed")
    assert [(f.cause.name, f.line, f.times) for f in told.findings] == [
        ("process-killed", 1, 3),
        ("architecture", 11, 1),
        ("disk-full", 14, 1),
    ]
    both = read("No space left on device; then exec format error")
    assert [finding.cause.name for finding in both.findings] == ["disk-full", "architecture"]


def test_control_characters_do_not_reach_the_terminal() -> None:
    line = "\x1b]0;owned\x07\x1b[31mRuntimeError: neuronx-cc\x1b[0m failed\u202e with -9\x1b[2J\x00\tdone\r"
    [finding] = read(line).findings
    assert finding.text == "RuntimeError: neuronx-cc failed with -9\tdone"
    broken = explain(io.BytesIO(b"\xff\xfe\x80 No space left on device \x9b31m\n"))
    assert broken.findings[0].text.isprintable()


def test_a_long_line_is_quoted_in_part() -> None:
    [finding] = read("a" * 5000 + " No space left on device " + "b" * 5000).findings
    assert "No space left on device" in finding.text
    assert finding.text[0] == finding.text[-1] == "…"
    assert len(finding.text) <= explaining.QUOTE + 2


@pytest.mark.parametrize(
    "before", [0, 1, explaining.PIECE_BYTES - 10, explaining.PIECE_BYTES, 3 * explaining.PIECE_BYTES - 5]
)
def test_an_endless_line_is_read_in_pieces(before: int) -> None:
    log = b"first\n" + b"x" * before + b" No space left on device " + b"y" * 200_000 + b"\nexec format error"
    told = explain(io.BytesIO(log))
    assert [(f.cause.name, f.line, f.times) for f in told.findings] == [("disk-full", 2, 1), ("architecture", 3, 1)]
    assert told.lines == 3


class Endless(io.RawIOBase):
    """Sixty-four million bytes without a line break, generated as they are read."""

    def __init__(self) -> None:
        self.left = 64_000_000

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self.left)
        buffer[:count] = b"z" * count
        self.left -= count
        return count


def test_memory_does_not_grow_with_the_log() -> None:
    tracemalloc.start()
    assert explain(io.BufferedReader(Endless())) == Explanation((), 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


def test_the_mark_occurs_in_every_known_line_that_its_pattern_matches() -> None:
    matched = set()
    for cause in CAUSES:
        for mark, pattern in cause.marked_patterns():
            lines = [line for _, line, _ in LINES if re.search(pattern, line, re.IGNORECASE)]
            assert all(mark in line.lower() for line in lines), (mark, pattern)
            matched |= {cause.name} if lines else set()
    assert matched == {cause.name for cause in CAUSES}


def test_every_mark_is_literal_text_of_its_pattern_outside_alternatives() -> None:
    for cause in CAUSES:
        for mark, pattern in cause.marked_patterns():
            assert len(mark) >= 6, f"{pattern}: a mark this short makes reading slow"
            assert mark == mark.lower()
            depth, outside = 0, ""
            for character in re.sub(r"\\[A-Za-z]", "\0", pattern):
                depth += {"(": 1, ")": -1}.get(character, 0) if outside[-1:] != "\\" else 0
                assert not (character == "|" and depth == 0), pattern
                outside += character if depth == 0 else ""
            assert mark in re.sub(r"\\(.)", r"\1", outside).lower(), (mark, pattern)


def test_no_pattern_backtracks_on_a_hostile_line() -> None:
    """Repeated beginnings of every pattern: a regular expression that backtracks would not finish here."""
    for cause in CAUSES:
        for mark, _ in cause.marked_patterns():
            explain(io.BytesIO(mark.encode() * 20_000))


def test_the_command_prints_tables_and_json(neuron_sum: CommandLine, tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_text("starting\nRuntimeError: neuronx-cc failed with -9\n")
    made = neuron_sum("explain", str(log))
    assert made.returncode == 0
    assert made.stdout.startswith("compiler-killed: line 2\n  RuntimeError: neuronx-cc failed with -9\ncause:  ")
    assert "source: https://github.com/aws-neuron/aws-neuron-samples/issues/10" in made.stdout
    piped = json.loads(neuron_sum("explain", "-", "--json", stdin=log.read_text()).stdout)
    assert piped["known"] and piped["lines"] == 2
    assert piped["causes"][0].keys() == {"name", "line", "text", "times", "cause", "remedy", "source"}


def test_a_log_without_a_known_cause_is_answered_unknown(neuron_sum: CommandLine) -> None:
    made = neuron_sum("explain", stdin="nothing\nto see\n")
    assert made.returncode == 0
    assert made.stdout.startswith(f"unknown: none of {len(CAUSES)} known causes is in these 2 lines\n")
    assert json.loads(neuron_sum("explain", "--json", stdin="x").stdout) == {
        "known": False,
        "lines": 1,
        "causes": [],
    }


def test_a_missing_log_is_an_error(neuron_sum: CommandLine, tmp_path: Path) -> None:
    assert neuron_sum("explain", str(tmp_path / "nothing.log")).returncode == 4
    assert neuron_sum("explain", str(tmp_path)).returncode == 4


def test_the_document_names_every_cause() -> None:
    text = (ROOT / "docs" / "platform.md").read_text()
    listed = text.partition("Known causes:")[2].partition(".\n")[0]
    assert re.findall(r"`([a-z0-9-]+)`", listed) == [cause.name for cause in CAUSES]
    documents = {name for name, _, origin in LINES} - {
        name for name, _, origin in LINES if re.search(r"github\.com/[^/]+/[^/]+/(issues|pull)/\d+$", origin)
    }
    assert len(documents) == 6, documents


def test_explain_imports_nothing_heavy() -> None:
    code = (
        "import io, sys\n"
        "from neuron_sum.doctor import explain\n"
        "explain.explain(io.BytesIO(b'x'))\n"
        "print('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
