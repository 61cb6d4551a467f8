"""Cost of the server: a real DJL Serving compared with the bare generation loop, on one core, in the same run.

    python benchmarks/serving_load.py [--dtype int8] [--batch 16] [--rounds 3] [--seconds 30] [--work FOLDER]

FLAN-T5-small's dimensions with random weights; 256 input tokens and exactly 64 output tokens, greedy. The worker and
the bare loop have a dedicated core; the server's Java and the clients have the others. Every round measures in turn the
bare loop over full batches; 32 clients that send one dialogue after another; the same with an artifact of batch 1; and
random arrivals (Poisson) at 70 % of the throughput just measured. Ratios are computed within a round.
"""

import argparse
import asyncio
import multiprocessing
import os
import platform
import random
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import psutil
from generation import END_OF_SEQUENCE, SPECIAL_TOKENS, VOCABULARY, small_artifact

from neuron_sum import console
from neuron_sum.artifact import Artifact, open_artifact
from neuron_sum.recipes.schema import GenerateConfig, ServeConfig
from serving import djl, package
from serving.local import LocalServer, Model

ROOT = Path(__file__).parents[1]
SOURCE_TOKENS, NEW_TOKENS = 256, 64
CLIENTS, LOAD = 32, 0.7
WORKER_CORE = (os.cpu_count() or 2) - 1
OTHER_CORES = [core for core in range(os.cpu_count() or 2) if core != WORKER_CORE]
EXACT = GenerateConfig(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
PARAMETERS = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}


@dataclass(frozen=True)
class Round:
    """Summaries per second, and latencies in seconds at 70 % load."""

    bare: float
    server: float
    server_batch_1: float
    p50_s: float
    p99_s: float
    refused: int


def main() -> None:
    """Prepare and run the comparison, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["fp32", "bf16", "int8"], default="int8", help="dtype of the artifact")
    parser.add_argument("--batch", type=int, default=16, help="largest batch size")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds")
    parser.add_argument("--seconds", type=float, default=30.0, help="seconds of each measurement")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "serving", help="folder for checkpoint and artifacts"
    )
    options = parser.parse_args()
    if not OTHER_CORES:
        parser.error("two cores are required: one for the worker, one for everything else")
    os.environ["OMP_NUM_THREADS"] = "1"
    shape = (SOURCE_TOKENS, NEW_TOKENS, [f"compile.dtype={options.dtype}"])
    batched = small_artifact(options.work, [1, options.batch // 2, options.batch], *shape)
    single = small_artifact(options.work, [1], *shape)
    rounds = []
    for number in range(options.rounds):
        bare = _bare(batched, options.seconds)
        with _serving(single, options.work) as server:
            server_batch_1 = _closed(server.url, options.seconds)
        with _serving(batched, options.work) as server:
            throughput = _closed(server.url, options.seconds)
            latencies, refused = asyncio.run(_open(server.url, LOAD * throughput, 2 * options.seconds))
        percentiles = statistics.quantiles(latencies, n=100)
        rounds.append(Round(bare, throughput, server_batch_1, percentiles[49], percentiles[98], refused))
        console.note(f"round {number + 1}: {rounds[-1]}")
    table = console.table(
        "round",
        "bare /s",
        "server /s",
        "of bare",
        "batch 1 /s",
        "× batch 1",
        "p50 s",
        "p99 s",
        "p99/p50",
        "refused",
        title=f"FLAN-T5-small {options.dtype}, batches to {options.batch}, {CLIENTS} clients, p50 and p99 at "
        f"{LOAD:.0%} load; DJL Serving {djl.VERSION}, Python {platform.python_version()}, {_java()}",
    )
    for number, r in enumerate(rounds, start=1):
        table.add_row(
            str(number),
            f"{r.bare:.2f}",
            f"{r.server:.2f}",
            f"{r.server / r.bare:.2f}",
            f"{r.server_batch_1:.2f}",
            f"{r.server / r.server_batch_1:.2f}",
            f"{r.p50_s:.2f}",
            f"{r.p99_s:.2f}",
            f"{r.p99_s / r.p50_s:.2f}",
            str(r.refused),
        )
    median = statistics.median
    table.add_row(
        "median",
        "",
        "",
        f"{median(r.server / r.bare for r in rounds):.2f}",
        "",
        f"{median(r.server / r.server_batch_1 for r in rounds):.2f}",
        "",
        "",
        f"{median(r.p99_s / r.p50_s for r in rounds):.2f}",
        "",
    )
    console.emit({}, table)


def _bare(artifact: Artifact, seconds: float) -> float:
    """Summaries per second of the bare generation loop over full batches, in a process on the worker's core."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe()
    process = context.Process(target=_bare_loop, args=(artifact.path, seconds, sender))
    process.start()
    try:
        return float(receiver.recv())
    finally:
        process.join()


