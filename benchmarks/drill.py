"""Failure scenarios on a real DJL Serving; prints the outcome and the duration of each.

    python benchmarks/drill.py ARTIFACT

Every scenario starts a separate server. A worker is paused with SIGSTOP where requests must be in progress. Clients
must get an answer (200) or a refusal (503 with Retry-After), and the service must recover without intervention, or
/ping must report the failure, so that SageMaker replaces the container.
"""

import argparse
import os
import resource
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil

from neuron_sum import console
from neuron_sum.artifact import open_artifact
from neuron_sum.recipes.schema import ServeConfig
from serving import package
from serving.local import LocalServer, Model

DIALOGUE = "#Person1#: Are you coming tonight? #Person2#: Yes, at eight. " * 4
DEADLINE_S = 3.0
BACK_LIMIT_S = 120.0
CLIENTS = 8
TRAFFIC_S = 10.0
REFUSED = "refused"
"""The status of a request that got no connection, which shows as clearly as a status that it was not accepted."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a scenario.

    Attributes:
        statuses: Number of clients' requests by status during the failure.
        seconds: Seconds until the last of these requests was answered.
        back_s: Seconds until the service answered 200 again; None if it must not.
        note: Other observations.
    """

    statuses: Counter[str]
    seconds: float
    back_s: float | None
    note: str = ""


@contextmanager
def server(artifact: Path, limits: ServeConfig, **environment: str) -> Iterator[LocalServer]:
    """A server with one model, whose folder can be damaged without affecting the artifact."""
    with tempfile.TemporaryDirectory(prefix="nsum-drill-") as folder:
        package.write_folder(open_artifact(artifact), limits, Path(folder))
        with LocalServer([Model("model", Path(folder))], limits, environment=environment) as running:
            yield running


def post(
    url: str, inputs: str | Sequence[str] = DIALOGUE, timeout: float = 60.0, client: httpx.Client | None = None
) -> str:
    """The status of one request, as text; a 503 without Retry-After is marked."""
    send = httpx.post if client is None else client.post
    try:
        answer = send(f"{url}/invocations", json={"inputs": inputs}, timeout=timeout)
    except httpx.ConnectError:
        return REFUSED
    except httpx.TransportError as error:
        return type(error).__name__
    if answer.status_code == 503 and "retry-after" not in answer.headers:
        return "503 without Retry-After"
    return str(answer.status_code)


def kill_idle(artifact: Path) -> Outcome:
    """SIGKILL of the worker while there are no requests."""
    with server(artifact, ServeConfig()) as running:
        running.workers()[0].kill()
        return _until_back(running)


def kill_busy(artifact: Path) -> Outcome:
    """SIGKILL of the worker while it has requests."""
    with server(artifact, ServeConfig()) as running, _paused(running, 16) as (worker, answers):
        worker.kill()
        return _after(running, answers)


def kill_under_traffic(artifact: Path) -> Outcome:
    """SIGKILL of the worker while clients send requests continuously, also while the worker dies and restarts."""
    with server(artifact, ServeConfig()) as running:
        stop, results = threading.Event(), list[tuple[float, str]]()

        def post_continuously() -> None:
            with httpx.Client() as client:
                while not stop.is_set():
                    status = post(running.url, client=client)
                    results.append((time.monotonic(), status))

        with ThreadPoolExecutor(CLIENTS) as clients:
            traffic = [clients.submit(post_continuously) for _ in range(CLIENTS)]
            time.sleep(1)
            killed = time.monotonic()
            running.workers()[0].kill()
            time.sleep(TRAFFIC_S)
            back = _until_back(running)  # while the clients continue, so that the new worker gets their requests
            time.sleep(1)
            stop.set()
        for client in traffic:
            client.result()
        last_refused = max((at for at, status in results if status != "200"), default=killed) - killed
        return Outcome(
            Counter(status for _, status in results),
            results[-1][0] - killed,
            last_refused if back.back_s != float("inf") else back.back_s,
            _workers(running),
        )


def kill_while_sending(artifact: Path) -> Outcome:
    """SIGKILL of the worker before it has read the server's data, which is larger than a socket's buffer."""
    with server(artifact, ServeConfig()) as running, _paused(running, 16, [DIALOGUE * 6] * 64) as (worker, answers):
        worker.kill()
        outcome = _after(running, answers)
        return replace(outcome, note=_workers(running))


def past_deadline(artifact: Path) -> Outcome:
    """A worker that does not respond until long after the deadline."""
    with server(artifact, ServeConfig(deadline_s=DEADLINE_S)) as running, _paused(running, 4) as (worker, answers):
        started = time.monotonic()
        wait(answers)
        seconds = time.monotonic() - started
        worker.resume()
        return _after(running, answers, seconds)


def out_of_memory(artifact: Path) -> Outcome:
    """A worker that cannot allocate memory temporarily."""
    with server(artifact, ServeConfig(deadline_s=DEADLINE_S)) as running:
        worker = running.workers()[0]
        before = worker.rlimit(resource.RLIMIT_AS)
        worker.rlimit(resource.RLIMIT_AS, (worker.memory_info().vms, before[1]))
        with ThreadPoolExecutor(8) as clients:
            answers = [clients.submit(post, running.url, [DIALOGUE] * 64) for _ in range(8)]
        if worker.is_running():
            worker.rlimit(resource.RLIMIT_AS, before)
        return _after(running, answers)


def flood(artifact: Path) -> Outcome:
    """Twice as many simultaneous requests as the queue size."""
    limits = ServeConfig(queue_size=32)
    with server(artifact, limits) as running, _paused(running, 2 * limits.queue_size) as (worker, answers):
        ping = _ping(running.url)
        worker.resume()
        return replace(_after(running, answers), note=f"/ping {ping} meanwhile")


