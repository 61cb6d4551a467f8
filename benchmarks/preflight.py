"""Bytes of a decoder step: ours against optimum-neuron's own T5 exporter, one tool and the same rules for both.

    python benchmarks/preflight.py [--model google/flan-t5-base] [--keep FOLDER]

Batch 1, source 512, target 128; the exporter has one length for both sides, 512. Both are lowered by torch_xla in the
Python of .venv-xla, without weights (placeholders), and counted by
compile/preflight/hlo.py, whose docstring has the rules.
Exits with 1 where a bar is missed: bytes, a dynamic dimension, a 64-bit float, or an operator that upstream's own graph
does not use, the cache's write excepted. Nothing here says how long a step takes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from compile.preflight.hlo import Account
from compile.preflight.lowering import ENVIRONMENT, Lowered, LoweringJob, LoweringOptions, WriteForm, lower, xla_python
from neuron_sum import console
from neuron_sum.artifact import GraphFile
from neuron_sum.models.dimensions import PUBLISHED

ROOT = Path(__file__).parent.parent
SOURCE_LEN, TARGET_LEN = 512, 128
BEAMS = (1, 4)
BARS: dict[tuple[str, WriteForm, int], float] = {
    ("fp32", "in_place", 1): 0.90, ("fp32", "in_place", 4): 0.53,
    ("fp32", "where", 1): 0.91, ("fp32", "where", 4): 0.56,
    ("bf16", "in_place", 1): 0.45, ("bf16", "in_place", 4): 0.27,
    ("bf16", "where", 1): 0.46, ("bf16", "where", 4): 0.28,
}  # fmt: skip
"""Of the exporter's bytes in fp32, at most."""
CACHE_WRITE: dict[WriteForm, set[str]] = {"in_place": {"dynamic-update-slice"}, "where": set()}
"""What a form may use beyond upstream's operators."""


@dataclass(frozen=True)
class Row:
    """One of our forms beside the exporter's graph.

    Attributes:
        lowered: Ours.
        upstream: Theirs, fp32.
        upstream_bf16: Bytes of theirs if its weights, not its caches, were bf16.
        dtype: Ours.
    """

    lowered: Lowered
    upstream: Account
    upstream_bf16: float
    dtype: str

    @property
    def beams(self) -> int:
        """Beam width."""
        return self.lowered.graph.num_beams or 1

    @property
    def ratio(self) -> float:
        """Our bytes over theirs."""
        return self.lowered.account.moved / self.upstream.moved

    @property
    def bar(self) -> float:
        """What the ratio may be."""
        return BARS[self.dtype, self.lowered.write, self.beams]

    @property
    def beyond(self) -> set[str]:
        """Operators that upstream's graph does not use."""
        return self.lowered.account.operators.keys() - self.upstream.operators.keys()

    @property
    def missed(self) -> list[str]:
        """Which bars."""
        account, found = self.lowered.account, []
        if self.ratio > self.bar:
            found.append(f"{self.ratio:.3f} of the bytes, at most {self.bar}")
        if account.dynamic:
            found.append(f"dynamic dimensions: {', '.join(account.dynamic)}")
        if "f64" in account.dtypes:
            found.append("f64")
        if more := self.beyond - CACHE_WRITE[self.lowered.write]:
            found.append(f"operators: {', '.join(sorted(more))}")
        return found


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="google/flan-t5-base", choices=[n for n in PUBLISHED if "t5" in n])
    parser.add_argument("--keep", type=Path, help="a folder for the HLO texts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, theirs = compare(PUBLISHED[options.model], options.keep or Path(folder))
    table = console.table(
        "decoder step",
        "beams",
        "MB read",
        "MB written",
        "MB",
        "of fp32's",
        "bar",
        "of bf16 weights'",
        "GFLOP",
        "operators beyond",
    )
    for beams, account in theirs.items():
        table.add_row(
            "optimum-neuron, fp32", str(beams), *_bytes(account), "1", "", "", f"{account.total_flops / 1e9:.2f}", ""
        )
    for row in rows:
        account = row.lowered.account
        table.add_row(
            f"ours {row.dtype}, {row.lowered.write}",
            str(row.beams),
            *_bytes(account),
            f"{row.ratio:.3f}",
            f"{row.bar}",
            f"{account.moved / row.upstream_bf16:.3f}" if row.dtype == "bf16" else "",
            f"{account.total_flops / 1e9:.2f}",
            ", ".join(sorted(row.beyond)) or "none",
        )
    missed = [f"{row.dtype}, {row.lowered.write}, {row.beams} beams: {why}" for row in rows for why in row.missed]
    told = f"missed: {'; '.join(missed)}" if missed else "every bar is met; no f64, no dynamic dimension"
    console.emit({}, table, versions(), told)
    sys.exit(1 if missed else 0)


def compare(dims: dict[str, Any], folder: Path) -> tuple[list[Row], dict[int, Account]]:
    """Lowers both.

    Args:
        dims: A T5's configuration.
        folder: For the HLO texts.

    Returns:
        A row for each of our forms, and the exporter's accounts by beam width.
    """
    folder.mkdir(parents=True, exist_ok=True)
    theirs, halved = {}, {}
    for beams, found in zip(BEAMS, exporter(dims, folder), strict=True):
        weights = found.pop("weights_read")
        theirs[beams] = Account(**{**found, "dynamic": tuple(found["dynamic"])})
        halved[beams] = theirs[beams].moved - weights / 2
    values = dict(dims)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    made = lower([_job(config, dtype, write) for dtype in ("fp32", "bf16") for write in CACHE_WRITE], folder)
    rows = []
    for lowered in made:
        beams = lowered.graph.num_beams or 1
        rows.append(Row(lowered, theirs[beams], halved[beams], lowered.graph.file.split("-")[0]))
    return rows, theirs


def _job(config: Any, dtype: str, write: WriteForm) -> LoweringJob:
    graphs = tuple(
        GraphFile(
            kind="step",
            batch=1,
            source_len=SOURCE_LEN,
            target_len=TARGET_LEN,
            num_beams=beams,
            file=f"{dtype}-{write}-k{beams}",
        )
        for beams in BEAMS
    )
    return LoweringJob(config, LoweringOptions(dtype, dtype, SOURCE_LEN, TARGET_LEN, write), graphs)


def exporter(dims: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """The accounts of optimum-neuron's decoder wrapper, in the order of BEAMS."""
    config = folder / "config.json"
    config.write_text(json.dumps(dims))
    command = [
        str(xla_python()),
        str(ROOT / "tests" / "stand_ins" / "xla" / "exporter.py"),
        "1",
        str(SOURCE_LEN),
        ",".join(map(str, BEAMS)),
        str(folder),
        str(config),
    ]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if made.returncode:
        sys.exit(made.stderr)
    return map(json.loads, made.stdout.splitlines())


def versions() -> str:
    """Of what both were lowered with."""
    code = (
        "from importlib.metadata import version\n"
        "print(', '.join(f'{n} {version(n)}' for n in ('optimum-neuron', 'torch_xla', 'torch', 'transformers')))"
    )
    made = subprocess.run([str(xla_python()), "-c", code], capture_output=True, text=True, check=True)
    return made.stdout.strip()


def _bytes(account: Account) -> tuple[str, str, str]:
    return f"{account.read / 1e6:.1f}", f"{account.written / 1e6:.1f}", f"{account.moved / 1e6:.1f}"


if __name__ == "__main__":
    main()
