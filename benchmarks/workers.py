"""Throughput of DJL Serving with one worker and with one per NeuronCore, at a fixed time per graph call.

    PYTHONPATH=tests/support:. python benchmarks/workers.py [--step 0.1] [--rounds 3] [--seconds 60]

This machine needs no device, but the sources of neuronx-distributed (NEURON_SUM_NXD_SOURCE, see
tests/support/neuron_packages.py): tests/stand_ins/neuron/torch_neuronx runs the graphs of a tiny T5, and waits for
--step seconds in each call, without using a CPU. So the comparison shows how requests are spread over the workers and
what the server costs, not the speed of a device. Every summary has exactly TOKENS tokens; batches have up to BATCH
dialogues, and every client sends one dialogue after another.
"""

import argparse
import asyncio
import importlib
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from generation import make_checkpoint
from neuron_packages import ENVIRONMENT, make_packages

from compile import cache
from compile.exporters.own import build, make_plan
from compile.source import open_source
from neuron_sum import console
from neuron_sum.artifact import Artifact
from neuron_sum.recipes.schema import ServeConfig
from serving import djl, package
from serving.local import LocalServer, Model

DIMENSIONS = {"d_model": 32, "d_ff": 32, "num_layers": 1, "num_heads": 2, "d_kv": 8}
TOKENS, BATCH, SOURCE = 8, 4, 64
PARAMETERS = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
CORES = ("0", "0-1")
"""The values of NEURON_RT_VISIBLE_CORES that are compared."""
TARGET = 1.9
"""The throughput of two workers relative to one."""
CLIENTS = 4 * BATCH
LIMITS = ServeConfig(deadline_s=55)


def main() -> None:
    """Compile a model with the stand-in, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=float, default=0.1, help="seconds of each graph call")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of each measurement")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        environment = _neuron_packages(work / "packages")
        artifact = _artifact(work)
        environment["NEURON_STAND_IN_STEP_S"] = str(options.step)
        rows = []
        for number in range(options.rounds):
            rows.append([_measure(artifact, work, cores, environment, options.seconds) for cores in CORES])
            console.note(f"round {number + 1}: {rows[-1]}")
    table = console.table(
        "round",
        "1 worker, summaries/s",
        "2 workers, summaries/s",
        "ratio",
        title=f"{options.step:g} s per graph call, {TOKENS} tokens, batches to {BATCH}, {CLIENTS} clients; DJL Serving "
        f"{djl.VERSION}, Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    )
    for number, (one, two) in enumerate(rows, start=1):
        table.add_row(str(number), f"{one:.2f}", f"{two:.2f}", f"{two / one:.2f}")
    ratio = statistics.median(two / one for one, two in rows)
    table.add_row("median", "", "", f"{ratio:.2f}")
    verdict = f"two workers: {ratio:.2f} times (target at least {TARGET}): {'held' if ratio >= TARGET else 'missed'}"
    console.emit({}, table, verdict)


def _neuron_packages(folder: Path) -> dict[str, str]:
    """neuronx-distributed over the stand-ins, on the path of this process.

    Returns:
        The variables with which another process finds them.
    """
    make_packages(folder)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    os.environ.update(ENVIRONMENT)
    return {
        **ENVIRONMENT,
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        "SM_CURRENT_INSTANCE_TYPE": "ml.inf2.xlarge",
        "NEURON_SUM_CORE_LOCKS": str(folder),
    }


def _artifact(work: Path) -> Artifact:
    make_checkpoint(DIMENSIONS, work / "checkpoint")
    os.environ["NEURON_SUM_CACHE"] = str(work / "cache")
    changes = [
        "compile.target=inf2",
        f"compile.batch_sizes=[1,{BATCH}]",
        f"compile.source_lens=[{SOURCE}]",
        f"compile.target_len={TOKENS}",
        f"generate.max_new_tokens={TOKENS}",
        f"data.max_source_length={SOURCE}",
    ]
    source = open_source(work / "checkpoint", "tiny", changes)
    cache.folder().mkdir(parents=True)
    # In this process, which has the stand-in on its path. The place of the others depends on the first one's layout.
    while (plan := make_plan(source)).missing:
        graph = plan.missing[0]
        scratch = work / "graphs" / Path(graph.file).stem
        scratch.mkdir(parents=True)
        plan.target.compile_graph(plan.model(), graph, None, scratch / "graph.pt")
        shutil.move(scratch / "graph.pt", plan.cached[graph.file])
    return build(source, plan, work / "artifact", overwrite=False, jobs=None)


def _measure(artifact: Artifact, work: Path, cores: str, environment: dict[str, str], seconds: float) -> float:
    """Summaries per second of a new server."""
    folder = work / "model"
    shutil.rmtree(folder, ignore_errors=True)
    package.write_folder(artifact, LIMITS, folder)
    visible = {**environment, "NEURON_RT_VISIBLE_CORES": cores}
    cache = os.environ.pop("NEURON_SUM_CACHE")  # that of the user contains the server
    try:
        with LocalServer([Model("model", folder)], LIMITS, environment=visible) as server:
            claimed = sorted(_visible(worker) for worker in server.workers())
            if claimed != [str(core) for core in range(len(cores.split("-")))]:
                raise SystemExit(f"the workers claimed {claimed} of {cores}")
            return asyncio.run(_summaries(server.url, seconds)) / seconds
    finally:
        os.environ["NEURON_SUM_CACHE"] = cache


def _visible(worker: psutil.Process) -> str:
    """The core that a worker has locked."""
    return "".join(
        Path(file.path).stem.rpartition("-")[2] for file in worker.open_files() if "neuron-sum-core-" in file.path
    )


async def _summaries(url: str, seconds: float) -> int:
    """The number of summaries in the time after the first batches."""
    finished: list[float] = []
    warm = time.monotonic() + seconds / 6
    end = warm + seconds

    async def client(http: httpx.AsyncClient, number: int) -> None:
        text = " ".join(f"word{100 * number + index}" for index in range(SOURCE // 2))
        while time.monotonic() < end:
            answer = await http.post(f"{url}/invocations", json={"inputs": text, "parameters": PARAMETERS})
            answer.raise_for_status()
            finished.append(time.monotonic())

    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as http:
        await asyncio.gather(*(client(http, number) for number in range(CLIENTS)))
    return sum(warm < at <= end for at in finished)


if __name__ == "__main__":
    main()