def sigterm_under_load(artifact: Path) -> Outcome:
    """SIGTERM to the server while it has requests and gets new ones."""
    with server(artifact, ServeConfig()) as running, _paused(running, 16) as (worker, answers):
        os.kill(running.pid, signal.SIGTERM)
        _until(lambda: post(running.url, timeout=5) != "ReadTimeout", 10)
        late = post(running.url)
        started = time.monotonic()
        worker.resume()
        wait(answers)
        seconds = time.monotonic() - started
        _until(lambda: not running.running, 30)
        state = "server ended" if not running.running else "server still runs"
        return Outcome(_count(answers), seconds, None, f"new requests: {late}; {state}")


def sigterm_while_silent(artifact: Path) -> Outcome:
    """SIGTERM to the server while the worker never responds."""
    with (
        server(artifact, ServeConfig(), NEURON_SUM_DRAIN_S=f"{DEADLINE_S:.0f}") as running,
        _paused(running, 16) as (_, answers),
    ):
        started = time.monotonic()
        os.kill(running.pid, signal.SIGTERM)
        wait(answers)
        return Outcome(_count(answers), time.monotonic() - started, None)


def broken_for_good(artifact: Path) -> Outcome:
    """A worker that dies and cannot restart because its artifact is damaged: /ping must report it."""
    with tempfile.TemporaryDirectory(prefix="nsum-drill-") as folder:
        copy = Path(folder) / "artifact"
        shutil.copytree(artifact, copy)
        with server(copy, ServeConfig()) as running:
            (copy / "weights.safetensors").write_bytes(b"")
            running.workers()[0].kill()
            started = time.monotonic()
            statuses: Counter[str] = Counter()

            def unhealthy() -> bool:
                statuses[post(running.url)] += 1
                return _ping(running.url) != 200

            failed = _until(unhealthy, BACK_LIMIT_S)
            seconds = time.monotonic() - started
            return Outcome(statuses, seconds, None, f"/ping {_ping(running.url)}" if failed else "/ping still 200")


SCENARIOS: dict[str, Callable[[Path], Outcome]] = {
    "SIGKILL of the idle worker": kill_idle,
    "SIGKILL of the busy worker": kill_busy,
    "SIGKILL of the worker under steady traffic": kill_under_traffic,
    "SIGKILL of the worker while it is sent to": kill_while_sending,
    "worker silent past the deadline": past_deadline,
    "worker without memory": out_of_memory,
    "flood of twice the queue": flood,
    "SIGTERM under load": sigterm_under_load,
    "SIGTERM while the worker is silent": sigterm_while_silent,
    "worker cannot start again": broken_for_good,
}


@contextmanager
def _paused(
    running: LocalServer, requests: int, inputs: str | Sequence[str] = DIALOGUE
) -> Iterator[tuple[psutil.Process, list[Future[str]]]]:
    """A paused worker with this number of requests waiting for it."""
    worker = running.workers()[0]
    worker.suspend()
    with ThreadPoolExecutor(requests) as clients:
        answers = [clients.submit(post, running.url, inputs) for _ in range(requests)]
        _until(lambda: _connections(running) >= requests, 10)
        time.sleep(0.3)
        yield worker, answers


def _workers(running: LocalServer) -> str:
    """The worker processes and the server's threads for them; a thread that ended is replaced after a minute."""
    [model] = httpx.get(f"{running.url}/models/model", headers=running.headers).json()[0]["models"]
    threads = [worker["id"] for group in model["workerGroups"] for worker in group["workers"]]
    return f"{len(running.workers())} worker, thread {threads}"


def _connections(running: LocalServer) -> int:
    connections = psutil.Process(running.pid).net_connections("tcp")
    return sum(c.status == psutil.CONN_ESTABLISHED and c.laddr.port == running.port for c in connections)


def _after(running: LocalServer, answers: Sequence[Future[str]], seconds: float | None = None) -> Outcome:
    started = time.monotonic()
    wait(answers)
    seconds = time.monotonic() - started if seconds is None else seconds
    back = _until_back(running)
    return Outcome(_count(answers), seconds, back.back_s)


def _until_back(running: LocalServer) -> Outcome:
    started = time.monotonic()
    statuses: Counter[str] = Counter()

    def answered() -> bool:
        status = post(running.url)
        statuses[status] += 1
        return status == "200"

    back = _until(answered, BACK_LIMIT_S)
    seconds = time.monotonic() - started
    return Outcome(statuses, seconds, seconds if back else float("inf"))


def _count(answers: Sequence[Future[str]]) -> Counter[str]:
    return Counter(answer.result() for answer in answers)


def _ping(url: str) -> int:
    try:
        return httpx.get(f"{url}/ping", timeout=5).status_code
    except httpx.TransportError:
        return 0


def _until(condition: Callable[[], bool], limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def main() -> None:
    """Run the selected scenarios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="folder of a compiled artifact")
    parser.add_argument(
        "--only", choices=[scenario.__name__ for scenario in SCENARIOS.values()], help="run only this scenario"
    )
    options = parser.parse_args()
    table = console.table("scenario", "clients got", "answered in", "back after", "note")
    for name, scenario in SCENARIOS.items():
        if options.only in (None, scenario.__name__):
            outcome = scenario(options.artifact)
            statuses = ", ".join(f"{count} x {status}" for status, count in sorted(outcome.statuses.items()))
            back = "-" if outcome.back_s is None else f"{outcome.back_s:.1f} s"
            table.add_row(name, statuses, f"{outcome.seconds:.1f} s", back, outcome.note)
            console.note(f"{name}: {statuses}, {outcome.seconds:.1f} s, back {back} {outcome.note}")
    console.emit({}, table)


if __name__ == "__main__":
    main()