def _bare_loop(folder: Path, seconds: float, answer: Connection) -> None:
    from neuron_sum.runtimes.load import load_generator

    psutil.Process().cpu_affinity([WORKER_CORE])
    generator, _ = load_generator(open_artifact(folder))
    numbers = random.Random(7)
    words = range(len(SPECIAL_TOKENS), VOCABULARY)
    prompts = [[*numbers.choices(words, k=SOURCE_TOKENS - 1), END_OF_SEQUENCE] for _ in range(generator.batch_size)]
    generator.generate(prompts, EXACT)
    started, summaries = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        summaries += len(generator.generate(prompts, EXACT))
    answer.send(summaries / (time.monotonic() - started))


class _serving:
    """A server whose worker runs on one core and Java on the others."""

    def __init__(self, artifact: Artifact, work: Path) -> None:
        limits = ServeConfig(deadline_s=55.0)
        folder = work / "served" / artifact.path.name
        shutil.rmtree(folder, ignore_errors=True)  # it contains an earlier version of the handler
        package.write_folder(artifact, limits, folder)
        cores = ",".join(map(str, OTHER_CORES))
        self._server = LocalServer([Model("model", folder)], limits, prefix=["taskset", "--cpu-list", cores])

    def __enter__(self) -> LocalServer:
        server = self._server.__enter__()
        [worker] = server.workers()
        for thread in worker.threads():
            os.sched_setaffinity(thread.id, [WORKER_CORE])
        os.sched_setaffinity(0, OTHER_CORES)
        return server

    def __exit__(self, *error: object) -> None:
        os.sched_setaffinity(0, range(os.cpu_count() or 2))
        self._server.stop()


def _dialogue(numbers: random.Random) -> str:
    # The words of the prompt and the end token fill the rest of the source length.
    return " ".join(f"word{n}" for n in numbers.choices(range(len(SPECIAL_TOKENS), VOCABULARY), k=SOURCE_TOKENS - 10))


def _closed(url: str, seconds: float) -> float:
    """Summaries per second of clients that send one dialogue after another, without the first batches."""

    async def client(number: int, http: httpx.AsyncClient, finished: list[float], end: float) -> None:
        numbers = random.Random(number)
        while time.monotonic() < end:
            (await _post(http, url, _dialogue(numbers))).raise_for_status()
            finished.append(time.monotonic())

    async def all_clients() -> float:
        finished: list[float] = []
        started = time.monotonic()
        warm = started + seconds / 5
        async with _client() as http:
            await asyncio.gather(*(client(n, http, finished, warm + seconds) for n in range(CLIENTS)))
        counted = [at for at in finished if warm < at <= warm + seconds]
        return len(counted) / seconds

    return asyncio.run(all_clients())


async def _open(url: str, rate: float, seconds: float) -> tuple[list[float], int]:
    """Latencies in seconds of requests that arrive randomly at `rate` per second, and the number of refusals."""
    numbers, latencies, statuses = random.Random(1), list[float](), list[int]()

    async def request(http: httpx.AsyncClient, text: str) -> None:
        started = time.monotonic()
        answer = await _post(http, url, text)
        statuses.append(answer.status_code)
        if answer.status_code == 200:
            latencies.append(time.monotonic() - started)

    async with _client() as http:
        tasks, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            tasks.append(asyncio.create_task(request(http, _dialogue(numbers))))
            await asyncio.sleep(numbers.expovariate(rate))
        await asyncio.gather(*tasks)
    return latencies, sum(status != 200 for status in statuses)


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None, max_keepalive_connections=100))


async def _post(http: httpx.AsyncClient, url: str, text: str) -> httpx.Response:
    return await http.post(f"{url}/invocations", json={"inputs": text, "parameters": PARAMETERS})


def _java() -> str:
    output = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True).stderr
    return output.splitlines()[0].replace('"', "")


if __name__ == "__main__":
    main()
