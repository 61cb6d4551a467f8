"""Bytes of a decoder step compared with optimum-neuron's T5 exporter, and the floors of AWS measurements of T5.

    python benchmarks/preflight.py [--model google/flan-t5-base] [--keep FOLDER]

Batch 1, source 512, target 128; the exporter has one length for both sides, 512. torch_xla in the Python of .venv-xla
lowers both without weights (placeholders), and compile/preflight/hlo.py counts them; its docstring has the rules. The
second table has the floors that compile/preflight/calibration.py describes, also as if every core had an equal share,
and the published time if its tokens included those of the source, as a note on the page says. The exporter imports
neuronx-distributed: tests/support/neuron_packages.py finds its sources. Exits with 1 if a limit is exceeded: bytes, a
dynamic dimension, a 64-bit float, or an operator that the exporter's graph does not use, except for the cache write.
The result does not show how long a step takes.
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

from compile.preflight import calibration
from compile.preflight.calibration import Calibration
from compile.preflight.floors import GraphReport
from compile.preflight.hlo import Account
from compile.preflight.lowering import ENVIRONMENT, Lowered, LoweringJob, LoweringOptions, lower, xla_python
from neuron_sum import console
from neuron_sum.artifact import GraphFile
from neuron_sum.models.dimensions import PUBLISHED
from neuron_sum.recipes.schema import CacheWrite

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
from neuron_packages import make_packages  # noqa: E402

SOURCE_LEN, TARGET_LEN = 512, 128
BEAMS = (1, 4)
BARS: dict[tuple[str, CacheWrite, int], float] = {
    ("fp32", "in_place", 1): 0.90, ("fp32", "in_place", 4): 0.53,
    ("fp32", "scatter", 1): 0.90, ("fp32", "scatter", 4): 0.53,
    ("fp32", "where", 1): 0.91, ("fp32", "where", 4): 0.56,
    ("bf16", "in_place", 1): 0.45, ("bf16", "in_place", 4): 0.27,
    ("bf16", "scatter", 1): 0.45, ("bf16", "scatter", 4): 0.27,
    ("bf16", "where", 1): 0.46, ("bf16", "where", 4): 0.28,
}  # fmt: skip
"""Maximum bytes relative to the exporter's bytes in fp32."""
CACHE_WRITE: dict[CacheWrite, set[str]] = {"in_place": {"dynamic-update-slice"}, "scatter": {"scatter"}, "where": set()}
"""Operators that a form may use in addition to the exporter's."""
SELECTION = {"sort"}
"""The operator of torch.topk, which the exporter also uses for beams; for one beam it takes the largest logit."""


