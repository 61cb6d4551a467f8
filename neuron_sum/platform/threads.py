"""Number of OpenMP threads, and how they wait, chosen from the free cores before torch is loaded.

By default, the OpenMP library of torch's wheels for Linux (libgomp) starts a thread per core, and a thread that waits
for the others spins for milliseconds. If other processes use the cores, the thread that it waits for does not run.
"""

import math
import os
import time
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from neuron_sum import console

COUNT, POLICY = "OMP_NUM_THREADS", "OMP_WAIT_POLICY"
CHOSEN = "NEURON_SUM_CHOSE"
"""The names of the variables that neuron-sum set itself: a command that another one starts chooses them again."""
LAUNCHED = "TORCHELASTIC_RUN_ID"
"""Set by torchrun, which gives each process one thread unless the user or `divide` has set another number."""

BUSY = 0.5
"""Cores in use by other processes from which waiting threads sleep. Half a core of two: one thread is left."""

SHORTEST_S = 0.1
"""Seconds of the shortest measurement: the kernel counts in hundredths of a second."""


@dataclass(frozen=True)
class Usage:
    """Seconds of work until now.

    Attributes:
        at: The time of a clock.
        cores: Work of all processes on the cores that this process may use.
        own: Work of this process.
    """

    at: float
    cores: float
    own: float


def usage(root: Path = Path("/")) -> Usage | None:
    """The work until now; None if the kernel does not report it.

    Args:
        root: The folder with proc.
    """
    try:
        lines = (root / "proc/stat").read_text(encoding="utf-8").splitlines()
        allowed = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        ticks = 0
        for name, *times in (line.split() for line in lines if line.startswith("cpu")):
            if name in allowed:  # user, nice, system, idle, iowait, irq, softirq, steal; the guests are part of user
                ticks += sum(map(int, times[:8])) - sum(map(int, times[3:5]))
    except (OSError, AttributeError, ValueError):
        return None
    return Usage(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time())


def used_by_others(before: Usage, root: Path = Path("/")) -> float | None:
    """The number of cores that other processes have used since an earlier measurement.

    Args:
        before: The earlier measurement.
        root: As in `usage`.
    """
    time.sleep(max(0.0, before.at + SHORTEST_S - time.monotonic()))
    if (now := usage(root)) is None:
        return None
    return max(0.0, (now.cores - before.cores - (now.own - before.own)) / (now.at - before.at))


def cores(root: Path = Path("/")) -> int:
    """The cores that this process may use: by its CPU affinity, and by the quota of its container.

    Args:
        root: The folder with proc and sys.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min([allowed, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """The limits of this process's control groups and of those that contain them, in cores."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for controllers, path in (line.split(":", 2)[1:] for line in groups if line.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        folder = top / path.strip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(top):
                break
            try:
                if controllers:  # version 1
                    values = [
                        (group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
                    ]
                else:
                    values = (group / "cpu.max").read_text(encoding="utf-8").split()
                quota, period = map(float, values)
            except (OSError, ValueError):  # no such file, or "max"
                continue
            if quota > 0 and period > 0:
                yield quota / period


def _physical_cores(root: Path) -> int:
    """The allowed cores without the second threads of one core, which slow down products of matrices."""
    siblings = set()
    for core in os.sched_getaffinity(0):
        path = root / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list"
        siblings.add(path.read_text(encoding="utf-8") if path.is_file() else str(core))
    return len(siblings)


def choose(
    environment: MutableMapping[str, str], before: Usage | None, *, serves: bool = False, root: Path = Path("/")
) -> None:
    """Set the OpenMP variables that the user did not set; libgomp reads them when it is loaded.

    Args:
        environment: The environment of this process.
        before: A measurement at the start of the process; None if the kernel does not report the work of others.
        serves: Whether the process runs for so long that the cores used by others now do not limit its threads.
        root: As in `usage`.
    """
    if LAUNCHED in environment or not hasattr(os, "sched_getaffinity"):
        return
    for name in environment.pop(CHOSEN, "").split():
        environment.pop(name, None)
    others = (used_by_others(before, root) if before is not None else None) or 0.0
    chosen = {}
    if COUNT not in environment:
        free = round(len(os.sched_getaffinity(0)) - others)
        count = min(cores(root), _physical_cores(root))
        chosen[COUNT] = str(count if serves else max(1, min(count, free)))
    if others >= BUSY and not environment.keys() & {POLICY, "GOMP_SPINCOUNT"}:
        chosen[POLICY] = "PASSIVE"
    environment.update(chosen)
    environment[CHOSEN] = " ".join(chosen)


def restore(count: int) -> None:
    """Use as many threads as an unfinished run did, because the order of sums, and so the last bits, depend on them.

    A number that the user sets has priority; a warning then says that the weights may differ.

    Args:
        count: The number of threads of the run.
    """
    import torch

    now = torch.get_num_threads()
    if now == count:
        return
    if COUNT in os.environ and COUNT not in os.environ.get(CHOSEN, "").split():
        console.warn(
            f"the run was started with {count} threads, this process has {COUNT}={os.environ[COUNT]}: the last bits of "
            "its weights may differ from those of an uninterrupted run"
        )
        return
    torch.set_num_threads(count)
    console.note(f"using {count} thread{'s' if count > 1 else ''} instead of {now}, as before the interruption")


def divide(environment: MutableMapping[str, str], processes: int) -> None:
    """Divide the chosen threads among processes that are about to start; a number that the user set is for each.

    Args:
        environment: The environment that they inherit.
        processes: The number of processes.
    """
    if COUNT in environment.get(CHOSEN, "").split():
        environment[COUNT] = str(max(1, int(environment[COUNT]) // processes))


def describe(count: int) -> str:
    """The choice as a text for the terminal.

    Args:
        count: The number of threads of torch.
    """
    chosen, total = os.environ.get(CHOSEN, "").split(), cores()
    reasons = []
    if COUNT in chosen and count < min(total, _physical_cores(Path("/"))):
        reasons.append("other processes use the rest")
    reasons += [f"{name}={os.environ[name]}" for name in (COUNT, POLICY) if name in os.environ and name not in chosen]
    if POLICY in chosen:
        reasons.append("waiting threads sleep")
    shown = f" ({', '.join(reasons)})" if reasons else ""
    return f"threads: {count} of {total} core{'s' if total > 1 else ''}{shown}"
