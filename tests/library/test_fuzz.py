"""A short run of the fuzzer, and that it recognizes every kind of failure."""

import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks import fuzz
from benchmarks.fuzz_readers import Reader, all_readers
from neuron_sum.errors import DataError

SLOW = ("data, hub", "data, parquet", "checkpoint", "tokenizer", "adapter")
"""Readers that take more than 50 ms per input, of which only a few are read."""


def test_no_input_is_more_than_an_error(tmp_path: Path) -> None:
    readers = all_readers()
    tasks = [(name, seed) for name in readers for seed in range(3 if name.startswith(SLOW) else 15)]
    counts, failures = fuzz.run(tasks, readers, tmp_path / "failures", processes=1)
    assert not [f"{failure.reader}, seed {failure.seed}: {failure.kind}\n{failure.detail}" for failure in failures]
    assert counts.total() == len(tasks)
    assert counts["recipe", fuzz.REJECTED] and counts["commands", fuzz.REJECTED] and counts["log", fuzz.ACCEPTED]


def exhaust(_: Path) -> object:
    return bytearray(3 * 2**30)


def convert(_: Path) -> None:
    try:
        exhaust(_)
    except MemoryError as error:
        raise DataError("too large") from error


def crash(_: Path) -> None:
    signal.raise_signal(signal.SIGKILL)


def defect(folder: Path) -> None:
    if b"x" in (folder / "a.txt").read_bytes():
        raise KeyError("x")


def test_every_kind_of_failure_is_found_reduced_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(_: Path) -> None:
        while True:
            pass

    monkeypatch.setattr(fuzz, "CPU_LIMIT_S", 1)
    content = {"a.txt": b"a" * 20 + b"x" + b"a" * 20}
    functions: dict[str, Any] = {"memory": exhaust, "converted": convert, "crash": crash, "hang": endless}
    readers = {name: Reader(name, content, read) for name, read in functions.items()}
    readers["defect"] = Reader("defect", content, defect)
    tasks = [
        (name, seed) for name in readers for seed in range(30 if name == "defect" else 2 if name == "crash" else 1)
    ]
    counts, failures = fuzz.run(tasks, readers, tmp_path, processes=2)
    assert counts.total() == len(tasks)
    kinds = {failure.reader: failure.kind for failure in failures}
    assert kinds == {
        "memory": "more than 2 GB",
        "converted": "more than 2 GB",
        "crash": "the process ended with -9",
        "hang": "more than 1 s",
        "defect": "KeyError at an unknown line",
    }
    assert counts["crash", "failures"] == 2
    [saved] = tmp_path.glob("defect-*")
    assert (saved / "a.txt").read_bytes() == b"x"
    assert "KeyError" in (saved / "failure.txt").read_text()


def test_inputs_depend_only_on_their_seed() -> None:
    for reader in all_readers().values():
        first, again = (reader.make(Random("seed")) for _ in range(2))
        assert first == again