@dataclass(frozen=True)
class Row:
    """A form of neuron-sum's graph compared with the exporter's graph.

    Attributes:
        lowered: The lowered graph of neuron-sum.
        upstream: The account of the exporter's graph in fp32.
        upstream_bf16: Bytes of the exporter's graph with its weights, but not its caches, in bf16.
        dtype: The dtype of neuron-sum's graph.
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
        """The bytes of neuron-sum's graph relative to the exporter's."""
        return self.lowered.account.moved / self.upstream.moved

    @property
    def bar(self) -> float:
        """The maximum ratio."""
        return BARS[self.dtype, self.lowered.write, self.beams]

    @property
    def beyond(self) -> set[str]:
        """Operators that the exporter's graph does not use."""
        return self.lowered.account.operators.keys() - self.upstream.operators.keys()

    @property
    def missed(self) -> list[str]:
        """The exceeded limits."""
        account, faults = self.lowered.account, []
        if self.ratio > self.bar:
            faults.append(f"{self.ratio:.3f} of the bytes, at most {self.bar}")
        if account.dynamic:
            faults.append(f"dynamic dimensions: {', '.join(account.dynamic)}")
        if "f64" in account.dtypes:
            faults.append("f64")
        if more := self.beyond - CACHE_WRITE[self.lowered.write] - SELECTION:
            faults.append(f"operators: {', '.join(sorted(more))}")
        return faults


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in PUBLISHED if "t5" in name]
    parser.add_argument("--model", default="google/flan-t5-base", choices=names, help="model whose dimensions are used")
    parser.add_argument("--keep", type=Path, help="folder to keep the HLO texts in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, accounts = compare(PUBLISHED[options.model], options.keep or Path(folder))
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
        "additional operators",
    )
    for beams, account in accounts.items():
        table.add_row(
            "optimum-neuron, fp32", str(beams), *_bytes(account), "1", "", "", f"{account.total_flops / 1e9:.2f}", ""
        )
    for row in rows:
        account = row.lowered.account
        table.add_row(
            f"neuron-sum {row.dtype}, {row.lowered.write}",
            str(row.beams),
            *_bytes(account),
            f"{row.ratio:.3f}",
            f"{row.bar}",
            f"{account.moved / row.upstream_bf16:.3f}" if row.dtype == "bf16" else "",
            f"{account.total_flops / 1e9:.2f}",
            ", ".join(sorted(row.beyond)) or "none",
        )
    published = console.table(
        "model, fp32, 4 beams",
        "cores",
        "encode ms",
        "step ms",
        "83 steps ms",
        "equal shares ms",
        "published ms",
        "floor / device",
        "published ms, source counted",
    )
    for found in calibrations():
        published.add_row(
            found.published.model,
            str(found.published.cores),
            f"{1000 * found.encode_floor_s:.1f}",
            f"{1000 * found.step_floor_s:.2f}",
            f"{1000 * found.floor_s:.0f}",
            f"{1000 * (found.encode_floor_s + calibration.STEPS * found.step.memory_s) / found.published.cores:.0f}",
            f"{1000 * found.published.total_s:.0f}",
            f"{found.ratio:.3f}",
            f"{1000 * (calibration.BUCKET.source_len + calibration.TOKENS) / found.published.tokens_per_s:.0f}",
        )
    missed = [f"{row.dtype}, {row.lowered.write}, {row.beams} beams: {fault}" for row in rows for fault in row.missed]
    result = f"exceeded: {'; '.join(missed)}" if missed else "no limit is exceeded; no f64, no dynamic dimension"
    console.emit({}, table, published, calibration.SOURCE, versions(), result)
    sys.exit(1 if missed else 0)


def compare(dims: dict[str, Any], folder: Path) -> tuple[list[Row], dict[int, Account]]:
    """Lower both systems' graphs.

    Args:
        dims: A T5 configuration.
        folder: The folder for the HLO texts.

    Returns:
        A row for each form of neuron-sum's graph, and the exporter's accounts by beam width.
    """
    folder.mkdir(parents=True, exist_ok=True)
    upstream, halved = {}, {}
    for beams, values in zip(BEAMS, exporter(dims, folder), strict=True):
        weights = values.pop("weights_read")
        upstream[beams] = Account(**{**values, "dynamic": tuple(values["dynamic"])})
        halved[beams] = upstream[beams].moved - weights / 2
    settings = dict(dims)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    graphs = lower([_job(config, dtype, write) for dtype in ("fp32", "bf16") for write in CACHE_WRITE], folder)
    rows = []
    for lowered in graphs:
        beams = lowered.graph.num_beams or 1
        rows.append(Row(lowered, upstream[beams], halved[beams], lowered.graph.file.split("-")[0]))
    return rows, upstream


def calibrations() -> Iterator[Calibration]:
    """The published measurements with their floors."""
    graphs = map(GraphReport, lower([measured.job() for measured in calibration.MEASURED]))
    return (Calibration(measured, next(graphs), next(graphs)) for measured in calibration.MEASURED)


def _job(config: Any, dtype: str, write: CacheWrite) -> LoweringJob:
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
    packages, config = folder / "packages", folder / "config.json"
    make_packages(packages)
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
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)])}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(finished.stderr)
    return map(json.loads, finished.stdout.splitlines())


def versions() -> str:
    """The versions of the packages that both graphs were lowered with."""
    code = (
        "from importlib.metadata import version\n"
        "print(', '.join(f'{n} {version(n)}' for n in ('optimum-neuron', 'torch_xla', 'torch', 'transformers')))"
    )
    finished = subprocess.run([str(xla_python()), "-c", code], capture_output=True, text=True, check=True)
    return finished.stdout.strip()


def _bytes(account: Account) -> tuple[str, str, str]:
    return f"{account.read / 1e6:.1f}", f"{account.written / 1e6:.1f}", f"{account.moved / 1e6:.1f}"


if __name__ == "__main__":
    main()
